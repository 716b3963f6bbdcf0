//! Two servers that write into one archive.
//!
//! # What
//! A timeline that is left at a fork ends there: what a server goes on to write on it is another history. The archive knows forks
//! from history files, so it can tell, and refuses with both histories named:
//! - the old primary that goes on after another server took over from it;
//! - the copy that branched off in the past of a cluster that lives on, unless it was declared the successor (`lastgood release`);
//! - a timeline that was given up for an older one.
//!
//! Which of two servers is the right one, only a person knows. Refused WAL stays in its server's `pg_wal`; nothing is lost by it.

use std::path::Path;

use super::push::PushError;
use crate::postgres::history::History;
use crate::postgres::lsn::{SystemId, Timeline};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::object::Sha;
use crate::repo::record::ClusterRecord;
use crate::repo::repository::Cluster;
use crate::repo::segment;
use crate::storage::{Depth, list_all};

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub system: SystemId,
    pub timeline: Timeline,
    /// Absent for a history file.
    pub segment: Option<SegmentName>,
    pub segment_bytes: u64,
    pub data_directory: &'a Path,
}

/// Refuses WAL of a history that is not the archive's. Answers the last segment that its timeline may have, where another left it.
pub async fn check(cluster: &Cluster, record: &ClusterRecord, candidate: &Candidate<'_>) -> Result<Option<u64>, PushError> {
    let (system, timeline) = (candidate.system, candidate.timeline);
    let abandoned = record.abandoned(system);
    if let Some(given_up) = record.abandoned.iter().find(|a| (a.system_identifier, a.timeline) == (system, timeline)) {
        return Err(PushError::Abandoned { cluster: cluster.name().into(), timeline, by: given_up.by, at: given_up.at });
    }
    let mut limit: Option<u64> = None;
    for history in later_histories(cluster, system, timeline).await? {
        let other = history.timeline();
        let Some(Some(fork)) = history.left(timeline) else { continue };
        if abandoned.contains(&other) {
            continue;
        }
        // Behind this segment nothing was written before the fork.
        let last = fork.last_segment_before(candidate.segment_bytes);
        limit = Some(limit.map_or(last, |limit| limit.min(last)));
        let number = candidate.segment.and_then(|segment| segment.number(candidate.segment_bytes));
        if let (Some(segment), true) = (candidate.segment, number.is_some_and(|number| number > last)) {
            let here = format!("this server goes on with timeline {timeline}, up to segment {segment}");
            let there = format!("the archive's timeline {other} left timeline {timeline} at {fork}");
            return Err(PushError::Rival { cluster: cluster.name().into(), here, there });
        }
    }
    came_from_the_past(cluster, record, candidate).await?;
    Ok(limit)
}

/// Histories of timelines after `timeline`: only they can have left it.
async fn later_histories(cluster: &Cluster, system: SystemId, timeline: Timeline) -> Result<Vec<History>, RepoError> {
    let page = list_all(cluster.storage(), &cluster.layout().histories(system), Depth::All).await?;
    let mut histories = Vec::new();
    for object in page.objects {
        let Ok(WalFile::History(other)) = object.key.name().parse() else { continue };
        if other <= timeline {
            continue;
        }
        let mut text = Vec::new();
        match segment::fetch(cluster, system, &WalFile::History(other), &mut text).await {
            Ok(_) => {}
            // Archiving must not stop for a damaged file of another timeline, nor for one that a newer key sealed.
            Err(error) if error.is_damage() || error.is_newer_epoch() => continue,
            Err(error) => return Err(error),
        }
        // One that cannot be understood was no server's; `verify` names it.
        histories.extend(History::parse(other, &String::from_utf8_lossy(&text)).ok());
    }
    Ok(histories)
}

/// A timeline that branched off where its parent's WAL goes on in the archive.
async fn came_from_the_past(cluster: &Cluster, record: &ClusterRecord, candidate: &Candidate<'_>) -> Result<(), PushError> {
    let timeline = candidate.timeline;
    if record.is_successor(candidate.system, timeline) {
        return Ok(());
    }
    // Without its file nothing can be said; the server archives it before any segment of the timeline.
    let path = candidate.data_directory.join(format!("pg_wal/{timeline}.history"));
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
    let Ok(history) = History::parse(timeline, &text) else { return Ok(()) };
    if is_archived(cluster, candidate, text.as_bytes()).await? {
        // Judged when it came; what its parent wrote since, or got in meanwhile, does not make it wrong.
        return Ok(());
    }
    let abandoned = record.abandoned(candidate.system);
    for pair in history.stretches().windows(2) {
        let [parent, child] = pair else { continue };
        let Some(fork) = parent.end else { continue };
        let bytes = candidate.segment_bytes;
        let next = SegmentName::new(parent.timeline, fork.last_segment_before(bytes) + 1, bytes);
        let key = cluster.layout().wal(candidate.system, &WalFile::Segment(next));
        let decided = abandoned.contains(&parent.timeline) || record.is_successor(candidate.system, child.timeline);
        if !decided && cluster.storage().stat(&key).await.map_err(RepoError::from)?.is_some() {
            let here = format!("this server's timeline {} left timeline {} at {fork}", child.timeline, parent.timeline);
            let there = format!("the archive's timeline {} goes on behind that, with segment {next}", parent.timeline);
            return Err(PushError::Rival { cluster: cluster.name().into(), here, there });
        }
    }
    Ok(())
}

/// Whether the archive has this very history file.
async fn is_archived(cluster: &Cluster, candidate: &Candidate<'_>, text: &[u8]) -> Result<bool, RepoError> {
    let file = WalFile::History(candidate.timeline);
    match segment::read_trailer(cluster, candidate.system, &file).await {
        Ok(trailer) => Ok(trailer.sha256 == Sha::of(text)),
        Err(error) if error.is_damage() || error.is_newer_epoch() => Ok(false),
        Err(error) => Err(error),
    }
}
