//! WAL in and out of the repository: what `archive_command` and `restore_command` call.
//!
//! - [`push`]: one file in, checked, stored durably; then further segments that are ready, taken along ([`look_ahead`]).
//!   [`predecessor`]: the segment before it, which must be the archive's.
//! - [`job`]: one file, read once. [`index`]: what it says, on its way into roll-ups.
//! - [`get`]: one file out, verified. [`ahead`]: the next ones, before recovery asks. [`inquiry`]: what else it asks, over the same
//!   connections.
//! - [`rival`]: two servers that write into one archive.
//! - [`standby`]: what a standby is told when the archive cannot answer.
//! - [`behind`]: notes about mirrors that are filled later.
//! - [`spool`]: the small directory where both leave notes for the next call. Nothing in it is ever the only copy of anything.
//!
//! Each call is a new process, so it does only what it must: a push to a directory touches no network stack, and what an
//! earlier call proved (that the repository knows this system) is kept in the spool.

pub mod ahead;
pub mod behind;
pub mod get;
pub mod index;
pub mod inquiry;
mod job;
mod look_ahead;
mod predecessor;
pub mod push;
pub mod rival;
pub mod spool;
pub mod standby;
