//! Which WAL belongs together, judged by content and LSN, never by names or numbers of segments, files or timelines.
//!
//! - [`admission`]: whether a timeline that the archive does not know yet may enter it: a pure decision over forks.
//! - [`fork`]: what the parent of a timeline had archived beyond the fork when the timeline entered; kept with its history file.
//! - [`chain`]: whether segments follow one another: each trailer holds the digest of the segment before it.
//! - [`compare`]: whether a file in a data directory and an archived segment are the same WAL, and where they part.
//!
//! # What tells whether two segments belong together
//! The record that crosses their border: its CRC proves it (`postgres::wal::index::seam`). The digest of the predecessor in the trailer,
//! where the writer knew it. `xl_prev` only refutes: idle clones share it. What is unknown contradicts nothing.

pub mod admission;
pub mod chain;
pub mod compare;
pub mod fork;
