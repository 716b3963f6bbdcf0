//! Slows a store down to a number of bytes a second, so that a copy or a drill leaves room on the line for others.
//!
//! Every call takes its bytes out of one budget and waits until the line would be free for them. A call is never refused, and a
//! single large object goes in one piece: the pace is that of many calls.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::bucket::Bucket;
use super::{Body, Created, Depth, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};
use crate::clock;

#[derive(Debug)]
pub struct Pace<S> {
    inner: S,
    bytes_per_s: Option<u64>,
    /// When the line is free again.
    free: Mutex<Option<Instant>>,
}

impl<S> Pace<S> {
    /// Without a number nothing is slowed down.
    pub fn new(inner: S, bytes_per_s: Option<u64>) -> Self {
        Pace { inner, bytes_per_s, free: Mutex::new(None) }
    }

    /// Takes the line for `bytes` from `now` on; answers how long to wait for it.
    fn book(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_s.filter(|rate| *rate > 0) else { return Duration::ZERO };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = free.unwrap_or(now).max(now);
        *free = Some(begin + Duration::from_secs_f64(bytes as f64 / rate as f64));
        begin - now
    }

    /// Waits until the line would be free: for a process after which another goes on.
    pub async fn rest(&self) {
        self.wait(0).await;
    }

    async fn wait(&self, bytes: u64) {
        let wait = self.book(bytes, clock::monotonic());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[async_trait]
impl<S: Storage> Storage for Pace<S> {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        self.inner.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.wait(body.len()).await;
        self.inner.create(key, body).await
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.wait(body.len()).await;
        self.inner.create_own(key, body).await
    }

    /// How much comes is known afterwards: the next call waits for it.
    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        self.wait(0).await;
        let read = self.inner.read(key, part).await?;
        self.book(read.bytes.len() as u64, clock::monotonic());
        Ok(read)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        self.inner.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        self.inner.list(prefix, after, depth).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        self.inner.delete(keys).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes().await
    }

    /// At their own pace: what they are read for is the exception.
    fn copies(&self) -> Vec<Arc<dyn Storage>> {
        self.inner.copies()
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
    use super::*;

    #[test]
    fn who_comes_later_waits_for_all_before() {
        let pace = Pace::new((), Some(1000));
        let now = clock::monotonic();
        let second = Duration::from_secs(1);
        assert_eq!(pace.book(2000, now), Duration::ZERO);
        assert_eq!(pace.book(500, now), 2 * second);
        assert_eq!(pace.book(1, now + second), Duration::from_millis(1500));
        // A line that was idle gives nothing back for it.
        assert_eq!(pace.book(1000, now + 100 * second), Duration::ZERO);
        assert_eq!(pace.book(1000, now + 100 * second), second);
        assert_eq!(Pace::new((), None).book(u64::MAX, now), Duration::ZERO);
    }
}
