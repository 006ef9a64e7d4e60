#!/usr/bin/env bash
# Every segment moves back and forth while fio writes and verifies. MOVES: how often (default 2).
. "$(dirname "$0")/../cluster.sh"
rounds=${MOVES:-2}

is_whole() {
    [ "$(query "all(s['state']=='healthy' for s in d['segments'] if s['index']==$1)" segment list vol0)" = True ]
}

start --servers 3 --segment-size 64MiB --volume vol0:512MiB
verify_in_background moves "${FIO_SECONDS:-$((rounds * 20 + 5))}"
sleep 2
for round in $(seq "$rounds"); do
    for index in 0 1 2 3 4 5 6 7; do
        wait_until 60 "segment $index is whole" is_whole "$index" >"$WORK/wait" || { cat "$WORK/wait"; exit 1; }
        read -r from to < <(petrel segment list vol0 --json | python3 -c "
import json, sys
segment = json.load(sys.stdin)['segments'][$index]
holders = [r['server'] for r in segment['replicas'] if r['state'] == 'in_sync']
print(holders[$round % len(holders)], ({1, 2, 3} - set(holders)).pop())")
        petrel segment move "vol0/$index" --from "$from" --to "$to" >/dev/null
    done
    echo "ok: round $round of $rounds, every segment moved"
done
petrel migration list --json | python3 -c "
import json, sys
done = [m for m in json.load(sys.stdin)['migrations'] if m['cause']['kind'] == 'operator']
assert len(done) >= 8 * $rounds, len(done)
for m in done:
    assert m['state'] == 'done' and m['verified'] and m['digest'], m
pauses = sorted(m['writer_pause_us'] for m in done)
print('ok:', len(done), 'moves, all verified; writer pause us: median', pauses[len(pauses) // 2], 'max', pauses[-1])"
fio_must_be_clean "moving every segment"

echo "--- refusals"
read -r held < <(query "d['segments'][0]['replicas'][0]['server']" segment list vol0)
set +e
petrel segment move vol0/0 --to "$held" >"$WORK/out" 2>&1; code=$?
[ $code = 3 ] || { echo "FAIL: a move to a holder exits $code"; cat "$WORK/out"; exit 1; }
petrel segment move nosuch/0 --to 1 >"$WORK/out" 2>&1; code=$?
[ $code = 1 ] || { echo "FAIL: a move of an unknown volume exits $code"; cat "$WORK/out"; exit 1; }
petrel volume create big --size 100TiB >"$WORK/out" 2>&1; code=$?
[ $code = 3 ] || { echo "FAIL: a volume beyond the space exits $code"; cat "$WORK/out"; exit 1; }
set -e
echo "ok: refused moves and volumes say so"
