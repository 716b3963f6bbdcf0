//! Two servers that write into one archive.
//!
//! # What
//! A timeline that is left at a fork ends there: what a server goes on to write on it is another history. The archive knows forks
//! from history files, so it can tell, and refuses with both histories named:
//! - the old primary that goes on after another server took over from it;
//! - a timeline that contradicts the archive when it first comes ([`crate::lineage::admission`]);
//! - a timeline whose number the archive has for another one;
//! - a timeline that was given up for an older one.
//!
//! Which of two servers is the right one, only a person knows. Refused WAL stays in its server's `pg_wal`; nothing is lost by it.

use std::path::Path;

use super::push::PushError;
use crate::lineage::admission::{self, Branch, Decisions};
use crate::lineage::fork::Fork;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::object::{self, Sha};
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

/// With what the archive lets a file in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The last segment that its timeline may have, where another left it.
    pub limit: Option<u64>,
    /// Of a history file that comes for the first time: what its parent had archived beyond the fork.
    pub fork: Option<Fork>,
}

/// Refuses WAL of a history that is not the archive's.
pub async fn check(cluster: &Cluster, record: &ClusterRecord, candidate: &Candidate<'_>) -> Result<Admitted, PushError> {
    let (system, timeline) = (candidate.system, candidate.timeline);
    let abandoned = record.abandoned(system);
    if let Some(given_up) = record.abandoned.iter().find(|a| (a.system_identifier, a.timeline) == (system, timeline)) {
        return Err(PushError::Abandoned { cluster: cluster.name().into(), timeline, by: given_up.by, at: given_up.at });
    }
    let mut limit: Option<u64> = None;
    for history in histories(cluster, system, |other| other > timeline).await? {
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
    let fork = first_time(cluster, record, candidate).await?;
    Ok(Admitted { limit, fork })
}

/// Histories of timelines in the archive.
async fn histories(cluster: &Cluster, system: SystemId, wanted: impl Fn(Timeline) -> bool) -> Result<Vec<History>, RepoError> {
    let page = list_all(cluster.storage(), &cluster.layout().histories(system), Depth::All).await?;
    let mut histories = Vec::new();
    for object in page.objects {
        let Ok(WalFile::History(other)) = object.key.name().parse() else { continue };
        if !wanted(other) {
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

/// Judges a timeline that the archive does not know yet, by its history file.
async fn first_time(cluster: &Cluster, record: &ClusterRecord, candidate: &Candidate<'_>) -> Result<Option<Fork>, PushError> {
    let (system, timeline) = (candidate.system, candidate.timeline);
    // Without its file nothing can be said; the server archives it before any segment of the timeline.
    let path = candidate.data_directory.join(format!("pg_wal/{timeline}.history"));
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(None) };
    let Ok(history) = History::parse(timeline, &text) else { return Ok(None) };
    match archived(cluster, candidate).await? {
        // Judged when it came; what its parent wrote since, or got in meanwhile, does not make it wrong.
        Known::As(sha256) if sha256 == Sha::of(text.as_bytes()) => return Ok(None),
        Known::As(_) => {
            let there =
                histories(cluster, system, |other| other == timeline).await?.first().map(|history| begin(history).to_string());
            let (here, there) = (begin(&history), there.unwrap_or_else(|| "another position".into()));
            return Err(PushError::NumberTaken { cluster: cluster.name().into(), timeline, here, there });
        }
        Known::Unreadable => return Ok(None),
        Known::Not => {}
    }
    let fork = Fork::look(cluster, system, &history, candidate.segment_bytes).await?;
    if record.is_successor(system, timeline) {
        return Ok(fork);
    }
    let branches = branches(cluster, candidate, &history).await?;
    let successors: Vec<Timeline> =
        record.successors.iter().filter(|s| s.system_identifier == system).map(|s| s.timeline).collect();
    let decisions = Decisions { abandoned: &record.abandoned(system), successors: &successors };
    admission::admit(&history, &branches, decisions).map_err(|contradiction| {
        let left = fork.as_ref().map(|fork| format!(" left timeline {} at {}", fork.parent, fork.at)).unwrap_or_default();
        let here = format!("this server's timeline {timeline}{left}");
        PushError::Rival { cluster: cluster.name().into(), here, there: contradiction.there() }
    })?;
    Ok(fork)
}

fn begin(history: &History) -> Lsn {
    history.stretches().last().map_or(Lsn(0), |stretch| stretch.begin)
}

/// The timelines of the archive beside a candidate's path: those with a history file, and the candidate's ancestors.
async fn branches(cluster: &Cluster, candidate: &Candidate<'_>, path: &History) -> Result<Vec<Branch>, RepoError> {
    let mut paths = histories(cluster, candidate.system, |_| true).await?;
    for ancestor in path.stretches().iter().rev().skip(1).map(|stretch| stretch.timeline) {
        if !paths.iter().any(|known| known.timeline() == ancestor) {
            paths.extend(path.until(ancestor));
        }
    }
    let mut branches = Vec::new();
    for other in paths {
        let beyond = match path.fork(&other) {
            Some(at) => beyond(cluster, candidate, &other, at).await?,
            None => None,
        };
        branches.push(Branch { path: other, beyond });
    }
    Ok(branches)
}

/// The first whole segment that is archived on a path beyond the one that holds `at`.
async fn beyond(cluster: &Cluster, candidate: &Candidate<'_>, path: &History, at: Lsn) -> Result<Option<SegmentName>, RepoError> {
    let bytes = candidate.segment_bytes;
    let prefix = cluster.layout().segments(candidate.system);
    for stretch in path.stretches().iter().filter(|stretch| stretch.end.is_none_or(|end| end > at)) {
        let first = (at.last_segment_before(bytes) + 1).max(stretch.begin.segment(bytes));
        let before = first.checked_sub(1).map(|number| SegmentName::new(stretch.timeline, number, bytes));
        let after = before.map(|name| cluster.layout().wal(candidate.system, &WalFile::Segment(name)).to_string());
        let page = cluster.storage().list(&prefix, after.as_deref(), Depth::All).await?;
        let next = page.objects.iter().find_map(|object| object.key.name().parse::<SegmentName>().ok());
        let last = stretch.end.map_or(u64::MAX, |end| end.last_segment_before(bytes));
        let is_its = |name: &SegmentName| {
            name.timeline == stretch.timeline && name.number(bytes).is_some_and(|number| (first..=last).contains(&number))
        };
        if let Some(next) = next.filter(is_its) {
            return Ok(Some(next));
        }
    }
    Ok(None)
}

/// What the archive has under a timeline's number.
enum Known {
    Not,
    As(Sha),
    /// There is one, and what it says cannot be told.
    Unreadable,
}

async fn archived(cluster: &Cluster, candidate: &Candidate<'_>) -> Result<Known, RepoError> {
    let file = WalFile::History(candidate.timeline);
    match object::absent(segment::read_trailer(cluster, candidate.system, &file).await) {
        Ok(found) => Ok(found.map_or(Known::Not, |trailer| Known::As(trailer.sha256))),
        Err(error) if error.is_damage() || error.is_newer_epoch() => Ok(Known::Unreadable),
        Err(error) => Err(error),
    }
}
