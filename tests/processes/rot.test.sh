#!/usr/bin/env bash
# Rot: 1,000 bits flipped beneath one server, under a running daemon and under a stopped one, in
# data and in checksum tables; a misdirected write; replicas that differ though each verifies. All
# of it is found and repaired, and none of it is ever served.
. "$(dirname "$0")/../cluster.sh"
rot() { /usr/bin/python3 "$(dirname "$0")/rot.py" "$@"; }
replicas() { echo "$DIR/server-$1/data/segments"; }
SEED=1795
ROTTEN=2 # the server whose disk rots

# mismatches: blocks found bad so far, by the counters of all servers.
mismatches() {
    python3 -c "
import os, sys, urllib.request
found = {'true': 0, 'false': 0}
for url in os.environ['PETREL_CLUSTER'].split(','):
    for line in urllib.request.urlopen(url + '/metrics', timeout=10).read().decode().splitlines():
        for repaired in found:
            if line.startswith('petrel_checksum_mismatches_total{repaired=\"%s\"}' % repaired):
                found[repaired] += int(line.split()[1])
if found['false']:
    sys.exit('FAIL: %d blocks were not repaired' % found['false'])
print(found['true'])"
}

# scrub WHAT EXPECTED: scrubs vol0; EXPECTED is "bad repaired not-repaired diverged unresolved".
scrub() {
    petrel scrub vol0 --max-mbps 1000 --json >"$WORK/scrub.json" || { cat "$WORK/scrub.json"; return 1; }
    local found
    found=$(python3 -c "
import json
servers = json.load(open('$WORK/scrub.json'))['servers']
keys = ['bad', 'repaired', 'unrepaired', 'diverged', 'unresolved']
print(*(sum(s['blocks_' + key] for s in servers) for key in keys))")
    if [ "$found" != "$2" ]; then
        echo "FAIL: $1: found '$found' (bad, repaired, not repaired, diverged, unresolved), not '$2'"
        cat "$WORK/scrub.json"
        return 1
    fi
    echo "ok: $1: $found (bad, repaired, not repaired, diverged, unresolved)"
}

start --servers 3 --replicas 3 --segment-size 1MiB --volume vol0:16MiB
rot fill "$DIR/nbd.sock" $SEED
wait_until 30 "no region is in doubt" rot settled "$(replicas 1)" "$(replicas 2)" "$(replicas 3)"
scrub "a volume nothing is wrong with" "0 0 0 0 0"

echo "--- 500 flips under a stopped daemon, 500 under a running one"
petrel dev --stop --dir "$DIR" >/dev/null
rot plant "$(replicas $ROTTEN)" 1 500 "$WORK/hits"
# And in the header of a table: its replica must be none the worse for it.
printf '\377' | dd of="$(find "$(replicas $ROTTEN)" -name '*.table' | sort | head -n 1)" \
    bs=1 seek=9 conv=notrunc status=none
start
wait_until 60 "all segments are healthy" all_healthy
rot plant "$(replicas $ROTTEN)" 2 500 "$WORK/hits"
hit=$(rot distinct "$WORK/hits")

rot check "$DIR/nbd.sock" $SEED
read_found=$(mismatches)
if [ "$read_found" = 0 ] || [ "$read_found" -ge "$hit" ]; then
    echo "FAIL: reads found $read_found of $hit: the test wants some found by reads and some left"
    exit 1
fi
echo "ok: reading found and repaired $read_found of $hit blocks, of segments that server $ROTTEN leads"
left=$((hit - read_found))
scrub "the rest of 1000 flips" "$left $left 0 0 0"
[ "$(mismatches)" = "$hit" ] || { echo "FAIL: $(mismatches) blocks counted, not $hit"; exit 1; }
echo "ok: the servers' counters say $hit too"
scrub "once more" "0 0 0 0 0"

echo "--- misdirected writes: a valid block over another one"
moved=0
for segment in $(query "' '.join(str(s['id']) for s in d['segments'][:4])" segment list vol0); do
    file=$(replicas $ROTTEN)/$(printf %016x "$segment").data
    dd if="$file" of="$file" bs=4096 skip=7 seek=$((20 + moved)) count=1 conv=notrunc,fsync status=none
    moved=$((moved + 1))
done
scrub "4 blocks in the wrong place" "4 4 0 0 0"

echo "--- replicas that differ though each verifies"
query "'\n'.join('{} {}'.format(s['id'], s['primary']) for s in d['segments'])" segment list vol0 >"$WORK/primaries"
# Its primaries may have left the rotten server by now, for its score.
read -r segment primary < <(sed -n 1p "$WORK/primaries")
rot forge "$(replicas "$primary")" "$segment" 30
read -r segment primary < <(sed -n 2p "$WORK/primaries")
rot forge "$(replicas $((primary % 3 + 1)))" "$segment" 31
scrub "a primary and a backup against the majority" "0 0 0 2 0"
rot check "$DIR/nbd.sock" $SEED
scrub "and once more" "0 0 0 0 0"

petrel scrub status
petrel dev --stop --dir "$DIR" >/dev/null
rot disks "$(replicas 1)" "$(replicas 2)" "$(replicas 3)"
