//! Does what a plan says: first the reference, then the data (rule 47).

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::ExpireError;
use super::plan::{Count, Plan, WalPlan};
use super::view;
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::lsn::Timeline;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::expired::Expired;
use crate::repo::gone::{Gone, Range};
use crate::repo::keep;
use crate::repo::repository::Cluster;
use crate::repo::rollup;
use crate::storage::{Depth, Fault, ObjectInfo, ObjectKey, list_all};
use crate::upkeep::sweep;

/// Keys in one deletion: what DeleteObjects takes.
const BATCH_KEYS: usize = 1000;
/// Segments in one folder of the archive, and in one step here.
const BLOCK_SEGMENTS: u64 = 256;

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    pub snapshots: u64,
    pub objects: u64,
    pub bytes: u64,
    /// What waits for the end of its lock, and when that is for the last of it.
    pub locked: Count,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_until: Option<Timestamp>,
    /// The bucket keeps what was deleted as older versions, so that nothing became free.
    pub is_hidden_only: bool,
}

impl Done {
    /// Before anything was done.
    pub fn waiting(plan: &Plan) -> Done {
        let locked_until = plan.locked.last().map(|last| last.until);
        Done { locked: plan.locked_count(), locked_until, ..Done::default() }
    }

    pub fn describe(&self) -> String {
        let locked = if self.locked.objects > 0 { format!(", locked: {}", self.locked.objects) } else { String::new() };
        format!("snapshots: {}, objects: {}, bytes: {}{locked}", self.snapshots, self.objects, self.bytes)
    }
}

/// Everything that lies under a snapshot's lists and tables.
pub async fn lists(cluster: &Cluster, id: &str) -> Result<Vec<ObjectInfo>, ExpireError> {
    list(cluster, &format!("{}{id}/", cluster.layout().all_files())).await
}

async fn list(cluster: &Cluster, prefix: &str) -> Result<Vec<ObjectInfo>, ExpireError> {
    Ok(list_all(cluster.storage(), prefix, Depth::All).await.map_err(RepoError::from)?.objects)
}

/// Parts of `first..=last` that lie in one folder each.
pub fn blocks(first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
    let starts = (first / BLOCK_SEGMENTS..=last / BLOCK_SEGMENTS).map(|block| block * BLOCK_SEGMENTS);
    starts.map(move |start| (start.max(first), (start + BLOCK_SEGMENTS - 1).min(last)))
}

/// The segments of a part that lie there.
pub async fn segments(
    cluster: &Cluster,
    wal: &WalPlan,
    timeline: Timeline,
    (first, last): (u64, u64),
) -> Result<Vec<ObjectInfo>, ExpireError> {
    let name = |number| SegmentName::new(timeline, number, wal.segment_bytes);
    let mut found = Vec::new();
    let folders: BTreeSet<String> =
        [first, last].into_iter().map(|number| cluster.layout().block(wal.system, name(number))).collect();
    for folder in folders {
        found.extend(list(cluster, &folder).await?);
    }
    found.retain(|object| {
        let number = object.key.name().parse().ok().and_then(|name: SegmentName| name.number(wal.segment_bytes));
        number.is_some_and(|number| (first..=last).contains(&number))
    });
    Ok(found)
}

/// Backup history files, and ends of WAL that are no whole segments, where their segment is not needed. History files of
/// timelines stay for ever: a server that promotes looks for the first one that is missing, and would take a used number.
pub async fn files(cluster: &Cluster, wal: &WalPlan) -> Result<Vec<ObjectInfo>, ExpireError> {
    let layout = cluster.layout();
    let mut found = Vec::new();
    for prefix in [layout.backups(wal.system), layout.partials(wal.system), layout.torn(wal.system)] {
        for object in list(cluster, &prefix).await? {
            let segment = match object.key.name().parse() {
                Ok(WalFile::Backup(segment, _) | WalFile::Partial(segment) | WalFile::Torn(segment, _)) => segment,
                _ => continue,
            };
            if segment.number(wal.segment_bytes).is_some_and(|number| !wal.needed.has(segment.timeline, number)) {
                found.push(object);
            }
        }
    }
    Ok(found)
}

