//! At most so many calls at the same time; the others wait for their turn, in order.

use async_trait::async_trait;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::bucket::Bucket;
use super::{Body, Created, Depth, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};

#[derive(Debug)]
pub struct Limit<S> {
    inner: S,
    turns: Semaphore,
}

impl<S> Limit<S> {
    /// `max_calls` of 0 is taken as 1, so that nothing waits for ever.
    pub fn new(inner: S, max_calls: usize) -> Self {
        Limit { inner, turns: Semaphore::new(max_calls.clamp(1, Semaphore::MAX_PERMITS)) }
    }

    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("the semaphore is never closed")
    }
}

#[async_trait]
impl<S: Storage> Storage for Limit<S> {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        self.inner.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let _turn = self.turn().await;
        self.inner.create(key, body).await
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let _turn = self.turn().await;
        self.inner.create_own(key, body).await
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let _turn = self.turn().await;
        self.inner.read(key, part).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        let _turn = self.turn().await;
        self.inner.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        let _turn = self.turn().await;
        self.inner.list(prefix, after, depth).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        let _turn = self.turn().await;
        self.inner.delete(keys).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        let _turn = self.turn().await;
        self.inner.free_bytes().await
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        self.inner.bucket()
    }
}
