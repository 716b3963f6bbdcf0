//! All integration tests, one binary: linking is slow, and nextest gives each test a process of its own anyway.
#![allow(clippy::unwrap_used)]

mod storage;
mod support;
