#!/usr/bin/env bash
# Disks that are full, that fail, that hang, that cannot be read: nothing of it reaches a client while
# another copy serves, and the last copy never acknowledges what it has not got. Server 2's disk lies
# on nbdkit, which fails and hangs on demand; the others have an ext4 each.
. "$(dirname "$0")/../disks.sh"
in_a_room "$@"
. "$(dirname "$0")/../cluster.sh"
trap disks_at_end EXIT
python=/usr/bin/python3
BLOCKS=12288
LAYERED=2

start --servers 3 --replicas 2 --volume vol0:48MiB --segment-size 16MiB
own_disks 3 224M
socket=${URI#*socket=}
uri() { echo "nbd+unix:///$1?socket=$socket"; }
log() { cat "$DIR/logs/server-$1.log"; }

# begin NAME: clients write vol0 from here on, until `finish`.
WRITER=
begin() {
    echo "--- $1"
    phase=$1
    echo "# $1" >>"$WORK/history"
    $python "$TOOLS/blocks.py" write "$URI" "$WORK/history" $BLOCKS $RANDOM >"$WORK/writer.out" 2>&1 &
    WRITER=$!
    sleep 2
}
# finish [LIMIT_S]: no client saw an error, nor waited longer than that.
finish() {
    local longest
    kill "$WRITER"
    wait "$WRITER" || { echo "FAIL: a client saw an error: $phase"; cat "$WORK/writer.out"; tail -n 3 "$WORK/history"; exit 1; }
    WRITER=
    longest=$(awk -v phase="# $phase" '$0 == phase { on = 1 } /^#/ && $0 != phase { on = 0 } on && $1 == "s" && $2 > m { m = $2 } END { print m / 1e6 }' "$WORK/history")
    echo "ok: no client saw an error, the longest wait was $longest s: $phase"
    if [ -n "${1:-}" ] && awk "BEGIN { exit !($longest > $1) }"; then
        echo "FAIL: that is more than $1 s"
        exit 1
    fi
    wait_until 90 "every segment is whole again" all_healthy
    $python "$TOOLS/blocks.py" check "$URI" "$WORK/history" $BLOCKS
}
# holders INDEX: the servers that have segment vol0/INDEX, its primary first.
holders() {
    query "' '.join(str(r['server']) for r in sorted(d['segments'][$1]['replicas'], key=lambda r: r['role'] != 'primary') if r['state'] == 'in_sync')" segment list vol0
}
# fill ID BYTES_LEFT: somebody else takes the room on that disk.
fill() {
    local free
    free=$(($(stat -f -c '%f * %S' "$DIR/server-$1/data")))
    if [ "$2" != 0 ]; then
        fallocate -l $((free - $2)) "$DIR/server-$1/data/filler"
    else
        # To the last byte, those kept for root too.
        dd if=/dev/zero of="$DIR/server-$1/data/filler" bs=64k status=none 2>/dev/null || true
        dd if=/dev/zero of="$DIR/server-$1/data/filler2" bs=4k status=none 2>/dev/null || true
    fi
}
failed_with() {
    petrel migration list --json | python3 -c "
import json, sys
reasons = [m.get('reason') or '' for m in json.load(sys.stdin)['migrations'] if m['state'] != 'done']
sys.exit(0 if any('$1' in reason for reason in reasons) else 1)"
}
wait_until 60 "every segment is whole" all_healthy

begin "a target whose disk is full"
target=1
for index in 0 1 2; do
    case " $(holders $index) " in *" $target "*) ;; *) break ;; esac
done
fill $target 8388608
petrel segment move "vol0/$index" --to $target --from "$(holders $index | cut -d' ' -f2)" >/dev/null || true
wait_until 30 "the migration ends and says why" failed_with "no space left"
rm "$DIR/server-$target/data/filler"
finish 3

begin "no room for the log of consensus either"
fill 1 0
for n in $(seq 10); do
    petrel volume create "n$n" --size 1MiB --replicas 1 >/dev/null 2>&1 || true
