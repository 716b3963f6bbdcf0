//! One of several places: its health, and what it was good for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::super::bucket::Bucket;
use super::super::{Body, Created, Depth, Fault, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};
use crate::clock;

/// For so long a place is asked last after its first failure; twice as long after each further one.
const BYPASS: Duration = Duration::from_secs(15);
const BYPASS_MAX: Duration = Duration::from_secs(300);

/// What a place was good for, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Served {
    pub name: String,
    pub place: String,
    pub reads: u64,
    pub bytes: u64,
    /// Reads of what was damaged in another place.
    pub instead: u64,
    pub failures: u64,
    /// How often another place was quicker.
    pub overtaken: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// It could not be listed: what only it has was not seen.
    pub missed: bool,
    /// Why it was left out altogether.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excluded: Option<String>,
}

#[derive(Debug, Default)]
struct Health {
    /// Failures and overtakings since the last answer.
    bad: u32,
    bypassed_until: Option<Instant>,
    last_failure: Option<String>,
    excluded: Option<String>,
}

#[derive(Debug)]
pub struct Member {
    pub name: String,
    pub storage: Arc<dyn Storage>,
    /// Whether it holds the same repository as the first, once that is known.
    pub is_copy: OnceLock<bool>,
    health: Mutex<Health>,
    reads: AtomicU64,
    bytes: AtomicU64,
    instead: AtomicU64,
    failures: AtomicU64,
    overtaken: AtomicU64,
    missed: AtomicBool,
}

impl Member {
    pub fn new(name: &str, storage: Arc<dyn Storage>) -> Member {
        Member {
            name: name.into(),
            storage,
            is_copy: OnceLock::new(),
            health: Mutex::default(),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            instead: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            overtaken: AtomicU64::new(0),
            missed: AtomicBool::new(false),
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_bypassed(&self) -> bool {
        self.health().bypassed_until.is_some_and(|until| clock::monotonic() < until)
    }

    fn bypass(&self) {
        let mut health = self.health();
        health.bad = health.bad.saturating_add(1);
        let pause = BYPASS.saturating_mul(1 << (health.bad - 1).min(5)).min(BYPASS_MAX);
        health.bypassed_until = Some(clock::monotonic() + pause);
    }

    /// Another place answered while this one was silent.
    pub fn overtaken(&self) {
        self.overtaken.fetch_add(1, Ordering::Relaxed);
        self.bypass();
    }

    pub fn missed(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    pub fn exclude(&self, why: &str) {
        let _ = self.is_copy.set(false);
        self.health().excluded = Some(why.into());
    }

    /// Takes note of an answer, and hands it on. That something is not there, or cut short, says nothing about health.
    pub fn answered<T>(&self, answer: Result<T>) -> Result<T> {
        match &answer {
            Ok(_) => {
                let mut health = self.health();
                (health.bad, health.bypassed_until) = (0, None);
            }
            Err(error) if matches!(error.fault, Fault::NotFound | Fault::Truncated) => {}
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.bypass();
                self.health().last_failure = Some(error.to_string());
            }
        }
        answer
    }

    pub async fn read_counted(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let read = self.answered(self.storage.read(key, part).await)?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(read.bytes.len() as u64, Ordering::Relaxed);
        Ok(read)
    }

    pub fn served(&self) -> Served {
        let health = self.health();
        let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Served {
            name: self.name.clone(),
            place: self.storage.place().into(),
            reads: number(&self.reads),
            bytes: number(&self.bytes),
            instead: number(&self.instead),
            failures: number(&self.failures),
            overtaken: number(&self.overtaken),
            last_failure: health.last_failure.clone(),
            missed: self.missed.load(Ordering::Relaxed),
            excluded: health.excluded.clone(),
        }
    }
}

/// One place alone, for who found what it read elsewhere damaged.
#[async_trait]
impl Storage for Member {
    fn place(&self) -> &str {
        self.storage.place()
    }

    fn conditional_create(&self) -> bool {
        self.storage.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.storage.create(key, body).await
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.storage.create_own(key, body).await
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let read = self.read_counted(key, part).await?;
        self.instead.fetch_add(1, Ordering::Relaxed);
        Ok(read)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        self.storage.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        self.storage.list(prefix, after, depth).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        self.storage.delete(keys).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.storage.free_bytes().await
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        self.storage.bucket()
    }
}
