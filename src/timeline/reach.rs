//! How far replay goes: the value from which `list`, `restore`, `verify` and drills answer.
//!
//! That segments lie there without a gap is not enough. Replay stops at marks in the WAL, and where two segments do not follow one
//! another (see `postgres::wal::replay`); what lies behind belongs to no moment that could be restored from before.
//!
//! # What is read
//! A roll-up is only written over segments that replay passes through, so its key proves them; of the rest the trailers say it. A
//! trailer of an earlier version does not, and the segment itself is read. What cannot be known (the segment is damaged, or the
//! key at hand does not open it) is no stop.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use serde::Serialize;

use super::archive::Archive;
use super::candidates::reached;
use super::find::FindError;
use super::scan;
use crate::lineage::chain::{self, Link};
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::index::fold::Fold;
use crate::postgres::wal::index::seam::Seam;
use crate::postgres::wal::index::{MappedFiles, What};
use crate::postgres::wal::replay::{Break, Chain};
use crate::postgres::wal::transaction::SegmentSummary;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;

/// Trailers that are asked for together.
const PORTION: usize = 256;
/// Segments in which the last transaction is looked for.
const LOOK_BACK: u64 = 64;

/// Why replay does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A record says `wal_level = minimal`.
    MinimalWal,
    /// A checkpoint or an end of recovery names a timeline that is not the path's.
    Timeline(Timeline),
    /// A record is not finished by the next segment, or the next segment follows another record.
    Contradiction,
    /// The WAL of a segment ends within it, and later segments are there.
    Ends,
}

/// Where replay stops although there is more WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// Nothing from here on is replayed.
    pub lsn: Lsn,
    pub why: Why,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lsn = self.lsn;
        match self.why {
            Why::MinimalWal => {
                write!(f, "replay stops at {lsn}: wal_level was minimal there, and PostgreSQL refuses to replay past it")
            }
            Why::Timeline(timeline) => write!(f, "replay stops at {lsn}: a record there belongs to timeline {timeline}"),
            Why::Contradiction => {
                write!(f, "replay stops at {lsn}: the segment that follows in the archive is of another history")
            }
            Why::Ends => write!(f, "replay stops at {lsn}: the WAL in that segment ends there, although later segments exist"),
        }
    }
}

/// How far replay goes from a snapshot on a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Segment in which replay begins.
    pub first: u64,
    /// The last segment that it reads.
    pub end: u64,
    /// It does not reach this position: a stop, or a fork behind which another timeline's WAL goes on.
    pub limit: Option<Lsn>,
    pub stop: Option<Stop>,
}

/// What is known of the end of a reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Where the last record begins that is replayed.
    pub last: Lsn,
    /// A record of the segment with the last transaction, and when that ended; `None` when none was found nearby.
    pub transaction: Option<(Lsn, Timestamp)>,
    /// The latest time that the WAL tells.
    pub until: Option<Timestamp>,
}

/// Replay from snapshots of one path; what was found out is kept for the next question.
#[derive(Debug, Default)]
pub struct Stops(Option<(RangeInclusive<u64>, Vec<Stop>)>);

impl Stops {
    /// How far a snapshot can be rolled forward on a path. An error when it cannot become consistent.
    pub async fn reach(&mut self, archive: &Archive, path: &History, manifest: &Manifest) -> Result<Reach, FindError> {
        let bytes = archive.segment_bytes;
        let end = reached(archive, path, manifest)?;
        let first = manifest.start_lsn.segment(bytes);
        let known = self.0.take().filter(|(numbers, _)| numbers.contains(&first) && *numbers.end() == end);
        let (numbers, stops) = match known {
            Some(known) => known,
            None => (first..=end, stops(archive, path, first..=end).await?),
        };
        let begins_before = |stop: &&Stop| match stop.why {
            Why::Contradiction => stop.lsn > manifest.start_lsn,
            _ => stop.lsn >= manifest.start_lsn,
        };
        let stop = stops.iter().find(begins_before).copied();
        self.0 = Some((numbers, stops));
        let fork = archive.ends_at_fork(path, end);
        // The segment of the timeline that was left stands in for the new one's first up to the fork, and no further.
        if fork.is_some_and(|fork| fork < manifest.stop_lsn) {
            return Err(FindError::Incomplete { id: manifest.id.clone(), segment: path.segment(end, bytes) });
        }
        let limit = stop.map(|stop| stop.lsn).or(fork);
        let end = stop.map_or(end, |stop| stop.lsn.last_segment_before(bytes).max(first).min(end));
        match stop.filter(|stop| stop.lsn < manifest.stop_lsn) {
            Some(stop) => Err(FindError::Inconsistent { id: manifest.id.clone(), stop }),
            None => Ok(Reach { first, end, limit, stop }),
        }
    }
}

