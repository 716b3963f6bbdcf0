//! All integration tests, in one binary: linking the AWS SDK once is enough.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing is a test that failed")]

mod archive;
mod bad_input;
mod bucket;
mod changed;
mod cost;
mod crash;
mod damage;
mod docs;
mod drill;
mod expire;
mod format;
mod guard;
mod history;
mod hostile;
mod incidents;
mod lease;
mod lineage;
mod main_job;
mod mirror;
mod presence;
mod privilege;
mod property;
mod restore;
mod rounds;
mod schedule;
mod seal;
mod snapshot;
mod storage;
mod support;
mod tidy;
mod timeline;
mod variety;
mod verify;
mod versions;
mod wal;

#[global_allocator]
static ALLOCATOR: cost::allocations::Counting = cost::allocations::Counting;
