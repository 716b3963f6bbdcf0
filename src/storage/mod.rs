//! Objects in a place: a directory, an S3 bucket, or memory.
//!
//! # The contract
//! - An object is written once and never changed. [`Storage::create`] makes it whole or not at all: a reader never sees a
//!   part of it, and when `create` returns, the bytes are durable (rules 23, 24).
//! - `create` of a key that exists changes nothing and answers [`Created::AlreadyThere`]. Who wants to know whether that is
//!   the same content reads it.
//! - Reading after `create` returned sees the object, from every host; so does listing.
//! - [`Storage::read`] and [`Storage::stat`] answer "not found" only when the place itself answered so: a missing bucket, an
//!   unmounted directory or rejected credentials are other errors (rule 30).
//! - Listings are in byte order of the keys, in pages of at most [`LIST_PAGE_KEYS`].
//! - Deleting what is not there is no error. Each key has its own answer (rule 54).
//!
//! Behaviour is added by wrappers around any store: [`retry`] (attempts and deadlines), [`limit`] (how many at once), [`pace`] (how many bytes a second),
//! [`record`] (what was asked), [`fault`] (what goes wrong). Every store and every stack of wrappers passes the suite in
//! `tests/storage.rs`. [`several`] makes one store of many, and [`measure`] remembers how each call went. What only buckets can do,
//! versions and locks, is apart in [`bucket`]; wrappers but [`retry`] pass it on as it is.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use bucket::Bucket;

pub mod bucket;
mod direct;
pub mod fault;
pub mod fs;
pub mod limit;
pub mod measure;
pub mod memory;
pub mod open;
pub mod pace;
pub mod record;
pub mod retry;
pub mod s3;
pub mod several;

/// S3 answers at most 1,000 keys to one ListObjectsV2; the other stores keep to the same.
pub const LIST_PAGE_KEYS: usize = 1000;

/// The name of an object: components of `[A-Za-z0-9._=-]` joined by `/`, none empty, none beginning with a dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Keys are made by `repo::layout` from checked parts, so a bad one is a defect of ours.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        assert!(Self::is_valid(&text), "not an object key: {text:?}");
        ObjectKey(text)
    }

    pub fn is_valid(text: &str) -> bool {
        !text.is_empty()
            && text.len() <= 900
            && text.split('/').all(|part| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._=-".contains(&b))
            })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What to write. Both kinds can be sent again after a failure.
#[derive(Debug, Clone)]
pub enum Body {
    /// Pieces in memory, written one after the other without being joined.
    Bytes(Vec<Bytes>),
    /// A finished file that nobody changes, of the given length in bytes.
    File { path: PathBuf, bytes: u64 },
    /// The same without a name; a store that said where to make it ([`Storage::scratch`]) may give it one instead of copying it.
    Unnamed { file: Arc<File>, bytes: u64 },
}

impl Body {
    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(pieces) => pieces.iter().map(|p| p.len() as u64).sum(),
            Body::File { bytes, .. } | Body::Unnamed { bytes, .. } => *bytes,
        }
    }

    /// By which path its file can be opened, where it is one.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Body::Bytes(_) => None,
            Body::File { path, .. } => Some(path.clone()),
            Body::Unnamed { file, .. } => Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Body::Bytes(vec![bytes.into()])
    }
}

/// Which bytes of an object to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// Exactly these bytes; an object that ends before is [`Fault::Truncated`].
    Range {
        start: u64,
        bytes: u64,
    },
    /// The last bytes, or all when the object is shorter.
    Tail {
        bytes: u64,
    },
}

/// What [`Storage::read`] found.
#[derive(Debug, Clone)]
pub struct Read {
    pub bytes: Bytes,
    /// Length of the whole object.
    pub object_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    pub key: ObjectKey,
    pub bytes: u64,
    /// By the store's clock.
    pub modified: Timestamp,
    pub tier: Tier,
}

/// Whether an object's bytes can be read now, as far as the answer tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tier {
    #[default]
    Ready,
    /// In this archive class, and the store shows no restored copy: reading is refused ([`Fault::Frozen`]) until there is one.
    Frozen(&'static str),
    /// This class has archive tiers, and a listing does not tell which objects are in them: [`Storage::stat`] does.
    Unknown(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    New,
    AlreadyThere,
}

/// One page of a listing. Ask again while `more`, with `after` = the last key or [`behind_folder`] of the last folder,
/// whichever sorts last; [`list_all`] does.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub objects: Vec<ObjectInfo>,
    /// Set when the listing was asked by folder: the next components below the prefix, each ending in `/`.
    pub folders: Vec<String>,
    pub more: bool,
}

/// How deep a listing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every key below the prefix.
    All,
    /// Keys directly below the prefix, and folder names.
    Folder,
}

