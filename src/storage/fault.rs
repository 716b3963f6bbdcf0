//! A store in which things go wrong as scripted, for tests.
//!
//! Calls are counted from 1 in the order in which they begin. A test runs once without faults to learn how many calls there
//! are ([`Script::calls`]), then once for each of them with a fault there: nothing may be lost at any.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::bucket::Bucket;
use super::record::Operation;
use super::{Body, Created, Depth, Fault, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Fails; nothing was done.
    Fail(Fault),
    /// Is done, but the answer is lost: reported as [`Fault::Transient`].
    Lie,
    /// A create answers that it was done, and nothing was.
    Lose,
    /// Never comes back; whoever waits must give up.
    Freeze,
    /// Is done, then never comes back: the process is killed after the store took the bytes.
    DoThenFreeze,
    /// A read answers only the first bytes of what it should, without saying so.
    Cut { bytes: usize },
    /// A deletion answers this for the keys that match and deletes the others (rule 54).
    RefuseKey(Fault),
}

/// Which calls it happens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// The n-th call, from 1.
    Call(u64),
    /// The n-th call and all after it: the store is gone, or the process is.
    From(u64),
    /// Every k-th call.
    Every(u64),
    /// Calls about a key (or prefix, for listings) that contains this text.
    KeyContains(String),
    /// Calls of this kind.
    Operation(Operation),
    /// Calls of this kind about a key that contains this text.
    OperationOn(Operation, String),
}

impl When {
    fn is_met(&self, number: u64, operation: Operation, key: &str) -> bool {
        match self {
            When::Call(n) => number == *n,
            When::From(n) => number >= *n,
            When::Every(k) => *k > 0 && number.is_multiple_of(*k),
            When::KeyContains(text) => key.contains(text.as_str()),
            When::Operation(kind) => operation == *kind,
            When::OperationOn(kind, text) => operation == *kind && key.contains(text.as_str()),
        }
    }
}

/// The faults to come, shared between the test and the store.
#[derive(Debug, Clone, Default)]
pub struct Script(Arc<State>);

#[derive(Debug)]
struct State {
    calls: AtomicU64,
    /// Bytes that still fit.
    room: AtomicU64,
    troubles: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    when: When,
    trouble: Trouble,
    times_left: u32,
}

impl Default for State {
    fn default() -> Self {
        State { calls: AtomicU64::new(0), room: AtomicU64::new(u64::MAX), troubles: Mutex::default() }
    }
}

impl Script {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on, each time.
    pub fn add(&self, when: When, trouble: Trouble) -> &Self {
        self.add_times(when, trouble, u32::MAX)
    }

    /// For the next `times` calls that meet the condition.
    pub fn add_times(&self, when: When, trouble: Trouble, times: u32) -> &Self {
        self.troubles().push(Entry { when, trouble, times_left: times });
        self
    }

    /// The disk is full after `bytes` more bytes.
    pub fn full_after(&self, bytes: u64) -> &Self {
        self.0.room.store(bytes, Ordering::SeqCst);
        self
    }

    /// All is well again, and calls count from 1.
    pub fn clear(&self) {
        self.troubles().clear();
        self.0.room.store(u64::MAX, Ordering::SeqCst);
        self.0.calls.store(0, Ordering::SeqCst);
    }

