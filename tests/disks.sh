# Sourced by the tests of disks, after tests/cluster.sh: a small file system of its own under each
# server, and file systems of clients over volumes (NBD, nbdfuse, a loop device).
#
# Everything is mounted in a mount namespace of the script's own (`in_a_room`), so that nothing of it
# outlives the script. Needs root, /dev/fuse and loop devices.

# in_a_room: goes on in a mount namespace of its own; says SKIP and ends where that cannot be.
# Called before cluster.sh is sourced.
in_a_room() {
    [ -z "${PETREL_ROOM:-}" ] || return 0
    if [ "$(id -u)" != 0 ] || [ ! -e /dev/fuse ] || [ ! -e /dev/loop-control ]; then
        echo "SKIP $(basename "$0"): needs root, /dev/fuse and loop devices"
        exit 0
    fi
    PETREL_ROOM=1 exec unshare --mount --propagation private bash "$0" "$@"
}

TOOLS=$(dirname "${BASH_SOURCE[0]}")/processes

# own_disks SERVERS SIZE: stops the cluster, moves the data directory of each server to an ext4 of its
# own, and starts the cluster again.
own_disks() {
    local id data
    petrel dev --stop --dir "$DIR" >/dev/null
    for id in $(seq "$1"); do
        data=$DIR/server-$id/data
        truncate -s "$2" "$WORK/disk-$id"
        mkfs.ext4 -q -E lazy_itable_init=0,nodiscard "$WORK/disk-$id"
        mv "$data" "$WORK/moved-$id"
        mkdir "$data"
        # What an absent disk leaves is a directory nothing can be made in: an operator does the same.
        chattr +i "$data" 2>/dev/null || true
        mount_disk "$id"
        cp -a --sparse=never "$WORK/moved-$id/." "$data/"
        rm -rf "$WORK/moved-$id"
    done
    petrel dev --dir "$DIR" --detach >"$WORK/facts" || { cat "$WORK/facts"; return 1; }
    read_facts
}

# Also of what is dead, which mountpoint(1) cannot look at.
is_mounted() { awk -v at="$1" '$5 == at { found = 1 } END { exit !found }' /proc/self/mountinfo; }

mount_disk() {
    if [ "$1" = "${LAYERED:-}" ]; then
        mount_layered "$1"
    else
        mount -o loop "$WORK/disk-$1" "$DIR/server-$1/data"
    fi
}

# mount_layered ID: the disk lies on nbdkit, which fails reads while $WORK/no-reads is there, writes
# while $WORK/no-writes is, and hangs after `layer p` until `layer r`.
mount_layered() {
    if [ -z "${NBDKIT:-}" ]; then
        nbdkit --foreground --unix "$WORK/layer.sock" --filter=pause --filter=error file "$WORK/disk-$1" \
            pause-control="$WORK/layer.control" error=EIO \
            error-pread-rate=100% error-pread-file="$WORK/no-reads" \
            error-pwrite-rate=100% error-pwrite-file="$WORK/no-writes" >"$WORK/nbdkit.log" 2>&1 &
        NBDKIT=$!
        while [ ! -S "$WORK/layer.sock" ]; do kill -0 "$NBDKIT"; sleep 0.1; done
        attach_fs "layer" "nbd+unix:///?socket=$WORK/layer.sock"
    fi
    mount "${LOOP[layer]}" "$DIR/server-$1/data"
}
layer() {
    python3 -c "
import socket, sys
control = socket.socket(socket.AF_UNIX)
control.connect('$WORK/layer.control')
control.sendall(b'$1')
assert control.recv(1), 'no answer'"
}

# unmount_disk ID: as soon as nobody uses it. A killed server may have operations under way, and may
# be started again before we come to it.
unmount_disk() {
    local since=$SECONDS
    until umount "$DIR/server-$1/data" 2>"$WORK/umount"; do
        [ $((SECONDS - since)) -lt 20 ] || { echo "FAIL: cannot unmount the disk of server $1"; cat "$WORK/umount"; return 1; }
        kill_server "$1"
        sleep 0.05
    done
}

