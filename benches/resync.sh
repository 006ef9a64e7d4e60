#!/usr/bin/env bash
# How much a replica that was away is sent: a server is stopped while fio writes 4 KiB at random, and
# goes on; what its segments' rebuilds copied is set beside what fio changed, in chunks of 256 KiB.
# A bench and not a test: AWAY (60 s), SIZE (4GiB), IOPS (100) change it.
. "$(dirname "$0")/../tests/cluster.sh"
away=${AWAY:-60} iops=${IOPS:-100}

# Three voters, so that two can do without the third; and nowhere else to put a third replica.
start --servers 3 --replicas 3 --segment-size 256MiB --volume "vol0:${SIZE:-4GiB}"
size=$(query 'd["volumes"][0]["size_bytes"]' volume list)
echo "--- filling $((size >> 20)) MiB"
fio --name=fill --ioengine=nbd --uri="$URI" --rw=write --bs=1m --iodepth=8 --size="$size" \
    --output="$WORK/fill.out"
pid=$(pid_of 2)
echo "--- server 2 (pid $pid) is away for $away s, under $iops writes a second"
kill -STOP "$pid"
fio --name=away --ioengine=nbd --uri="$URI" --rw=randwrite --bs=4k --iodepth=4 --size="$size" \
    --rate_iops="$iops" --time_based --runtime="$away" --randrepeat=0 \
    --write_iolog="$WORK/iolog" --output="$WORK/away.out"
kill -CONT "$pid"
wait_until 300 "every segment is whole again" all_healthy
changed=$(awk '$3 == "write" || $2 == "write" { for (i = 1; i <= NF; i++) if ($i == "write") print int($(i + 1) / 262144) }' \
    "$WORK/iolog" | sort -un | wc -l)
read -r copied reused < <(query '"%d %d" % tuple(sum(m[k] for m in d["migrations"] if m["state"] == "done") for k in ("bytes_copied", "bytes_reused"))' migration list)
echo "changed: $changed chunks, $((changed >> 2)) MiB; sent: $((copied >> 20)) MiB; found there: $((reused >> 20)) MiB"
python3 -c "print('sent / changed: %.2f' % ($copied / ($changed * 262144)))"
