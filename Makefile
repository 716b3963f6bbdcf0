# Two commands on a fresh machine with a Rust toolchain and Debian:
#   make demo   installs what is missing, builds, shows the main job on a throw-away PostgreSQL
#   make test   installs what is missing, runs every test

.PHONY: demo test lint

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
