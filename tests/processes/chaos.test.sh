#!/usr/bin/env bash
# Kills, pauses and, as root, partitions of three real servers, with a judged history (cargo chaos).
# CHAOS_MINUTES, CHAOS_SERVERS and CHAOS_SEED make it longer or another one.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/petrel/target}"
export CARGO_TARGET_DIR
export PETREL_BIN="${PETREL_BIN:-$CARGO_TARGET_DIR/debug}"

cargo chaos --minutes "${CHAOS_MINUTES:-0.7}" --servers "${CHAOS_SERVERS:-3}" --seed "${CHAOS_SEED:-7}"
