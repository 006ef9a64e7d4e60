#!/usr/bin/env bash
# kill -9 of a storaged that is backup, of one that is primary, and of everything at once.
. "$(dirname "$0")/../cluster.sh"

start --servers 3 --segment-size 64MiB --volume vol0:256MiB
for role in backup primary; do
    verify_in_background "kill-$role" 20
    sleep 4
    victim=$(query "[r['server'] for r in d['segments'][0]['replicas'] if r['role']=='$role'][0]" segment list vol0)
    pid=$(pid_of "$victim")
    echo "--- kill -9 of server $victim (pid $pid), $role of vol0/0"
    kill -9 "$pid"
    fio_must_be_clean "the death of a $role"
    wait_until 120 "every segment is whole again" all_healthy
done

# sum FIELD: over the migrations that are done.
sum() { query "sum(m['$1'] for m in d['migrations'] if m['state'] == 'done')" migration list; }

echo "--- kill -9 of server 1 with nobody writing: what it has is found there, and not sent again"
copied=$(sum bytes_copied) reused=$(sum bytes_reused)
kill -9 "$(pid_of 1)"
sleep 3
wait_until 120 "every segment is whole again" all_healthy
copied=$(($(sum bytes_copied) - copied)) reused=$(($(sum bytes_reused) - reused))
echo "    sent $copied bytes, found $reused"
[ "$reused" -gt 0 ] && [ "$copied" -eq 0 ] || { echo "FAIL: a returning replica was sent what it has"; exit 1; }

echo "--- kill -9 of everything"
head -c 67108864 /dev/urandom >"$WORK/random"
nbdcopy --flush "$WORK/random" "$URI"
supervisor=$(cat "$DIR/petrel-dev.pid")
victims="$supervisor $(pgrep -f "$DIR/server-" || true) $(pgrep -f "nbd-bridge.*$DIR" || true)"
kill -9 $victims
sleep 1
start
nbdcopy "$URI" "$WORK/back"
cmp -n 67108864 "$WORK/back" "$WORK/random"
echo "ok: every flushed byte is there after kill -9 of the whole cluster"
wait_until 120 "every segment is whole again" all_healthy
