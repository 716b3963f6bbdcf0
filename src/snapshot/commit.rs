//! The commit: a manifest is stored, and nobody has swept what it refers to.
//!
//! The [fence](crate::repo::lease) lets a write begin while the lease cannot be lost. A process that is paused in the very middle of that
//! write may end it when another host has long taken over, and has swept a snapshot that it held for unfinished. So whoever commits looks
//! how old the lease is when the manifest is stored: as long as it is not stale, nobody can have taken it, and whoever takes it from now on
//! sees the manifest before it sweeps. Only else the store is asked.

use std::time::Duration;

use super::SnapshotError;
use crate::clock;
use crate::repo::RepoError;
use crate::repo::lease::{self, Exclusive};
use crate::repo::manifest::Manifest;
use crate::repo::presence;
use crate::repo::repository::Cluster;
use crate::storage::{Depth, Fault, list_all};

/// Between two looks at whoever took the lease.
const LOOK: Duration = Duration::from_millis(500);
/// Who took the lease sweeps while it begins; this is for one that was paused then.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// Stores the manifest through the `fenced` cluster. An error means that nothing was committed, or says what was left behind.
pub async fn commit(manifest: &Manifest, fenced: &Cluster, cluster: &Cluster, lease: &Exclusive) -> Result<(), SnapshotError> {
    match manifest.commit(fenced).await {
        Ok(()) => {}
        Err(RepoError::Storage(error)) if error.fault == Fault::Fenced => {
            return Err(lease.loss().unwrap_or(RepoError::Storage(error)).into());
        }
        Err(error) => return Err(error.into()),
    }
    if lease.is_unbroken() {
        return Ok(());
    }
    match lease.confirm().await {
        Ok(()) => Ok(()),
        Err(lost @ RepoError::LeaseLost { .. }) => Ok(outlast(manifest, cluster, lost).await?),
        Err(error) => Err(error.into()),
    }
}

/// Whoever has the lease now saw the manifest, and then nothing of the snapshot goes, or did not, and then all of it does: waits until
/// that is certain. A manifest without its snapshot is taken back; nobody builds on it, for it came after they had looked.
async fn outlast(manifest: &Manifest, cluster: &Cluster, lost: RepoError) -> Result<(), RepoError> {
    let began = clock::monotonic();
    loop {
        // In this order: who is not at work any more sweeps nothing after the second look.
        let is_held = lease::is_held(cluster, lease::BACKUP).await?;
        if !is_whole(manifest, cluster).await? {
            let key = cluster.layout().manifest(&manifest.id);
            return match cluster.storage().delete(std::slice::from_ref(&key)).await?.pop() {
                None => Err(lost),
                Some((key, error)) => Err(RepoError::damaged(
                    &key,
                    format!("its snapshot was swept while this process was paused, and it stays: {error}"),
                )),
            };
        }
        if !is_held || began.elapsed() > LONGEST_LOOK {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether everything is there that a sweep would remove.
async fn is_whole(manifest: &Manifest, cluster: &Cluster) -> Result<bool, RepoError> {
    let layout = cluster.layout();
    let prefix = format!("{}{}/", layout.all_files(), manifest.id);
    let there = list_all(cluster.storage(), &prefix, Depth::All).await?.objects.len();
    // The lists, the table of packs and that of WAL.
    if there < manifest.file_lists.len() + 2 + usize::from(manifest.catalogue.is_some()) {
        return Ok(false);
    }
    match manifest.packs(cluster).await {
        Ok(packs) => Ok(presence::missing_packs(cluster, &packs).await?.is_empty()),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
