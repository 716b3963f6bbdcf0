//! What only a bucket can do: keep older versions of its objects, and lock them until a day (S3 Object Lock).
//!
//! # Locks
//! Which writes are locked is for who knows what is written: a store is opened with a rule for that. The store knows how long,
//! and the time by its own clock as far as it has told it.
//!
//! # Versions
//! In a bucket with versions a deletion hides an object behind a *delete marker*, and a write over it hides it behind newer bytes.
//! [`Bucket::older`] finds what is hidden; deleting all versions is a setting of the store, because it gives up what versions are for.

use async_trait::async_trait;
use jiff::Timestamp;

use super::{ObjectKey, Result, StorageError};

/// How what is written now is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    pub days: u32,
    /// By the store's clock, as its last answer told it. Before the first answer it is the host's, which is at most a quarter of an
    /// hour off where the store checks signatures: requests of an hour that is more wrong are refused.
    pub now: Timestamp,
}

/// What the bucket says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protection {
    /// What is deleted or overwritten is kept as an older version.
    pub keeps_versions: bool,
    /// Objects can be locked.
    pub has_lock: bool,
}

/// The newest version of an object that something hides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Older {
    pub key: ObjectKey,
    pub bytes: u64,
    pub written: Timestamp,
    /// When it was hidden.
    pub hidden: Timestamp,
    /// By a deletion; else by a write over it.
    pub is_deleted: bool,
}

#[async_trait]
pub trait Bucket: Send + Sync {
    /// How long what is written now is locked; `None` where that is not asked for.
    fn lock(&self) -> Option<Lock>;
    /// Whether deletions take all versions.
    fn deletes_versions(&self) -> bool;
    /// Asks the bucket.
    async fn protection(&self) -> Result<Protection>;
    /// Until when an object is locked; `None` when it is not, when it is not there, or when that may not be known.
    async fn locked_until(&self, key: &ObjectKey) -> Result<Option<Timestamp>>;
    /// Locks objects for longer. One that is locked for as long already is no failure. Each key has its own answer.
    async fn extend(&self, keys: &[ObjectKey], until: Timestamp) -> Result<Vec<(ObjectKey, StorageError)>>;
    /// All objects below a prefix that a deletion or a write over them hides, in the order of keys.
    async fn older(&self, prefix: &str) -> Result<Vec<Older>>;
    /// Hides an object behind a delete marker, whatever is configured: a locked version too, which stays until its day.
    async fn hide(&self, key: &ObjectKey) -> Result<()>;
    /// Removes what a deletion put over an object; `false` when there was no such thing.
    async fn uncover(&self, key: &ObjectKey) -> Result<bool>;
}
