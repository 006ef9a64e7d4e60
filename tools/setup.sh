#!/usr/bin/env bash
# Installs the Debian packages that building (`build`) or testing (`test`) needs and this machine
# lacks. Never removes or downgrades anything.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:?usage: tools/setup.sh build|test}
packages=(libclang-dev clang make pkg-config g++)
if [ "$what" = test ]; then
    packages+=(libnbd-bin nbdfuse fuse3 python3-libnbd nbdkit fio qemu-utils procps xfsprogs e2fsprogs iproute2 iptables util-linux postgresql)
fi

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends --no-remove "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "setup: cargo is missing: install Rust 1.95 or later (https://rustup.rs)" >&2; exit 1; }

# Checkouts share the build directory, and cargo, which names a workspace's own crates by their place
# in it, tells those of two checkouts apart by time alone: without this, one could run the other's.
if [ -n "${CARGO_TARGET_DIR:-}" ]; then
    mkdir -p "$CARGO_TARGET_DIR"
    stamp=$CARGO_TARGET_DIR/checkout
    if [ "$(cat "$stamp" 2>/dev/null)" != "$PWD" ]; then
        find . -path ./target -prune -o \( -name '*.rs' -o -name Cargo.toml \) -exec touch {} +
        echo "$PWD" >"$stamp"
    fi
fi
