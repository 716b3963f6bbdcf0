//! Removes what a snapshot that was never committed left behind.
//!
//! Packs and file lists carry the id of the snapshot that wrote them. Those of an id without manifest are garbage, unless a living
//! lease says that the snapshot is still being taken, or a note below `expired/` says that it was committed once: newer snapshots may
//! need its packs, and only [`expire`](super::expire) knows which. Where deleting is not allowed (a
//! database host with write-only credentials), the garbage stays and costs only room. What is locked stays until its day.
//!
//! Where deletions take all versions, a manifest that somebody deleted is looked for first: its snapshot was committed, and can be again.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::clock;
use crate::repo::RepoError;
use crate::repo::expired;
use crate::repo::lease;
use crate::repo::locks::Known;
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
    /// Objects that are not tried, because they are locked, and until when the last of them is.
    pub locked: usize,
    pub locked_until: Option<Timestamp>,
    /// Snapshots that are left, because somebody deleted their manifests.
    pub hidden: Vec<String>,
}

impl Swept {
    /// A line for people; `None` when there was nothing to do.
    pub fn describe(&self) -> Option<String> {
        let mut hidden = self.hidden.join(", ");
        if !hidden.is_empty() {
            hidden = format!(
                "somebody deleted the manifest of {hidden}: `lastgood verify --repair` brings it back, nothing of it was removed"
            );
        }
        if self.snapshots == 0 {
            return Some(hidden).filter(|hidden| !hidden.is_empty());
        }
        let mut text = format!(
            "removed {} objects ({} bytes) of {} snapshots that were never finished",
            self.objects, self.bytes, self.snapshots
        );
        if self.kept > 0 {
            text.push_str(&format!("; {} more may not be deleted from here and stay", self.kept));
        }
        if let Some(until) = self.locked_until {
            text.push_str(&format!("; {} more are locked until {}, and go after that", self.locked, clock::seconds(until)));
        }
        if !hidden.is_empty() {
            text.push_str(&format!("; {hidden}"));
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
    let locks = if ids.is_empty() { None } else { Known::load(cluster).await? };
    for id in ids {
        if was_committed(cluster, &id).await? {
            swept.hidden.push(id);
            continue;
        }
        // Who was paused in the middle of committing may have gone on since the listing.
        if cluster.storage().stat(&cluster.layout().manifest(&id)).await?.is_some() {
            continue;
        }
        swept.snapshots += 1;
        for prefix in [format!("{}{id}/", cluster.layout().all_files()), format!("{}{id}/", cluster.layout().all_packs())] {
            let mut objects = list_all(cluster.storage(), &prefix, Depth::All).await?.objects;
            objects.retain(|object| match locks.as_ref().and_then(|locks| locks.locked(object)) {
                Some(until) => {
                    swept.locked += 1;
                    swept.locked_until = swept.locked_until.max(Some(until));
                    false
                }
                None => true,
            });
            let bytes: u64 = objects.iter().map(|o| o.bytes).sum();
            let keys: Vec<ObjectKey> = objects.into_iter().map(|o| o.key).collect();
            let kept = delete(cluster, &keys).await?;
            swept.objects += keys.len() - kept;
            swept.kept += kept;
            swept.bytes += if kept == 0 { bytes } else { 0 };
        }
    }
    delete(cluster, &standing.garbage).await?;
    Ok(swept)
}

/// Whether a bucket, of which all versions would be deleted, still has the manifest of a snapshot that is not listed.
async fn was_committed(cluster: &Cluster, id: &str) -> Result<bool, RepoError> {
    let Some(bucket) = cluster.storage().bucket().filter(|bucket| bucket.deletes_versions()) else { return Ok(false) };
    let key = cluster.layout().manifest(id);
    match bucket.older(key.as_str()).await {
        Ok(older) => Ok(older.iter().any(|older| older.key == key)),
        // Nor will versions be deleted with the same credentials.
        Err(error) if error.fault == Fault::Denied => Ok(false),
        Err(error) => Err(error.into()),
    }
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
