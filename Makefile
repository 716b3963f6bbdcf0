# Two commands on a fresh machine with a Rust toolchain and Debian:
#   make demo   installs what is missing, builds, shows the main job on a throw-away PostgreSQL
#   make test   installs what is missing, runs every test
#
# And one that takes an hour: docs/benchmarks/README.md.
#   make bench  installs what is missing, measures lastgood beside other tools

.PHONY: demo test lint bench

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

# The harness itself is built as the tests are, so that the program that is measured is the released one and nothing else.
bench:
	tests/tools/install bench
	cargo build --release --locked
	cargo bench --locked --profile dev --bench side_by_side
