//! Locks of several places: what must be locked is locked wherever locks are.
//!
//! What is asked about versions is asked of one place alone, which [`Storage::copies`](super::Storage::copies) gives.

use async_trait::async_trait;
use futures::future::try_join_all;
use jiff::Timestamp;

use super::Several;
use crate::storage::bucket::{Bucket, Lock, Older, Protection};
use crate::storage::{ObjectKey, Result, Storage, StorageError};

impl Several {
    fn buckets(&self) -> impl Iterator<Item = &dyn Bucket> {
        let used = self.members.iter().filter(|member| member.is_copy.get() != Some(&false));
        used.filter_map(|member| member.storage.bucket())
    }
}

#[async_trait]
impl Bucket for Several {
    /// The longest of all.
    fn lock(&self) -> Option<Lock> {
        self.buckets().filter_map(Bucket::lock).max_by_key(|lock| lock.days)
    }

    fn deletes_versions(&self) -> bool {
        self.buckets().any(Bucket::deletes_versions)
    }

    /// Of the first.
    async fn protection(&self) -> Result<Protection> {
        match self.first().storage.bucket() {
            Some(bucket) => bucket.protection().await,
            None => Ok(Protection::default()),
        }
    }

    async fn locked_until(&self, key: &ObjectKey) -> Result<Option<Timestamp>> {
        let asked = try_join_all(self.buckets().map(|bucket| bucket.locked_until(key))).await?;
        Ok(asked.into_iter().flatten().max())
    }

    async fn extend(&self, keys: &[ObjectKey], until: Timestamp) -> Result<Vec<(ObjectKey, StorageError)>> {
        let asked = self.buckets().filter(|bucket| bucket.lock().is_some()).map(|bucket| bucket.extend(keys, until));
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }

    /// Of the first.
    async fn older(&self, prefix: &str) -> Result<Vec<Older>> {
        match self.first().storage.bucket() {
            Some(bucket) => bucket.older(prefix).await,
            None => Ok(Vec::new()),
        }
    }

    /// In the first.
    async fn hide(&self, key: &ObjectKey) -> Result<()> {
        match self.first().storage.bucket() {
            Some(bucket) => bucket.hide(key).await,
            None => Ok(()),
        }
    }

    /// In the first.
    async fn uncover(&self, key: &ObjectKey) -> Result<bool> {
        match self.first().storage.bucket() {
            Some(bucket) => bucket.uncover(key).await,
            None => Ok(false),
        }
    }
}
