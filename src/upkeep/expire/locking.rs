//! Locks in a plan: what waits for its day, locks that are not what the plan goes by, and locks that must be longer.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::ExpireError;
use super::execute;
use super::plan::{Count, Plan};
use super::view::View;
use crate::monitor::Monitor;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::locks::{Ends, days_after, half_days_after};
use crate::repo::repository::Cluster;
use crate::storage::{Depth, ObjectInfo, ObjectKey, list_all};
use crate::upkeep::locks;

/// What no rule keeps and a lock does, on one day the last of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Locked {
    pub until: Timestamp,
    #[serde(flatten)]
    pub count: Count,
}

/// What stays longer than it is locked.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Locking {
    pub objects: usize,
    pub until: Timestamp,
    #[serde(skip)]
    pub keys: Vec<ObjectKey>,
}

/// Until when something is locked, of which these bounds are known; `None` when it can be deleted.
pub fn locked(view: &View, lock: Option<Ends>) -> Option<Timestamp> {
    lock.map(|lock| lock.most).filter(|until| *until > view.store_now)
}

impl Plan {
    /// What stays until the last day.
    pub fn locked_count(&self) -> Count {
        let add =
            |sum: Count, one: &Locked| Count { objects: sum.objects + one.count.objects, bytes: sum.bytes + one.count.bytes };
        self.locked.iter().fold(Count::default(), add)
    }

    /// Waits for an object's day. One line for each day is enough for people and for programs.
    pub(super) fn wait(&mut self, bytes: u64, until: Timestamp) {
        let day = |at: Timestamp| at.to_zoned(TimeZone::UTC).date();
        let at = self.locked.partition_point(|one| day(one.until) < day(until));
        if self.locked.get(at).is_none_or(|one| day(one.until) != day(until)) {
            self.locked.insert(at, Locked { until, count: Count::default() });
        }
        self.locked[at].until = self.locked[at].until.max(until);
        self.locked[at].count.add(bytes);
    }

    /// Those of `objects` that can be deleted today; the others wait.
    pub(super) fn free(&mut self, objects: Vec<ObjectInfo>) -> Vec<ObjectInfo> {
        let locked = |object: &ObjectInfo| self.locks.as_ref().and_then(|locks| locks.locked(object));
        let (waiting, free): (Vec<_>, Vec<_>) =
            objects.into_iter().map(|object| (locked(&object), object)).partition(|one| one.0.is_some());
        for (until, object) in waiting {
            self.wait(object.bytes, until.unwrap_or_default());
        }
        free.into_iter().map(|(_, object)| object).collect()
    }
}

/// Asks the store about the manifests that would go; `true` when one of them is locked after all, by whoever.
pub async fn ask(cluster: &Cluster, view: &mut View, plan: &Plan) -> Result<bool, ExpireError> {
    let Some(bucket) = cluster.storage().bucket().filter(|bucket| bucket.lock().is_some()) else { return Ok(false) };
    let mut is_new = false;
    for removed in &plan.removed {
        let until = bucket.locked_until(&cluster.layout().manifest(&removed.snapshot)).await.map_err(RepoError::from)?;
        let Some(until) = until.filter(|until| *until > view.store_now) else { continue };
        for snapshot in view.snapshots.iter_mut().filter(|snapshot| snapshot.id == removed.snapshot) {
            snapshot.lock = Some(Ends { least: until, most: until });
            is_new = true;
        }
    }
    Ok(is_new)
}

/// All that stays by a rule or a pin, and is locked for less than half of the days from now.
pub async fn short(cluster: &Cluster, view: &View, plan: &Plan) -> Result<Option<Locking>, ExpireError> {
    let Some(known) = &view.locks else { return Ok(None) };
    let layout = cluster.layout();
    let by_lock: BTreeSet<&str> =
        plan.kept.iter().filter(|kept| kept.locked_until.is_some()).map(|kept| kept.snapshot.as_str()).collect();
    let kept: BTreeSet<&str> = plan.kept.iter().map(|kept| kept.snapshot.as_str()).filter(|id| !by_lock.contains(id)).collect();
    let needed = half_days_after(known.now, known.days);
    let is_short = |lock: Option<Ends>| lock.is_some_and(|lock| lock.least < needed);
    let mut keys: Vec<ObjectKey> = Vec::new();
    let mut packs: BTreeSet<u32> = BTreeSet::new();
    for snapshot in view.snapshots.iter().filter(|snapshot| kept.contains(snapshot.id.as_str())) {
        packs.extend(snapshot.packs.iter().flatten());
        if is_short(snapshot.lock) {
            keys.push(layout.manifest(&snapshot.id));
        }
        let lists = execute::lists(cluster, &snapshot.id).await?;
        keys.extend(lists.into_iter().filter(|object| is_short(Some(known.ends(object)))).map(|object| object.key));
    }
    let packs = packs.into_iter().map(|at| &view.packs[at as usize]).filter(|pack| is_short(pack.lock));
    keys.extend(packs.map(|pack| layout.pack(&pack.name)));
    keys.extend(segments(cluster, view, plan, &is_short));
    let systems: Vec<SystemId> = view.wal.iter().map(|wal| wal.system).collect();
    let essential = locks::essential(cluster, &systems).await?.into_iter();
    let pins = list_all(cluster.storage(), &layout.keeps(), Depth::All).await.map_err(RepoError::from)?.objects;
    let others = essential.chain(pins).filter(|object| is_short(Some(known.ends(object))));
    keys.extend(others.map(|object| object.key));
    Ok(Some(Locking { objects: keys.len(), until: days_after(known.now, known.days), keys }))
}

/// Segments that stay, among them the few of snapshots that wait for their day.
fn segments(cluster: &Cluster, view: &View, plan: &Plan, is_short: &dyn Fn(Option<Ends>) -> bool) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    for (wal, planned) in view.wal.iter().zip(&plan.wal_plans) {
        let stays = wal.stored.iter().filter(|one| is_short(Some(one.lock)) && planned.needed.has(one.timeline, one.number));
        keys.extend(stays.map(|one| {
            let name = SegmentName::new(one.timeline, one.number, wal.segment_bytes);
            cluster.layout().wal(wal.system, &WalFile::Segment(name))
        }));
    }
    keys
}

/// Does what was found. What cannot be locked for longer is said, and no reason to keep what may go.
pub async fn lock(cluster: &Cluster, plan: &Plan, monitor: &dyn Monitor) -> Result<(), ExpireError> {
    let (Some(known), Some(locking)) = (&plan.locks, &plan.locking) else { return Ok(()) };
    let extended = known.extend(cluster, &locking.keys, locking.until).await?;
    if let Some(failure) = extended.first_failure {
        let left = locking.objects - extended.objects;
        monitor.warn(&format!("{left} objects that stay could not be locked for longer, the first of them: {failure}"));
    }
    Ok(())
}
