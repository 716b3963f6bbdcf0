//! Keeps locked what is needed for longer than it was locked when it was written.
//!
//! Two rules, each of which sends a request for an object only once in half of `object_lock_days`:
//! - What a snapshot takes over from older ones must be locked as long as its own manifest. What is not is locked for half as long again.
//! - What rules or pins keep must be locked for half of `object_lock_days` from now. What is not is locked for all of them.

use std::collections::BTreeSet;

use crate::postgres::lsn::SystemId;
use crate::repo::RepoError;
use crate::repo::layout;
use crate::repo::locks::{Extended, Known, days_after, half_days_after};
use crate::repo::manifest::Manifest;
use crate::repo::repository::Cluster;
use crate::storage::{Depth, ObjectInfo, ObjectKey, list_all};

/// Before a snapshot is committed: locks what it did not write itself. `None` where nothing is locked.
pub async fn carried(cluster: &Cluster, manifest: &Manifest) -> Result<Option<Extended>, RepoError> {
    let Some(known) = Known::load(cluster).await? else { return Ok(None) };
    let mut objects = essential(cluster, &[manifest.system_identifier]).await?;
    let table = manifest.packs(cluster).await?;
    let carried: BTreeSet<&str> =
        table.iter().map(|pack| pack.name.as_str()).filter(|name| writer(name) != manifest.id).collect();
    for id in carried.iter().map(|name| writer(name)).collect::<BTreeSet<_>>() {
        let prefix = format!("{}{id}/", cluster.layout().all_packs());
        let packs = list_all(cluster.storage(), &prefix, Depth::All).await?.objects;
        objects.extend(packs.into_iter().filter(|pack| carried.contains(format!("{id}/{}", pack.key.name()).as_str())));
    }
    let needed = days_after(known.now, known.days);
    let short: Vec<ObjectKey> = objects.into_iter().filter(|o| known.ends(o).least < needed).map(|o| o.key).collect();
    known.extend(cluster, &short, half_days_after(needed, known.days)).await.map(Some)
}

fn writer(pack: &str) -> &str {
    pack.split('/').next().unwrap_or_default()
}

/// What every snapshot needs: the repository's record, keyrings, the cluster's records, and the history files of its timelines.
pub async fn essential(cluster: &Cluster, systems: &[SystemId]) -> Result<Vec<ObjectInfo>, RepoError> {
    let storage = cluster.storage();
    let mut objects: Vec<ObjectInfo> = storage.stat(&layout::repository()).await?.into_iter().collect();
    let prefixes = [layout::KEYRINGS.to_string(), cluster.layout().records()];
    for prefix in prefixes.into_iter().chain(systems.iter().map(|system| cluster.layout().histories(*system))) {
        objects.extend(list_all(storage, &prefix, Depth::All).await?.objects);
    }
    Ok(objects)
}