    /// Calls that began so far.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::SeqCst)
    }

    fn troubles(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.0.troubles.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts a call and says what happens to it; the first entry that applies wins.
    fn next(&self, operation: Operation, key: &str) -> Option<Trouble> {
        let number = self.0.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let mut troubles = self.troubles();
        let of_call = |entry: &&mut Entry| !matches!(entry.trouble, Trouble::RefuseKey(_));
        let mut entries = troubles.iter_mut().filter(of_call);
        let entry = entries.find(|entry| entry.times_left > 0 && entry.when.is_met(number, operation, key))?;
        entry.times_left = entry.times_left.saturating_sub(1);
        Some(entry.trouble)
    }

    /// What a deletion answers for one of its keys.
    fn refusal(&self, key: &str) -> Option<Fault> {
        let number = self.calls();
        self.troubles().iter_mut().find_map(|entry| match entry.trouble {
            Trouble::RefuseKey(fault) if entry.times_left > 0 && entry.when.is_met(number, Operation::Delete, key) => {
                entry.times_left -= 1;
                Some(fault)
            }
            _ => None,
        })
    }

    fn take_room(&self, bytes: u64) -> bool {
        let take = |room: u64| if room == u64::MAX { Some(room) } else { room.checked_sub(bytes) };
        self.0.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }
}

#[derive(Debug)]
pub struct FaultInjection<S> {
    inner: S,
    script: Script,
}

impl<S: Storage> FaultInjection<S> {
    pub fn new(inner: S, script: &Script) -> Self {
        FaultInjection { inner, script: script.clone() }
    }

    fn error(&self, operation: &'static str, key: &str, fault: Fault) -> StorageError {
        let place = self.inner.place().into();
        StorageError { operation, place, key: key.into(), fault, detail: "injected".into() }
    }

    async fn run<T>(&self, name: &'static str, kind: Operation, key: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.suffer(self.script.next(kind, key), name, key, call).await
    }

    async fn suffer<T>(
        &self,
        trouble: Option<Trouble>,
        name: &'static str,
        key: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match trouble {
            Some(Trouble::Fail(fault)) => Err(self.error(name, key, fault)),
            Some(Trouble::Freeze) => std::future::pending().await,
            Some(Trouble::DoThenFreeze) => {
                let _ = call.await;
                std::future::pending().await
            }
            Some(Trouble::Lie) => {
                call.await?;
                Err(self.error(name, key, Fault::Transient))
            }
            Some(Trouble::Cut { .. } | Trouble::RefuseKey(_) | Trouble::Lose) | None => call.await,
        }
    }
}

#[async_trait]
impl<S: Storage> Storage for FaultInjection<S> {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        self.inner.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let call = async {
            if !self.script.take_room(body.len()) {
                return Err(self.error("create", key.as_str(), Fault::Full));
            }
            self.inner.create(key, body).await
        };
        match self.script.next(Operation::Create, key.as_str()) {
            Some(Trouble::Lose) => Ok(Created::New),
            trouble => self.suffer(trouble, "create", key.as_str(), call).await,
        }
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        // Of all troubles only this one changes an answer.
        match self.script.next(Operation::Read, key.as_str()) {
            Some(Trouble::Cut { bytes }) => {
                let mut read = self.inner.read(key, part).await?;
                read.bytes.truncate(bytes);
                Ok(read)
            }
            Some(Trouble::Fail(fault)) => Err(self.error("read", key.as_str(), fault)),
            Some(Trouble::Freeze | Trouble::DoThenFreeze) => std::future::pending().await,
            Some(Trouble::Lie) => Err(self.error("read", key.as_str(), Fault::Transient)),
            Some(Trouble::RefuseKey(_) | Trouble::Lose) | None => self.inner.read(key, part).await,
        }
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        self.run("stat", Operation::Stat, key.as_str(), self.inner.stat(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        self.run("list", Operation::List, prefix, self.inner.list(prefix, after, depth)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        let first = keys.first().map_or("", ObjectKey::as_str);
        let call = async {
            let (mut failed, mut others) = (Vec::new(), Vec::new());
            for key in keys {
                match self.script.refusal(key.as_str()) {
                    Some(fault) => failed.push((key.clone(), self.error("delete", key.as_str(), fault))),
                    None => others.push(key.clone()),
                }
            }
            failed.extend(self.inner.delete(&others).await?);
            Ok(failed)
        };
        self.run("delete", Operation::Delete, first, call).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.run("stat", Operation::FreeBytes, "", self.inner.free_bytes()).await
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        self.inner.bucket()
    }
}
