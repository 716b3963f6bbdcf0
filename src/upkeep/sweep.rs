//! Removes what a snapshot that was never committed left behind.
//!
//! # Rule
//! Objects below an id are garbage when all of this holds:
//! - the id has no manifest, and no living lease names it;
//! - it has no pack table and no WAL table: they are written just before the manifest, so a snapshot with one was complete;
//! - no note below `expired/` says that it was committed once, and that [`expire`](super::expire) decides about its packs;
//! - no pack table of the cluster names a pack of it, after *every* pack table was read.
//!
//! When one pack table cannot be read (damage, an error, a newer key), nothing is deleted, and that is said. An id with a table and
//! without a manifest is kept: its manifest was lost, or the backup was killed in its last moment. It comes back by
//! `lastgood verify --repair`, or goes by `lastgood expire --forget`: a person decides.
//!
//! # Cost
//! Pack tables are read only when there is something to delete.
//!
//! Where deleting is not allowed (a database host with write-only credentials), the garbage stays and costs only room. What is locked
//! stays until its day. Where deletions take all versions, a manifest that somebody deleted is looked for first: its snapshot was
//! committed, and can be again.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::orphans;
use crate::clock;
use crate::repo::RepoError;
use crate::repo::expired::{self, Expired};
use crate::repo::lease;
use crate::repo::locks::Known;
use crate::repo::reach::{self, Ids};
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
    /// Snapshots that are left, because they were complete: only their manifests are missing.
    pub orphans: Vec<String>,
    /// Ids that are left, because a pack table names packs of them.
    pub needed: Vec<String>,
    /// Why nothing was deleted: a pack table could not be read.
    pub unreadable: Option<String>,
}

impl Swept {
    /// A line for people; `None` when there was nothing to do.
    pub fn describe(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.snapshots > 0 {
            let (objects, bytes, snapshots) = (self.objects, self.bytes, self.snapshots);
            parts.push(format!("removed {objects} objects ({bytes} bytes) of {snapshots} snapshots that were never finished"));
        }
        if self.kept > 0 {
            parts.push(format!("{} more may not be deleted from here and stay", self.kept));
        }
        if let Some(until) = self.locked_until {
            parts.push(format!("{} more are locked until {}, and go after that", self.locked, clock::seconds(until)));
        }
        if let Some(why) = &self.unreadable {
            parts.push(format!(
                "remains of unfinished snapshots stay, because not every pack table can be read, and one may need them: {why}; \
                 see `lastgood verify`"
            ));
        }
        if !self.hidden.is_empty() {
            let hidden = self.hidden.join(", ");
            parts.push(format!(
                "somebody deleted the manifest of {hidden}: `lastgood verify --repair` brings it back, nothing of it was removed"
            ));
        }
        if !self.orphans.is_empty() {
            parts.push(format!("the manifest of {} is missing: {}", self.orphans.join(", "), orphans::MEND));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Sweeps everything that belongs to no snapshot but `own`. The caller holds the lease for backups, so nobody else is writing one.
pub async fn sweep(cluster: &Cluster, own: &str) -> Result<Swept, RepoError> {
    let ids = Ids::list(cluster).await?;
    // In this order: a snapshot that commits between the two is seen as living or as committed.
    let standing = lease::standing(cluster).await?;
    let living: BTreeSet<&str> = standing.living.iter().map(|work| work.beat.snapshot.as_str()).collect();
    let committed: BTreeSet<String> = cluster.snapshot_ids().await?.into_iter().collect();
    let mut candidates = ids.all();
    candidates.retain(|id| !committed.contains(id) && !living.contains(id.as_str()) && id != own);
    if !candidates.is_empty() {
        // After the manifests: whose manifest was deleted before that look has its note already.
        let expired = expired::ids(cluster).await?;
        candidates.retain(|id| !expired.contains(id));
    }
    let mut swept = Swept::default();
    let garbage = garbage(cluster, candidates, ids, &committed, &mut swept).await?;
    let locks = if garbage.is_empty() { None } else { Known::load(cluster).await? };
    for id in garbage {
        // Who was paused in the middle of committing may have gone on since the listing.
        if cluster.storage().stat(&cluster.layout().manifest(&id)).await?.is_some() {
            continue;
        }
        remove(cluster, &id, locks.as_ref(), &mut swept).await?;
    }
    delete(cluster, &standing.garbage).await?;
    Ok(swept)
}

/// Those of `candidates` that are remains of snapshots that were never complete, and that nothing needs.
async fn garbage(
    cluster: &Cluster,
    candidates: BTreeSet<String>,
    ids: Ids,
    committed: &BTreeSet<String>,
    swept: &mut Swept,
) -> Result<BTreeSet<String>, RepoError> {
    let mut garbage = BTreeSet::new();
    for id in candidates {
        if was_committed(cluster, &id).await? {
            swept.hidden.push(id);
        } else if reach::has_table(cluster, &id).await? {
            swept.orphans.push(id);
        } else {
            garbage.insert(id);
        }
    }
    if garbage.is_empty() {
        return Ok(garbage);
    }
    let named = reach::named(cluster, ids.files.union(committed).cloned().collect(), committed).await;
    if named.unreadable.is_some() {
        swept.unreadable = named.unreadable;
        return Ok(BTreeSet::new());
    }
    for id in garbage.iter().filter(|id| named.writers.contains(*id)) {
        // Its note was lost. Written again, it spares the next sweep from reading all tables, and lets an expiry decide.
        match Expired::of_packs(clock::now(), "packs of it are needed, and its note was missing").put(cluster, id).await {
            Ok(()) => {}
            Err(RepoError::Storage(error)) if error.fault == Fault::Denied => {}
            Err(error) => return Err(error),
        }
        swept.needed.push(id.clone());
    }
    garbage.retain(|id| !named.writers.contains(id));
    Ok(garbage)
}

/// Deletes everything below an id that is not locked: file lists first, they are of no use without a manifest.
async fn remove(cluster: &Cluster, id: &str, locks: Option<&Known>, swept: &mut Swept) -> Result<(), RepoError> {
    swept.snapshots += 1;
    for prefix in [format!("{}{id}/", cluster.layout().all_files()), format!("{}{id}/", cluster.layout().all_packs())] {
        let mut objects = list_all(cluster.storage(), &prefix, Depth::All).await?.objects;
        objects.retain(|object| match locks.and_then(|locks| locks.locked(object)) {
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
    Ok(())
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