impl Reach {
    pub async fn of(archive: &Archive, path: &History, manifest: &Manifest) -> Result<Reach, FindError> {
        Stops::default().reach(archive, path, manifest).await
    }

    /// Where the last record begins that is replayed.
    pub async fn last(&self, archive: &Archive, path: &History) -> Result<Option<Lsn>, RepoError> {
        let mut crosses = false;
        for number in (self.first..=self.end).rev() {
            let Some(summary) = self.summary(archive, path, number).await? else { continue };
            let boundary = summary.replay.map(|replay| replay.boundary).unwrap_or_default();
            // A record that ends in a segment of which it is all begins in an earlier one.
            let head = boundary.head.filter(|_| crosses).map(|head| head.lsn);
            if let Some(lsn) = head.or(summary.last_record) {
                return Ok(Some(lsn));
            }
            crosses |= boundary.rest.is_some_and(|rest| rest.is_end);
        }
        Ok(None)
    }

    /// What the last segments say.
    pub async fn end(&self, archive: &Archive, path: &History, manifest: &Manifest) -> Result<End, RepoError> {
        let mut end = End { last: Lsn(0), transaction: None, until: None };
        end.last = self.last(archive, path).await?.unwrap_or(manifest.stop_lsn);
        for number in (self.first.max(self.end.saturating_sub(LOOK_BACK))..=self.end).rev() {
            let Some(summary) = self.summary(archive, path, number).await? else { continue };
            end.until = end.until.max(summary.replay.and_then(|replay| replay.until)).max(summary.latest);
            end.transaction = summary.last_record.zip(summary.latest);
            if summary.open && number < self.end {
                // The end of a transaction that crosses into the next segment stands in neither summary.
                scan::segment(archive, path, number, self.end, |event| {
                    if self.limit.is_none_or(|limit| event.lsn < limit) {
                        end.until = end.until.max(Some(event.time));
                        let time = end.transaction.map_or(event.time, |(_, time)| time.max(event.time));
                        end.transaction = event.xid().map(|_| (event.lsn, time)).or(end.transaction);
                    }
                    true
                })
                .await?;
            }
            if end.transaction.is_some() {
                break;
            }
        }
        Ok(end)
    }

    /// The time up to which all that was committed is known: what the WAL tells, and the snapshots in it.
    pub fn known_until<'m>(
        &self,
        archive: &Archive,
        end: &End,
        snapshot: &Manifest,
        on_path: impl Iterator<Item = &'m Manifest>,
    ) -> Timestamp {
        let last = |manifest: &Manifest| manifest.stop_lsn.last_segment_before(archive.segment_bytes);
        let is_reached = |other: &&Manifest| {
            let is_before_limit = self.limit.is_none_or(|limit| other.stop_lsn <= limit);
            other.stop_lsn >= snapshot.stop_lsn && last(other) <= self.end && is_before_limit
        };
        let snapshots = on_path.filter(is_reached).map(|other| other.stop_time).max();
        end.until.max(snapshots).unwrap_or(snapshot.stop_time).max(snapshot.stop_time)
    }

    /// What a segment holds as far as it is replayed.
    async fn summary(&self, archive: &Archive, path: &History, number: u64) -> Result<Option<SegmentSummary>, RepoError> {
        match self.limit.filter(|limit| limit.segment(archive.segment_bytes) == number) {
            Some(limit) => fold(archive, path, number, limit).await,
            None => facts(archive, path, number, archive.summaries(path, [number]).await?.pop().and_then(|(_, s)| s)).await,
        }
    }
}

/// Every place in a run of segments where replay stops, in order.
pub async fn stops(archive: &Archive, path: &History, numbers: RangeInclusive<u64>) -> Result<Vec<Stop>, RepoError> {
    let (mut found, mut chain, mut before) = (Vec::new(), Chain::default(), None);
    let asked = asked(archive, path, numbers.clone());
    for portion in asked.chunks(PORTION) {
        let trailers = archive.trailers(path, portion.iter().map(|(number, _)| *number)).await?;
        for ((number, is_proven), (_, summary, link)) in portion.iter().zip(trailers) {
            let summary = facts(archive, path, *number, summary).await?.unwrap_or_default();
            if *is_proven {
                chain = Chain::default();
            }
            let border = archive.segment_start(*number);
            match chain.next(&summary.link()) {
                Ok(()) => {}
                Err(Break::Record(lsn)) => found.push(Stop { lsn, why: Why::Contradiction }),
                Err(Break::Border) => found.push(Stop { lsn: border, why: Why::Contradiction }),
                Err(Break::Ends(lsn)) => found.push(Stop { lsn, why: Why::Ends }),
            }
            // Its server had another segment before it than the archive has.
            let follows =
                |before: &Link, link: &Link| chain::predecessor(path, link.name, archive.segment_bytes) == Some(before.name);
            if let (Some(before), Some(link)) = (before, link)
                && follows(&before, &link)
                && chain::first_break(&[before, link]).is_some()
            {
                found.push(Stop { lsn: border, why: Why::Contradiction });
            }
            before = link;
            let fork = archive.ends_at_fork(path, *number).unwrap_or(Lsn(u64::MAX));
            found.extend(marks(&summary, path).into_iter().filter(|stop| stop.lsn < fork));
            let crosses = summary.replay.as_ref().is_some_and(|replay| replay.boundary.may_cross_with_a_mark());
            if crosses && number < numbers.end() {
                found.extend(crossing(archive, path, *number).await?);
            }
        }
    }
    found.sort_by_key(|stop| stop.lsn);
    Ok(found)
}

