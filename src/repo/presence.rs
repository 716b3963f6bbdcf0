//! Whether everything is there that a snapshot needs, and can be read now: by listings of short prefixes, not by reading.
//!
//! # What is asked
//! The lists and tables in the snapshot's own folder, every pack of its pack table with its length, every segment that makes it
//! consistent, and the history file of its timeline. [`Presence`] is the one answer: `check`, `list`, the plan of a restore, and a backup
//! that looks for a parent all take it from here, so none of them can be green where another is red.
//!
//! # Proof
//! A listing may be late, and of several places one may not have answered. What a listing lacks is therefore asked for by its own name
//! before it is called missing; an error of the store is an error and never an absence. Archive classes are told by listings as well;
//! what they leave open is asked of the objects.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::RepoError;
use super::manifest::Manifest;
use super::pack_table::PackLine;
use super::repository::Cluster;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::storage::{Depth, ObjectInfo, ObjectKey, Tier, list_all};

/// Snapshots of which a look at all of a cluster asks, from the newest back; of older ones it is not known.
pub const NEWEST: usize = 10;
/// Objects that a listing lacks and that are asked for by name. When all of these are gone, the listing is believed for the rest.
const CONFIRMED: usize = 16;
/// Frozen objects that are asked for restored copies, where the listing showed none.
const THAWED: usize = 64;
/// Requests at a time.
const AT_ONCE: usize = 16;

/// An object that a snapshot needs and that is not there as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lack {
    pub key: String,
    pub what: String,
}

/// An object in an archive class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Frozen {
    pub key: String,
    pub class: &'static str,
}

/// What there is of one snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Presence {
    pub snapshot: String,
    /// Proven: without these it cannot be restored.
    pub lacks: Vec<Lack>,
    /// These must be thawed first.
    pub frozen: Vec<Frozen>,
    /// What is missing and costs no restore.
    pub harmless: Vec<Lack>,
    /// What could not be found out, and why.
    pub unknown: Vec<Lack>,
    /// The pack table.
    #[serde(skip)]
    pub packs: Vec<PackLine>,
}

impl Presence {
    /// Whether nothing that was asked for speaks against a restore.
    pub fn is_whole(&self) -> bool {
        self.lacks.is_empty() && self.frozen.is_empty()
    }

    /// What keeps it from being restored, for people.
    pub fn problem(&self) -> Option<String> {
        let more = |count: usize| if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
        if let Some(first) = self.lacks.first() {
            return Some(format!("{}: {}{}", first.key, first.what, more(self.lacks.len())));
        }
        let first = self.frozen.first()?;
        Some(format!("{} is frozen in {}{}", first.key, first.class, more(self.frozen.len())))
    }
}

/// How a frozen object is made readable again.
pub fn thaw(place: &str, key: &str) -> String {
    match place.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
        Some((bucket, prefix)) => format!(
            "thaw each such object (aws s3api restore-object --bucket {bucket} --key {prefix}{key} --restore-request Days=7), and take \
             the repository out of the bucket's lifecycle rule that moves objects to archive classes"
        ),
        None => "thaw the objects in their store".into(),
    }
}

/// What there is of one snapshot.
pub async fn of(cluster: &Cluster, manifest: &Manifest) -> Result<Presence, RepoError> {
    let mut all = of_all(cluster, std::slice::from_ref(manifest)).await?;
    Ok(all.pop().unwrap_or_default())
}

/// The same for who has read its pack table.
pub async fn of_known(cluster: &Cluster, manifest: &Manifest, packs: Vec<PackLine>) -> Result<Presence, RepoError> {
    cluster.vault().remember(cluster, &packs);
    let (listed, there) = tokio::try_join!(listed(cluster, manifest), list_each(cluster, writers(cluster, &packs)))?;
    judge(cluster, manifest, Ok(packs), (&listed, &there)).await
}

/// The same of several, in their order; packs that they share are listed once.
pub async fn of_all(cluster: &Cluster, manifests: &[Manifest]) -> Result<Vec<Presence>, RepoError> {
    let read = |manifest: Manifest| async move {
        let (packs, listed) = tokio::join!(manifest.packs(cluster), listed(cluster, &manifest));
        Ok::<_, RepoError>((manifest, packs, listed?))
    };
    let read: Vec<_> = stream::iter(manifests.to_vec()).map(read).buffered(AT_ONCE).try_collect().await?;
    let mut prefixes = BTreeSet::new();
    for packs in read.iter().filter_map(|(_, packs, _)| packs.as_ref().ok()) {
        prefixes.extend(writers(cluster, packs));
    }
    let there = list_each(cluster, prefixes).await?;
    let mut all = Vec::new();
    for (manifest, packs, listed) in read {
        all.push(judge(cluster, &manifest, packs, (&listed, &there)).await?);
    }
    Ok(all)
}

