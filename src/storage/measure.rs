//! How each call to a store went, and how long it took: evidence, kept per operation and hour.
//!
//! Wrapped right around a store, inside of what tries again: each attempt counts, also one that was given up because no answer came.
//! Memory and files are bounded: a cell for each hour and operation, with counts and a histogram, whatever the number of calls.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::bucket::Bucket;
use super::{Body, Created, Depth, Fault, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};
use crate::clock;

pub mod history;

/// What an error that no answer came from is called.
const NO_ANSWER: &str = "no answer";
/// Of each kind of error, the words of the last one, cut to this length.
const WORDS_MAX: usize = 200;

/// What is known of one operation in one hour.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub calls: u64,
    pub bytes: u64,
    /// By kind; "not found" is an answer, and stands here too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, u64>,
    /// The last words of each kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub words: BTreeMap<String, String>,
    /// How many calls took between `2^(n/2)` and `2^((n+1)/2)` microseconds.
    pub histogram: BTreeMap<u8, u64>,
    pub slowest_us: u64,
}

impl Cell {
    fn add(&mut self, took: Duration, bytes: u64, error: Option<(&str, String)>) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.calls += 1;
        self.bytes += bytes;
        *self.histogram.entry(step(us)).or_default() += 1;
        self.slowest_us = self.slowest_us.max(us);
        if let Some((kind, mut words)) = error {
            *self.errors.entry(kind.into()).or_default() += 1;
            let end = (0..=WORDS_MAX.min(words.len())).rev().find(|at| words.is_char_boundary(*at));
            words.truncate(end.unwrap_or(0));
            self.words.insert(kind.into(), words);
        }
    }

    /// Adds what another process or hour counted.
    pub fn merge(&mut self, other: &Cell) {
        self.calls += other.calls;
        self.bytes += other.bytes;
        self.slowest_us = self.slowest_us.max(other.slowest_us);
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.words.extend(other.words.clone());
        for (step, count) in &other.histogram {
            *self.histogram.entry(*step).or_default() += count;
        }
    }

    /// Calls that failed; that something is not there is no failure.
    pub fn failed(&self) -> u64 {
        let not_found = kind(Fault::NotFound);
        self.errors.iter().filter(|(kind, _)| *kind != not_found).map(|(_, count)| count).sum()
    }

    /// The time in which `share` (0 to 1) of the calls ended, at most a factor of 1.5 too long.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let wanted = (self.calls as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (step, count) in &self.histogram {
            seen += count;
            if seen >= wanted {
                return (2f64.powf((f64::from(*step) + 1.0) / 2.0) as u64).min(self.slowest_us);
            }
        }
        self.slowest_us
    }
}

fn step(us: u64) -> u8 {
    (2.0 * (us.max(1) as f64).log2()) as u8
}

/// Seconds since 1970 at the beginning of an hour, and the operation.
pub type Hours = BTreeMap<(i64, String), Cell>;

/// Outlives the store: keep it before the store is handed on.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Hours>>);

impl Log {
    /// What was counted since the last call.
    pub fn take(&self) -> Hours {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, operation: &str, took: Duration, bytes: u64, error: Option<(&str, String)>) {
        let now = clock::now().as_second();
        let mut hours = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hours.entry((now - now.rem_euclid(3600), operation.into())).or_default().add(took, bytes, error);
    }
}

/// A call that runs; dropped without an answer, it counts as one that never got one.
struct Call<'a> {
    log: &'a Log,
    operation: &'static str,
    key: &'a str,
    began: Instant,
    is_over: bool,
}

impl<'a> Call<'a> {
    fn begin(log: &'a Log, operation: &'static str, key: &'a str) -> Call<'a> {
        tracing::trace!(operation, key, "begins");
        Call { log, operation, key, began: clock::monotonic(), is_over: false }
    }

    fn end<T>(mut self, answer: Result<T>, bytes: impl FnOnce(&T) -> u64) -> Result<T> {
        self.is_over = true;
        let (bytes, error) = match &answer {
            Ok(found) => (bytes(found), None),
            Err(error) => (0, Some((kind(error.fault), error.to_string()))),
        };
        let took = self.began.elapsed();
        tracing::trace!(operation = self.operation, key = self.key, ?took, bytes, "ended");
        self.log.add(self.operation, took, bytes, error);
        answer
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let took = self.began.elapsed();
            self.log.add(self.operation, took, 0, Some((NO_ANSWER, format!("given up after {:.1} s", took.as_secs_f64()))));
        }
    }
}

