# Petrel: `make run` sets up, builds and starts a cluster on this machine; `make test` sets up and
# runs every test. Builds live outside the checkout, so that a second clone builds in seconds.

export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/petrel/target
BIN := $(CARGO_TARGET_DIR)/debug
BINARIES := --package petrel --package storaged --package nbd-bridge --bins
# Arguments of `petrel dev`, e.g. make run ARGS="--servers 4 --volume data:8GiB"
ARGS ?=

.PHONY: help run test soak setup-build setup-test build fmt clippy unit nbd processes

help:
	@echo "make run  [ARGS=...]  install what is missing, build, start a cluster (petrel dev)"
	@echo "make test             install what is missing, run every test"
	@echo "make soak             the long runs of docs/testing.md"

run: setup-build
	cargo build $(BINARIES)
	exec $(BIN)/petrel dev $(ARGS)

test:
	@tools/test.sh

soak:
	@tools/soak.sh

setup-build:
	@tools/setup.sh build

setup-test:
	@tools/setup.sh test

build: setup-build
	cargo build $(BINARIES)

fmt:
	cargo fmt --all -- --check

clippy: setup-build
	cargo clippy --workspace --all-targets -- -D warnings
