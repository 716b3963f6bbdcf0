//! What there is: snapshots, packs, WAL, and who needs what. Gathered once; the plan is made from it alone.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use jiff::Timestamp;

use super::{ExpireError, OPERATION};
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::repo::locks::{Ends, Known};
use crate::repo::manifest::Manifest;
use crate::repo::pack_table::PackLine;
use crate::repo::reach::{self, Ids};
use crate::repo::record::ClusterRecord;
use crate::repo::repository::Cluster;
use crate::repo::{RepoError, alert, expired, keep, lease};
use crate::storage::bucket::Bucket;
use crate::storage::{Depth, Fault, ObjectInfo, list_all};
use crate::timeline::archive::Archive;
use crate::timeline::listing::Runs;
use crate::timeline::windows;
use crate::upkeep::hidden;

/// Pack tables that are read at the same time.
const TABLES_AHEAD: usize = 8;

/// What the plan knows of a snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: String,
    pub system: SystemId,
    pub timeline: Timeline,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub stop_time: Timestamp,
    pub raw_bytes: u64,
    /// Why it does not count.
    pub flaw: Option<String>,
    /// Places in [`View::packs`]; `None` when the table cannot be read: then any older pack may belong to it.
    pub packs: Option<Vec<u32>>,
    /// Behind which it is noted as expired; absent in what was made by hand.
    pub manifest: Option<Box<Manifest>>,
    /// When its manifest can be deleted; `None` where nothing is locked.
    pub lock: Option<Ends>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// `<id>/<pack>`
    pub name: String,
    pub bytes: u64,
    pub lock: Option<Ends>,
}

