//! From a target to a snapshot, a path of timelines, and an exact position.
//!
//! Everything here is decided from the repository, before a byte is written anywhere (rules 39, 43).

use jiff::Timestamp;

use super::archive::Archive;
use super::candidates::{self, choose_by_id, reached};
use super::elsewhere;
pub use super::find_error::FindError;
use super::reach::{End, Reach, Stop};
use super::scan;
use super::target::Target;
use crate::clock;
use crate::postgres::history::{History, Stretch};
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::settings::RecoveryTarget;
use crate::postgres::wal::transaction::{Event, Kind, SegmentSummary};
use crate::repo::manifest::Manifest;

/// A transaction end beside the target, shown so that a person can judge it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub lsn: Lsn,
    pub time: Timestamp,
    pub xid: Option<u32>,
}

impl From<&Event> for Neighbour {
    fn from(event: &Event) -> Self {
        Neighbour { lsn: event.lsn, time: event.time, xid: event.xid() }
    }
}

/// A target that can be reached, and how.
#[derive(Debug, Clone)]
pub struct Found {
    pub snapshot: Manifest,
    pub path: History,
    pub recovery: RecoveryTarget,
    /// Last segment that recovery will ask for, as far as it is known now.
    pub last_segment: u64,
    /// The last transaction that the restored cluster will hold, and the first that it will not, where they were read.
    pub before: Option<Neighbour>,
    pub after: Option<Neighbour>,
    /// What a person should know before it is done.
    pub notes: Vec<String>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    pub target: &'a Target,
    pub timeline: Option<Timeline>,
    /// Stop after the record of an LSN or xid target (PostgreSQL's default), or just before it.
    pub inclusive: bool,
    /// Needed for [`Target::Latest`] when the server shall stop at the end instead of becoming writable.
    pub stop_at_end: bool,
}

/// Answers a question from the archive and the manifests (oldest first).
pub async fn find(archive: &Archive, manifests: &[Manifest], question: &Question<'_>) -> Result<Found, FindError> {
    let path = candidates::path(archive, manifests, question).await?;
    let found = on_path(archive, manifests, question, path).await?;
    Ok(on_its_own_timeline(archive, found))
}

/// Cuts the path at the timeline on which recovery stops. A server that is promoted before a fork that it was to follow writes that fork into
/// the history of its new timeline, which nobody could follow then (`writeTimeLineHistory` of `recovery_target_timeline`).
fn on_its_own_timeline(archive: &Archive, mut found: Found) -> Found {
    let stop = match found.recovery {
        RecoveryTarget::Lsn { lsn, .. } => lsn,
        RecoveryTarget::Immediate => found.snapshot.stop_lsn,
        RecoveryTarget::End => return found,
    };
    let is_last = |stretch: &&Stretch| stretch.end.is_none_or(|end| stop < end);
    let Some(cut) = found.path.stretches().iter().find(is_last).and_then(|last| found.path.until(last.timeline)) else {
        return found;
    };
    let first = found.snapshot.start_lsn.segment(archive.segment_bytes);
    // The segment with the fork may only be there as the next timeline's first.
    if found.path.contains(cut.timeline(), stop)
        && (first..=found.last_segment).all(|number| archive.on_path(&cut, number).is_some())
    {
        found.path = cut;
    }
    found
}

async fn on_path(archive: &Archive, manifests: &[Manifest], question: &Question<'_>, path: History) -> Result<Found, FindError> {
    if let Target::Snapshot(id) = question.target
        && let Ok(known) = choose_by_id(manifests, id)
        && known.system_identifier == archive.system
        && !path.contains(known.timeline, known.stop_lsn)
    {
        return Err(FindError::NotOnTimeline { id: known.id.clone(), taken: known.timeline, timeline: path.timeline() });
    }
    let search = Search::new(archive, manifests, question, path)?;
    match question.target {
        Target::Latest => search.latest(question.stop_at_end).await,
        Target::Snapshot(id) => search.snapshot(id).await,
        Target::Lsn(lsn) => search.lsn(*lsn, question.inclusive).await,
        Target::Time(time) => {
            let mut found = search.time(*time).await?;
            if question.timeline.is_none() {
                found.notes.extend(elsewhere::notes(archive, manifests, *time, &found).await?);
            }
            Ok(found)
        }
        Target::Xid(xid) => search.xid(*xid, question.inclusive).await,
        Target::Name(name) => search.name(name).await,
    }
}

