//! Makes roll-ups of the WAL index that are missing over archived segments.
//!
//! Pushes write them when they complete a group; a push that lost its spool, a host that was down, or a segment that another host
//! archived leaves holes. Those of the highest level are made here only. Nobody needs them to be right: without a roll-up the
//! segments are read where an index is wanted.
//!
//! # Order and crash consistency
//! From the lowest level up, so that each is made from the one below. A roll-up is one object, written when all its segments are
//! there and known; what its key says is true. Should somebody have deleted segments meanwhile, it is taken back.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::monitor::Monitor;
use crate::postgres::history::History;
use crate::postgres::wal::index::MappedFiles;
use crate::postgres::wal::index::proof::Proof;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::postgres::wal::replay::Chain;
use crate::repo::RepoError;
use crate::repo::rollup::{self, Builder, Group};
use crate::timeline::archive::Archive;
use crate::timeline::indexes::{self, Local, Wanted};

/// What may be done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Segments whose indexes are put into roll-ups, counted for each level.
    pub segments: u64,
    /// Segments that are fetched because nobody has their index.
    pub fetched: u64,
}

impl Bounds {
    /// Until nothing is missing.
    pub const NONE: Bounds = Bounds { segments: u64::MAX, fetched: u64::MAX };
    /// What a snapshot does at its end.
    pub const SNAPSHOT: Bounds = Bounds { segments: 3 * 4096, fetched: 64 };
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reindexed {
    /// Roll-ups that were written.
    pub written: u64,
    /// Segments that were read because nobody had their index.
    pub read: u64,
    /// Segments of which no index can be made.
    pub without: u64,
    /// Groups of which no roll-up is made, because replay stops within them.
    pub stopped: u64,
    /// Groups that are left: damaged or deleted segments, no right to read them, or more than was to be done at once.
    pub left: u64,
}

/// Makes what is missing. `mapped` tells where mapped catalogs lie, for indexes that are made.
pub async fn reindex(
    archive: &mut Archive,
    local: Local<'_>,
    mapped: Arc<MappedFiles>,
    mut bounds: Bounds,
    monitor: &dyn Monitor,
) -> Result<Reindexed, RepoError> {
    let mut done = Reindexed::default();
    let mut stopped: Vec<Group> = Vec::new();
    for level in rollup::LEVELS {
        let missing = missing(archive, level);
        if missing.is_empty() {
            continue;
        }
        monitor.phase(
            &format!("roll up the WAL index, level {level}"),
            missing.len() as u64 * Group::size(level) * archive.segment_bytes,
        );
        for group in missing {
            let bytes = Group::size(level) * archive.segment_bytes;
            monitor.advance(bytes);
            let fetched = group.numbers().filter(|number| !is_known(archive, local, &group, *number)).count() as u64;
            if Group::size(level) > bounds.segments || fetched > bounds.fetched {
                done.left += 1;
                continue;
            }
            let holds_one = |below: &Group| below.timeline == group.timeline && group.numbers().contains(&below.first);
            if stopped.iter().any(holds_one) || (fetched > 0 && level == 1 && stops(archive, &group).await?) {
                stopped.push(group);
                done.stopped += 1;
                continue;
            }
            if level > 1 && would_be_too_long(archive, &group).await? {
                continue;
            }
            bounds.segments -= Group::size(level);
            bounds.fetched -= fetched;
            if !make(archive, local, &mapped, group, &mut done).await? {
                stopped.push(group);
                done.stopped += 1;
            }
        }
    }
    Ok(done)
}

fn segment(archive: &Archive, group: &Group, number: u64) -> SegmentName {
    SegmentName::new(group.timeline, number, archive.segment_bytes)
}

fn is_known(archive: &Archive, local: Local<'_>, group: &Group, number: u64) -> bool {
    let name = segment(archive, group, number);
    archive.group(name).is_some() || local(name).is_some()
}

/// Groups of a level whose segments are all there, and over which there is no roll-up of this level or a higher one.
fn missing(archive: &Archive, level: u8) -> Vec<Group> {
    let size = Group::size(level);
    let mut missing = Vec::new();
    for timeline in archive.runs().timelines() {
        for (first, last) in archive.runs().of(timeline) {
            let groups =
                (first.next_multiple_of(size)..=*last).step_by(size as usize).map(|first| Group { timeline, level, first });
            let whole = groups.take_while(|group| group.numbers().end() <= last);
            missing.extend(
                whole.filter(|group| archive.group(segment(archive, group, group.first)).is_none_or(|there| there.level < level)),
            );
        }
    }
    missing
}

/// Asked of the roll-ups below, so that a group that is too long does not cost their bytes each time.
async fn would_be_too_long(archive: &Archive, group: &Group) -> Result<bool, RepoError> {
    let (below, cluster) = (group.level - 1, archive.cluster());
    let mut bytes = 0;
    for first in group.numbers().step_by(Group::size(below) as usize) {
        let part = Group { level: below, first, ..*group };
        let there = cluster.storage().stat(&part.key(cluster, archive.system, archive.segment_bytes)).await?;
        // What is not there was too long itself, or is made from what is below.
        bytes += there.map_or(0, |object| object.bytes);
    }
    Ok(bytes > rollup::STORED_MAX_BYTES as u64)
}

/// Asked of the trailers, so that such a group does not cost its segments each time.
async fn stops(archive: &Archive, group: &Group) -> Result<bool, RepoError> {
    let path = History::first(group.timeline);
    let (mut chain, mut is_stopped) = (Chain::default(), false);
    for (_, summary) in archive.summaries(&path, group.numbers()).await? {
        let Some(summary) = summary else {
            chain = Chain::default();
            continue;
        };
        is_stopped |= chain.next(&summary.link()).is_err() || summary.replay.is_some_and(|replay| !replay.minimal.is_empty());
    }
    Ok(is_stopped)
}

/// `false` where replay stops within the group.
async fn make(
    archive: &mut Archive,
    local: Local<'_>,
    mapped: &Arc<MappedFiles>,
    group: Group,
    done: &mut Reindexed,
) -> Result<bool, RepoError> {
    let cluster = archive.cluster().clone();
    let mut builder = Builder::new(&cluster, archive.system, archive.segment_bytes, group);
    let path = History::first(group.timeline);
    let wanted = Wanted { archive, path: &path, numbers: group.numbers(), local, mapped: mapped.clone(), passes_sealed: false };
    let (mut next, mut without, mut proof) = (group.first, 0, Proof::new(group.timeline));
    let read = indexes::each(&wanted, &mut |indexed| {
        if indexed.number != next {
            return false;
        }
        next += 1;
        proof.add(indexed.index.as_ref().ok());
        let raw = indexed.index.and_then(|index| index.to_bytes()).unwrap_or_default();
        without += u64::from(raw.is_empty());
        builder.add(&raw);
        true
    })
    .await;
    match read {
        Ok(sources) => done.read += sources.made,
        // Whoever may read makes it.
        Err(RepoError::WriterKey { .. }) => next = group.first,
        Err(error) => return Err(error),
    }
    if next <= *group.numbers().end() {
        done.left += 1;
        return Ok(true);
    }
    if !proof.holds() {
        return Ok(false);
    }
    if !builder.store(&cluster).await? {
        return Ok(true);
    }
    if is_there(archive, &group).await? {
        archive.add_group(group);
        done.written += 1;
        done.without += if group.level == 1 { without } else { 0 };
    } else {
        cluster.storage().delete(&[group.key(&cluster, archive.system, archive.segment_bytes)]).await?;
        done.left += 1;
    }
    Ok(true)
}

/// Whether the first and the last segment are still there: whoever deletes begins at an end.
async fn is_there(archive: &Archive, group: &Group) -> Result<bool, RepoError> {
    let ends: RangeInclusive<u64> = group.numbers();
    for number in [*ends.start(), *ends.end()] {
        let key = archive.cluster().layout().wal(archive.system, &WalFile::Segment(segment(archive, group, number)));
        if archive.cluster().storage().stat(&key).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