type Infos = BTreeMap<String, ObjectInfo>;

/// What lies in the snapshot's folder, its segments, and its history file.
async fn listed(cluster: &Cluster, manifest: &Manifest) -> Result<Infos, RepoError> {
    let layout = cluster.layout();
    let system = manifest.system_identifier;
    let mut prefixes: BTreeSet<String> = segments(manifest).into_iter().map(|name| layout.block(system, name)).collect();
    prefixes.insert(format!("{}{}/", layout.all_files(), manifest.id));
    if manifest.timeline.0 > 1 {
        prefixes.insert(layout.wal(system, &WalFile::History(manifest.timeline)).to_string());
    }
    list_each(cluster, prefixes).await
}

async fn list_each(cluster: &Cluster, prefixes: BTreeSet<String>) -> Result<Infos, RepoError> {
    let list = |prefix: String| async move { list_all(cluster.storage(), &prefix, Depth::All).await };
    let pages: Vec<_> = stream::iter(prefixes).map(list).buffered(AT_ONCE).try_collect().await?;
    Ok(pages.into_iter().flat_map(|page| page.objects).map(|info| (info.key.to_string(), info)).collect())
}

/// The segments without which it is not consistent.
fn segments(manifest: &Manifest) -> Vec<SegmentName> {
    let bytes = u64::from(manifest.wal_segment_bytes);
    let (first, last) = (manifest.first_segment, manifest.last_segment);
    match (first.number(bytes), last.number(bytes)) {
        (Some(from), Some(to)) if first.timeline == last.timeline && from <= to => {
            (from..=to).map(|number| SegmentName::new(first.timeline, number, bytes)).collect()
        }
        _ => vec![first, last],
    }
}

/// Where packs lie: a folder for each snapshot that wrote some of them.
fn writers(cluster: &Cluster, packs: &[PackLine]) -> BTreeSet<String> {
    packs.iter().map(|pack| format!("{}{}/", cluster.layout().all_packs(), pack.writer())).collect()
}

/// Something that a snapshot needs.
struct Need {
    key: ObjectKey,
    bytes: Option<u64>,
    is_harmless: bool,
}

fn needs(cluster: &Cluster, manifest: &Manifest, packs: &[PackLine]) -> Vec<Need> {
    let (layout, id) = (cluster.layout(), &manifest.id);
    let need = |key: ObjectKey| Need { key, bytes: None, is_harmless: false };
    let mut needs = vec![need(layout.pack_table(id)), need(layout.wal_table(id))];
    needs.extend((1..=manifest.file_lists.len() as u32).map(|number| need(layout.files(id, number))));
    if manifest.catalogue.is_some() {
        needs.push(Need { is_harmless: true, ..need(layout.catalogue(id)) });
    }
    if manifest.timeline.0 > 1 {
        needs.push(need(layout.wal(manifest.system_identifier, &WalFile::History(manifest.timeline))));
    }
    let wal = segments(manifest).into_iter().map(|name| layout.wal(manifest.system_identifier, &WalFile::Segment(name)));
    needs.extend(wal.map(need));
    needs.extend(packs.iter().map(|pack| Need { bytes: Some(pack.bytes), ..need(layout.pack(&pack.name)) }));
    needs
}

