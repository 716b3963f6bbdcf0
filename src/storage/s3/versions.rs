//! Older versions and locks of objects.

use async_trait::async_trait;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockEnabled, ObjectLockRetention, ObjectLockRetentionMode};
use futures::StreamExt as _;
use jiff::Timestamp;

use super::errors::Refusal;
use super::{S3Storage, length, timestamp};
use crate::config::ObjectLockMode;
use crate::storage::bucket::{Bucket, Lock, Older, Protection};
use crate::storage::{Fault, LIST_PAGE_KEYS, ObjectKey, Result, StorageError};

/// Retentions that are set at the same time.
const EXTENSIONS: usize = 8;

/// How objects are locked when they are written.
#[derive(Debug, Clone, Copy)]
pub struct WriteLock {
    pub days: u32,
    pub mode: ObjectLockMode,
}

impl WriteLock {
    pub fn s3_mode(&self) -> ObjectLockRetentionMode {
        match self.mode {
            ObjectLockMode::Governance => ObjectLockRetentionMode::Governance,
            ObjectLockMode::Compliance => ObjectLockRetentionMode::Compliance,
        }
    }
}

/// A version of an object, or a marker of its deletion.
#[derive(Debug, Clone)]
pub struct Version {
    pub key: ObjectKey,
    pub id: String,
    pub bytes: u64,
    pub modified: Timestamp,
    pub is_latest: bool,
    pub is_marker: bool,
}

/// In whole seconds, as S3 keeps them.
pub fn date_time(at: Timestamp) -> DateTime {
    DateTime::from_secs(at.as_second())
}

impl S3Storage {
    /// All versions whose keys begin with `prefix`, by key and the newest first; not beyond `last`.
    pub(super) async fn versions(&self, prefix: &str, last: Option<&ObjectKey>) -> Result<Vec<Version>> {
        let (mut found, mut markers): (Vec<Version>, _) = (Vec::new(), (None, None));
        loop {
            let (key_marker, version_marker) = markers;
            let request = self.client.list_object_versions().bucket(&self.bucket).prefix(format!("{}{prefix}", self.prefix));
            let request = request.max_keys(LIST_PAGE_KEYS as i32).set_key_marker(key_marker);
            let answer = match request.set_version_id_marker(version_marker).send().await {
                Ok(answer) => answer,
                Err(error) => return Err(self.refused("list versions of", prefix, &error).await),
            };
            let versions = answer.versions().iter().filter_map(|one| {
                let (latest, at) = (one.is_latest().unwrap_or(false), timestamp(one.last_modified()));
                self.version(one.key(), one.version_id(), length(one.size()), latest, at, false)
            });
            let deletions = answer.delete_markers().iter().filter_map(|one| {
                let (latest, at) = (one.is_latest().unwrap_or(false), timestamp(one.last_modified()));
                self.version(one.key(), one.version_id(), 0, latest, at, true)
            });
            found.extend(versions.chain(deletions));
            markers = (answer.next_key_marker().map(str::to_string), answer.next_version_id_marker().map(str::to_string));
            let reached = answer.next_key_marker().and_then(|key| key.strip_prefix(self.prefix.as_str()));
            let is_beyond = reached.zip(last).is_some_and(|(reached, last)| reached > last.as_str());
            if !answer.is_truncated().unwrap_or(false) || markers.0.is_none() || is_beyond {
                break;
            }
        }
        // Versions and markers are listed apart; which of all is the newest, S3 says of each.
        found.sort_by(|one, two| (&one.key, !one.is_latest, two.modified).cmp(&(&two.key, !two.is_latest, one.modified)));
        Ok(found)
    }

    fn version(
        &self,
        key: Option<&str>,
        id: Option<&str>,
        bytes: u64,
        is_latest: bool,
        modified: Timestamp,
        is_marker: bool,
    ) -> Option<Version> {
        let key = key?.strip_prefix(self.prefix.as_str()).filter(|key| ObjectKey::is_valid(key))?;
        Some(Version { key: ObjectKey::new(key), id: id?.into(), bytes, modified, is_latest, is_marker })
    }

    async fn extend_one(&self, key: &ObjectKey, lock: WriteLock, until: Timestamp) -> Option<(ObjectKey, StorageError)> {
        let retention = ObjectLockRetention::builder().mode(lock.s3_mode()).retain_until_date(date_time(until)).build();
        let request = self.client.put_object_retention().bucket(&self.bucket).key(self.full_key(key));
        let error = match request.retention(retention).send().await {
            Ok(_) => return None,
            Err(error) => self.refused("lock", key.as_str(), &error).await,
        };
        // A lock is never shortened: refused may mean that it is longer than was known.
        let known = if error.fault == Fault::Transient { None } else { self.locked_until(key).await.ok().flatten() };
        known.is_none_or(|known| known.as_second() < until.as_second()).then(|| (key.clone(), error))
    }

