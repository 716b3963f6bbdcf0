//! What keeps a holder from writing after its turn: every create and every deletion goes through here.
//!
//! While the last beat is younger than a third of the lease, nothing is asked: a write that begins now has two thirds of the lease
//! before anybody may take over. The age is measured by the boot clock and by the wall clock, because a pause stops one or
//! the other. An older beat is renewed first, and that tells whether the lease was taken. Reading is never refused.

use std::sync::Arc;

use async_trait::async_trait;

use super::exclusive::Held;
use crate::repo::RepoError;
use crate::storage::bucket::Bucket;
use crate::storage::{Body, Created, Depth, Fault, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};

#[derive(Debug)]
pub struct Fenced {
    inner: Arc<dyn Storage>,
    held: Arc<Held>,
}

impl Fenced {
    pub(super) fn new(inner: Arc<dyn Storage>, held: Arc<Held>) -> Fenced {
        Fenced { inner, held }
    }

    async fn admit(&self, operation: &'static str, key: &str) -> Result<()> {
        self.held.admit().await.map_err(|error| match error {
            RepoError::Storage(error) => error,
            other => {
                let (place, detail) = (self.inner.place().into(), other.to_string());
                StorageError { operation, place, key: key.into(), fault: Fault::Fenced, detail }
            }
        })
    }
}

#[async_trait]
impl Storage for Fenced {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        self.inner.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.admit("create", key.as_str()).await?;
        self.inner.create(key, body).await
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.admit("create", key.as_str()).await?;
        self.inner.create_own(key, body).await
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        self.inner.read(key, part).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        self.inner.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        self.inner.list(prefix, after, depth).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        self.admit("delete", keys.first().map_or("", ObjectKey::as_str)).await?;
        self.inner.delete(keys).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes().await
    }

    fn copies(&self) -> Vec<Arc<dyn Storage>> {
        self.inner.copies()
    }

    /// A longer lock destroys nothing, whoever sets it.
    fn bucket(&self) -> Option<&dyn Bucket> {
        self.inner.bucket()
    }
}
