//! Deleting, a thousand keys at a time where the store can.

use aws_sdk_s3::types::{Delete, Error as KeyError, ObjectIdentifier};
use futures::StreamExt as _;

use super::S3Storage;
use super::errors::{self, Refusal};
use crate::storage::{Fault, ObjectKey, Result, StorageError};

/// The most that DeleteObjects takes.
const BATCH_KEYS: usize = 1000;
/// Single deletes at the same time, for stores without DeleteObjects.
const SINGLE_DELETES: usize = 8;

type Failed = Vec<(ObjectKey, StorageError)>;

impl S3Storage {
    pub(super) async fn delete_all(&self, keys: &[ObjectKey]) -> Result<Failed> {
        let mut failed = Failed::new();
        for batch in keys.chunks(BATCH_KEYS) {
            failed.extend(self.delete_batch(batch).await?);
        }
        Ok(failed)
    }

    async fn delete_batch(&self, keys: &[ObjectKey]) -> Result<Failed> {
        let mut batch = Delete::builder().quiet(true);
        for key in keys {
            let object = ObjectIdentifier::builder().key(self.full_key(key)).build();
            let object = object.map_err(|error| self.error("delete", key.as_str(), Fault::Other, error.to_string()))?;
            batch = batch.objects(object);
        }
        let batch = batch.build().map_err(|error| self.error("delete", "", Fault::Other, error.to_string()))?;
        match self.client.delete_objects().bucket(&self.bucket).delete(batch).send().await {
            Ok(answer) => Ok(answer.errors().iter().filter_map(|error| self.key_failure(error)).collect()),
            Err(error) if Refusal::is_unknown_operation(&error) => self.delete_singly(keys).await,
            Err(error) => {
                let name = format!("{} and {} more", keys[0], keys.len() - 1);
                Err(self.refused("delete", &name, &error).await)
            }
        }
    }

    /// One entry of a batch's answer (rule 54); a key that was not there is no failure.
    fn key_failure(&self, error: &KeyError) -> Option<(ObjectKey, StorageError)> {
        let key = error.key().and_then(|key| key.strip_prefix(self.prefix.as_str())).unwrap_or_default();
        let refusal = errors::refusal(None, error.code(), error.message());
        if refusal.fault == Fault::NotFound || !ObjectKey::is_valid(key) {
            return None;
        }
        Some((ObjectKey::new(key), self.error("delete", key, refusal.fault, refusal.detail)))
    }

    async fn delete_singly(&self, keys: &[ObjectKey]) -> Result<Failed> {
        let deletes: Vec<_> = keys.iter().map(|key| self.delete_one(key)).collect();
        let answers: Vec<_> = futures::stream::iter(deletes).buffer_unordered(SINGLE_DELETES).collect().await;
        Ok(answers.into_iter().flatten().collect())
    }

    async fn delete_one(&self, key: &ObjectKey) -> Option<(ObjectKey, StorageError)> {
        let deleted = self.client.delete_object().bucket(&self.bucket).key(self.full_key(key)).send().await;
        let error = self.refused("delete", key.as_str(), &deleted.err()?).await;
        (!error.is_not_found()).then(|| (key.clone(), error))
    }
}
