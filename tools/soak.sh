#!/usr/bin/env bash
# The long runs: many seeds of the simulator, the search for every mutant, and the tests of real
# processes with larger numbers. Nothing here is needed for `make test`; rare holes need length.
#
# SEEDS         how many seeds of the unmutated brain (default 20000)
# MUTANT_SEEDS  the range each mutant runs over, A..B (default 1..401); one that few of them catch
#               runs over ten times as many
# ROUNDS        how often the tests of processes run (default 3)
# CHAOS_MINUTES how long faults happen in each of the two long runs of chaos (default 30)
# MOVES, FIO_SZ, LIMIT are handed to the tests that know them.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/petrel/target}"
export CARGO_TARGET_DIR
export PETREL_BIN="$CARGO_TARGET_DIR/debug"
export MOVES=${MOVES:-10}
export FIO_SZ=${FIO_SZ:-256m}
jobs=$(nproc)
failed=()

# Goes on after a failure: the other runs are worth their time all the same.
step() {
    local name=$1 start=$SECONDS
    shift
    echo "=== $name"
    if "$@"; then
        echo "=== $name: $((SECONDS - start)) s"
    else
        echo "=== $name: FAILED after $((SECONDS - start)) s"
        failed+=("$name")
    fi
}

tools/setup.sh test
cargo build --package petrel --package storaged --package nbd-bridge --bins
cargo build --package sim

step "simulator" cargo sim --seeds "0..${SEEDS:-20000}" --jobs "$jobs"
step "mutants" cargo sim --table --seeds "${MUTANT_SEEDS:-1..401}" --jobs "$jobs"
for servers in 3 5; do
    step "chaos, $servers servers" cargo chaos --minutes "${CHAOS_MINUTES:-30}" --servers "$servers" --seed "$RANDOM"
done
# The scripts' own run of chaos stays as short as it is in `make test`.
unset CHAOS_MINUTES
for round in $(seq "${ROUNDS:-3}"); do
    for script in tests/nbd/*.test.sh tests/processes/*.test.sh; do
        step "$script, round $round" bash "$script"
    done
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "=== soak: ${#failed[@]} failed in $SECONDS s:"
    printf '    %s\n' "${failed[@]}"
    exit 1
fi
echo "=== soak passed in $SECONDS s"
