#!/usr/bin/env bash
# Every test, in the order that fails soonest. `make test` and CI run this and nothing weaker.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/petrel/target}"
export CARGO_TARGET_DIR

# One run at a time in a build directory: what is built here is run here, for minutes after.
mkdir -p "$CARGO_TARGET_DIR"
if [ -z "${PETREL_TEST_LOCKED:-}" ]; then
    export PETREL_TEST_LOCKED=1
    flock -n "$CARGO_TARGET_DIR/test.lock" true || echo "test: another run uses $CARGO_TARGET_DIR; waiting for it to end"
    exec flock -o "$CARGO_TARGET_DIR/test.lock" "$PWD/tools/test.sh" "$@"
fi

# need DIR GIB NAME: there is that much space, or we say so now and not in the middle of a test.
need() {
    local free_gib
    free_gib=$(( $(df --output=avail -k "$1" | tail -n 1) / 1024 / 1024 ))
    if [ "$free_gib" -lt "$2" ]; then
        echo "test: $1 has $free_gib GiB free, the tests need $2: free some, or set $3" >&2
        exit 1
    fi
}
[ -e "$CARGO_TARGET_DIR/debug/storaged" ] || need "$CARGO_TARGET_DIR" 8 CARGO_TARGET_DIR
need "${TMPDIR:-/tmp}" 6 TMPDIR

# What a test left out says so in a line that begins with SKIP; the last line counts them.
skips=$(mktemp)
trap 'rm -f "$skips"' EXIT
step() {
    local name=$1 start=$SECONDS
    shift
    echo "=== $name"
    "$@" | tee >(grep '^ *SKIP' >>"$skips" || true)
    echo "=== $name: $((SECONDS - start)) s"
}

step "setup" tools/setup.sh test
step "format" cargo fmt --all -- --check
step "clippy" cargo clippy --workspace --all-targets -- -D warnings
step "build" cargo build --package petrel --package storaged --package nbd-bridge --bins
step "tests" cargo test --workspace
export PETREL_BIN="$CARGO_TARGET_DIR/debug"
for script in tests/nbd/*.test.sh tests/processes/*.test.sh; do
    step "$script" bash "$script"
done
sleep 0.2 # for the last tee
if [ -s "$skips" ]; then
    echo "=== left out here:"
    cat "$skips"
fi
echo "=== all tests passed in $SECONDS s, $(wc -l <"$skips") left out"
