//! The stretches of time to which a restore can go.

use jiff::Timestamp;
use serde::Serialize;

use super::archive::Archive;
use super::find;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::transaction::SegmentSummary;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;

/// From a snapshot's stop to the end of the WAL that follows it without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    pub timeline: Timeline,
    pub from_time: Timestamp,
    pub from_lsn: Lsn,
    /// The last transaction; the snapshot's stop when none followed.
    pub to_time: Timestamp,
    pub to_lsn: Lsn,
    pub snapshots: Vec<String>,
    /// The first segment that is missing after it, when more follows: a gap, not the end.
    pub gap_at: Option<String>,
}

/// All windows, by timeline and time; and the snapshots that none holds, with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Windows {
    pub windows: Vec<Window>,
    pub unusable: Vec<(String, String)>,
}

/// Computes the windows of one history.
pub async fn windows(archive: &Archive, manifests: &[Manifest]) -> Result<Windows, RepoError> {
    let mut all = Windows::default();
    // Timeline and last segment of each window: what tells two windows apart.
    let mut ends: Vec<(Timeline, u64)> = Vec::new();
    for manifest in manifests.iter().filter(|m| m.system_identifier == archive.system) {
        let mut reached = false;
        let mut problem = format!("the history file of timeline {} is missing", manifest.timeline);
        for (path, end) in futures(archive, manifest, &mut problem) {
            reached = true;
            let key = (path.timeline(), end);
            match ends.iter().position(|known| *known == key) {
                Some(at) => join(&mut all.windows[at], manifest),
                None => {
                    ends.push(key);
                    all.windows.push(window(archive, &path, manifest, end).await?);
                }
            }
        }
        if !reached {
            all.unusable.push((manifest.id.clone(), problem));
        }
    }
    Ok(all)
}

/// Every timeline to which a snapshot can be rolled forward, with the last segment that is reached on it. A timeline that was left
/// at a fork, and has nothing behind it, is only the beginning of the one that followed and not listed.
fn futures(archive: &Archive, manifest: &Manifest, problem: &mut String) -> Vec<(History, u64)> {
    let paths = archive.timelines().into_iter().filter_map(|timeline| archive.path(timeline));
    let mut found = Vec::new();
    for path in paths.filter(|path| path.contains(manifest.timeline, manifest.stop_lsn)) {
        match find::reached(archive, &path, manifest) {
            Ok(end) => found.push((path, end)),
            Err(error) => *problem = error.to_string(),
        }
    }
    let is_beginning = |(path, end): &(History, u64)| {
        found.iter().any(|(other, other_end)| match other.left(path.timeline()) {
            Some(Some(fork)) => *end <= fork.segment(archive.segment_bytes) && *other_end >= *end,
            _ => false,
        })
    };
    let keep: Vec<bool> = found.iter().map(|future| !is_beginning(future)).collect();
    let mut keep = keep.into_iter();
    found.retain(|_| keep.next().unwrap_or(true));
    found
}

/// A later snapshot of the same window: at least its own stop can be reached.
fn join(window: &mut Window, manifest: &Manifest) {
    window.snapshots.push(manifest.id.clone());
    if manifest.stop_lsn > window.to_lsn {
        (window.to_time, window.to_lsn) = (manifest.stop_time, manifest.stop_lsn);
    }
}

async fn window(archive: &Archive, path: &History, manifest: &Manifest, end: u64) -> Result<Window, RepoError> {
    let mut to = (manifest.stop_time, manifest.stop_lsn);
    let first = manifest.stop_lsn.last_segment_before(archive.segment_bytes).max(end.saturating_sub(64));
    for number in (first..=end).rev() {
        let summaries = archive.summaries(path, [number]).await?;
        if let Some((_, Some(SegmentSummary { latest: Some(time), last_record: Some(lsn), .. }))) = summaries.first() {
            if *lsn > to.1 {
                to = (*time, *lsn);
            }
            break;
        }
    }
    // Where WAL was expired on purpose, a snapshot's own few segments are all that was meant to stay.
    let gap = archive.after_gap(path, end).is_some() && !archive.gone().has(path.segment(end + 1, archive.segment_bytes));
    Ok(Window {
        timeline: path.timeline(),
        from_time: manifest.stop_time,
        from_lsn: manifest.stop_lsn,
        to_time: to.0,
        to_lsn: to.1,
        snapshots: vec![manifest.id.clone()],
        gap_at: gap.then(|| path.segment(end + 1, archive.segment_bytes).to_string()),
    })
}
