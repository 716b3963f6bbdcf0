//! Bringing a cluster back.
//!
//! # The way
//! [`plan`] decides everything: from which snapshot, to which moment, into which places, whether all that is needed exists. It
//! writes nothing. The plan is a value: shown, then executed unchanged. [`place`] looks at the places. [`execute`] fetches,
//! verifies and writes. [`write`] writes one batch of files.
//!
//! # Invariants
//! - Nothing is written before every check has passed, for all destinations (rule 35).
//! - A place that is not empty is refused (rule 36).
//! - pg_control is written last: a half restored directory cannot be started (rule 37). Until then a mark says what the
//!   directory is, and a lock in it keeps a second restore out; an interrupted restore is run again over its own remains.
//! - What was written is read back and compared (rule 38).
//! - Archiving is off in a restored cluster, and a mark in it makes `archive-push` refuse (rules 29, 41).

pub mod execute;
pub mod place;
pub mod plan;
pub mod write;

use std::path::PathBuf;

use crate::repo::RepoError;
use crate::timeline::find::FindError;

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("{path}: {problem}; {mend}")]
    Place { path: PathBuf, problem: String, mend: &'static str },
    #[error("{place} has {free} bytes free, and {needed} are needed; free some, or restore to another file system")]
    NoRoom { place: PathBuf, free: u64, needed: u64 },
    #[error("{} of the objects that this restore needs are missing or cut short; the first is {}: {}; `lastgood verify` says what it costs", found.len(), found[0].0, found[0].1)]
    Missing { found: Vec<(String, String)> },
    #[error("there is no tablespace {oid:?} in snapshot {snapshot}; it has {}", if known.is_empty() { "none".to_string() } else { known.join(", ") })]
    UnknownTablespace { oid: String, snapshot: String, known: Vec<String> },
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "{path} was written, but reads back differently: the disk or the memory of this host is not sound; do not use this copy"
    )]
    ReadBack { path: PathBuf },
    #[error("the snapshot holds no pg_control, so it can never start")]
    NoControl,
}