impl Pack {
    /// The snapshot that wrote it.
    pub fn writer(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// A segment, where there are locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub timeline: Timeline,
    pub number: u64,
    pub bytes: u64,
    pub lock: Ends,
}

/// The WAL of one history.
#[derive(Debug, Clone)]
pub struct Wal {
    pub system: SystemId,
    pub segment_bytes: u64,
    /// The cluster lives this history now.
    pub is_current: bool,
    /// All that lies there.
    pub runs: Runs,
    /// Each segment of it; empty where nothing is locked.
    pub stored: Vec<Stored>,
    /// What was expired before.
    pub gone: Runs,
    /// Of every timeline; `None` where its history file is missing or damaged.
    pub paths: BTreeMap<Timeline, Option<History>>,
    /// The timeline that is followed by itself.
    pub newest: Option<Timeline>,
    /// The last moment to which each timeline leads.
    pub ends: BTreeMap<Timeline, Timestamp>,
}

/// A snapshot without a manifest that can be read. What it needs is known by its tables alone, and stays: the manifest may come back.
#[derive(Debug, Clone)]
pub struct Lost {
    pub id: String,
    /// Why its manifest cannot be read; `None` where it is missing.
    pub unreadable: Option<String>,
    /// Places in [`View::packs`]; `None` when its table cannot be read: then any pack may belong to it.
    pub packs: Option<Vec<u32>>,
    /// From which segment on it needs WAL; `None` when nothing tells.
    pub from: Option<SegmentName>,
}

/// A reader at work.
#[derive(Debug, Clone)]
pub struct Reader {
    pub snapshot: String,
    pub who: String,
}

#[derive(Debug, Clone)]
pub struct View {
    /// By the host's clock.
    pub now: Timestamp,
    /// By which locks end: the store's time as far as it is known.
    pub store_now: Timestamp,
    pub locks: Option<Known>,
    /// Snapshots whose manifests somebody deleted, in a bucket that has them still, with what to say of each.
    pub hidden: Vec<(String, String)>,
    /// In order, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Those whose manifests are missing or cannot be read.
    pub lost: Vec<Lost>,
    /// Expired before, and not wholly gone.
    pub ghosts: Vec<Snapshot>,
    /// Ghosts whose note cannot be read, or holds no manifest.
    pub dim_ghosts: Vec<String>,
    /// All that lie there, by name.
    pub packs: Vec<Pack>,
    /// What the newest snapshot needs, sorted by name; `None` when that cannot be read.
    pub newest: Option<Vec<PackLine>>,
    pub wal: Vec<Wal>,
    pub readers: Vec<Reader>,
    pub pins: BTreeMap<String, keep::Pin>,
    /// Alerts that nobody acknowledged.
    pub alerts: Vec<String>,
    pub accepted: BTreeSet<String>,
}

impl View {
    /// Whether a person may give it up: it has no manifest that can be read.
    pub fn can_be_forgotten(&self, id: &str) -> bool {
        self.lost.iter().any(|lost| lost.id == id) || self.ghosts.iter().any(|ghost| ghost.id == id)
    }
}

/// Reads manifests, pack tables and notes; lists packs and WAL. Where there are locks, lists manifests and every segment too.
pub async fn gather(cluster: &Cluster, record: &ClusterRecord, now: Timestamp) -> Result<View, ExpireError> {
    let locks = Known::load(cluster).await?;
    let mut manifests = Vec::new();
    let mut unreadable = Vec::new();
    for (id, manifest) in cluster.manifests().await? {
        match manifest {
            Ok(manifest) => manifests.push(manifest),
            // An old key: this host must not judge what it cannot read.
            Err(error) if error.is_newer_epoch() => return Err(error.into()),
            Err(error) => unreadable.push((id, error.to_string())),
        }
    }
    let committed: BTreeSet<String> =
        manifests.iter().map(|m| m.id.clone()).chain(unreadable.iter().map(|u| u.0.clone())).collect();
    let (mut ghosts, mut dim_ghosts) = (Vec::new(), Vec::new());
    let noted = expired::ids(cluster).await?;
    for id in noted.iter().filter(|id| !committed.contains(*id)).cloned() {
        match expired::Expired::read(cluster, &id).await {
            Ok(expired::Expired { manifest: Some(manifest), .. }) => ghosts.push(manifest),
            Ok(_) => dim_ghosts.push(id),
            Err(error) if error.is_damage() => dim_ghosts.push(id),
            Err(error) => return Err(error.into()),
        }
    }
    let ids = Ids::list(cluster).await?;
    let packs = packs(cluster, ids.packs, locks.as_ref()).await?;
    let at_work = lease::standing(cluster).await?.living;
    // With a table and nothing that tells what it was, a note is no reason to take it apart.
    let is_free =
        |id: &String| (!noted.contains(id) || dim_ghosts.contains(id)) && at_work.iter().all(|work| work.beat.snapshot != *id);
    let orphans = ids.files.into_iter().filter(|id| !committed.contains(id) && is_free(id)).map(|id| (id, None));
    let unreadable = unreadable.into_iter().map(|(id, why)| (id, Some(why)));
    let lost = lost(cluster, &packs, unreadable.chain(orphans).collect()).await?;
    dim_ghosts.retain(|id| lost.iter().all(|lost| lost.id != *id));
    let (mut wal, unusable) = wal(cluster, record, &manifests).await?;
    let mut snapshots = look(cluster, &packs, manifests).await?;
    if let Some(locks) = &locks {
        lock(cluster, locks, &mut snapshots, &mut wal).await?;
    }
    for snapshot in &mut snapshots {
        // A clock that ran ahead makes no other snapshot old.
        snapshot.stop_time = snapshot.stop_time.min(now);
        if let Some(reason) = unusable.get(&snapshot.id) {
            snapshot.flaw = Some(reason.clone());
        }
    }
    order(&mut snapshots, &record.histories.iter().map(|h| h.system_identifier).collect::<Vec<_>>());
    let newest = match snapshots.last().and_then(|snapshot| snapshot.manifest.as_ref()) {
        Some(manifest) => manifest.packs(cluster).await.ok(),
        None => None,
    };
    Ok(View {
        now,
        store_now: locks.as_ref().map_or(now, |locks| locks.now),
        locks,
        hidden: hidden(cluster).await?,
        newest,
        snapshots,
        lost,
        ghosts: look(cluster, &packs, ghosts).await?,
        dim_ghosts,
        packs,
        wal,
        readers: readers(cluster).await?,
        pins: keep::all(cluster).await?,
        alerts: alert::open(cluster).await?.into_iter().map(open_alert).collect(),
        accepted: expired::accepted(cluster).await?,
    })
}

fn open_alert((id, alert): alert::Readable) -> String {
    match alert {
        Ok(alert) => format!("{id} ({})", alert.what),
        Err(unreadable) => format!("{id} (it cannot be read: {unreadable})"),
    }
}

/// What those need whose manifests cannot be asked. An id that never had a table is no snapshot.
async fn lost(cluster: &Cluster, packs: &[Pack], ids: Vec<(String, Option<String>)>) -> Result<Vec<Lost>, ExpireError> {
    let mut lost = Vec::new();
    for (id, unreadable) in ids {
        let table = match reach::pack_table(cluster, &id).await {
            Err(error) if !error.is_damage() && !error.is_newer_epoch() => return Err(error.into()),
            Ok(table) => table,
            Err(_) => None,
        };
        let wal = match reach::wal_table(cluster, &id).await {
            Err(error) if !error.is_damage() && !error.is_newer_epoch() => return Err(error.into()),
            Ok(table) => table,
            Err(_) => None,
        };
        if unreadable.is_none() && table.is_none() && wal.is_none() && !reach::has_table(cluster, &id).await? {
            continue;
        }
        let from = wal.and_then(|lines| lines.first().map(|line| line.0));
        lost.push(Lost { id, unreadable, packs: table.and_then(|table| needs(packs, &table).0), from });
    }
    Ok(lost)
}

/// Who reads now. Exclusive leases are not among them: writers of snapshots, and expiry itself.
pub async fn readers(cluster: &Cluster) -> Result<Vec<Reader>, ExpireError> {
    let living = lease::standing(cluster).await?.living.into_iter();
    let readers = living.filter(|work| work.beat.epoch == 0 && work.beat.operation != OPERATION);
    Ok(readers.map(|work| Reader { snapshot: work.beat.snapshot.clone(), who: work.describe() }).collect())
}

/// All packs below these ids, sorted by name.
async fn packs(cluster: &Cluster, ids: BTreeSet<String>, locks: Option<&Known>) -> Result<Vec<Pack>, ExpireError> {
    let pack = |id: &str, object: &ObjectInfo| Pack {
        name: format!("{id}/{}", object.key.name()),
        bytes: object.bytes,
        lock: locks.map(|locks| locks.ends(object)),
    };
    let mut packs = Vec::new();
    for id in ids {
        let prefix = format!("{}{id}/", cluster.layout().all_packs());
        let page = list_all(cluster.storage(), &prefix, Depth::All).await.map_err(RepoError::from)?;
        packs.extend(page.objects.iter().map(|object| pack(&id, object)));
    }
    packs.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(packs)
}

/// When manifests and segments can be deleted.
async fn lock(cluster: &Cluster, locks: &Known, snapshots: &mut [Snapshot], wal: &mut [Wal]) -> Result<(), ExpireError> {
    let list = async |prefix: &str| list_all(cluster.storage(), prefix, Depth::All).await.map_err(RepoError::from);
    let manifests = list(&cluster.layout().manifests()).await?.objects;
    let of: BTreeMap<&str, Ends> = manifests.iter().map(|object| (object.key.name(), locks.ends(object))).collect();
    for snapshot in snapshots {
        snapshot.lock = of.get(snapshot.id.as_str()).copied();
    }
    for wal in wal {
        let objects = list(&cluster.layout().segments(wal.system)).await?.objects;
        wal.stored.extend(objects.iter().filter_map(|object| {
            let name: SegmentName = object.key.name().parse().ok()?;
            let number = name.number(wal.segment_bytes)?;
            Some(Stored { timeline: name.timeline, number, bytes: object.bytes, lock: locks.ends(object) })
        }));
    }
    Ok(())
}

/// Only where versions are to be deleted or objects are locked, which is where somebody means to be safe from deletions.
async fn hidden(cluster: &Cluster) -> Result<Vec<(String, String)>, ExpireError> {
    let is_asked = |bucket: &&dyn Bucket| bucket.deletes_versions() || bucket.lock().is_some();
    let Some(bucket) = cluster.storage().bucket().filter(is_asked) else { return Ok(Vec::new()) };
    match hidden::snapshots(cluster, bucket).await {
        Ok(hidden) => Ok(hidden.into_iter().map(|one| (one.snapshot.clone(), one.describe())).collect()),
        // Nothing that is hidden can be lost for good by who may not even list it.
        Err(RepoError::Storage(error)) if error.fault == Fault::Denied => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// What each needs, and whether it is there.
async fn look(cluster: &Cluster, packs: &[Pack], manifests: Vec<Manifest>) -> Result<Vec<Snapshot>, ExpireError> {
    let table = |manifest: Manifest| async move {
        let table = manifest.packs(cluster).await;
        (manifest, table)
    };
    let mut reads = futures::stream::iter(manifests).map(table).buffered(TABLES_AHEAD);
    let mut snapshots = Vec::new();
    while let Some((manifest, table)) = reads.next().await {
        let (needed, flaw) = match table {
            Ok(table) => needs(packs, &table),
            Err(error) if error.is_damage() => (None, Some(format!("its pack table cannot be read: {error}"))),
            Err(error) => return Err(error.into()),
        };
        let damaged = manifest.damaged_pages.len();
        let flaw = flaw.or_else(|| (damaged > 0).then(|| format!("{damaged} pages were damaged in the database")));
        snapshots.push(Snapshot {
            id: manifest.id.clone(),
            system: manifest.system_identifier,
            timeline: manifest.timeline,
            start_lsn: manifest.start_lsn,
            stop_lsn: manifest.stop_lsn,
            stop_time: manifest.stop_time,
            raw_bytes: manifest.totals.raw_bytes,
            flaw,
            packs: needed,
            manifest: Some(Box::new(manifest)),
            lock: None,
        });
    }
    Ok(snapshots)
}

fn needs(packs: &[Pack], table: &[PackLine]) -> (Option<Vec<u32>>, Option<String>) {
    let (mut needed, mut flaw) = (Vec::with_capacity(table.len()), None);
    for line in table {
        match packs.binary_search_by(|pack| pack.name.as_str().cmp(&line.name)) {
            Ok(at) if packs[at].bytes == line.bytes => needed.push(at as u32),
            Ok(at) => {
                needed.push(at as u32);
                flaw = Some(format!("pack {} has {} bytes instead of {}", line.name, packs[at].bytes, line.bytes));
            }
            Err(_) => flaw = Some(format!("pack {} is missing", line.name)),
        }
    }
    (Some(needed), flaw)
}

/// The WAL of every history, and the snapshots that it does not make consistent.
async fn wal(
    cluster: &Cluster,
    record: &ClusterRecord,
    manifests: &[Manifest],
) -> Result<(Vec<Wal>, BTreeMap<String, String>), ExpireError> {
    let (mut all, mut unusable) = (Vec::new(), BTreeMap::new());
    for history in &record.histories {
        let system = history.system_identifier;
        let mut archive = Archive::load(cluster, system, history.wal_segment_bytes.into()).await?;
        archive.decide(record);
        let windows = windows::windows(&archive, manifests).await?;
        unusable.extend(windows.unusable);
        let mut ends: BTreeMap<Timeline, Timestamp> = BTreeMap::new();
        for window in windows.windows {
            let end = ends.entry(window.timeline).or_insert(window.to_time);
            *end = window.to_time.max(*end);
        }
        let mut runs = archive.runs().clone();
        archive.leftovers().iter().for_each(|(timeline, first, last)| runs.add(timeline, first, last));
        let mut gone = Runs::default();
        archive.gone().numbers(archive.segment_bytes).for_each(|(timeline, first, last)| gone.add(timeline, first, last));
        if archive.gone().unreadable.is_some() {
            gone = before_the_first(&archive);
        }
        all.push(Wal {
            system,
            segment_bytes: archive.segment_bytes,
            is_current: record.current().is_some_and(|current| current.system_identifier == system),
            runs,
            stored: Vec::new(),
            gone,
            paths: archive.timelines().into_iter().map(|timeline| (timeline, archive.path(timeline))).collect(),
            newest: archive.newest().map(|path| path.timeline()),
            ends,
        });
    }
    Ok((all, unusable))
}

/// What was expired, where the note of it is lost: expiry takes the oldest, so on each timeline all before the first that is there.
fn before_the_first(archive: &Archive) -> Runs {
    let mut gone = Runs::default();
    for timeline in archive.timelines() {
        let begin = archive.path(timeline).and_then(|path| Some(path.stretches().last()?.begin));
        let begin = begin.map_or(0, |begin| begin.segment(archive.segment_bytes));
        if let Some((first, _)) = archive.runs().of(timeline).first().filter(|(first, _)| *first > begin) {
            gone.add(timeline, begin, first - 1);
        }
    }
    gone
}

/// By history, then by id: ids only grow. Where two of one timeline disagree with their LSNs, the LSN is right (rule 52).
pub fn order(snapshots: &mut [Snapshot], histories: &[SystemId]) {
    let history = |system: SystemId| histories.iter().position(|known| *known == system);
    snapshots.sort_by(|one, two| (history(one.system), &one.id).cmp(&(history(two.system), &two.id)));
    let mut places: BTreeMap<(SystemId, Timeline), Vec<usize>> = BTreeMap::new();
    for (at, snapshot) in snapshots.iter().enumerate() {
        places.entry((snapshot.system, snapshot.timeline)).or_default().push(at);
    }
    for places in places.into_values() {
        let mut of_timeline: Vec<Snapshot> = places.iter().map(|at| snapshots[*at].clone()).collect();
        of_timeline.sort_by_key(|snapshot| snapshot.start_lsn);
        places.into_iter().zip(of_timeline).for_each(|(at, snapshot)| snapshots[at] = snapshot);
    }
}

/// A snapshot as tests make it.
#[cfg(test)]
pub fn snapshot(id: &str, segment: u64, stop_time: &str) -> Snapshot {
    Snapshot {
        id: id.into(),
        system: SystemId(7),
        timeline: Timeline(1),
        start_lsn: Lsn((segment << 24) + 0x28),
        stop_lsn: Lsn((segment << 24) + 0x100),
        stop_time: stop_time.parse().expect("a time"),
        raw_bytes: 1000,
        flaw: None,
        packs: Some(Vec::new()),
        manifest: None,
        lock: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_history_then_time_and_by_lsn_on_one_timeline() {
        let make = |id: &str, system, timeline, segment| Snapshot {
            system: SystemId(system),
            timeline: Timeline(timeline),
            ..snapshot(id, segment, "2026-01-01T00:00:00Z")
        };
        // System 3 came after system 9; timeline 2 forked below where timeline 1 had got to.
        let mut all =
            vec![make("e", 3, 1, 2), make("a", 9, 1, 90), make("b", 9, 1, 80), make("c", 9, 2, 50), make("d", 9, 2, 60)];
        order(&mut all, &[SystemId(9), SystemId(3)]);
        assert_eq!(all.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["b", "a", "c", "d", "e"]);
    }
}