async fn judge(
    cluster: &Cluster,
    manifest: &Manifest,
    packs: Result<Vec<PackLine>, RepoError>,
    (listed, there): (&Infos, &Infos),
) -> Result<Presence, RepoError> {
    let mut presence = Presence { snapshot: manifest.id.clone(), ..Presence::default() };
    let table = cluster.layout().pack_table(&manifest.id).to_string();
    presence.packs = match packs {
        Ok(packs) => packs,
        // The listing says which class it is in.
        Err(error) if error.is_frozen() => Vec::new(),
        Err(error) if error.is_damage() => {
            presence.lacks.push(Lack { key: table.clone(), what: in_few_words(&error) });
            Vec::new()
        }
        Err(error) if error.is_newer_epoch() => {
            presence.unknown.push(Lack { key: table.clone(), what: error.to_string() });
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let mut needs = needs(cluster, manifest, &presence.packs);
    needs.retain(|need| presence.lacks.iter().all(|lack| lack.key != need.key.as_str()));
    let find = |need: &Need| listed.get(need.key.as_str()).or_else(|| there.get(need.key.as_str()));
    let asked = stat_each(cluster, to_ask_again(&needs, find)).await?;
    for need in &needs {
        let key = need.key.to_string();
        let info = asked.get(&key).or_else(|| find(need));
        let lacks = if need.is_harmless { &mut presence.harmless } else { &mut presence.lacks };
        match info {
            None => lacks.push(Lack { key, what: "it is missing".into() }),
            Some(info) if need.bytes.is_some_and(|bytes| bytes != info.bytes) => {
                let what = format!("it has {} bytes instead of {}", info.bytes, need.bytes.unwrap_or(0));
                lacks.push(Lack { key, what });
            }
            Some(info) if info.bytes == 0 => lacks.push(Lack { key, what: "it is empty".into() }),
            Some(info) => match info.tier {
                Tier::Ready => {}
                Tier::Frozen(class) if !need.is_harmless => presence.frozen.push(Frozen { key, class }),
                Tier::Frozen(_) => {}
                Tier::Unknown(class) => {
                    let what = format!("it is in {class}, perhaps in an archive tier of it");
                    presence.unknown.push(Lack { key, what });
                }
            },
        }
    }
    Ok(presence)
}

/// Without the key, which stands beside it.
fn in_few_words(error: &RepoError) -> String {
    match error {
        RepoError::Damaged { what, .. } => what.clone(),
        error if error.is_not_found() => "it is missing".into(),
        error => error.to_string(),
    }
}

/// What the listings do not have, and what may be thawed, by name.
fn to_ask_again<'a>(needs: &[Need], find: impl Fn(&Need) -> Option<&'a ObjectInfo>) -> Vec<ObjectKey> {
    let missing = needs.iter().filter(|need| find(need).is_none()).take(CONFIRMED);
    let frozen = needs.iter().filter(|need| find(need).is_some_and(|info| info.tier != Tier::Ready)).take(THAWED);
    missing.chain(frozen).map(|need| need.key.clone()).collect()
}

async fn stat_each(cluster: &Cluster, keys: Vec<ObjectKey>) -> Result<Infos, RepoError> {
    let stat = |key: ObjectKey| async move { cluster.storage().stat(&key).await };
    let found: Vec<Option<ObjectInfo>> = stream::iter(keys).map(stat).buffered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().map(|info| (info.key.to_string(), info)).collect())
}

/// Which of these segments are missing, proven one by one. The key of a roll-up says that its segments were all there once; here they
/// are looked for themselves.
pub async fn missing_segments(cluster: &Cluster, system: SystemId, names: &[SegmentName]) -> Result<Vec<Lack>, RepoError> {
    let blocks = names.iter().map(|name| cluster.layout().block(system, *name)).collect();
    let there = list_each(cluster, blocks).await?;
    let keys = names.iter().map(|name| cluster.layout().wal(system, &WalFile::Segment(*name)));
    let missing: Vec<ObjectKey> = keys.filter(|key| !there.contains_key(key.as_str())).collect();
    let asked = stat_each(cluster, missing.iter().take(CONFIRMED).cloned().collect()).await?;
    let lacks = missing.iter().filter(|key| !asked.contains_key(key.as_str()));
    Ok(lacks.map(|key| Lack { key: key.to_string(), what: "it is missing".into() }).collect())
}

/// Packs that are missing or have another length, with what is wrong: one listing for each snapshot that wrote some.
pub async fn missing_packs(cluster: &Cluster, packs: &[PackLine]) -> Result<Vec<(ObjectKey, String)>, RepoError> {
    let there = list_each(cluster, writers(cluster, packs)).await?;
    let wrong = packs.iter().filter_map(|PackLine { name, bytes, .. }| {
        let key = cluster.layout().pack(name);
        match there.get(key.as_str()) {
            None => Some((key, "it is missing".to_string())),
            Some(found) if found.bytes != *bytes => Some((key, format!("it has {} bytes instead of {bytes}", found.bytes))),
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
