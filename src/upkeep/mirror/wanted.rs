//! Which objects a copy should have, from the manifests of the side that decides.
//!
//! Memory: eight bytes for each pack that a snapshot refers to, and the ids of the snapshots.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::Way;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;
use crate::repo::object::Sha;
use crate::repo::repository::Cluster;
use crate::storage::ObjectKey;

pub struct Wanted {
    way: Way,
    manifests: Vec<Manifest>,
    ids: BTreeSet<String>,
    unreadable: Vec<(String, String)>,
    /// Packs that manifests refer to, by fingerprint; those that were met in a listing are taken out.
    packs: HashSet<u64>,
    missing: HashSet<u64>,
    /// Of each system, the first segment that a snapshot needs, and the bytes of its segments.
    from: BTreeMap<SystemId, (u64, u64)>,
}

impl Wanted {
    /// By what `cluster` has committed now.
    pub async fn of(cluster: &Cluster, way: Way) -> Result<Wanted, RepoError> {
        let mut wanted = Wanted {
            way,
            manifests: Vec::new(),
            ids: BTreeSet::new(),
            unreadable: Vec::new(),
            packs: HashSet::new(),
            missing: HashSet::new(),
            from: BTreeMap::new(),
        };
        for (id, manifest) in cluster.manifests().await? {
            match manifest {
                Ok(manifest) => wanted.add(cluster, id, manifest).await?,
                Err(error) => wanted.unreadable.push((id, error.to_string())),
            }
        }
        wanted.missing = wanted.packs.clone();
        Ok(wanted)
    }

    async fn add(&mut self, cluster: &Cluster, id: String, manifest: Manifest) -> Result<(), RepoError> {
        // A lost table is found by the comparison, as any other object.
        match manifest.packs(cluster).await {
            Ok(packs) => self.packs.extend(packs.iter().map(|pack| fingerprint(&pack.name))),
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
        let bytes = u64::from(manifest.wal_segment_bytes);
        let first = manifest.first_segment.number(bytes).unwrap_or(0);
        let from = self.from.entry(manifest.system_identifier).or_insert((first, bytes));
        from.0 = from.0.min(first);
        self.ids.insert(id);
        self.manifests.push(manifest);
        Ok(())
    }

    /// Manifests that cannot be read, with the reason.
    pub fn unreadable(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.unreadable)
    }

    /// The fingerprint of a pack, when it is wanted.
    pub fn pack(&self, name: &str) -> Option<u64> {
        Some(fingerprint(name)).filter(|pack| self.packs.contains(pack))
    }

    pub fn found(&mut self, packs: &[u64]) {
        for pack in packs {
            self.missing.remove(pack);
        }
    }

    /// Whether an object in a folder of the cluster (all but packs and WAL) is wanted.
    pub fn wants(&self, folder: &str, key: &ObjectKey) -> bool {
        match (folder, self.way) {
            ("files/", _) => key.as_str().rsplit('/').nth(1).is_some_and(|id| self.ids.contains(id)),
            ("snapshots/", Way::Copy) => self.ids.contains(key.name()),
            // A manifest that is gone was expired.
            ("snapshots/", Way::Heal) => false,
            (_, Way::Copy) => true,
            ("record/" | "alerts/", Way::Heal) => true,
            (_, Way::Heal) => false,
        }
    }

    /// Whether a WAL object is wanted; `kind` is its folder.
    pub fn wants_wal(&self, system: &str, kind: &str, key: &ObjectKey) -> bool {
        if self.way == Way::Copy || kind == "history/" {
            return true;
        }
        // By number, whatever the timeline: names of older timelines sort before, and need not be older (rule 48).
        let number = system.trim_end_matches('/').parse().ok().and_then(|system| self.from.get(&SystemId(system)));
        let Some((first, bytes)) = number else { return false };
        let name = key.name().get(..24).and_then(|name| name.parse::<SegmentName>().ok());
        kind != "index/" && name.and_then(|name| name.number(*bytes)).is_some_and(|number| number >= *first)
    }

    /// Snapshots that would be incomplete in the copy, each with the first pack that is in neither place.
    pub async fn incomplete(
        &self,
        cluster: &Cluster,
        bad: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Option<String>>, RepoError> {
        let mut incomplete = BTreeMap::new();
        if bad.is_empty() && self.missing.is_empty() {
            return Ok(incomplete);
        }
        for manifest in &self.manifests {
            let of_it = |key: &&String| key.split('/').nth(3) == Some(&manifest.id) && key.split('/').nth(2) == Some("files");
            if bad.iter().any(|key| of_it(&key)) {
                incomplete.insert(manifest.id.clone(), None);
                continue;
            }
            let packs = match manifest.packs(cluster).await {
                Ok(packs) => packs,
                Err(error) if error.is_damage() => {
                    incomplete.insert(manifest.id.clone(), None);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let hole = packs.iter().find(|pack| self.missing.contains(&fingerprint(&pack.name)));
            let is_bad = packs.iter().any(|pack| bad.contains(cluster.layout().pack(&pack.name).as_str()));
            if hole.is_some() || is_bad {
                incomplete.insert(manifest.id.clone(), hole.map(|pack| pack.name.clone()));
            }
        }
        Ok(incomplete)
    }
}

/// Eight bytes that tell a pack's name from all others.
fn fingerprint(name: &str) -> u64 {
    u64::from_le_bytes(Sha::of(name.as_bytes()).0[..8].try_into().expect("eight bytes"))
}
