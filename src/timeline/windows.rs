//! The stretches of time to which a restore can go.

use jiff::Timestamp;
use serde::Serialize;

use super::archive::Archive;
use super::find::FindError;
use super::reach::{Reach, Stop, Stops};
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;

/// From a snapshot's stop to where replay from it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    pub timeline: Timeline,
    pub from_time: Timestamp,
    pub from_lsn: Lsn,
    /// The latest time up to which all that was committed is known: of the last transaction, or of what the WAL tells later.
    pub to_time: Timestamp,
    /// The last record that can be replayed; the snapshot's stop when none followed.
    pub to_lsn: Lsn,
    /// When the last transaction ended; absent when the last segments hold none.
    pub last_transaction: Option<Timestamp>,
    pub snapshots: Vec<String>,
    /// The first segment that is missing after it, when more follows: a gap, not the end.
    pub gap_at: Option<String>,
    /// Where replay stops, when the WAL goes on: nothing that is later can be reached from these snapshots.
    pub stop: Option<Stop>,
}

/// All windows, by snapshot and timeline; and the snapshots that none holds, with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Windows {
    pub windows: Vec<Window>,
    pub unusable: Vec<(String, String)>,
}

impl Windows {
    /// Windows that end where replay stops, on timelines that are followed, when no later snapshot leads past it.
    pub fn unsolved<'w>(&'w self, archive: &'w Archive) -> impl Iterator<Item = (&'w Window, Stop)> {
        let followed = archive.followed();
        self.windows.iter().filter_map(move |window| {
            let stop = window.stop?;
            let leads_past = |other: &Window| other.timeline >= window.timeline && other.from_lsn > stop.lsn;
            let is_open = followed.contains(&window.timeline) && !self.windows.iter().any(leads_past);
            is_open.then_some((window, stop))
        })
    }
}

/// A snapshot rolled forward on one path.
struct Future {
    path: History,
    reach: Reach,
}

/// Timeline, last segment and stop of a window: what tells two apart.
type Key = (Timeline, u64, Option<Stop>);

/// Computes the windows of one history.
pub async fn windows(archive: &Archive, manifests: &[Manifest]) -> Result<Windows, RepoError> {
    let mut all = Windows::default();
    // Timeline, last segment and stop of each window: what tells two windows apart; and the time that its WAL tells.
    let mut ends: Vec<(Key, Timestamp)> = Vec::new();
    let paths: Vec<History> = archive.timelines().into_iter().filter_map(|timeline| archive.path(timeline)).collect();
    let mut stops: Vec<Stops> = paths.iter().map(|_| Stops::default()).collect();
    for manifest in manifests.iter().filter(|m| m.system_identifier == archive.system) {
        let mut problem = format!("the history file of timeline {} is missing", manifest.timeline);
        let futures = futures(archive, manifest, &paths, &mut stops, &mut problem).await?;
        if futures.is_empty() {
            all.unusable.push((manifest.id.clone(), problem));
        }
        for Future { path, reach } in futures {
            let key = (path.timeline(), reach.end, reach.stop);
            match ends.iter().position(|(known, _)| *known == key) {
                Some(at) => join(&mut all.windows[at], ends[at].1, manifest, manifests),
                None => {
                    let window = window(archive, &path, manifest, &reach).await?;
                    ends.push((key, window.to_time));
                    all.windows.push(window);
                }
            }
        }
    }
    Ok(all)
}

/// Every timeline to which a snapshot can be rolled forward. A timeline that was left at a fork, and has nothing behind it, is only
/// the beginning of the one that followed and not listed.
async fn futures(
    archive: &Archive,
    manifest: &Manifest,
    paths: &[History],
    stops: &mut [Stops],
    problem: &mut String,
) -> Result<Vec<Future>, RepoError> {
    let mut found: Vec<Future> = Vec::new();
    for (path, stops) in paths.iter().zip(stops).filter(|(path, _)| path.contains(manifest.timeline, manifest.stop_lsn)) {
        match stops.reach(archive, path, manifest).await {
            Ok(reach) => found.push(Future { path: path.clone(), reach }),
            Err(FindError::Repo(error)) => return Err(error),
            Err(error) => *problem = error.to_string(),
        }
    }
    let mut keep = Vec::new();
    for one in &found {
        keep.push(!is_beginning(archive, one, &found).await?);
    }
    let mut keep = keep.into_iter();
    found.retain(|_| keep.next().unwrap_or(true));
    Ok(found)
}

async fn is_beginning(archive: &Archive, one: &Future, all: &[Future]) -> Result<bool, RepoError> {
    for other in all {
        let Some(Some(fork)) = other.path.left(one.path.timeline()) else { continue };
        let fork_segment = fork.segment(archive.segment_bytes);
        if one.reach.end > fork_segment || other.reach.end < one.reach.end {
            continue;
        }
        // In the fork's own segment only the records tell.
        let goes_on = one.reach.end == fork_segment && one.reach.last(archive, &one.path).await? >= Some(fork);
        if !goes_on {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A later snapshot of the same window: at least its own stop can be reached. Where clocks disagree with positions, the snapshot
/// with the last position says how late it was.
fn join(window: &mut Window, until: Timestamp, manifest: &Manifest, manifests: &[Manifest]) {
    let known = |id: &String| manifests.iter().find(|known| known.id == *id).map(|known| known.stop_lsn);
    let is_last = window.snapshots.iter().filter_map(known).all(|stop| stop <= manifest.stop_lsn);
    if is_last {
        window.to_time = until.max(manifest.stop_time);
    }
    window.snapshots.push(manifest.id.clone());
    window.to_lsn = window.to_lsn.max(manifest.stop_lsn);
}

async fn window(archive: &Archive, path: &History, manifest: &Manifest, reach: &Reach) -> Result<Window, RepoError> {
    let end = reach.end(archive, path, manifest).await?;
    // Where WAL was expired on purpose, a snapshot's own few segments are all that was meant to stay.
    let next = path.segment(reach.end + 1, archive.segment_bytes);
    let gap = reach.stop.is_none() && archive.after_gap(path, reach.end).is_some() && !archive.gone().has(next);
    Ok(Window {
        timeline: path.timeline(),
        from_time: manifest.stop_time,
        from_lsn: manifest.stop_lsn,
        to_time: reach.known_until(archive, &end, manifest, std::iter::empty()),
        to_lsn: end.last.max(manifest.stop_lsn),
        last_transaction: end.transaction.map(|(_, time)| time),
        snapshots: vec![manifest.id.clone()],
        gap_at: gap.then(|| next.to_string()),
        stop: reach.stop,
    })
}
