//! What was asked of a store, for tests: "no listing happened" becomes an assertion.

use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;

use super::bucket::Bucket;
use super::{Body, Created, Depth, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Read,
    Stat,
    List,
    Delete,
    FreeBytes,
}

/// One call that came back, well or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub operation: Operation,
    /// The key, the prefix of a listing, or the first key of a deletion.
    pub key: String,
    /// Bytes sent or received; the number of keys for listings and deletions.
    pub amount: u64,
    pub is_ok: bool,
}

/// How many calls of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub create: usize,
    pub read: usize,
    pub stat: usize,
    pub list: usize,
    pub delete: usize,
    pub free_bytes: usize,
}

/// The log outlives the store: keep a [`Record::log`] before handing the store on.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Call>>>);

impl Log {
    pub fn calls(&self) -> Vec<Call> {
        self.lock().clone()
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for call in self.lock().iter() {
            match call.operation {
                Operation::Create => counts.create += 1,
                Operation::Read => counts.read += 1,
                Operation::Stat => counts.stat += 1,
                Operation::List => counts.list += 1,
                Operation::Delete => counts.delete += 1,
                Operation::FreeBytes => counts.free_bytes += 1,
            }
        }
        counts
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add<T>(&self, operation: Operation, key: &str, answer: Result<T>, amount: impl FnOnce(&T) -> u64) -> Result<T> {
        let (is_ok, amount) = (answer.is_ok(), answer.as_ref().map_or(0, amount));
        self.lock().push(Call { operation, key: key.into(), amount, is_ok });
        answer
    }
}

#[derive(Debug)]
pub struct Record<S> {
    inner: S,
    log: Log,
}

impl<S> Record<S> {
    pub fn new(inner: S) -> Self {
        Record { inner, log: Log::default() }
    }

    pub fn log(&self) -> Log {
        self.log.clone()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.log.calls()
    }

    pub fn counts(&self) -> Counts {
        self.log.counts()
    }
}

#[async_trait]
impl<S: Storage> Storage for Record<S> {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        self.inner.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let bytes = body.len();
        let answer = self.inner.create(key, body).await;
        self.log.add(Operation::Create, key.as_str(), answer, |_| bytes)
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let answer = self.inner.read(key, part).await;
        self.log.add(Operation::Read, key.as_str(), answer, |read| read.bytes.len() as u64)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        let answer = self.inner.stat(key).await;
        self.log.add(Operation::Stat, key.as_str(), answer, |_| 0)
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        let answer = self.inner.list(prefix, after, depth).await;
        self.log.add(Operation::List, prefix, answer, |page| (page.objects.len() + page.folders.len()) as u64)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        let answer = self.inner.delete(keys).await;
        let first = keys.first().map_or("", ObjectKey::as_str);
        self.log.add(Operation::Delete, first, answer, |_| keys.len() as u64)
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        let answer = self.inner.free_bytes().await;
        self.log.add(Operation::FreeBytes, "", answer, |_| 0)
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        self.inner.bucket()
    }
}