/// Executes a plan that has no refusals. The caller holds the lease for backups.
pub async fn execute(cluster: &Cluster, plan: &Plan, monitor: &dyn Monitor) -> Result<Done, ExpireError> {
    let mut work = Work { cluster, plan, monitor, done: Done::waiting(plan), failed: Failed::default() };
    monitor.phase("expire", plan.bytes());
    work.manifests(plan).await?;
    work.data(plan).await?;
    for wal in &plan.wal_plans {
        work.wal(wal).await?;
    }
    work.failed.result()?;
    work.done.is_hidden_only = only_hides(cluster).await;
    if let Some(text) = sweep::sweep(cluster, "").await?.describe() {
        monitor.note(&text);
    }
    Ok(work.done)
}

/// Whether deletions leave all bytes where they are. Where that may not be asked, nothing is claimed.
async fn only_hides(cluster: &Cluster) -> bool {
    let Some(bucket) = cluster.storage().bucket().filter(|bucket| !bucket.deletes_versions()) else { return false };
    bucket.protection().await.is_ok_and(|protection| protection.keeps_versions)
}

/// What could not be deleted.
#[derive(Debug, Default)]
struct Failed {
    count: u64,
    first: Option<String>,
    denied: bool,
    locked: bool,
}

impl Failed {
    fn add(&mut self, count: u64, what: String, fault: Fault) {
        self.count += count;
        self.denied |= fault == Fault::Denied;
        self.locked |= fault == Fault::Locked;
        self.first.get_or_insert(what);
    }

    fn result(&mut self) -> Result<(), ExpireError> {
        let mend = match (self.denied, self.locked) {
            (true, _) => "the credentials need the rights of docs/policies/expiry-host.json",
            // Whoever may see locks plans with them; see `preview`.
            (false, true) => {
                "it is locked for longer than this host knows: give it s3:GetObjectRetention, and set object_lock_days"
            }
            (false, false) => "see the message",
        };
        match self.first.take() {
            Some(first) => Err(ExpireError::Left { count: self.count, first, mend }),
            None => Ok(()),
        }
    }
}

struct Work<'a> {
    cluster: &'a Cluster,
    plan: &'a Plan,
    monitor: &'a dyn Monitor,
    done: Done,
    failed: Failed,
}

