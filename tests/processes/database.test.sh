#!/usr/bin/env bash
# Databases on file systems on volumes, while servers die, stop, and every segment moves, and while the
# machine of the databases dies itself: SQLite (both kinds of journal) on XFS, PostgreSQL on ext4. Every
# committed row must be there. ROUNDS: how often (default 1).
. "$(dirname "$0")/../disks.sh"
in_a_room "$@"
. "$(dirname "$0")/../cluster.sh"
trap databases_at_end EXIT
rounds=${ROUNDS:-1}
PG=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1)
[ -n "$PG" ] || { echo "SKIP database.test.sh: needs the package postgresql"; exit 0; }

databases_at_end() {
    local status=$?
    [ -z "${POSTMASTER:-}" ] || kill -9 $(postgres_pids) 2>/dev/null
    (exit $status)
    disks_at_end
}
# Each backend is in a session of its own.
postgres_pids() { echo "$POSTMASTER" $(pgrep -P "$POSTMASTER"); }
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }

start --servers 3 --replicas 2 --volume lite:304MiB --segment-size 64MiB
petrel volume create post --size 192MiB --replicas 2 --segment-size 64MiB >/dev/null
socket=${URI#*socket=}
uri() { echo "nbd+unix:///$1?socket=$socket"; }
LITE=$WORK/fs-lite/mnt
POST=$WORK/fs-post/mnt
mkdir "$WORK/run"
chmod 755 "$WORK" && chown postgres "$WORK/run"

start_postgres() {
    setpriv --reuid=postgres --regid=postgres --clear-groups \
        "$PG/postgres" -D "$POST/data" -k "$WORK/run" -c listen_addresses= \
        -c max_wal_size=48MB -c min_wal_size=16MB -c shared_buffers=8MB -c checkpoint_timeout=30s >>"$WORK/postgres.log" 2>&1 &
    POSTMASTER=$!
    wait_until 60 "PostgreSQL is up" "$PG/pg_isready" -q -h "$WORK/run"
}
declare -A WRITER
start_writers() {
    touch "$WORK"/{wal,delete,postgres}.ledger
    for mode in wal delete; do
        python3 "$TOOLS/databases.py" sqlite write "$LITE/$mode.db" "$WORK/$mode.ledger" $mode >>"$WORK/writers.out" 2>&1 &
        WRITER[$mode]=$!
    done
    python3 "$TOOLS/databases.py" postgres write "$WORK/run" "$WORK/postgres.ledger" >>"$WORK/writers.out" 2>&1 &
    WRITER[postgres]=$!
}
alive() {
    for mode in "${!WRITER[@]}"; do
        kill -0 "${WRITER[$mode]}" || { echo "FAIL: the writer of $mode has ended: $1"; cat "$WORK/writers.out" "$WORK/postgres.log" | tail -n 30; exit 1; }
    done
    echo "ok: no database saw an error: $1"
}
check_all() {
    for mode in wal delete; do
        echo "sqlite, $mode: $(python3 "$TOOLS/databases.py" sqlite check "$LITE/$mode.db" "$WORK/$mode.ledger" $mode)"
    done
    echo "postgres: $(python3 "$TOOLS/databases.py" postgres check "$WORK/run" "$WORK/postgres.ledger")"
    "$PG/pg_amcheck" -h "$WORK/run" -U postgres --install-missing --heapallindexed postgres
    echo "ok: pg_amcheck finds nothing"
}
member() { query "[r['server'] for r in d['segments'][0]['replicas'] if r['role'] == '$1' and r['state'] == 'in_sync'][0]" segment list post; }
# await_growth: each database commits something now.
await_growth() {
    local before after
    for mode in wal delete postgres; do
        before=$(wc -l <"$WORK/$mode.ledger")
        for _ in $(seq 200); do
            after=$(wc -l <"$WORK/$mode.ledger")
            [ "$after" -le $((before + 5)) ] || break
            sleep 0.1
        done
        [ "$after" -gt $((before + 5)) ] || { echo "FAIL: $mode commits nothing any more"; exit 1; }
    done
}

attach_fs lite "$(uri lite)"
format_fs lite xfs
mount_fs lite
attach_fs post "$(uri post)"
format_fs post ext4
mount_fs post
mkdir -m 700 "$POST/data"
chown postgres "$POST/data"
as_postgres "$PG/initdb" -D "$POST/data" --data-checksums --wal-segsize=4 --auth=trust -U postgres >"$WORK/initdb" 2>&1 || { cat "$WORK/initdb"; exit 1; }
start_postgres
start_writers
await_growth

for round in $(seq "$rounds"); do
    echo "--- round $round of $rounds"
    for role in backup primary; do
        victim=$(member $role)
        kill -9 "$(pid_of "$victim")"
        await_growth
        alive "kill -9 of a $role"
        wait_until 60 "every segment is whole again" all_healthy
    done
    for volume in lite post; do
        for index in $(query "' '.join(str(s['index']) for s in d['segments'])" segment list $volume); do
            read -r from to < <(petrel segment list $volume --json | python3 -c "
import json, sys
segment = json.load(sys.stdin)['segments'][$index]
holders = [r['server'] for r in segment['replicas'] if r['state'] == 'in_sync']
print(holders[$index % len(holders)], ({1, 2, 3} - set(holders)).pop())")
            petrel segment move "$volume/$index" --from "$from" --to "$to" >/dev/null
        done
    done
    await_growth
    alive "a move of every segment"
    victim=$(member primary)
    pid=$(pid_of "$victim")
    kill -STOP "$pid"
    sleep 3
    kill -CONT "$pid"
    await_growth
    alive "a stop of 3 s of a primary"
    wait_until 60 "every segment is whole again" all_healthy

    echo "    the databases' machine dies: writers, databases, nbdfuse, bridge"
    kill -9 "${WRITER[@]}" $(postgres_pids) "${NBDFUSE[lite]}" "${NBDFUSE[post]}" "$(pgrep -f "nbd-bridge.*$DIR")" 2>/dev/null || true
    cut_fs lite
    cut_fs post
    wait "${WRITER[@]}" "$POSTMASTER" 2>/dev/null || true
    WRITER=()
    wait_until 30 "the bridge is back" nbdinfo --size "$(uri lite)"
    attach_fs lite "$(uri lite)"
    mount_fs lite
    attach_fs post "$(uri post)"
    mount_fs post
    rm -f "$POST/data/postmaster.pid"
    start_postgres
    check_all
    [ "$round" = "$rounds" ] || { start_writers; await_growth; }
done

kill -INT "$POSTMASTER"
wait "$POSTMASTER" || true
as_postgres "$PG/pg_checksums" --check -D "$POST/data" | tail -n 2
POSTMASTER=
for name in lite:xfs post:ext4; do
    umount "$WORK/fs-${name%:*}/mnt"
    check_fs "${name%:*}" "${name#*:}"
done
echo "ok: both file systems are sound, every page of PostgreSQL has its checksum"
for mode in wal delete postgres; do
    echo "    $mode: $(python3 "$TOOLS/databases.py" stalls "$WORK/$mode.ledger")"
done
