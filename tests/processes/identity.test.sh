#!/usr/bin/env bash
# Whose data directory it is: a copy from the past, another cluster's, another server's, an empty one in
# place of one that is gone, and one that is in use are all refused, with code 3 and a sentence, and the
# cluster goes on without.
. "$(dirname "$0")/../cluster.sh"

start --servers 3 --no-restart --volume vol0:64MiB --segment-size 16MiB

# refused WHAT SENTENCE: storaged on server 3's configuration ends with 3 within 20 s, and says so.
refused() {
    local code=0
    timeout 20 "$BIN/storaged" --config "$DIR/server-3/storaged.toml" >"$WORK/out" 2>&1 </dev/null || code=$?
    if [ $code != 3 ] || ! grep -q "$2" "$WORK/out"; then
        echo "FAIL: $1: code $code, and not a word of '$2':"
        cat "$WORK/out"
        exit 1
    fi
    echo "ok: $1: $(grep -h ERROR "$WORK/out" | tail -n 1 | sed 's/.*ERROR storaged: //')"
}
# kill_3: and waits until it is gone.
kill_3() {
    local pid
    pid=$(pid_of 3)
    kill -9 "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
}
# start_3: by hand, for nobody starts it again.
start_3() {
    "$BIN/storaged" --config "$DIR/server-3/storaged.toml" --exit-on-stdin-close \
        < <(exec sleep 600) >>"$DIR/logs/server-3.log" 2>&1 &
    THIRD=$!
    wait_until 30 "every segment is whole again" all_healthy
}
data=$DIR/server-3/data

refused "a directory in use" "is in use by another process"
kill_3
cp -a "$data" "$WORK/past"
start_3
verify_in_background past 8 --size=48m
fio_must_be_clean "another life of server 3"
kill -9 "$THIRD"
while kill -0 "$THIRD" 2>/dev/null; do sleep 0.05; done
mv "$data" "$WORK/newest"

mv "$WORK/past" "$data"
refused "a copy from the past" "from the past"
grep -q "bring back" "$WORK/out" || { echo "FAIL: it does not say what to do"; exit 1; }
# Every start makes it look one life newer: whoever restarts it must not get it in that way.
for _ in 1 2 3 4; do
    refused "the same once more" "was refused by its cluster before"
done
mv "$data" "$WORK/past"

mkdir "$data"
refused "an empty directory where there was a full one" "belongs to store"
rm -rf "$data"

cp -a "$DIR/server-2/data" "$data"
refused "the directory of another server" "belongs to server 2"
rm -rf "$data"

# Another cluster's: a second one beside this one gives its server 3 away.
first=$DIR facts=$PETREL_CLUSTER
DIR=$WORK/second
start --servers 3 --volume other:64MiB --segment-size 16MiB
petrel dev --stop --dir "$DIR" >/dev/null
mv "$DIR/server-3/data" "$data"
DIR=$first PETREL_CLUSTER=$facts
refused "the directory of another cluster" "the peers that answer are of cluster"
rm -rf "$data"

mv "$WORK/newest" "$data"
start_3
echo "ok: with its newest directory server 3 is one of them again"
kill -9 "$THIRD"
