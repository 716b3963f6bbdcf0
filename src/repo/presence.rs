//! Whether the packs that a snapshot refers to are there, by listing and not by reading.

use std::collections::{BTreeMap, BTreeSet};

use super::RepoError;
use super::pack_table::PackLine;
use super::repository::Cluster;
use crate::storage::{Depth, ObjectKey, list_all};

/// Packs that are missing or have another length, with what is wrong: one listing for each snapshot that wrote some.
pub async fn missing_packs(cluster: &Cluster, packs: &[PackLine]) -> Result<Vec<(ObjectKey, String)>, RepoError> {
    let writers: BTreeSet<&str> = packs.iter().filter_map(|pack| pack.name.split('/').next()).collect();
    let mut there: BTreeMap<String, u64> = BTreeMap::new();
    for writer in writers {
        let prefix = format!("{}{writer}/", cluster.layout().all_packs());
        let page = list_all(cluster.storage(), &prefix, Depth::All).await?;
        there.extend(page.objects.into_iter().map(|o| (o.key.to_string(), o.bytes)));
    }
    let wrong = packs.iter().filter_map(|PackLine { name, bytes, .. }| {
        let key = cluster.layout().pack(name);
        match there.get(key.as_str()) {
            None => Some((key, "it is missing".to_string())),
            Some(found) if found != bytes => Some((key, format!("it has {found} bytes instead of {bytes}"))),
            Some(_) => None,
        }
    });
    Ok(wrong.collect())
}

/// The same in every place that should have them: one of several that took a pack and did not keep it must not hide behind another.
pub async fn missing_anywhere(cluster: &Cluster, packs: &[PackLine]) -> Result<Vec<(ObjectKey, String)>, RepoError> {
    let copies = cluster.storage().copies();
    if copies.is_empty() {
        return missing_packs(cluster, packs).await;
    }
    let mut missing = Vec::new();
    for copy in copies {
        let place = copy.place().to_string();
        let of_place = missing_packs(&cluster.through(copy), packs).await?;
        missing.extend(of_place.into_iter().map(|(key, what)| (key, format!("{what} in {place}"))));
    }
    Ok(missing)
}
