#!/usr/bin/env bash
# Every test, in the order that fails soonest. `make test` and CI run this and nothing weaker.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/petrel/target}"
export CARGO_TARGET_DIR

# A cold build takes about 6 GiB, the clusters of the tests about 6 GiB more.
mkdir -p "$CARGO_TARGET_DIR"
for dir in "$CARGO_TARGET_DIR" "${TMPDIR:-/tmp}"; do
    free_gib=$(( $(df --output=avail -k "$dir" | tail -n 1) / 1024 / 1024 ))
    if [ "$free_gib" -lt 12 ]; then
        echo "test: $dir has $free_gib GiB free, the tests need 12: free some, or set CARGO_TARGET_DIR and TMPDIR" >&2
        exit 1
    fi
done

step() {
    local name=$1 start=$SECONDS
    shift
    echo "=== $name"
    "$@"
    echo "=== $name: $((SECONDS - start)) s"
}

step "setup" tools/setup.sh test
step "format" cargo fmt --all -- --check
step "clippy" cargo clippy --workspace --all-targets -- -D warnings
step "build" cargo build --package petrel --package storaged --package nbd-bridge --bins
step "tests" cargo test --workspace
export PETREL_BIN="$CARGO_TARGET_DIR/debug"
for script in tests/nbd/*.test.sh tests/processes/*.test.sh; do
    [ -e "$script" ] || continue
    step "$script" bash "$script"
done
echo "=== all tests passed in $SECONDS s"