/// A place for objects. See the module for the contract.
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync {
    /// Where this is, for messages; never a secret.
    fn place(&self) -> &str;
    /// Whether two simultaneous `create`s of one key can never both answer [`Created::New`].
    fn conditional_create(&self) -> bool;
    /// Makes an object, durably and whole, unless the key is taken.
    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created>;
    /// [`create`](Storage::create) for a key that nobody else ever uses, because the writer's own random name is part of it. Where the
    /// store itself cannot refuse a taken key, this spares the questions before and after. Already there: an earlier attempt of
    /// the same call arrived.
    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.create(key, body).await
    }
    /// Reads a part of an object.
    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read>;
    /// Length and age, or `None` when the place says there is no such object.
    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>>;
    /// One page of the keys that begin with `prefix` (empty, or ending in `/` or in a part of a name), after `after`.
    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page>;
    /// Deletes; answers the keys that could not be deleted, each with its reason.
    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>>;
    /// Bytes that still fit, where the place can tell.
    async fn free_bytes(&self) -> Result<Option<u64>>;
    /// The places that hold the same objects, each alone, for who found what it read damaged; none where there is but one place.
    fn copies(&self) -> Vec<Arc<dyn Storage>> {
        Vec::new()
    }
    /// A directory in which a file for [`Body::Unnamed`] is best made; it is no object and has no name, so it is never seen.
    fn scratch(&self) -> Option<PathBuf> {
        None
    }
    /// What only buckets can do; `None` for other places.
    fn bucket(&self) -> Option<&dyn Bucket> {
        None
    }
}

pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// What went wrong, as far as a caller would do something else about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The place answered: there is no such object.
    NotFound,
    /// The object is shorter than the range asked for.
    Truncated,
    /// The place itself is not there: no bucket, no directory.
    NoPlace,
    /// We are known but may not.
    Denied,
    /// Nobody may delete it before a day that has not come.
    Locked,
    /// It is in an archive class, and must be restored there before it can be read.
    Frozen,
    /// Wrong, missing or expired credentials.
    Credentials,
    /// No space left.
    Full,
    /// The place cannot be written at all.
    ReadOnly,
    /// A wrapper stopped the call, because this process may no longer write.
    Fenced,
    /// May work when tried again: connection, time-out, 5xx, 429.
    Transient,
    /// Anything else; trying again would not help.
    Other,
}

impl Fault {
    fn words(self) -> &'static str {
        match self {
            Fault::NotFound => "there is no such object",
            Fault::Truncated => "the object is shorter than expected",
            Fault::NoPlace => "the repository's place does not exist (bucket missing, or directory not mounted?)",
            Fault::Denied => "permission denied",
            Fault::Locked => "the object is locked",
            Fault::Frozen => {
                "the object is frozen in an archive class of the store and must be thawed (restored there) before it can be read"
            }
            Fault::Credentials => "the credentials were not accepted",
            Fault::Full => "no space left",
            Fault::ReadOnly => "the place is read-only",
            Fault::Fenced => "this process may no longer write",
            Fault::Transient => "the store did not answer properly",
            Fault::Other => "the store refused",
        }
    }
}

/// A failed call: which one, on what, where, and why.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {key} in {place}: {}{}", fault.words(), if detail.is_empty() { String::new() } else { format!(": {detail}") })]
pub struct StorageError {
    pub operation: &'static str,
    pub place: String,
    pub key: String,
    pub fault: Fault,
    pub detail: String,
}

impl StorageError {
    pub fn is_not_found(&self) -> bool {
        self.fault == Fault::NotFound
    }
}

/// Everything below `prefix`, page by page, handed to `each`; for prefixes whose size the layout bounds.
pub async fn list_all(storage: &dyn Storage, prefix: &str, depth: Depth) -> Result<Page> {
    let mut all = Page::default();
    let mut after: Option<String> = None;
    loop {
        let page = storage.list(prefix, after.as_deref(), depth).await?;
        let last_object = page.objects.last().map(|o| o.key.as_str().to_string());
        let last_folder = page.folders.last().map(|folder| behind_folder(prefix, folder));
        all.objects.extend(page.objects);
        all.folders.extend(page.folders);
        after = last_object.max(last_folder);
        if !page.more || after.is_none() {
            return Ok(all);
        }
    }
}

/// Where a listing by folder continues behind `folder` (as in [`Page::folders`]): `~` sorts after everything a component
/// can hold, so this is behind all keys of the folder and before every other key.
pub fn behind_folder(prefix: &str, folder: &str) -> String {
    format!("{prefix}{folder}~")
}

/// A shared store is a store.
#[async_trait]
impl<S: Storage + ?Sized> Storage for Arc<S> {
    fn place(&self) -> &str {
        (**self).place()
    }

    fn conditional_create(&self) -> bool {
        (**self).conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        (**self).create(key, body).await
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        (**self).create_own(key, body).await
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        (**self).read(key, part).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        (**self).stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        (**self).list(prefix, after, depth).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        (**self).delete(keys).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        (**self).free_bytes().await
    }

    fn copies(&self) -> Vec<Arc<dyn Storage>> {
        (**self).copies()
    }

    fn scratch(&self) -> Option<PathBuf> {
        (**self).scratch()
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        (**self).bucket()
    }
}