done
kill_server 1 # it does not have to, while what it has reserved lasts; but it cannot start
wait_until 10 "server 1 says that there is no room" bash -c "grep -q 'No space left' '$DIR/logs/server-1.log'"
sleep 3
log 1 | grep -m1 "No space left" | sed 's/.*storaged: /    /' | cut -c1-200
rm -f "$DIR"/server-1/data/filler*
finish 5

begin "a disk that fails what it is asked, by fault injection"
petrel fault inject 3 --error-rate 1 >/dev/null
sleep 4
petrel fault clear 3 >/dev/null
log 3 | grep -q ReplicaFaulted || { echo "FAIL: nothing was faulted"; exit 1; }
finish 5

begin "EIO from below the file system"
touch "$WORK/no-writes"
sleep 4
rm "$WORK/no-writes"
log 2 | grep -q "Input/output error" || { echo "FAIL: server 2 does not say why"; exit 1; }
kill_server 2
unmount_disk 2
mount_disk 2
finish 5

for how in "a file system that is frozen" "a disk that answers nothing"; do
    victim=2
    [ "$how" = "a disk that answers nothing" ] || victim=$(holders 0 | cut -d' ' -f1)
    primaries=$(query "sum(r['server'] == $victim and r['role'] == 'primary' for s in d['segments'] for r in s['replicas'])" segment list vol0)
    begin "$how, under server $victim, primary of $primaries segments of 3"
    case $how in
    *frozen) fsfreeze -f "$DIR/server-$victim/data" ;;
    *) layer p ;;
    esac
    sleep 12
    case $how in
    *frozen) fsfreeze -u "$DIR/server-$victim/data" ;;
    *) layer r ;;
    esac
    sleep 3
    finish 8
done

begin "a checksum table that cannot be read"
victims=$(ls "$DIR"/server-2/data/segments/*.table | wc -l)
supervisor=$(cat "$DIR/petrel-dev.pid")
pid=$(pid_of 2)
kill -STOP "$supervisor" # until the page cache has none of them
kill_server 2
while grep -q '^State:.*[RSD] ' "/proc/$pid/status" 2>/dev/null; do sleep 0.05; done
sync -f "$DIR/server-2/data"
python3 - "$DIR"/server-2/data/segments/*.table <<'P'
import os, sys
for path in sys.argv[1:]:
    os.posix_fadvise(os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
P
touch "$WORK/no-reads"
kill -CONT "$supervisor"
wait_until 20 "server 2 starts without them" bash -c "grep -q 'a replica is lost' '$DIR/logs/server-2.log'"
sleep 2
rm "$WORK/no-reads"
echo "    $(log 2 | grep 'a replica is lost' | grep -o 'segment=[0-9]*' | sort -u | wc -l) replicas of $victims could not be read"
finish 5

echo "--- the only copy's disk fails"
petrel volume create only --size 16MiB --replicas 1 --segment-size 16MiB >/dev/null
$python - "$(uri only)" <<'P'
import sys, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
handle.pwrite(b"A" * 4096, 0, nbd.CMD_FLAG_FUA)
P
# On all of them: by now some server's score is such that what it has is moved away from it.
for id in 1 2 3; do petrel fault inject $id --error-rate 1 >/dev/null; done
$python - "$(uri only)" <<'P'
import sys, time, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"B" * 4096)), 0)
until = time.monotonic() + 5
try:
    while time.monotonic() < until:
        handle.poll(100)
        if handle.aio_command_completed(cookie):
            sys.exit("FAIL: a write was acknowledged that no disk took")
    print("ok: the client waits")
except nbd.Error as error:
    print("ok: the client is told:", error)
P
for id in 1 2 3; do petrel fault clear $id >/dev/null; done
for id in 1 2 3; do kill_server $id; done
$python - "$(uri only)" <<'P'
import sys, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
found = bytes(handle.pread(4096, 0))
assert found in (b"A" * 4096, b"B" * 4096), "what was acknowledged is lost"
print("ok: what was acknowledged is there once the disk works again:", found[:1])
P
