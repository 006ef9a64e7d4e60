# Sourced by the tests that need a running cluster: starts `petrel dev` in a directory of its own
# and takes everything down again at the end, whatever happens.
set -euo pipefail
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/petrel/target}"
BIN=${PETREL_BIN:-$CARGO_TARGET_DIR/debug}
WORK=$(mktemp -d "${TMPDIR:-/tmp}/petrel-test.XXXXXX")
DIR=$WORK/cluster
failures=0

petrel() { "$BIN/petrel" "$@"; }

at_end() {
    local status=$?
    trap - EXIT
    if [ $status != 0 ] && [ -d "$DIR/logs" ]; then
        echo "--- the last lines of the daemons' logs"
        tail -n 15 "$DIR"/logs/*.log || true
    fi
    petrel dev --stop --dir "$DIR" >/dev/null 2>&1 || true
    if [ $status = 0 ]; then rm -rf "$WORK"; else echo "kept $WORK"; fi
    exit $status
}
trap at_end EXIT
trap 'exit 130' INT TERM

# start ARGS...: a detached cluster; sets URI, HTTP and PETREL_CLUSTER.
start() {
    petrel dev --dir "$DIR" --detach "$@" >"$WORK/facts" || { cat "$WORK/facts"; return 1; }
    read_facts
}

read_facts() {
    head -n 1 "$WORK/facts" | grep -qx 'petrel: ready'
    URI=$(sed -n 's/^nbd: //p' "$WORK/facts" | head -n 1)
    PETREL_CLUSTER=$(sed -n 's/^http: //p' "$WORK/facts" | paste -sd, -)
    export URI PETREL_CLUSTER
}

# pid_of ID: the storaged of a server, as last printed.
pid_of() {
    pgrep -f "storaged --config $DIR/server-$1/" | head -n 1
}

# query EXPRESSION COMMAND...: the value of a Python expression over the command's JSON, `d`.
query() {
    local expression=$1
    shift
    petrel "$@" --json | python3 -c "import json,sys; d=json.load(sys.stdin); print($expression)"
}

# wait_until SECONDS DESCRIPTION COMMAND...: polls until the command succeeds.
wait_until() {
    local limit=$1 what=$2 since=$SECONDS
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $((SECONDS - since)) -ge "$limit" ]; then
            echo "FAIL: after $limit s still not: $what"
            return 1
        fi
        sleep 0.3
    done
    echo "ok: $what (after $((SECONDS - since)) s)"
}

all_healthy() {
    [ "$(query 'd["segments"]["healthy"] == d["segments"]["total"] and d["health"] == "ok"' status)" = True ]
}

# verify_in_background NAME SECONDS [FIO OPTIONS]: fio that writes, reads back and compares.
verify_in_background() {
    local name=$1 seconds=$2
    shift 2
    fio --name="$name" --ioengine=nbd --uri="$URI" --rw=randrw --bs=4k --iodepth=32 --size=256m \
        --verify=crc32c --verify_backlog=512 --verify_fatal=1 --verify_state_save=0 \
        --time_based --runtime="$seconds" --output="$WORK/$name.fio" "$@" >"$WORK/$name.err" 2>&1 &
    FIO=$!
}

fio_must_be_clean() {
    if ! wait "$FIO"; then
        echo "FAIL: fio saw an error or a wrong byte during: $1"
        cat "$WORK"/*.err
        tail -n 30 "$WORK"/*.fio
        return 1
    fi
    if grep -hE 'verify:|err= *[1-9]' "$WORK"/*.err "$WORK"/*.fio; then
        echo "FAIL: fio complained during: $1"
        return 1
    fi
    echo "ok: fio saw no error and no wrong byte during: $1"
    grep -hE '^ +(read|write): IOPS' "$WORK"/*.fio | sed 's/^/    /' || true
    rm -f "$WORK"/*.fio
}
