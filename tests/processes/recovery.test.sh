#!/usr/bin/env bash
# Disasters, and the verbs of docs/recovery.md: an older copy of a segment is forced; every consensus
# log is lost and the map made from headers; a majority of the servers is lost with all they had.
. "$(dirname "$0")/../cluster.sh"
here=$(cd "$(dirname "$0")" && pwd)
MIB=$((1 << 20))
SEGMENT=$((32 * MIB))
children=()

end_children() {
    local status=$? pid
    set +e
    for pid in "${children[@]}"; do kill -9 "$pid" 2>/dev/null; done
    if [ "$status" != 0 ]; then tail -n 12 "$WORK"/*.log; fi
    (exit "$status")
    at_end
}
trap end_children EXIT

client() { timeout "${T_LIMIT:-60}" /usr/bin/python3 "$here/recovery.py" "$@"; }

# must CODE TEXT COMMAND...: it ends with that code, and says so.
must() {
    local code=$1 text=$2 ended=0
    shift 2
    "$@" >"$WORK/out" 2>&1 || ended=$?
    if [ "$ended" != "$code" ] || ! grep -q -- "$text" "$WORK/out"; then
        echo "FAIL: $* ends with $ended, not $code and '$text'"
        cat "$WORK/out"
        return 1
    fi
}

# server ID: a storaged of its own, that does not end with anybody.
server() {
    "$BIN/storaged" --config "$DIR/server-$1/storaged.toml" </dev/null 2>>"$WORK/server-$1.log" &
    children+=("$!")
    eval "SERVER_$1=$!"
}

# bridge NAME ARGS...: a bridge on every volume with a socket of its own; sets PID.
bridge() {
    local name=$1
    shift
    "$BIN/nbd-bridge" --cluster "$PETREL_CLUSTER" --listen "unix:$WORK/$name.sock" "$@" \
        2>"$WORK/$name.log" &
    PID=$!
    children+=("$PID")
    wait_until 20 "bridge $name listens" test -S "$WORK/$name.sock"
}

uri() { echo "nbd+unix:///$2?socket=$WORK/$1.sock"; }

segment() { query "d['segments'][$1]$2" segment list vol0; }

is() { [ "$(segment "$1" "$2")" = "$3" ]; }

serves() { client check "$URI" "$1" "$2" $((2 * MIB)); }

voters_agree() { [ "$(query "d['consensus'] == 'ok' and all(s['state'] in ('up', 'removed') for s in d['servers'])" status)" = True ]; }

echo "--- i: nobody in sync is left of a segment, and an ex-member has an older copy"
start --servers 5 --replicas 2 --segment-size 32MiB --volume vol0:64MiB --no-restart
client write "$URI" 1 0 $((2 * MIB))
client write "$URI" 2 $SEGMENT $MIB
read -r from stays to < <(petrel segment list vol0 --json | python3 -c "
import json, sys
first, second = json.load(sys.stdin)['segments']
held = [r['server'] for r in first['replicas']]
free = {1, 2, 3, 4, 5} - set(held) - {r['server'] for r in second['replicas']}
print(held[1], held[0], min(free))")
petrel segment move vol0/0 --from "$from" --to "$to" >/dev/null
client write "$URI" 5 $MIB $MIB
must 3 "in sync and answers" petrel segment force-primary vol0/0 --accept-data-loss --yes
kill -9 "$(pid_of "$stays")" "$(pid_of "$to")"
mv "$DIR/server-$stays/data" "$WORK/away"
rm -rf "$DIR/server-$to/data"
must 2 "accept-data-loss" petrel segment force-primary vol0/0
grep -q "Server $from's copy" "$WORK/out"
must 2 "say --yes" petrel segment force-primary vol0/0 --accept-data-loss </dev/null
wait_until 20 "the segment is unavailable" is 0 "['state']" unavailable
if timeout 3 /usr/bin/python3 "$here/recovery.py" check "$URI" 1 0 4096 >"$WORK/out" 2>&1; then
    echo "FAIL: it was read, though nobody has it"
    exit 1
fi
# The ex-member keeps its file for as long as this lasts, beyond its 10 s of grace (M11).
sleep 12
[ "$(query "[c['server'] for c in d['candidates']]" segment candidates vol0/0)" = "[$from]" ]
petrel segment force-primary vol0/0 --accept-data-loss --yes
wait_until 20 "the older copy serves" is 0 "['primary']" "$from"
client check "$URI" 1 0 $MIB
client check "$URI" 1,5 $MIB $MIB >"$WORK/out"
grep -q 'patterns \[1\]' "$WORK/out" || { echo "FAIL: the newer data came from nowhere"; cat "$WORK/out"; exit 1; }
is 0 "['data_loss_accepted']" True
petrel status | grep -q "data loss"
client write "$URI" 6 0 $((64 * 1024))
mv "$WORK/away" "$DIR/server-$stays/data"
server "$stays"
wait_until 90 "it is whole again" is 0 "['state']" healthy
client check "$URI" 6 0 $((64 * 1024))
client check "$URI" 1 $((64 * 1024)) $((2 * MIB - 64 * 1024))
client check "$URI" 2 $SEGMENT $MIB
echo "ok: what a member that came back had was not mixed in"
kill -9 "${children[@]}" 2>/dev/null || true
children=()
petrel dev --stop --dir "$DIR" >/dev/null
rm -rf "$DIR"

echo "--- iii: every consensus log is lost; the map is made from the headers"
start --servers 3 --replicas 2 --segment-size 32MiB --volume vol0:128MiB
python3 -c "
import random, sys
random.seed(7)
for _ in range(128): sys.stdout.buffer.write(random.randbytes(1 << 20))" >"$WORK/random"
nbdcopy --flush "$WORK/random" "$URI"
sleep 2 # the catalogue is a second behind the map
bridge old --take-over
T_LIMIT=300 client left-over "$(uri old vol0)" "$WORK/now" >"$WORK/left-over.out" 2>&1 &
left_over=$!
wait_until 20 "a client is attached" grep -q attached "$WORK/left-over.out"
client sums "$(uri old vol0)" $SEGMENT 0 1 2 3 >"$WORK/sums"
must 3 "in use" petrel cluster recover --data-dir "$DIR/server-1/data" --from-headers --accept-data-loss --yes
petrel dev --stop --dir "$DIR" >/dev/null
rm -rf "$DIR"/server-?/data/consensus
all=(--data-dir "$DIR/server-1/data" --data-dir "$DIR/server-2/data" --data-dir "$DIR/server-3/data")
must 3 "from-headers" petrel cluster recover "${all[@]}" --accept-data-loss --yes
must 2 "accept-data-loss" petrel cluster recover "${all[@]}" --from-headers
must 2 "say --yes" petrel cluster recover "${all[@]}" --from-headers --accept-data-loss </dev/null
petrel cluster recover "${all[@]}" --from-headers --accept-data-loss --yes
for id in 1 2 3; do server $id; done
wait_until 60 "the cluster is formed" voters_agree
touch "$WORK/now"
wait "$left_over" || { echo "FAIL: the client from before"; cat "$WORK/left-over.out"; exit 1; }
cat "$WORK/left-over.out"
wait_until 60 "every segment serves" all_healthy
bridge new
client sums "$(uri new vol0)" $SEGMENT 0 1 2 3 >"$WORK/sums.now"
diff "$WORK/sums" "$WORK/sums.now"
echo "ok: every byte is what it was, and its client from before is refused"

echo "--- ii: two servers of three are lost with all they had"
read -r -a held < <(query "' '.join(str(s['index']) for s in d['segments'] if 3 in [r['server'] for r in s['replicas']])" segment list vol0)
kill -9 "$PID" "$SERVER_1" "$SERVER_2" "$SERVER_3"
wait "$SERVER_1" "$SERVER_2" "$SERVER_3" 2>/dev/null || true
mv "$DIR/server-2/data" "$WORK/lost"
rm -rf "$DIR/server-1/data"
petrel cluster recover --data-dir "$DIR/server-3/data" --accept-data-loss --yes --json >"$WORK/recovered"
cluster=$(python3 -c "import json; print(json.load(open('$WORK/recovered'))['cluster'])")
server 3
three=$(sed -n 's/^http = "\(.*\)"/\1/p' "$DIR/server-3/storaged.toml" | head -n 1)
export PETREL_CLUSTER=http://$three
wait_until 60 "server 3 decides" petrel volume list
python3 - "$DIR" "$cluster" <<'PY'
import os, re, socket, sys
directory, cluster = sys.argv[1:]
def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
three = open(f"{directory}/server-3/storaged.toml").read()
data, http = (re.search(rf'^{key} = "(.*)"', three, re.M)[1] for key in ("listen", "http"))
for id in (4, 5):
    home = f"{directory}/server-{id}"
    os.makedirs(home)
    own_data, own_http = f"127.0.0.1:{port()}", f"127.0.0.1:{port()}"
    with open(f"{home}/storaged.toml", "w") as out:
        out.write(f'''id = {id}
data_dir = "{home}/data"
listen = "{own_data}"
http = "{own_http}"
cluster = "{cluster}"
peers = [{{ id = {id}, data = "{own_data}", http = "{own_http}" }},
         {{ id = 3, data = "{data}", http = "{http}" }}]
''')
PY
server 4
server 5
up() { [ "$(query "sum(s['state'] == 'up' for s in d['servers'])" status)" = "$1" ]; }
wait_until 60 "two new servers are in" up 3
bridge reader --read-only
client sums "$(uri reader vol0)" $SEGMENT "${held[@]}" >"$WORK/sums.now"
for index in "${held[@]}"; do grep "^$index " "$WORK/sums"; done | diff - "$WORK/sums.now"
echo "ok: segments ${held[*]}, which server 3 had, have the right bytes"

# A server of the lost majority comes back as it was: nobody talks to it.
mv "$WORK/lost" "$DIR/server-2/data"
server 2
wait_until 30 "server 2 is refused" grep -q "of another generation" "$WORK/server-3.log"
kill -9 "$SERVER_2"
wait "$SERVER_2" 2>/dev/null || true
must 3 "was started since" petrel cluster rejoin --data-dir "$DIR/server-2/data" --ticket "$cluster:1"

whole() { [ "$(query "sum(s['state'] == 'healthy' for s in d['segments'])" segment list vol0)" -ge ${#held[@]} ]; }
wait_until 120 "what was left is whole again on new servers" whole
petrel volume create vol1 --size 64MiB --segment-size 32MiB --replicas 2 >/dev/null
bridge writer
URI=$(uri writer vol1)
verify_in_background recovered 5 --size=64m
fio_must_be_clean "writing to the recovered cluster"
