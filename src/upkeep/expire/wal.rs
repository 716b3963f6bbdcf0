//! Which WAL must stay.

use jiff::Timestamp;

use super::retention::days_before;
use super::view::{Lost, Snapshot, Wal};
use crate::postgres::lsn::Timeline;
use crate::timeline::listing::Runs;

/// What of one history's WAL stays.
#[derive(Debug, Clone, Default)]
pub struct Needed {
    /// Nothing of it may go.
    pub all: bool,
    pub runs: Runs,
}

impl Needed {
    pub fn has(&self, timeline: Timeline, number: u64) -> bool {
        self.all || self.runs.around(timeline, number).is_some()
    }

    /// A snapshot's own segments, from where recovery begins to where it is consistent: by number, on every timeline that it may
    /// lie on, because at a fork two timelines share one (rule 48).
    pub fn add_own(&mut self, wal: &Wal, snapshot: &Snapshot) {
        let first = snapshot.start_lsn.segment(wal.segment_bytes);
        let last = snapshot.stop_lsn.last_segment_before(wal.segment_bytes).max(first);
        for timeline in wal.paths.keys().filter(|timeline| **timeline <= snapshot.timeline) {
            self.runs.add(*timeline, first, last);
        }
        self.runs.add(snapshot.timeline, first, last);
    }

    /// Everything from where the snapshot begins. Its system is not known, so it may be any; nor is its path, so it may lead to every
    /// timeline. Where nothing tells where it begins, all stays.
    pub fn add_lost(&mut self, wal: &Wal, lost: &Lost) {
        match lost.from.and_then(|name| Some((name.timeline, name.number(wal.segment_bytes)?))) {
            Some((timeline, first)) => {
                self.runs.add(timeline, first, u64::MAX);
                wal.paths.keys().for_each(|timeline| self.runs.add(*timeline, first, u64::MAX));
            }
            None => self.all = true,
        }
    }

    /// Everything to which the snapshot can be rolled forward, on every timeline that it leads to.
    pub fn add_futures(&mut self, wal: &Wal, snapshot: &Snapshot) {
        self.add_own(wal, snapshot);
        let first = snapshot.start_lsn.segment(wal.segment_bytes);
        self.runs.add(snapshot.timeline, first, u64::MAX);
        for (timeline, path) in &wal.paths {
            match path {
                Some(path) if path.contains(snapshot.timeline, snapshot.stop_lsn) => self.runs.add(*timeline, first, u64::MAX),
                Some(_) => {}
                // Where it came from is not known, so it may come from here.
                None => self.runs.add(*timeline, 0, u64::MAX),
            }
        }
    }
}

/// Places of the snapshots from which a point-in-time restore must begin: on every timeline that has moments since `window` days
/// before `anchor`, the newest good snapshot from before that time, and all since (rule 49). The timeline that is followed by
/// itself counts whatever its age.
pub fn anchors(wal: &Wal, snapshots: &[Snapshot], anchor: Timestamp, window: u32) -> Vec<usize> {
    let since = days_before(anchor, window);
    let good: Vec<usize> = (0..snapshots.len()).filter(|at| snapshots[*at].flaw.is_none()).collect();
    let mut found = Vec::new();
    for (timeline, path) in &wal.paths {
        let Some(path) = path else { continue };
        let is_alive = wal.newest == Some(*timeline) || wal.ends.get(timeline).is_some_and(|end| *end >= since);
        if !is_alive {
            continue;
        }
        let leads_here = |at: &&usize| {
            let snapshot = &snapshots[**at];
            snapshot.system == wal.system && path.contains(snapshot.timeline, snapshot.stop_lsn)
        };
        let on_path: Vec<usize> = good.iter().filter(leads_here).copied().collect();
        let first = on_path.iter().position(|at| snapshots[*at].stop_time >= since).unwrap_or(on_path.len());
        found.extend(&on_path[first.saturating_sub(1)..]);
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The newest good snapshot on the timeline that the server is on, where this is the history that the cluster lives.
pub fn last_on_newest(wal: &Wal, snapshots: &[Snapshot]) -> Option<usize> {
    let path = wal.paths.get(&wal.newest?)?.as_ref()?;
    let is_on = |s: &Snapshot| s.system == wal.system && path.contains(s.timeline, s.stop_lsn);
    snapshots.iter().rposition(|s| wal.is_current && s.flaw.is_none() && is_on(s))
}

/// What lies there and is not needed.
pub fn unneeded(wal: &Wal, needed: &Needed) -> Runs {
    if needed.all {
        return Runs::default();
    }
    let mut rest = wal.runs.clone();
    needed.runs.iter().for_each(|(timeline, first, last)| rest.remove(timeline, first, last));
    rest
}