fn kind(fault: Fault) -> &'static str {
    match fault {
        Fault::NotFound => "not found",
        Fault::Truncated => "cut short",
        Fault::NoPlace => "no place",
        Fault::Denied => "denied",
        Fault::Frozen => "frozen",
        Fault::Locked => "locked",
        Fault::Credentials => "credentials",
        Fault::Full => "full",
        Fault::ReadOnly => "read-only",
        Fault::Fenced => "fenced",
        Fault::Transient => "transient",
        Fault::Other => "other",
    }
}

#[derive(Debug)]
pub struct Measured<S> {
    inner: S,
    log: Log,
}

impl<S> Measured<S> {
    pub fn new(inner: S, log: &Log) -> Self {
        Measured { inner, log: log.clone() }
    }
}

#[async_trait]
impl<S: Storage> Storage for Measured<S> {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        self.inner.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let (call, bytes) = (Call::begin(&self.log, "create", key.as_str()), body.len());
        call.end(self.inner.create(key, body).await, |_| bytes)
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let (call, bytes) = (Call::begin(&self.log, "create", key.as_str()), body.len());
        call.end(self.inner.create_own(key, body).await, |_| bytes)
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let call = Call::begin(&self.log, "read", key.as_str());
        call.end(self.inner.read(key, part).await, |read| read.bytes.len() as u64)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        let call = Call::begin(&self.log, "stat", key.as_str());
        call.end(self.inner.stat(key).await, |_| 0)
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        let call = Call::begin(&self.log, "list", prefix);
        call.end(self.inner.list(prefix, after, depth).await, |_| 0)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        let call = Call::begin(&self.log, "delete", keys.first().map_or("", ObjectKey::as_str));
        let answer = call.end(self.inner.delete(keys).await, |_| 0)?;
        // Each key has its own answer.
        for (_, error) in &answer {
            self.log.add("delete key", Duration::ZERO, 0, Some((kind(error.fault), error.to_string())));
        }
        Ok(answer)
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes().await
    }

    fn scratch(&self) -> Option<PathBuf> {
        self.inner.scratch()
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        self.inner.bucket()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::{FaultInjection, Script, Trouble, When};
    use super::super::memory::MemoryStorage;
    use super::*;

    #[test]
    fn quantiles_are_near_and_never_above_the_slowest() {
        let mut cell = Cell::default();
        for ms in 1..=100 {
            cell.add(Duration::from_millis(ms), 1, None);
        }
        for (share, exact) in [(0.5, 50_000), (0.95, 95_000), (1.0, 100_000)] {
            let found = cell.quantile_us(share);
            assert!(found >= exact && found <= exact * 3 / 2, "{share}: {found}");
        }
        assert!(cell.quantile_us(1.0) <= cell.slowest_us);
        let mut twice = cell.clone();
        twice.merge(&cell);
        assert_eq!((twice.calls, twice.bytes, twice.quantile_us(0.5)), (200, 200, cell.quantile_us(0.5)));
    }

    #[tokio::test]
    async fn every_call_counts_with_its_error_also_one_without_an_answer() {
        let (log, script) = (Log::default(), Script::new());
        let store = Measured::new(FaultInjection::new(MemoryStorage::new(), &script), &log);
        let key = ObjectKey::new("k");
        store.create(&key, b"abc".to_vec().into()).await.unwrap();
        store.read(&key, Part::Whole).await.unwrap();
        assert!(store.read(&ObjectKey::new("other"), Part::Whole).await.is_err());
        script.add_times(When::From(1), Trouble::Fail(Fault::Transient), 1);
        assert!(store.read(&key, Part::Whole).await.is_err());
        script.add_times(When::From(1), Trouble::Freeze, 1);
        assert!(tokio::time::timeout(Duration::from_millis(1), store.read(&key, Part::Whole)).await.is_err());
        script.add_times(When::From(1), Trouble::RefuseKey(Fault::Denied), 1);
        store.delete(&[key]).await.unwrap();
        let hours = log.take();
        let of = |operation: &str| {
            let mut sum = Cell::default();
            hours.iter().filter(|((_, name), _)| name == operation).for_each(|(_, cell)| sum.merge(cell));
            sum
        };
        assert_eq!((of("create").calls, of("create").bytes), (1, 3));
        let read = of("read");
        assert_eq!((read.calls, read.bytes, read.failed()), (4, 3, 2), "{read:?}");
        let errors: Vec<_> = read.errors.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        assert_eq!(errors, [("no answer", 1), ("not found", 1), ("transient", 1)]);
        assert_eq!(of("delete key").errors["denied"], 1);
        assert!(log.take().is_empty());
    }
}