/// Segments whose facts must be read, and whether all since the one before is proven.
fn asked(archive: &Archive, path: &History, numbers: RangeInclusive<u64>) -> Vec<(u64, bool)> {
    let mut asked = Vec::new();
    let mut number = *numbers.start();
    while number <= *numbers.end() {
        let Some(name) = archive.on_path(path, number) else { break };
        asked.push((number, false));
        let group = archive.group(name).filter(|_| archive.ends_at_fork(path, number).is_none());
        let same = |n: &u64| archive.on_path(path, *n).is_some_and(|other| other.timeline == name.timeline);
        let last = group.map_or(number, |group| {
            let end = (*group.numbers().end()).min(*numbers.end());
            (number..=end).take_while(same).last().unwrap_or(number)
        });
        if last > number {
            asked.push((last, true));
        }
        number = last + 1;
    }
    asked
}

/// Marks that stop replay on this path.
fn marks(summary: &SegmentSummary, path: &History) -> Vec<Stop> {
    let Some(replay) = &summary.replay else { return Vec::new() };
    let minimal = replay.minimal.iter().map(|lsn| Stop { lsn: *lsn, why: Why::MinimalWal });
    let timelines = replay.timelines.iter().filter(|(lsn, timeline)| path.at(*lsn) != *timeline);
    minimal.chain(timelines.map(|(lsn, timeline)| Stop { lsn: *lsn, why: Why::Timeline(*timeline) })).collect()
}

/// A mark in the record that crosses into the next segment.
async fn crossing(archive: &Archive, path: &History, number: u64) -> Result<Option<Stop>, RepoError> {
    let (Some(from), Some(into)) = (index(archive, path, number).await?, index(archive, path, number + 1).await?) else {
        return Ok(None);
    };
    let (Some(open), Some(rest)) = (from.open, into.continuation) else { return Ok(None) };
    let lsn = open.lsn;
    let record = Seam::new(open, from.major).continued(&rest).and_then(|seam| seam.finish(&MappedFiles::new()).ok());
    let is_minimal = record.is_some_and(|record| record.marks.iter().any(|mark| mark.what == What::MinimalWal));
    Ok(is_minimal.then_some(Stop { lsn, why: Why::MinimalWal }))
}

async fn index(
    archive: &Archive,
    path: &History,
    number: u64,
) -> Result<Option<crate::postgres::wal::index::SegmentIndex>, RepoError> {
    Ok(folded(archive, path, number, Lsn(u64::MAX)).await?.and_then(|folded| folded.index.ok()))
}

/// What a trailer says, or the segment itself where the trailer is older.
async fn facts(
    archive: &Archive,
    path: &History,
    number: u64,
    summary: Option<SegmentSummary>,
) -> Result<Option<SegmentSummary>, RepoError> {
    match summary {
        Some(summary) if summary.replay.is_some() => Ok(Some(summary)),
        summary => match fold(archive, path, number, Lsn(u64::MAX)).await? {
            Some(folded) => Ok(Some(folded)),
            None => Ok(summary),
        },
    }
}

async fn fold(archive: &Archive, path: &History, number: u64, limit: Lsn) -> Result<Option<SegmentSummary>, RepoError> {
    Ok(folded(archive, path, number, limit).await?.map(|folded| folded.summary))
}

/// Reads a segment up to a position; `None` where it cannot be read.
async fn folded(
    archive: &Archive,
    path: &History,
    number: u64,
    limit: Lsn,
) -> Result<Option<crate::postgres::wal::index::fold::Folded>, RepoError> {
    let Some(name) = archive.on_path(path, number) else { return Ok(None) };
    let start = archive.segment_start(number);
    let mut reader = Reader(Fold::new(start, archive.segment_bytes, MappedFiles::new()).before(limit));
    match archive.fetch(name, &mut reader).await {
        Ok(()) => Ok(Some(reader.0.finish())),
        // Who needs the segment itself will be told.
        Err(error) if error.is_damage() || error.is_newer_epoch() || matches!(error, RepoError::WriterKey { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

struct Reader(Fold);

impl std::io::Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.feed(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
