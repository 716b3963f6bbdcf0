# Two commands on a fresh machine with a Rust toolchain and Debian:
#   make demo   installs what is missing, builds, shows the main job on a throw-away PostgreSQL
#   make test   installs what is missing, runs every test
#
# And two that take hours:
#   make soak   random histories of real servers (clones, rollbacks, restores), each restore held against a ledger, and restored servers
#               of every kind; docs/architecture.md
#   make bench  installs what is missing, measures lastgood beside other tools; docs/benchmarks/README.md

.PHONY: demo test lint soak bench

demo:
	tests/tools/install demo
	cargo build --locked
	target/debug/lastgood demo

test: lint
	tests/tools/install test
	cargo nextest run --locked

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

# LASTGOOD_SOAK=10 plays fewer, LASTGOOD_SEED=n begins with that one.
soak:
	tests/tools/install test
	LASTGOOD_FRESH=1 cargo nextest run --locked --run-ignored all --no-capture -E 'test(/^history::/) or test(/^restore::copies::of_/)'

# The harness itself is built as the tests are, so that the program that is measured is the released one and nothing else.
bench:
	tests/tools/install bench
	cargo build --release --locked
	cargo bench --locked --profile dev --bench side_by_side
