//! The repository: what is stored, where, and in which form. `docs/format.md` describes every byte.
//!
//! - [`layout`]: the key of every object.
//! - [`object`]: the envelope that all objects share: zstd frames, then a trailer in a skippable frame.
//! - [`frame`]: up to 128 KiB of raw bytes, compressed, known by their SHA-256.
//! - [`pack`]: many frames in one object.
//! - [`map`]: how a file is put together from frames.
//! - [`manifest`]: a snapshot: its manifest (the commit point), its file lists, its WAL.
//! - [`segment`]: WAL segments and the other files that the server archives.
//! - [`record`]: what the repository and a cluster are.
//! - [`audit`]: who did what, as a chain.
//! - [`lease`]: who is at work.
//! - [`fetch`]: many frames from few requests.
//! - [`presence`]: whether packs are there, by listing.
//! - [`repository`]: all of it together, behind one value.
//!
//! Nothing is ever overwritten. Data is written before what refers to it, and deleted after it, so that a crash leaves
//! garbage and never a hole.

pub mod audit;
pub mod fetch;
pub mod frame;
pub mod layout;
pub mod lease;
pub mod manifest;
pub mod map;
pub mod object;
pub mod pack;
pub mod presence;
pub mod record;
pub mod repository;
pub mod segment;

use crate::storage::{ObjectKey, StorageError};

/// Version of the format that this program writes, and the oldest that can read what it writes.
pub const FORMAT_VERSION: u16 = 1;

#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{key} is damaged: {what}")]
    Damaged { key: ObjectKey, what: String },
    #[error(
        "{key} was written in format {version}, which this lastgood does not know; use a newer lastgood (this one knows format {FORMAT_VERSION})"
    )]
    Newer { key: ObjectKey, version: u64 },
    #[error("{key} is sealed (encrypted), and no key is configured to open it")]
    Sealed { key: ObjectKey },
    #[error("{place} holds no lastgood repository; `lastgood init` makes one")]
    NoRepository { place: String },
    #[error("{place} is not empty and no lastgood repository (it holds {found:?}); choose an empty place or prefix")]
    Foreign { place: String, found: String },
    #[error("the repository {place} knows no cluster {name:?}{}", if known.is_empty() { "; `lastgood init` registers it".to_string() } else { format!(" (it knows {})", known.join(", ")) })]
    NoCluster { place: String, name: String, known: Vec<String> },
    #[error("{key} is already there with other content")]
    Conflict { key: ObjectKey },
    #[error(
        "a {operation} of {name:?} is running already: {holder}; wait until it is done, or end that process; one that died in silence is taken over {lease_s} s after its last heartbeat"
    )]
    Held { operation: String, name: String, holder: String, lease_s: u64 },
    #[error("this {what}'s lease {reason}; nothing was committed, run it again")]
    LeaseLost { what: String, reason: String },
    #[error("{what}; try again")]
    Busy { what: String },
    #[error("read {path}: {source}")]
    File { path: std::path::PathBuf, source: std::io::Error },
}

impl RepoError {
    pub fn damaged(key: &ObjectKey, what: impl Into<String>) -> RepoError {
        RepoError::Damaged { key: key.clone(), what: what.into() }
    }

    /// Whether the store proved that the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RepoError::Storage(error) if error.is_not_found())
    }

    /// Whether the object was reached, and is missing or not what it should be.
    pub fn is_damage(&self) -> bool {
        use crate::storage::Fault;
        match self {
            RepoError::Damaged { .. } | RepoError::Newer { .. } | RepoError::Sealed { .. } => true,
            RepoError::Storage(error) => matches!(error.fault, Fault::NotFound | Fault::Truncated),
            _ => false,
        }
    }
}
