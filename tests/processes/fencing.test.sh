#!/usr/bin/env bash
# Two bridges, one volume: the second stands by, or takes over and fences the first (A1 to A5). What
# the first acknowledged is there through the second; what it sends after the fence never lands, not
# even if it was stopped in the middle of writing and goes on later.
. "$(dirname "$0")/../cluster.sh"
here=$(cd "$(dirname "$0")" && pwd)
bridges=()

end_bridges() {
    local status=$? pid
    set +e
    for pid in "${bridges[@]}"; do
        kill -CONT "$pid" 2>/dev/null
        kill -9 "$pid" 2>/dev/null
    done
    if [ "$status" != 0 ]; then tail -n 8 "$WORK"/*.log; fi
    (exit "$status")
    at_end
}
trap end_bridges EXIT

# bridge NAME ARGS...: a bridge on vol0 with a socket of its own; sets PID.
bridge() {
    local name=$1
    shift
    "$BIN/nbd-bridge" --cluster "$PETREL_CLUSTER" --listen "unix:$WORK/$name.sock" --export vol0 \
        "$@" 2>"$WORK/$name.log" &
    PID=$!
    bridges+=("$PID")
    wait_until 20 "bridge $name listens" test -S "$WORK/$name.sock"
}

client() { timeout "${T_LIMIT:-60}" /usr/bin/python3 "$here/fencing.py" "$@"; }

owner() { query "((d['attachment'] or {}).get('clients') or [{'owner': ''}])[0]['owner']" volume show vol0; }

# ended PID CODE WHAT: a bridge has ended with that code.
ended() {
    local code=0
    timeout 10 tail --pid="$1" -f /dev/null || { echo "FAIL: $3 is still there"; return 1; }
    wait "$1" || code=$?
    [ "$code" = "$2" ] || { echo "FAIL: $3 ended with $code, not $2"; return 1; }
    echo "ok: $3 ended with $code"
}

start --servers 3 --segment-size 64MiB --volume vol0:128MiB

echo "--- a standby waits until the volume is given back"
bridge first
first=$PID
client write "$WORK/first.sock" 11
bridge standby
standby=$PID
client read "$WORK/standby.sock" 11 >"$WORK/standby.out" 2>&1 &
reader=$!
wait_until 10 "the standby says who has the volume" grep -q "standing by.*(pid $first)" "$WORK/standby.log"
sleep 2
kill -0 "$reader" || { echo "FAIL: the standby's client did not wait"; cat "$WORK/standby.out"; exit 1; }
[[ $(owner) == *"(pid $first)"* ]]
kill -TERM "$first"
ended "$first" 0 "the first bridge, told to stop,"
wait "$reader" || { echo "FAIL: the standby's client"; cat "$WORK/standby.out"; exit 1; }
[[ $(owner) == *"(pid $standby)"* ]]
echo "ok: the standby has the volume, and what was written before"

echo "--- a holder that is killed is waited for: 10 s"
bridge third
third=$PID
client read "$WORK/third.sock" 11 >"$WORK/third.out" 2>&1 &
reader=$!
wait_until 10 "the third stands by" grep -q "standing by" "$WORK/third.log"
since=$SECONDS
kill -9 "$standby"
wait "$reader" || { echo "FAIL: the third's client"; cat "$WORK/third.out"; exit 1; }
took=$((SECONDS - since))
[ "$took" -ge 6 ] && [ "$took" -le 25 ] || { echo "FAIL: it took over after $took s"; exit 1; }
echo "ok: it took over $took s after the kill"

echo "--- a take-over under load"
client write-until-fenced "$WORK/third.sock" "$WORK/acknowledged" >"$WORK/loop.out" 2>&1 &
writer=$!
wait_until 20 "writes are acknowledged" test -s "$WORK/acknowledged"
bridge fourth --take-over
fourth=$PID
client check "$WORK/fourth.sock" "$WORK/acknowledged" "$writer"
wait "$writer" || { echo "FAIL: the client of the fenced bridge"; cat "$WORK/loop.out"; exit 1; }
cat "$WORK/loop.out"
ended "$third" 3 "the fenced bridge"
grep -q "(pid $fourth)" "$WORK/third.log" || { echo "FAIL: its log does not say who took over"; exit 1; }

echo "--- a bridge that is stopped with writes in flight, and goes on after it was taken over"
client flood "$WORK/fourth.sock" "$fourth" >"$WORK/flood.out" 2>&1 &
flood=$!
wait_until 30 "it is stopped with writes in flight" grep -q stopped "$WORK/flood.out"
bridge fifth --take-over
fifth=$PID
client write "$WORK/fifth.sock" 77
kill -CONT "$fourth"
wait "$flood" || { echo "FAIL: the client of the bridge that was stopped"; cat "$WORK/flood.out"; exit 1; }
cat "$WORK/flood.out"
ended "$fourth" 3 "the bridge that was stopped"
client read "$WORK/fifth.sock" 77
echo "ok: what the new one wrote stands"

echo "--- deleting an attached volume"
code=0
petrel volume delete vol0 >"$WORK/out" 2>&1 || code=$?
[ $code = 3 ] && grep -q -- --force "$WORK/out" || { echo "FAIL: it exits $code"; cat "$WORK/out"; exit 1; }
kill -TERM "$fifth"
ended "$fifth" 0 "the last bridge"
petrel volume delete vol0
echo "ok: it needs --force, or that nobody has it"
