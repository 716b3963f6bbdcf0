//! From a repository's URL to a store with its wrappers.

use std::sync::Arc;

use super::fs::DirectoryStorage;
use super::measure::{Log, Measured};
use super::{Fault, Storage, StorageError};
use crate::config::{Mirror, Repository, S3};

/// The two kinds of places a URL can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Directory(std::path::PathBuf),
    /// `prefix` is empty or ends in `/`.
    S3 {
        bucket: String,
        prefix: String,
    },
}

impl Place {
    pub fn parse(url: &str) -> Result<Place, StorageError> {
        let wrong = |detail: &str| StorageError {
            operation: "open",
            place: url.into(),
            key: "repository".into(),
            fault: Fault::Other,
            detail: detail.into(),
        };
        if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            if bucket.is_empty() {
                return Err(wrong("a bucket is missing: s3://bucket/prefix"));
            }
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
            return Ok(Place::S3 { bucket: bucket.into(), prefix });
        }
        let path = url.strip_prefix("file://").unwrap_or(url);
        if !path.starts_with('/') {
            return Err(wrong("a repository is an absolute path (/backup), file:///backup, or s3://bucket/prefix"));
        }
        Ok(Place::Directory(path.trim_end_matches('/').into()))
    }
}

/// Tells keys of objects that are soon deleted or replaced, and that are not locked.
pub type Passing = fn(&str) -> bool;

/// Opens the store of a repository; nothing is asked of it yet. How its calls go is noted in the log.
pub async fn open(repository: &Repository, is_passing: Passing, log: &Log) -> Result<Arc<dyn Storage>, StorageError> {
    open_place(&repository.url, &repository.s3, is_passing, log).await
}

/// The same for a mirror.
pub async fn open_mirror(mirror: &Mirror, is_passing: Passing, log: &Log) -> Result<Arc<dyn Storage>, StorageError> {
    open_place(&mirror.url, &mirror.s3, is_passing, log).await
}

async fn open_place(url: &str, settings: &S3, is_passing: Passing, log: &Log) -> Result<Arc<dyn Storage>, StorageError> {
    match Place::parse(url)? {
        Place::Directory(path) => Ok(Arc::new(Measured::new(DirectoryStorage::new(path), log))),
        Place::S3 { bucket, prefix } => {
            let s3 = super::s3::S3Storage::connect(&bucket, &prefix, settings).await?.passing(is_passing);
            let s3 = Measured::new(s3, log);
            // The limit goes around the attempts: time spent waiting for a turn must not count against their deadlines.
            let retried = super::retry::Retry::new(s3, super::retry::Policy::from(settings));
            Ok(Arc::new(super::limit::Limit::new(retried, settings.max_requests)))
        }
    }
}
