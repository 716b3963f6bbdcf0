//! Removes what a snapshot that was never committed left behind.
//!
//! Packs and file lists carry the id of the snapshot that wrote them. Those of an id without manifest are garbage, unless a living
//! lease says that the snapshot is still being taken, or a note below `expired/` says that it was committed once: newer snapshots may
//! need its packs, and only [`expire`](super::expire) knows which. Where deleting is not allowed (a
//! database host with write-only credentials), the garbage stays and costs only room.

use std::collections::BTreeSet;

use crate::repo::RepoError;
use crate::repo::expired;
use crate::repo::lease;
use crate::repo::repository::Cluster;
use crate::storage::{Depth, Fault, ObjectKey, list_all};

/// What was found and removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Swept {
    pub snapshots: usize,
    pub objects: usize,
    pub bytes: u64,
    /// Objects that stay because they may not be deleted.
    pub kept: usize,
}

impl Swept {
    /// A line for people; `None` when there was nothing to do.
    pub fn describe(&self) -> Option<String> {
        if self.snapshots == 0 {
            return None;
        }
        let mut text = format!(
            "removed {} objects ({} bytes) of {} snapshots that were never finished",
            self.objects, self.bytes, self.snapshots
        );
        if self.kept > 0 {
            text.push_str(&format!("; {} more may not be deleted from here and stay", self.kept));
        }
        Some(text)
    }
}

/// Sweeps everything that belongs to no snapshot but `own`. The caller holds the lease for backups, so nobody else is writing one.
pub async fn sweep(cluster: &Cluster, own: &str) -> Result<Swept, RepoError> {
    let mut ids = BTreeSet::new();
    let (packs, files) = (cluster.layout().all_packs(), cluster.layout().all_files());
    let storage = cluster.storage();
    let (packs, files) = tokio::try_join!(list_all(storage, &packs, Depth::Folder), list_all(storage, &files, Depth::Folder))?;
    ids.extend(packs.folders.iter().chain(&files.folders).map(|f| f.trim_end_matches('/').to_string()));
    // In this order: a snapshot that commits between the two is seen as living or as committed.
    let standing = lease::standing(cluster).await?;
    let living: BTreeSet<&str> = standing.living.iter().map(|work| work.beat.snapshot.as_str()).collect();
    let committed: BTreeSet<String> = cluster.snapshot_ids().await?.into_iter().collect();
    ids.retain(|id| !committed.contains(id) && !living.contains(id.as_str()) && id != own);
    if !ids.is_empty() {
        // After the manifests: whose manifest was deleted before that look has its note already.
        let expired = expired::ids(cluster).await?;
        ids.retain(|id| !expired.contains(id));
    }
    let mut swept = Swept::default();
    for id in ids {
        swept.snapshots += 1;
        for prefix in [format!("{}{id}/", cluster.layout().all_files()), format!("{}{id}/", cluster.layout().all_packs())] {
            let page = list_all(cluster.storage(), &prefix, Depth::All).await?;
            let bytes: u64 = page.objects.iter().map(|o| o.bytes).sum();
            let keys: Vec<ObjectKey> = page.objects.into_iter().map(|o| o.key).collect();
            let kept = delete(cluster, &keys).await?;
            swept.objects += keys.len() - kept;
            swept.kept += kept;
            swept.bytes += if kept == 0 { bytes } else { 0 };
        }
    }
    delete(cluster, &standing.garbage).await?;
    Ok(swept)
}

/// Deletes, and counts what may not be deleted.
async fn delete(cluster: &Cluster, keys: &[ObjectKey]) -> Result<usize, RepoError> {
    if keys.is_empty() {
        return Ok(0);
    }
    match cluster.storage().delete(keys).await {
        Ok(failed) => Ok(failed.len()),
        Err(error) if error.fault == Fault::Denied => Ok(keys.len()),
        Err(error) => Err(error.into()),
    }
}
