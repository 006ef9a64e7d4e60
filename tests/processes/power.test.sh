#!/usr/bin/env bash
# Power cuts. Each server has an ext4 of its own, which is cut off as a power cut does it
# (EXT4_IOC_SHUTDOWN without a flush of its log): under one server while clients write, and under all
# of them at once, with the clients' machine dying too in every other round. Everything that was
# acknowledged must be there, and the file systems on top sound. ROUNDS: how many of each (default 2).
. "$(dirname "$0")/../disks.sh"
in_a_room "$@"
. "$(dirname "$0")/../cluster.sh"
trap disks_at_end EXIT
rounds=${ROUNDS:-2}
python=/usr/bin/python3
BLOCKS=4096

start --servers 3 --replicas 3 --volume raw:16MiB --segment-size 16MiB
own_disks 3 640M
petrel volume create vx --size 304MiB --replicas 3 --segment-size 32MiB >/dev/null
petrel volume create ve --size 96MiB --replicas 3 --segment-size 32MiB >/dev/null
socket=${URI#*socket=}
uri() { echo "nbd+unix:///$1?socket=$socket"; }

declare -A WRITER
start_writers() {
    $python "$TOOLS/blocks.py" write "$(uri raw)" "$WORK/raw.history" $BLOCKS "$1" >"$WORK/raw.out" 2>&1 &
    WRITER[raw]=$!
    for name in vx ve; do
        python3 "$TOOLS/files.py" write "$WORK/fs-$name/mnt" "$WORK/$name.history" "$1" >"$WORK/$name.out" 2>&1 &
        WRITER[$name]=$!
    done
}
# stop_writers WHAT: they must not have seen an error.
stop_writers() {
    local name
    kill "${WRITER[@]}"
    for name in "${!WRITER[@]}"; do
        wait "${WRITER[$name]}" || { echo "FAIL: the writer of $name saw an error: $1"; tail -n 5 "$WORK/$name.out" "$WORK/raw.history"; return 1; }
    done
    WRITER=()
    echo "ok: no writer saw an error: $1"
}
# Who waits for a disk that is gone ends once what is below it does.
kill_writers() {
    kill -9 "${WRITER[@]}" 2>/dev/null || true
    for name in vx ve; do cut_fs $name; done
    wait "${WRITER[@]}" 2>/dev/null || true
    WRITER=()
}
longest() { awk '$1 == "s" && $2 > m { m = $2 } END { print m / 1e6 " s" }' "$WORK/raw.history"; }
check_all() {
    $python "$TOOLS/blocks.py" check "$(uri raw)" "$WORK/raw.history" $BLOCKS
    for name in vx ve; do
        echo 3 >/proc/sys/vm/drop_caches
        python3 "$TOOLS/files.py" check "$WORK/fs-$name/mnt" "$WORK/$name.history"
    done
}
is_up() { [ "$(query "next(s['state'] for s in d['servers'] if s['id'] == $1)" server list)" = up ]; }

for name in vx:xfs ve:ext4; do
    attach_fs "${name%:*}" "$(uri "${name%:*}")"
    format_fs "${name%:*}" "${name#*:}"
    mount_fs "${name%:*}"
done
wait_until 60 "every segment is whole" all_healthy

for round in $(seq "$rounds"); do
    victim=$(((round - 1) % 3 + 1))
    echo "--- round $round: the power of server $victim fails while clients write"
    start_writers "$round"
    sleep 3
    cut_power $victim
    sleep 4
    kill_server $victim
    unmount_disk $victim
    mount_disk $victim
    sleep 3
    stop_writers "the power cut of server $victim"
    wait_until 60 "server $victim is back by itself" is_up $victim
    wait_until 60 "every segment is whole again" all_healthy
    check_all
done
echo "    the longest operation so far took $(longest)"

for round in $(seq "$rounds"); do
    with=clients
    [ $((round % 2)) = 1 ] || with=
    echo "--- round $round: the power of all servers fails at once${with:+, and that of the clients}"
    start_writers "$((round + 100))"
    sleep 3
    cut_power 1 2 3
    [ -z "$with" ] || kill_writers
    for id in 1 2 3; do kill_server $id; done
    for id in 1 2 3; do unmount_disk $id; done
    sleep 1
    for id in 1 2 3; do mount_disk $id; done
    if [ -z "$with" ]; then
        wait_until 60 "every segment is whole again" all_healthy
        sleep 2
        stop_writers "a power cut of all servers, which they waited for"
    else
        wait_until 60 "every segment is whole again" all_healthy
        for name in vx ve; do
            attach_fs $name "$(uri $name)"
            mount_fs $name # replays its log
        done
    fi
    check_all
    for name in vx:xfs ve:ext4; do
        umount "$WORK/fs-${name%:*}/mnt"
        check_fs "${name%:*}" "${name#*:}"
        mount_fs "${name%:*}"
    done
    echo "ok: xfs_repair -n and e2fsck -fn find nothing"
done
echo "    the longest operation of all took $(longest)"
for name in vx ve; do detach_fs $name; done

echo "--- the replicas on the disks of the stopped servers"
sleep 3 # quiet: what is in doubt is settled, and tables are written
petrel dev --stop --dir "$DIR" >/dev/null
python3 "$TOOLS/alike.py" "$DIR"/server-{1,2,3}/data/segments
