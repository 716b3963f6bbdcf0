//! Deleting, a thousand keys at a time where the store can; with `delete_versions`, all versions of each.

use std::collections::BTreeMap;

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
        if self.delete_versions {
            for (key, error) in self.delete_all_versions(keys).await? {
                // One answer for each key, however many of its versions stay.
                if failed.iter().all(|(known, _)| *known != key) {
                    failed.push((key, error));
                }
            }
            return Ok(failed);
        }
        for batch in keys.chunks(BATCH_KEYS) {
            failed.extend(self.delete_batch(&batch.iter().map(|key| (key.clone(), None)).collect::<Vec<_>>()).await?);
        }
        Ok(failed)
    }

    /// One listing for the keys of each folder, as far as they reach.
    async fn delete_all_versions(&self, keys: &[ObjectKey]) -> Result<Failed> {
        let mut folders: BTreeMap<&str, Vec<&ObjectKey>> = BTreeMap::new();
        for key in keys {
            let folder = key.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
            folders.entry(folder).or_default().push(key);
        }
        let mut versions = Vec::new();
        for mut keys in folders.into_values() {
            keys.sort();
            let (Some(first), Some(last)) = (keys.first(), keys.last()) else { continue };
            let found = self.versions(common(first.as_str(), last.as_str()), Some(last)).await?;
            let wanted = found.into_iter().filter(|version| keys.binary_search(&&version.key).is_ok());
            versions.extend(wanted.map(|version| (version.key, Some(version.id))));
        }
        let mut failed = Failed::new();
        for batch in versions.chunks(BATCH_KEYS) {
            failed.extend(self.delete_batch(batch).await?);
        }
        Ok(failed)
    }

    /// Keys, each with the version that goes.
    async fn delete_batch(&self, keys: &[(ObjectKey, Option<String>)]) -> Result<Failed> {
        let mut batch = Delete::builder().quiet(true);
        for (key, version) in keys {
            let object = ObjectIdentifier::builder().key(self.full_key(key)).set_version_id(version.clone()).build();
            let object = object.map_err(|error| self.error("delete", key.as_str(), Fault::Other, error.to_string()))?;
            batch = batch.objects(object);
        }
        let batch = batch.build().map_err(|error| self.error("delete", "", Fault::Other, error.to_string()))?;
        match self.client.delete_objects().bucket(&self.bucket).delete(batch).send().await {
            Ok(answer) => Ok(answer.errors().iter().filter_map(|error| self.key_failure(error)).collect()),
            Err(error) if Refusal::is_unknown_operation(&error) => self.delete_singly(keys).await,
            Err(error) => {
                let name = format!("{} and {} more", keys[0].0, keys.len() - 1);
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

    async fn delete_singly(&self, keys: &[(ObjectKey, Option<String>)]) -> Result<Failed> {
        let deletes: Vec<_> = keys.iter().map(|(key, version)| self.delete_one(key, version.clone())).collect();
        let answers: Vec<_> = futures::stream::iter(deletes).buffer_unordered(SINGLE_DELETES).collect().await;
        Ok(answers.into_iter().flatten().collect())
    }

    async fn delete_one(&self, key: &ObjectKey, version: Option<String>) -> Option<(ObjectKey, StorageError)> {
        let request = self.client.delete_object().bucket(&self.bucket).key(self.full_key(key));
        let deleted = request.set_version_id(version).send().await;
        let error = self.refused("delete", key.as_str(), &deleted.err()?).await;
        (!error.is_not_found()).then(|| (key.clone(), error))
    }
}

/// How two keys of one folder begin alike.
fn common<'a>(first: &'a str, last: &str) -> &'a str {
    let alike = first.bytes().zip(last.bytes()).take_while(|(one, two)| one == two).count();
    &first[..alike]
}
