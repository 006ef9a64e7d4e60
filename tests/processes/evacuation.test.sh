#!/usr/bin/env bash
# The main job: one server's disk turns slow, nobody touches anything, and its segments leave it,
# verified, while fio writes. LIMIT: seconds until its score must have passed 70 (default 60).
. "$(dirname "$0")/../cluster.sh"
limit=${LIMIT:-60}

start --servers 4 --segment-size 64MiB --volume vol0:512MiB
verify_in_background evacuation "${FIO_SECONDS:-100}"
sleep 20
slow=2
before=$(query "[s['segments'] for s in d['servers'] if s['id']==$slow][0]" server list)
echo "server $slow holds $before segments"
petrel fault inject $slow --read-latency-ms 80 --write-latency-ms 80
injected=$SECONDS
wait_until "$limit" "the score of server $slow is 70 or more" \
    bash -c "'$BIN/petrel' score $slow --json | python3 -c 'import json,sys; sys.exit(not (json.load(sys.stdin)[\"score\"] or 0) >= 70)'"
petrel score "$slow"
wait_until 120 "server $slow holds no segment" \
    bash -c "'$BIN/petrel' server list --json | python3 -c 'import json,sys; sys.exit([s[\"segments\"] for s in json.load(sys.stdin)[\"servers\"] if s[\"id\"]==$slow][0])'"
echo "evacuated $((SECONDS - injected)) s after the fault"
petrel migration list --json | python3 -c "
import json, sys
moves = [m for m in json.load(sys.stdin)['migrations'] if m['cause']['kind'] == 'score' and m['state'] == 'done']
assert len(moves) >= $before, (len(moves), $before)
for m in moves:
    assert m['verified'] and m['digest'] and m['cause']['server'] == $slow, m
    assert m['cause']['score'] >= 70, m
    print('   ', m['volume'], m['index'], m['from'], '->', m['to'], m['cause']['mode'], m['cause']['score'], m['digest'], 'pause us', m['writer_pause_us'])"
fio_must_be_clean "the evacuation"