struct Search<'a> {
    archive: &'a Archive,
    path: History,
    /// Snapshots on the path, oldest first, with the last segment that is reached from each without a gap.
    candidates: Vec<(&'a Manifest, u64)>,
    target: String,
}

impl<'a> Search<'a> {
    fn new(
        archive: &'a Archive,
        manifests: &'a [Manifest],
        question: &Question<'_>,
        path: History,
    ) -> Result<Search<'a>, FindError> {
        let same_system = |m: &&Manifest| m.system_identifier == archive.system;
        let mut candidates = Vec::new();
        let mut broken = None;
        for manifest in manifests.iter().filter(same_system).filter(|m| path.contains(m.timeline, m.stop_lsn)) {
            match reached(archive, &path, manifest) {
                Ok(end) => candidates.push((manifest, end)),
                Err(error) => broken = Some(error),
            }
        }
        if candidates.is_empty() {
            let timeline = path.timeline();
            return Err(
                broken.unwrap_or(FindError::NoCandidate { timeline, reason: "none was taken on it or on its ancestors".into() })
            );
        }
        candidates.sort_by_key(|(manifest, _)| manifest.stop_lsn);
        Ok(Search { archive, path, candidates, target: question.target.to_string() })
    }

    fn found(&self, snapshot: &Manifest, recovery: RecoveryTarget, last_segment: u64) -> Found {
        Found {
            snapshot: snapshot.clone(),
            path: self.path.clone(),
            recovery,
            last_segment,
            before: None,
            after: None,
            notes: Vec::new(),
        }
    }

    /// The newest snapshot; its WAL without gap reaches furthest.
    fn newest(&self) -> (&'a Manifest, u64) {
        self.candidates[self.candidates.len() - 1]
    }

    async fn reach(&self, snapshot: &Manifest) -> Result<Reach, FindError> {
        Reach::of(self.archive, &self.path, snapshot).await
    }

    async fn end(&self, snapshot: &Manifest, reach: &Reach) -> Result<End, FindError> {
        Ok(reach.end(self.archive, &self.path, snapshot).await?)
    }

    async fn latest(&self, stop_at_end: bool) -> Result<Found, FindError> {
        let (snapshot, _) = self.newest();
        let reach = self.reach(snapshot).await?;
        if reach.stop.is_some() {
            return Err(self.unreachable(snapshot, &reach).await?);
        }
        let end = self.end(snapshot, &reach).await?;
        let recovery = if let Some(fork) = self.goes_on_behind(&reach).await? {
            // What another timeline's segment holds behind the fork never happened here; the server would replay it.
            RecoveryTarget::Lsn { lsn: fork, inclusive: false }
        } else if stop_at_end {
            RecoveryTarget::Lsn { lsn: end.last, inclusive: true }
        } else {
            RecoveryTarget::End
        };
        let mut found = self.found(snapshot, recovery, reach.end);
        found.before = neighbour(&end);
        Ok(found)
    }

    /// The fork before the end of the last segment, when that is the left timeline's and goes on behind it.
    async fn goes_on_behind(&self, reach: &Reach) -> Result<Option<Lsn>, FindError> {
        let Some(fork) = reach.limit else { return Ok(None) };
        let summaries = self.archive.summaries(&self.path, [reach.end]).await?;
        let last = summaries.into_iter().find_map(|(_, summary)| summary?.last_record);
        Ok((last >= Some(fork)).then_some(fork))
    }

    async fn snapshot(&self, id: &str) -> Result<Found, FindError> {
        let all: Vec<Manifest> = self.candidates.iter().map(|(m, _)| (*m).clone()).collect();
        let snapshot = choose_by_id(&all, id)?;
        self.reach(snapshot).await?;
        let last = snapshot.last_segment.number(self.archive.segment_bytes).unwrap_or(0);
        Ok(self.found(snapshot, RecoveryTarget::Immediate, last))
    }

    async fn lsn(&self, lsn: Lsn, inclusive: bool) -> Result<Found, FindError> {
        let (snapshot, _) = self.before_lsn(lsn)?;
        let reach = self.reach(snapshot).await?;
        let last = reach.last(self.archive, &self.path).await?.unwrap_or(snapshot.stop_lsn);
        // A record at or after the target must really be there, or the one that ends the reach, to stop before it.
        let ends_here = !inclusive && Some(lsn) == reach.limit && self.goes_on_behind(&reach).await?.is_some();
        if lsn > last.max(snapshot.stop_lsn) && !ends_here {
            return Err(self.unreachable(snapshot, &reach).await?);
        }
        let wanted = lsn.segment(self.archive.segment_bytes);
        let recovery = match lsn > last && !ends_here {
            // Nothing follows the snapshot.
            true => RecoveryTarget::Immediate,
            false => RecoveryTarget::Lsn { lsn, inclusive },
        };
        let mut found = self.found(snapshot, recovery, wanted.min(reach.end));
        (found.before, found.after) = self.around(lsn, inclusive, reach.end).await?;
        Ok(found)
    }

    /// The transactions that end on both sides of a position, as far as its segment tells.
    async fn around(&self, lsn: Lsn, inclusive: bool, end: u64) -> Result<(Option<Neighbour>, Option<Neighbour>), FindError> {
        let (mut before, mut after) = (None, None);
        self.scan(lsn.segment(self.archive.segment_bytes), end, |event| {
            let is_kept = event.lsn < lsn || (inclusive && event.lsn == lsn);
            match event.xid() {
                Some(_) if is_kept => before = Some(Neighbour::from(&event)),
                Some(_) => after = Some(Neighbour::from(&event)),
                None => {}
            }
            after.is_none()
        })
        .await?;
        Ok((before, after))
    }

    fn before_lsn(&self, lsn: Lsn) -> Result<(&'a Manifest, u64), FindError> {
        let candidate = self.candidates.iter().rev().find(|(m, _)| m.stop_lsn <= lsn);
        candidate.copied().ok_or_else(|| self.before_first())
    }

    fn before_first(&self) -> FindError {
        let first = self.candidates[0].0;
        FindError::BeforeFirst {
            target: self.target.clone(),
            first: format!("{} ({}, snapshot {})", clock::seconds(first.stop_time), first.stop_lsn, first.id),
        }
    }

    /// Why nothing behind a reach can be reached: replay stops, the archive ends, or has a gap.
    async fn unreachable(&self, snapshot: &Manifest, reach: &Reach) -> Result<FindError, FindError> {
        let end = self.end(snapshot, reach).await?;
        let (lsn, time) = end.transaction.unwrap_or((snapshot.stop_lsn, snapshot.stop_time));
        let (target, last) = (self.target.clone(), format!("{time} at {lsn}"));
        if let Some(stop) = reach.stop {
            let (timeline, last_lsn) = (self.path.timeline(), end.last);
            return Ok(FindError::Stopped { target, stop, last, last_lsn, timeline });
        }
        let end = reach.end;
        Ok(match self.archive.after_gap(&self.path, end) {
            Some(resumes) => FindError::Gap {
                target,
                first_missing: self.path.segment(end + 1, self.archive.segment_bytes).to_string(),
                resumes: self.archive.on_path(&self.path, resumes).map(|name| name.to_string()),
                last,
            },
            None => FindError::AfterLast { target, last },
        })
    }

    async fn time(&self, time: Timestamp) -> Result<Found, FindError> {
        let now = clock::now();
        if time > now {
            return Err(FindError::Future { target: self.target.clone(), now: clock::seconds(now) });
        }
        let mut first_error = None;
        let mut tried: Vec<(u64, Option<Stop>)> = Vec::new();
        // Where a clock went wrong, an older snapshot may lead to a time to which the newest one before it does not.
        for (snapshot, _) in self.candidates.iter().rev().filter(|(m, _)| m.stop_time <= time) {
            let reach = match self.reach(snapshot).await {
                Err(FindError::Repo(error)) => return Err(error.into()),
                Err(error) => {
                    first_error.get_or_insert(error);
                    continue;
                }
                Ok(reach) if tried.contains(&(reach.end, reach.stop)) => continue,
                Ok(reach) => reach,
            };
            tried.push((reach.end, reach.stop));
            match self.time_from(time, snapshot, &reach).await {
                Err(FindError::Repo(error)) => return Err(error.into()),
                Err(error) => drop(first_error.get_or_insert(error)),
                found => return found,
            }
        }
        Err(first_error.unwrap_or_else(|| self.before_first()))
    }

    /// From one snapshot: the first transaction that ended later decides.
    async fn time_from(&self, time: Timestamp, snapshot: &Manifest, reach: &Reach) -> Result<Found, FindError> {
        let (first, end) = (snapshot.stop_lsn.segment(self.archive.segment_bytes), reach.end);
        let limit = reach.limit.unwrap_or(Lsn(u64::MAX));
        let mut before = None;
        let mut number = first;
        while number <= end {
            // In portions, so that a target soon after the snapshot costs little.
            let portion = number..=end.min(number + 63);
            number = portion.end() + 1;
            for (number, summary) in self.archive.summaries(&self.path, portion).await? {
                let decides = summary.as_ref().is_none_or(|s| s.open || s.latest.is_some_and(|latest| latest > time));
                if !decides && number < limit.segment(self.archive.segment_bytes) {
                    let latest = summary.and_then(|s| Some(Neighbour { lsn: s.last_record?, time: s.latest?, xid: None }));
                    before = latest.or(before);
                    continue;
                }
                let mut after = None;
                self.scan(number, end, |event| {
                    let replayed = snapshot.stop_lsn..limit;
                    let counts = replayed.contains(&event.lsn) && event.xid().is_some() && after.is_none();
                    match counts {
                        true if event.time > time => after = Some(Neighbour::from(&event)),
                        true => before = Some(Neighbour::from(&event)),
                        false => {}
                    }
                    after.is_none()
                })
                .await?;
                if let Some(after) = after {
                    let recovery = RecoveryTarget::Lsn { lsn: after.lsn, inclusive: false };
                    let last = after.lsn.segment(self.archive.segment_bytes);
                    return Ok(Found { before, after: Some(after), ..self.found(snapshot, recovery, last) });
                }
            }
        }
        self.nothing_after(time, snapshot, reach, before).await
    }

    /// A time that no later transaction follows: when the WAL is known to go further, everything in it happened by then. A time as
    /// target would end recovery with FATAL, after all the work (rule 43).
    async fn nothing_after(
        &self,
        time: Timestamp,
        snapshot: &Manifest,
        reach: &Reach,
        before: Option<Neighbour>,
    ) -> Result<Found, FindError> {
        let end = self.end(snapshot, reach).await?;
        let on_path = self.candidates.iter().map(|(manifest, _)| *manifest);
        if time > reach.known_until(self.archive, &end, snapshot, on_path) {
            return Err(self.unreachable(snapshot, reach).await?);
        }
        let recovery = match end.last < snapshot.stop_lsn {
            true => RecoveryTarget::Immediate,
            false => RecoveryTarget::Lsn { lsn: end.last, inclusive: true },
        };
        let mut found = self.found(snapshot, recovery, end.last.max(snapshot.stop_lsn).segment(self.archive.segment_bytes));
        found.last_segment = found.last_segment.min(reach.end);
        found.before = before.or_else(|| neighbour(&end));
        let last = found.before.as_ref().map_or(snapshot.stop_time, |last| last.time);
        found.notes.push(format!("no transaction after {last} is known: this is the end of the WAL that the archive has"));
        Ok(found)
    }

    async fn xid(&self, xid: u32, inclusive: bool) -> Result<Found, FindError> {
        let may_hold = |summary: &SegmentSummary| match (summary.lowest_xid, summary.highest_xid) {
            (Some(low), Some(high)) => (low..=high).contains(&xid) || summary.open,
            _ => summary.open,
        };
        let mut parent = None;
        let matches = |event: &Event| {
            if let Kind::Commit { xid: top, subtransactions } = &event.kind
                && subtransactions.contains(&xid)
            {
                parent = Some(*top);
            }
            event.xid() == Some(xid)
        };
        let found = self.search(may_hold, matches, true).await?;
        if let Some(event) = found.first() {
            let (snapshot, end) = self.before_lsn(event.lsn)?;
            self.check_replayed(snapshot, event.lsn, inclusive).await?;
            let recovery = RecoveryTarget::Lsn { lsn: event.lsn, inclusive };
            let last = event.lsn.segment(self.archive.segment_bytes).min(end);
            let mut found = self.found(snapshot, recovery, last);
            let neighbour = Some(Neighbour::from(event));
            if inclusive {
                found.before = neighbour
            } else {
                found.after = neighbour;
                // The one before it, where it ended in the same segment.
                self.scan(last, last, |other| {
                    if other.lsn < event.lsn && other.xid().is_some() {
                        found.before = Some(Neighbour::from(&other));
                    }
                    other.lsn < event.lsn
                })
                .await?;
            }
            return Ok(found);
        }
        // A subtransaction's id need not lie between those of whole transactions, so look everywhere before saying no.
        if parent.is_none() {
            self.search(
                |_| true,
                |event| {
                    if let Kind::Commit { xid: top, subtransactions } = &event.kind
                        && subtransactions.contains(&xid)
                    {
                        parent = Some(*top);
                    }
                    parent.is_some()
                },
                true,
            )
            .await?;
        }
        let timeline = self.path.timeline();
        let others = self.archive.timelines().into_iter().filter(|other| *other != timeline).collect();
        let unknown = FindError::UnknownXid { xid, timeline, others };
        Err(parent.map_or(unknown, |parent| FindError::Subtransaction { xid, parent }))
    }

    async fn name(&self, name: &str) -> Result<Found, FindError> {
        let may_hold = |summary: &SegmentSummary| summary.open || summary.restore_points.iter().any(|p| p == name);
        let matches = |event: &Event| matches!(&event.kind, Kind::RestorePoint { name: found } if found == name);
        let mut found = self.search(may_hold, matches, false).await?;
        found.sort_by_key(|event| event.lsn);
        found.dedup_by_key(|event| event.lsn);
        match found.as_slice() {
            [] => Err(FindError::UnknownName { name: name.into() }),
            [event] => {
                let (snapshot, _) = self.before_lsn(event.lsn)?;
                self.check_replayed(snapshot, event.lsn, true).await?;
                // Recovery to a name stops after its record.
                let recovery = RecoveryTarget::Lsn { lsn: event.lsn, inclusive: true };
                let last = event.lsn.segment(self.archive.segment_bytes);
                Ok(Found { before: Some(Neighbour::from(event)), ..self.found(snapshot, recovery, last) })
            }
            several => Err(FindError::AmbiguousName { name: name.into(), found: several.iter().map(|e| e.lsn).collect() }),
        }
    }

    /// Events in all windows of the path that match; the newest segments first, the first match only where `first` says so.
    async fn search(
        &self,
        may_hold: impl Fn(&SegmentSummary) -> bool,
        mut matches: impl FnMut(&Event) -> bool,
        first: bool,
    ) -> Result<Vec<Event>, FindError> {
        let mut found: Vec<Event> = Vec::new();
        for (begin, end) in self.stretches().into_iter().rev() {
            let mut upper = end + 1;
            while upper > begin {
                let lower = begin.max(upper.saturating_sub(64));
                for (number, summary) in self.archive.summaries(&self.path, lower..upper).await?.into_iter().rev() {
                    if !summary.as_ref().is_none_or(&may_hold) {
                        continue;
                    }
                    self.scan(number, end, |event| {
                        if matches(&event) {
                            found.push(event);
                        }
                        !first || found.is_empty()
                    })
                    .await?;
                    if first && !found.is_empty() {
                        return Ok(found);
                    }
                }
                upper = lower;
            }
        }
        Ok(found)
    }

    /// Runs of segments that candidates reach, oldest first, without overlaps.
    fn stretches(&self) -> Vec<(u64, u64)> {
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        for (snapshot, end) in &self.candidates {
            let begin = snapshot.stop_lsn.last_segment_before(self.archive.segment_bytes);
            match stretches.last_mut() {
                Some(last) if begin <= last.1 + 1 => last.1 = last.1.max(*end),
                _ => stretches.push((begin, *end)),
            }
        }
        stretches
    }

    async fn scan(&self, number: u64, end: u64, visit: impl FnMut(Event) -> bool) -> Result<(), FindError> {
        Ok(scan::segment(self.archive, &self.path, number, end, visit).await?)
    }

    /// A record that was found must be one that replay gets to.
    async fn check_replayed(&self, snapshot: &Manifest, lsn: Lsn, inclusive: bool) -> Result<(), FindError> {
        let reach = self.reach(snapshot).await?;
        let is_replayed = |limit: Lsn| lsn < limit || (lsn == limit && !inclusive);
        match reach.limit.is_none_or(is_replayed) {
            true => Ok(()),
            false => Err(self.unreachable(snapshot, &reach).await?),
        }
    }
}

fn neighbour(end: &End) -> Option<Neighbour> {
    end.transaction.map(|(lsn, time)| Neighbour { lsn, time, xid: None })
}
