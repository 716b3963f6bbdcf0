//! Bringing a cluster back.
//!
//! # The way
//! [`plan`] decides everything: from which snapshot, to which moment, into which places, whether all that is needed exists. It
//! writes nothing. The plan is a value: shown, then executed unchanged. [`place`] looks at the places, [`ground`] at what lies around them. [`pinned`] keeps what is read from
//! expiring. [`execute`] fetches, verifies and writes. [`write`] writes one batch of files: [`assembly`] puts writes together from frames, and [`lanes`] take them to the disk. [`standing`], [`replaced`] and [`loss`] say what stands there and what
//! would be lost, [`salvage`] saves its WAL, [`switch`] exchanges old and new, [`undo`] puts the old one back, and [`release`]
//! declares a restored cluster the successor of its original. [`immediate`] is about restores to a snapshot itself. [`standby`] makes a standby of it, and [`wal_place`] says where its `pg_wal` goes.
//!
//! # Invariants
//! - Nothing is written before every check has passed, for all destinations (rule 35).
//! - What stands in the place is moved aside, whole, and only after the guard let the plan pass ([`guard`], rule 36). A place that is
//!   not empty and holds no cluster is refused.
//! - pg_control is written last: a half restored directory cannot be started (rule 37). Until then a mark says what the
//!   directory is, and a lock in it keeps a second restore out; an interrupted restore is run again over its own remains.
//! - What is written was proven in the very memory that it is written from; a sample of it, or all, is read back and compared (rule 38).
//! - Archiving is off in a restored cluster, and a mark in it makes `archive-push` refuse (rules 29, 41).

pub mod arrival;
mod assembly;
pub mod base;
mod batches;
pub mod beside;
pub mod execute;
pub mod ground;
pub mod guard;
mod immediate;
pub mod lanes;
pub mod loss;
pub mod mark;
mod on_path;
pub mod own_wal;
pub mod path_text;
pub mod pinned;
pub mod place;
pub mod plan;
pub mod present;
pub mod release;
pub mod replaced;
pub mod salvage;
pub mod standby;
pub mod standing;
pub mod start;
pub mod switch;
pub mod undo;
pub mod wal_place;
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
    #[error(
        "{path} carries no mark of a restore: lastgood did not restore it, or it was released; name the directory that was restored"
    )]
    NotACopy { path: PathBuf },
    #[error("{path}: {problem}; {mend}")]
    Place { path: PathBuf, problem: String, mend: &'static str },
    #[error(
        "{place} has {free} bytes free, and {needed} are needed; the new cluster is built beside what stands there, and nothing is deleted to make room: free some, restore to another file system with --into, or move what stands there away yourself"
    )]
    NoRoom { place: PathBuf, free: u64, needed: u64 },
    #[error("{} of the objects that this restore needs are missing or cut short; the first is {}: {}; `lastgood verify` says what it costs{hint}", found.len(), found[0].0, found[0].1)]
    Missing { found: Vec<(String, String)>, hint: String },
    #[error(
        "{count} of the objects of snapshot {snapshot} are in an archive class of the store, and cannot be read as they are; the first is {key}, in {class}: {mend}; or begin with an older snapshot that is not frozen (--snapshot ID)"
    )]
    Frozen { snapshot: String, count: usize, key: String, class: &'static str, mend: String },
    #[error(
        "{path} holds a cluster, and nobody has confirmed that it shall be {verb}; read the plan, then type what is asked for at a terminal (not through a pipe), or pass --confirm with the plan's code; --yes, piped input and environment variables never count"
    )]
    Unconfirmed { path: PathBuf, verb: &'static str },
    #[error("--confirm: {problem}; make the plan again (--dry-run shows it with its code), read it, and use the new code")]
    Code { problem: &'static str },
    #[error("what was typed is not the name {name:?}; nothing was changed")]
    Typed { name: String },
    #[error(
        "a PostgreSQL server runs in {path} ({living}); lastgood never writes under a living server: stop it (pg_ctl -D {path} stop -m fast), then make the plan again"
    )]
    Living { path: PathBuf, living: crate::postgres::postmaster::Living },
    #[error(
        "what stands in {path} has changed since the plan was made; nothing was changed by this restore; make the plan again"
    )]
    Changed { path: PathBuf },
    #[error("{path} holds no cluster that took the place of another (it has no lastgood.switched), so there is nothing to undo")]
    NothingToUndo { path: PathBuf },
    #[error(
        "the cluster that stood in {path} is neither there nor in {aside}; find it (its note is lastgood.replaced) and move it back by hand"
    )]
    Vanished { path: PathBuf, aside: PathBuf },
    #[error("{path} cannot be released: {problem}; {mend}")]
    Release { path: PathBuf, problem: String, mend: &'static str },
    #[error("{problem}; {mend}")]
    Standby { problem: String, mend: &'static str },
    #[error("there is no tablespace {oid:?} in snapshot {snapshot}; it has {}", if known.is_empty() { "none".to_string() } else { known.join(", ") })]
    UnknownTablespace { oid: String, snapshot: String, known: Vec<String> },
    #[error("--tablespace gives tablespace {oid} two places; name one")]
    TwoPlaces { oid: String },
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "{path} was written, but reads back differently: the disk or the memory of this host is not sound; do not use this copy"
    )]
    ReadBack { path: PathBuf },
    #[error("snapshot {snapshot} was expired since the plan was made; nothing was changed; make the plan again")]
    Expired { snapshot: String },
    #[error(
        "the repository {place} went away while it was read: not even its lastgood.json is there; what was written in {path} cannot be started; bring the repository back, or name a mirror with --repo, and run this again"
    )]
    Gone { place: String, path: PathBuf },
    #[error("the snapshot holds no pg_control, so it can never start")]
    NoControl,
}
