//! The repository: what is stored, where, and in which form. `docs/format.md` describes every byte.
//!
//! - [`layout`]: the key of every object.
//! - [`document`]: the one door for what is read. [`validate`]: which manifests and file lists make sense.
//! - [`object`]: the envelope that all objects share: zstd frames, then a trailer in a skippable frame.
//! - [`frame`]: up to 128 KiB of raw bytes, compressed, known by their SHA-256. [`hash`]: that of many at once.
//! - [`pack`]: many frames in one object.
//! - [`map`]: how a file is put together from frames.
//! - [`manifest`]: a snapshot: its manifest (the commit point), its file lists, its WAL.
//! - [`pack_table`]: which packs a snapshot refers to, and how much of each it uses.
//! - [`segment`]: WAL segments and the other files that the server archives.
//! - [`record`]: what the repository and a cluster are.
//! - [`rollup`]: what is known of many neighbouring segments.
//! - [`audit`]: who did what, as a chain. [`alert`]: what the tripwire met.
//! - [`report`]: what a drill or a restore did, how long it took, and what it found.
//! - [`keep`]: which snapshots people want to keep. [`expired`]: which were expired; [`gone`]: which WAL was.
//! - [`verified`]: when what was read and proven last. [`lease`]: who is at work.
//! - [`fetch`]: many frames from few requests.
//! - [`reach`]: which packs are needed, by the pack tables. [`presence`]: whether packs are there, by listing.
//!   [`proof`]: whether one object is what it says.
//! - [`seal`]: encryption of all that: keys, keyrings, and how they are opened.
//! - [`copies`]: the same repository in several places.
//! - [`vault`]: a store, and the keys that what is in it is sealed with.
//! - [`rebuild`]: `lastgood.json` written again from the rest.
//! - [`repository`]: all of it together, behind one value.
//!
//! Nothing is ever overwritten. Data is written before what refers to it, and deleted after it, so that a crash leaves
//! garbage and never a hole.

pub mod alert;
pub mod audit;
mod compress;
pub mod copies;
pub mod document;
pub mod expired;
pub mod fetch;
pub mod frame;
pub mod gone;
pub mod hash;
pub mod keep;
pub mod layout;
pub mod lease;
pub mod locks;
pub mod manifest;
pub mod map;
pub mod object;
pub mod pack;
pub mod pack_table;
pub mod presence;
pub mod proof;
pub mod reach;
pub mod rebuild;
pub mod record;
pub mod report;
pub mod repository;
pub mod rollup;
pub mod seal;
pub mod segment;
mod sink;
pub mod validate;
pub mod vault;
pub mod verified;

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
    #[error("{key} says that the repository is sealed with {cipher:?}, which this lastgood does not know; use a newer lastgood")]
    UnknownCipher { key: ObjectKey, cipher: String },
    #[error(
        "{key} is sealed (encrypted), and no key is configured to open it; set passphrase_file, identity_file or key_file under [encryption], or LASTGOOD_PASSPHRASE"
    )]
    Sealed { key: ObjectKey },
    #[error(
        "{place} is not encrypted, although a key is configured: this is not the repository you think it is, or its lastgood.json was changed; when it never was encrypted, take [encryption] out of the configuration"
    )]
    NotSealed { place: String },
    #[error("write the key file {path}: {source}")]
    KeyFile { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    Slot(seal::slot::SlotError),
    #[error(
        "{place} cannot be encrypted with what is configured: a new repository needs somebody who can read it (passphrase_file, passphrase_command, identity_file or recipients under [encryption]), and with recipients alone also key_file, where this host's writer key is put"
    )]
    NoWayIn { place: String },
    #[error("slot {id} is the last reader's: without it nobody could read the repository; add another first")]
    LastReader { id: String },
    #[error("there is no slot {id:?} (there are {known})")]
    NoSlot { id: String, known: String },
    #[error(
        "the passphrases of {slots} are not known here, so these slots cannot go into the new epoch; rotate on a host with that passphrase, or drop them with --drop-unknown and add them again"
    )]
    SlotsLeft { slots: String },
    #[error("the configured key is the wrong one: {what}")]
    WrongKey { what: String },
    #[error(
        "{key} is data, and the configured key is a writer's, which cannot open data; configure a reader's: the passphrase, the age identity, or a key from `lastgood key export`"
    )]
    WriterKey { key: ObjectKey },
    #[error(
        "a reader key is needed {what}, and the configured one is a writer's; configure the passphrase, the age identity, or a key from `lastgood key export`"
    )]
    NeedsReader { what: String },
    #[error(
        "{key} was sealed with key epoch {epoch}, and the configured key ends with epoch {known}: the keys were rotated; get a new one with `lastgood key export`"
    )]
    UnknownEpoch { key: ObjectKey, epoch: u32, known: u32 },
    #[error("{place} holds no lastgood repository; `lastgood init` makes one")]
    NoRepository { place: String },
    #[error(
        "{place} holds clusters, and its lastgood.json is missing; `lastgood init --rebuild` writes it again from what is there"
    )]
    RecordLost { place: String },
    #[error(
        "the record of cluster {name:?} in {place} is missing, although objects of it are there; `lastgood init --rebuild` writes it again from them"
    )]
    NoRecord { place: String, name: String },
    #[error("{place} holds nothing from which a record could be written again; `lastgood init` makes a new one")]
    NothingToRebuild { place: String },
    #[error(
        "no snapshot of {cluster:?} can be read, so nothing tells which systems its WAL is from; run this again while its server runs, or after `lastgood verify --repair`"
    )]
    UnknownSystems { cluster: String },
    #[error("{place} is not empty and no lastgood repository (it holds {found:?}); choose an empty place or prefix")]
    Foreign { place: String, found: String },
    #[error("the repository {place} knows no cluster {name:?}{}", if known.is_empty() { "; `lastgood init` registers it".to_string() } else { format!(" (it knows {})", known.join(", ")) })]
    NoCluster { place: String, name: String, known: Vec<String> },
    #[error(
        "{place} is another repository ({found}) and not a copy of this one ({expected}); a mirror needs a place of its own, which is empty at first"
    )]
    OtherRepository { place: String, found: String, expected: String },
    #[error("{place} holds no copy of the repository yet; `lastgood mirror` makes one")]
    NoCopy { place: String },
    #[error(
        "{key} differs between {place}: one name, two contents; neither was touched. Look which one is right, and who wrote the other"
    )]
    Apart { key: ObjectKey, place: String },
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

    /// Whether a newer key is needed: what was written before the keys were rotated opens all the same.
    pub fn is_newer_epoch(&self) -> bool {
        matches!(self, RepoError::UnknownEpoch { .. })
    }

    /// Whether a file of this host could not be read or written.
    pub fn is_local(&self) -> bool {
        matches!(self, RepoError::File { .. })
    }

    /// Whether the object is there and cannot be read until it is restored from an archive class of its store.
    pub fn is_frozen(&self) -> bool {
        matches!(self, RepoError::Storage(error) if error.fault == crate::storage::Fault::Frozen)
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