impl Work<'_> {
    /// Notes, then manifests. One that cannot be deleted ends it: what a manifest refers to must stay.
    async fn manifests(&mut self, plan: &Plan) -> Result<(), ExpireError> {
        let mut keys = Vec::new();
        for removed in &plan.removed {
            let Some(manifest) = &removed.manifest else { continue };
            let note = Expired { at: clock::now(), why: removed.why.clone(), manifest: Some(*manifest.clone()) };
            note.put(self.cluster, &removed.snapshot).await?;
            keys.push(self.cluster.layout().manifest(&removed.snapshot));
        }
        for id in &plan.forgotten {
            Expired::of_packs(clock::now(), "given up by a person: its manifest was missing or damaged")
                .put(self.cluster, id)
                .await?;
            keys.push(self.cluster.layout().manifest(id));
        }
        let pins = keep::all(self.cluster).await?;
        let is_pinned = |id: &String| pins.get(id).is_some_and(|pin| pin.holds(plan.at));
        if let Some(removed) = plan.removed.iter().find(|removed| is_pinned(&removed.snapshot)) {
            // Notes of what was not done would say of a manifest that is lost later that it was expired.
            let notes: Vec<ObjectKey> = plan.removed.iter().map(|r| self.cluster.layout().expired(&r.snapshot)).collect();
            let _ = self.cluster.storage().delete(&notes).await;
            return Err(ExpireError::Pinned { snapshot: removed.snapshot.clone() });
        }
        self.delete(&keys.into_iter().map(|key| (key, 0)).collect::<Vec<_>>()).await?;
        self.failed.result()?;
        self.done.snapshots = (plan.removed.len() + plan.forgotten.len()) as u64;
        // Who began to read before the manifest was gone holds a lease by now; who begins later finds no manifest.
        let readers = view::readers(self.cluster).await?;
        match readers.into_iter().find(|reader| plan.removed.iter().any(|r| r.snapshot == reader.snapshot)) {
            Some(reader) => Err(ExpireError::Begun { who: reader.who }),
            None => Ok(()),
        }
    }

    /// File lists, packs, and the notes of those of which nothing is left.
    async fn data(&mut self, plan: &Plan) -> Result<(), ExpireError> {
        for id in plan.dead() {
            let objects = lists(self.cluster, id).await?;
            self.delete_objects(objects).await?;
        }
        let packs: Vec<_> = plan.going.iter().map(|pack| (self.cluster.layout().pack(&pack.name), pack.bytes)).collect();
        self.delete(&packs).await?;
        let mut notes = Vec::new();
        for id in plan.dead() {
            let packs = list(self.cluster, &format!("{}{id}/", self.cluster.layout().all_packs())).await?;
            if packs.is_empty() && lists(self.cluster, id).await?.is_empty() {
                notes.push((self.cluster.layout().expired(id), 0));
            }
        }
        self.delete(&notes).await
    }

    async fn wal(&mut self, wal: &WalPlan) -> Result<(), ExpireError> {
        if wal.is_new {
            let name = |timeline, number| SegmentName::new(timeline, number, wal.segment_bytes);
            let ranges = wal.gone.iter().map(|(timeline, first, last)| Range(name(timeline, first), name(timeline, last)));
            Gone { ranges: ranges.collect(), unreadable: None }.put(self.cluster, wal.system).await?;
        }
        for (timeline, first, last) in wal.goes.iter() {
            for block in blocks(first, last) {
                let over = rollup::keys_over(self.cluster, wal.system, timeline, wal.segment_bytes, block.0..=block.1);
                let objects = segments(self.cluster, wal, timeline, block).await?;
                let objects = objects.into_iter().map(|object| (object.key, object.bytes));
                self.delete(&over.into_iter().map(|key| (key, 0)).chain(objects).collect::<Vec<_>>()).await?;
            }
        }
        let objects = files(self.cluster, wal).await?;
        self.delete_objects(objects).await
    }

    /// Without those that are locked, which the plan has counted.
    async fn delete_objects(&mut self, mut objects: Vec<ObjectInfo>) -> Result<(), ExpireError> {
        objects.retain(|object| self.plan.locks.as_ref().and_then(|locks| locks.locked(object)).is_none());
        self.delete(&objects.into_iter().map(|object| (object.key, object.bytes)).collect::<Vec<_>>()).await
    }

    /// A lock that was not known of, on something that nothing refers to any more: it stays until a later expiry.
    fn stays(&mut self, bytes: u64) {
        self.done.locked.add(bytes);
    }

    /// Deletes keys, with their lengths; those of 0 bytes may not be there, and are not counted. What may not be deleted is remembered, each with its own answer (rule 54).
    async fn delete(&mut self, objects: &[(ObjectKey, u64)]) -> Result<(), ExpireError> {
        for batch in objects.chunks(BATCH_KEYS) {
            let keys: Vec<ObjectKey> = batch.iter().map(|(key, _)| key.clone()).collect();
            let mut count = Count::default();
            match self.cluster.storage().delete(&keys).await {
                Ok(failed) => {
                    let stays: BTreeSet<&ObjectKey> = failed.iter().map(|(key, _)| key).collect();
                    batch
                        .iter()
                        .filter(|(key, _)| !stays.contains(key))
                        .filter(|(_, bytes)| *bytes > 0)
                        .for_each(|(_, bytes)| count.add(*bytes));
                    for (key, error) in &failed {
                        let bytes = batch.iter().find(|(other, _)| other == key).map_or(0, |(_, bytes)| *bytes);
                        match error.fault {
                            Fault::Locked if bytes > 0 => self.stays(bytes),
                            fault => self.failed.add(1, error.to_string(), fault),
                        }
                    }
                }
                Err(error) if error.fault == Fault::Denied => {
                    self.failed.add(keys.len() as u64, error.to_string(), error.fault);
                }
                Err(error) => return Err(RepoError::from(error).into()),
            }
            self.done.objects += count.objects;
            self.done.bytes += count.bytes;
            self.monitor.advance(count.bytes);
        }
        Ok(())
    }
}
