# The one entry. `make demo` and `make test` install what they need and build what has changed.

export BULKHEAD_CACHE ?= $(HOME)/.cache/bulkhead

.PHONY: help deps build demo test lint unit fuzz-briefly guest e2e bench fuzz clean

help:
	@echo "make demo    build everything and run a pod, step by step"
	@echo "make test    formatting, lints, unit tests, tests with real VMs"
	@echo "make build   programs, guest kernel and guest image, into out/"
	@echo "make bench   figures, side by side with the peers"
	@echo "make fuzz    every fuzz target for five minutes"
	@echo "make lint | unit | fuzz-briefly | guest | e2e    the parts of make test"
	@echo "make clean   remove out/ and target/ (not the cache in $(BULKHEAD_CACHE))"

deps:
	@scripts/deps

build: deps
	@scripts/build

demo: build
	@scripts/demo

test: lint unit fuzz-briefly guest e2e

lint: deps
	@scripts/lint

unit: deps
	cargo test --locked --workspace --quiet --exclude bulkhead-tests
	cargo test --locked --package bulkhead-tests --test docs --quiet
	cd host/fs && CARGO_TARGET_DIR=../../target/fs cargo test --locked --quiet

# The VMM with real guests and the agent's engine, each without the other.
guest: build
	@scripts/test-guest

# The whole, through the CRI and the command line.
e2e: build
	@scripts/test-e2e

bench: build
	@scripts/bench

fuzz: deps
	@scripts/fuzz

# From the committed seeds; `make fuzz` goes on from what it has found before.
fuzz-briefly: deps
	@scripts/fuzz 5

clean:
	rm -rf out target
