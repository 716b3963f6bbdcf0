//! What a bucket with versions still has, although it was deleted or overwritten.
//!
//! `lastgood` writes nothing over another object, and says what it deletes. So a manifest behind a delete marker, without a note that its
//! snapshot was expired and with objects of it left, was deleted by somebody else: that snapshot is not listed any more, and its packs
//! would look like remains of one that was never finished.

use std::collections::BTreeSet;

use crate::clock;
use crate::repo::RepoError;
use crate::repo::expired;
use crate::repo::repository::Cluster;
use crate::storage::bucket::{Bucket, Older};
use crate::storage::{Depth, ObjectKey, list_all};

/// A snapshot whose manifest somebody deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    pub snapshot: String,
    pub manifest: Older,
}

impl Hidden {
    pub fn describe(&self) -> String {
        format!("its manifest was deleted, and not by `lastgood expire`; {}", describe(&self.manifest))
    }
}

/// All of them; the store's answer when versions may not be listed.
pub async fn snapshots(cluster: &Cluster, bucket: &dyn Bucket) -> Result<Vec<Hidden>, RepoError> {
    let older = bucket.older(&cluster.layout().manifests()).await?;
    let mut hidden: Vec<Older> = older.into_iter().filter(|older| older.is_deleted).collect();
    if hidden.is_empty() {
        return Ok(Vec::new());
    }
    let (packs, files) = (cluster.layout().all_packs(), cluster.layout().all_files());
    let (packs, files, expired) = tokio::try_join!(
        async { list_all(cluster.storage(), &packs, Depth::Folder).await.map_err(RepoError::from) },
        async { list_all(cluster.storage(), &files, Depth::Folder).await.map_err(RepoError::from) },
        expired::ids(cluster),
    )?;
    let left: BTreeSet<&str> = packs.folders.iter().chain(&files.folders).map(|folder| folder.trim_end_matches('/')).collect();
    hidden.retain(|older| left.contains(older.key.name()) && !expired.contains(older.key.name()));
    Ok(hidden.into_iter().map(|manifest| Hidden { snapshot: manifest.key.name().into(), manifest }).collect())
}

/// What an object that is missing or damaged was before, for people; `None` when the bucket has no older version of it, or does
/// not tell.
pub async fn before(bucket: &dyn Bucket, key: &ObjectKey) -> Option<String> {
    let older = bucket.older(key.as_str()).await.ok()?;
    older.iter().find(|older| older.key == *key).map(describe)
}

fn describe(older: &Older) -> String {
    let (hidden, written) = (clock::seconds(older.hidden), clock::seconds(older.written));
    match older.is_deleted {
        true => format!(
            "deleted {hidden}; the bucket still has the version of {written} ({} bytes), which `lastgood verify --repair` brings back",
            older.bytes
        ),
        false => format!(
            "overwritten {hidden}; the bucket still has the version of {written} ({} bytes): put that back, see \
             docs/guide/retention.md#versioned-buckets",
            older.bytes
        ),
    }
}
