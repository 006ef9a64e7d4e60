#!/usr/bin/env bash
# Self-repair and its brake: a server that stays dead is replaced without anybody asking; two of five
# that are hidden freeze rebuilding, which says why, and thaws when they are back.
. "$(dirname "$0")/../cluster.sh"
DOWN_AFTER=5
# A copy of 1 GiB takes seconds; a busy machine takes its time.
COPY_MAX=90

whole() { [ "$(query 'd["segments"]["healthy"] == d["segments"]["total"]' status)" = True ]; }
waits() { query '"\n".join(d["waiting_for"] or [])' status; }
says() { waits | grep "$1" >/dev/null; }
rebuilds() { query "sum(m['cause']['kind'] == 'rebuild' for m in d['migrations'])" migration list; }

echo "--- one of four stays dead"
start --servers 4 --replicas 2 --segment-size 64MiB --volume vol0:768MiB --down-after ${DOWN_AFTER}s --no-restart
wait_until 60 "every segment is whole" all_healthy
held=$(query "[s['segments'] for s in d['servers'] if s['id'] == 2][0]" server list)
[ "$held" -gt 0 ] || { echo "FAIL: server 2 holds nothing"; exit 1; }
verify_in_background death 40
sleep 3
since=$SECONDS
kill -9 "$(pid_of 2)"
wait_until 10 "what server 2 had is missed" eval '! whole'
[ "$(rebuilds)" = 0 ] || { echo "FAIL: it was not waited for"; exit 1; }
wait_until $((DOWN_AFTER + COPY_MAX)) "every segment is whole again, and nobody asked" whole
echo "    $held segments were rebuilt within $((SECONDS - since)) s of the kill"
[ "$(query "[s['segments'] for s in d['servers'] if s['id'] == 2][0]" server list)" = 0 ]
fio_must_be_clean "the death of a server for good"
petrel dev --stop --dir "$DIR"
rm -rf "$DIR"

echo "--- two of five are hidden"
start --servers 5 --replicas 3 --segment-size 64MiB --volume vol0:768MiB --down-after ${DOWN_AFTER}s
wait_until 60 "every segment is whole" all_healthy
verify_in_background hidden 45
sleep 3
# Not the leader: the two that are hidden have no vote to hold up.
leader=$(query 'd["leader"]' status)
hidden=$(for id in 1 2 3 4 5; do [ $id = "$leader" ] || echo $id; done | head -n 2 | paste -sd' ')
first=${hidden%% *}
# Those that will have one copy left.
in_both=$(query "' '.join(str(s['index']) for s in d['segments'] if {int(i) for i in '$hidden'.split()} <= {r['server'] for r in s['replicas']})" segment list vol0)
for id in $hidden; do kill -STOP "$(pid_of "$id")"; done
PETREL_CLUSTER=$(query "','.join('http://' + s['http'] for s in d['servers'] if str(s['id']) not in '$hidden'.split())" status)
export PETREL_CLUSTER
wait_until 30 "it says that rebuilding is frozen, and because of whom" says "server $first for .*frozen"
sleep $((DOWN_AFTER * 2))
# Last copies only: what has two of three waits.
others=$(query "[m['index'] for m in d['migrations'] if m['cause']['kind'] == 'rebuild' and str(m['index']) not in '$in_both'.split()]" migration list)
[ "$others" = "[]" ] || { echo "FAIL: rebuilt though frozen, and no last copies: $others (those are $in_both)"; exit 1; }
query "'\n'.join('    rebuilt while frozen: %s/%s, the last copy' % (m['volume'], m['index']) for m in d['migrations'] if m['cause']['kind'] == 'rebuild')" migration list
two=$(query "sum(len([r for r in s['replicas'] if r['role'] != 'joiner']) == 2 and s['migration'] is None for s in d['segments'])" segment list vol0)
[ "$two" -gt 0 ] || { echo "FAIL: nothing waits with two copies"; waits; exit 1; }
says "2 of 3 replicas are in sync; waits" || { echo "FAIL: it does not say what waits"; waits; exit 1; }
for id in $hidden; do kill -CONT "$(pid_of "$id")"; done
wait_until 30 "it thaws" eval '! says frozen'
wait_until $((DOWN_AFTER + COPY_MAX)) "every segment is whole again" all_healthy
fio_must_be_clean "the absence of two"