    /// `None` when the bucket has no such configuration, or the store does not know what that is.
    fn unless_unknown<E>(&self, error: &SdkError<E>) -> Option<Refusal>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let code = error.as_service_error().and_then(|service| service.code());
        let is_unset = matches!(code, Some("ObjectLockConfigurationNotFoundError" | "ObjectLockConfigurationNotFound"));
        (!is_unset && !Refusal::is_unknown_operation(error)).then(|| Refusal::of(error))
    }
}

#[async_trait]
impl Bucket for S3Storage {
    fn lock(&self) -> Option<Lock> {
        self.lock.map(|lock| Lock { days: lock.days, now: self.clock.now() })
    }

    fn deletes_versions(&self) -> bool {
        self.delete_versions
    }

    async fn protection(&self) -> Result<Protection> {
        let told = |refusal: Refusal| self.error("ask", "the bucket about versions and locks", refusal.fault, refusal.detail);
        let keeps_versions = match self.client.get_bucket_versioning().bucket(&self.bucket).send().await {
            Ok(answer) => answer.status() == Some(&BucketVersioningStatus::Enabled),
            Err(error) => match self.unless_unknown(&error) {
                Some(refusal) => return Err(told(refusal)),
                None => false,
            },
        };
        // A bucket without versions has no locks.
        if !keeps_versions {
            return Ok(Protection::default());
        }
        let has_lock = match self.client.get_object_lock_configuration().bucket(&self.bucket).send().await {
            Ok(answer) => {
                let enabled = answer.object_lock_configuration().and_then(|lock| lock.object_lock_enabled());
                enabled == Some(&ObjectLockEnabled::Enabled)
            }
            Err(error) => match self.unless_unknown(&error) {
                Some(refusal) if refusal.fault != Fault::NotFound => return Err(told(refusal)),
                _ => false,
            },
        };
        Ok(Protection { keeps_versions, has_lock })
    }

    /// A HEAD tells it to whoever has `s3:GetObjectRetention`.
    async fn locked_until(&self, key: &ObjectKey) -> Result<Option<Timestamp>> {
        let head = self.head("stat", key).await?;
        let until = head.as_ref().and_then(|head| head.object_lock_retain_until_date());
        Ok(until.map(|until| timestamp(Some(until))))
    }

    async fn extend(&self, keys: &[ObjectKey], until: Timestamp) -> Result<Vec<(ObjectKey, StorageError)>> {
        let Some(lock) = self.lock else { return Ok(Vec::new()) };
        let calls: Vec<_> = keys.iter().map(|key| self.extend_one(key, lock, until)).collect();
        let answers: Vec<_> = futures::stream::iter(calls).buffer_unordered(EXTENSIONS).collect().await;
        Ok(answers.into_iter().flatten().collect())
    }

    async fn older(&self, prefix: &str) -> Result<Vec<Older>> {
        let versions = self.versions(prefix, None).await?;
        let of_keys = versions.chunk_by(|one, two| one.key == two.key);
        Ok(of_keys.filter_map(older).collect())
    }

    async fn hide(&self, key: &ObjectKey) -> Result<()> {
        match self.client.delete_object().bucket(&self.bucket).key(self.full_key(key)).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.refused("delete", key.as_str(), &error).await),
        }
    }

    async fn uncover(&self, key: &ObjectKey) -> Result<bool> {
        let versions = self.versions(key.as_str(), Some(key)).await?;
        let versions: Vec<Version> = versions.into_iter().filter(|version| version.key == *key).collect();
        let Some(covered) = older(&versions).filter(|older| older.is_deleted) else { return Ok(false) };
        // Markers and versions are listed apart, in seconds: one of the same second that lies below is no loss.
        for marker in versions.iter().filter(|version| version.is_marker && version.modified >= covered.written) {
            let request = self.client.delete_object().bucket(&self.bucket).key(self.full_key(key)).version_id(&marker.id);
            if let Err(error) = request.send().await {
                return Err(self.refused("bring back", key.as_str(), &error).await);
            }
        }
        Ok(true)
    }
}

/// What of one object's versions, the newest first, is hidden by the newest.
fn older(versions: &[Version]) -> Option<Older> {
    let (latest, rest) = versions.split_first()?;
    let version = rest.iter().find(|version| !version.is_marker)?;
    let (hidden, is_deleted) = (latest.modified, latest.is_marker);
    Some(Older { key: version.key.clone(), bytes: version.bytes, written: version.modified, hidden, is_deleted })
}