# cut_power ID...: from here on these disks take nothing, and forget what was not flushed.
cut_power() {
    local id
    for id; do python3 "$TOOLS/cut.py" "$DIR/server-$id/data" & done
    wait $(jobs -p | tail -n $#) || return 1
}

kill_server() {
    local pid
    pid=$(pid_of "$1") || return 0
    kill -9 "$pid" 2>/dev/null || true
}

# A file system over a volume. attach_fs NAME URI, format_fs NAME TYPE, mount_fs NAME; what belongs
# to it is in $WORK/fs-NAME: fuse/disk (nbdfuse), mnt (the file system).
declare -A NBDFUSE LOOP
attach_fs() {
    local room=$WORK/fs-$1
    mkdir -p "$room/fuse" "$room/mnt"
    nbdfuse "$room/fuse/disk" "$2" >>"$room/nbdfuse.log" 2>&1 &
    NBDFUSE[$1]=$!
    for _ in $(seq 300); do
        [ -s "$room/fuse/disk" ] && break
        kill -0 "${NBDFUSE[$1]}" || { cat "$room/nbdfuse.log"; return 1; }
        sleep 0.1
    done
    LOOP[$1]=$(losetup --direct-io=on -f --show "$room/fuse/disk")
}
format_fs() {
    case $2 in
    xfs) mkfs.xfs -qf "${LOOP[$1]}" ;;
    ext4) mkfs.ext4 -qF "${LOOP[$1]}" ;;
    esac
}
mount_fs() { mount "${LOOP[$1]}" "$WORK/fs-$1/mnt"; }

# check_fs NAME TYPE: the file system, its log replayed and not mounted, is sound.
check_fs() {
    case $2 in
    xfs) xfs_repair -n "${LOOP[$1]}" >"$WORK/fsck" 2>&1 ;;
    ext4) e2fsck -fn "${LOOP[$1]}" >"$WORK/fsck" 2>&1 ;;
    esac || { echo "FAIL: $2 on $1 is not clean"; tail -n 30 "$WORK/fsck"; return 1; }
}

# detach_fs NAME: in order. cut_fs NAME: as a machine that loses power does; what it had not written
# is lost.
detach_fs() {
    local room=$WORK/fs-$1
    ! is_mounted "$room/mnt" || timeout 60 umount "$room/mnt" || return 1
    release_fs "$1"
}
cut_fs() {
    local room=$WORK/fs-$1
    kill -9 "${NBDFUSE[$1]}" 2>/dev/null || true
    ! is_mounted "$room/mnt" || umount "$room/mnt" 2>/dev/null || umount -l "$room/mnt" || true
    release_fs "$1"
}
release_fs() {
    local room=$WORK/fs-$1
    [ -z "${LOOP[$1]:-}" ] || losetup -d "${LOOP[$1]}" || true
    ! is_mounted "$room/fuse" || fusermount3 -u "$room/fuse" 2>/dev/null || fusermount3 -uz "$room/fuse" || true
    if [ -n "${NBDFUSE[$1]:-}" ]; then
        kill "${NBDFUSE[$1]}" 2>/dev/null || true
        wait "${NBDFUSE[$1]}" 2>/dev/null || true
    fi
    LOOP[$1]= NBDFUSE[$1]=
}

# Before what cluster.sh does at the end: let go of what hangs on the cluster.
disks_at_end() {
    local status=$? name id
    trap - EXIT
    set +e
    [ ! -S "$WORK/layer.control" ] || layer r
    rm -f "$WORK/no-reads" "$WORK/no-writes"
    for id in 1 2 3 4 5; do fsfreeze -u "$DIR/server-$id/data"; done >/dev/null 2>&1
    for name in "${!NBDFUSE[@]}"; do
        [ "$name" = layer ] || [ -z "${NBDFUSE[$name]}" ] || cut_fs "$name"
    done >/dev/null 2>&1
    if [ $status != 0 ] && [ -d "$DIR/logs" ]; then
        echo "--- the last lines of the daemons' logs"
        tail -n 15 "$DIR"/logs/*.log
    fi
    petrel dev --stop --dir "$DIR" >/dev/null 2>&1
    for id in 1 2 3 4 5; do
        ! is_mounted "$DIR/server-$id/data" || umount "$DIR/server-$id/data" || umount -l "$DIR/server-$id/data"
        [ ! -d "$DIR/server-$id/data" ] || chattr -i "$DIR/server-$id/data" 2>/dev/null
    done
    [ -z "${NBDFUSE[layer]:-}" ] || release_fs layer
    [ -z "${NBDKIT:-}" ] || kill "$NBDKIT"
    if [ $status = 0 ]; then rm -rf "$WORK"; else rm -f "$WORK"/disk-*; echo "kept $WORK"; fi
    exit $status
}
