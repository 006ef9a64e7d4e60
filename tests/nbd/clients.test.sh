#!/usr/bin/env bash
# Foreign NBD clients against a cluster of three servers: libnbd, nbdcopy, qemu, fio, a file system.
. "$(dirname "$0")/../cluster.sh"
here=$(dirname "$0")

start --servers 3 --volume vol0:1GiB --segment-size 256MiB
nbdinfo "$URI" | sed 's/^/    /'

echo "--- 256 MiB in and out"
head -c 268435456 /dev/urandom >"$WORK/random"
nbdcopy --flush "$WORK/random" "$URI"
nbdcopy "$URI" "$WORK/back"
cmp -n 268435456 "$WORK/back" "$WORK/random"
echo "ok: nbdcopy in and out is equal"
rm "$WORK/random" "$WORK/back"

for check in "/usr/bin/python3 $here/conf-libnbd.py" "bash $here/libnbd-tools.sh" \
    "bash $here/qemu-tools.sh" "bash $here/fio-verify.sh"; do
    echo "--- $check"
    PATH=/usr/bin:$PATH $check "$URI" || failures=$((failures + 1))
done
if [ -e /dev/fuse ] && [ "$(id -u)" = 0 ]; then
    echo "--- file systems"
    STRESS=2 PATH=/usr/bin:$PATH bash "$here/fs-roundtrip.sh" "$URI" xfs ext4 || failures=$((failures + 1))
else
    echo "SKIP file systems: they need root and /dev/fuse"
fi
[ $failures = 0 ] || { echo "FAIL: $failures of the client suites"; exit 1; }
