//! Which timeline `latest` means.
//!
//! After a failover it is the new one, and after `lastgood release` the one that was declared the successor. A timeline that was
//! abandoned is never followed. When two servers go on after one timeline was left, the WAL cannot say which of them is the
//! cluster: then nothing is followed until a person decides.
//!
//! [`decide`] is a pure function of what is known of the timelines and of what was decided.

use jiff::Timestamp;
use serde::Serialize;

use super::archive::Archive;
use super::scan;
use crate::lineage::fork::Fork;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::{object, segment};

/// Segments in which the last transaction of a timeline is looked for.
const LOOK_BACK: u64 = 64;

/// A timeline as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub timeline: Timeline,
    /// The timeline that it left, and where; absent for the first that is known.
    pub left: Option<(Timeline, Lsn)>,
    /// The last transaction that ended on it, not on those that it came from.
    pub last: Option<(Lsn, Timestamp)>,
    /// Its parent archived the segment with the fork after this timeline had entered the archive: it was not silent since.
    pub parent_since: bool,
}

/// What people decided: in the order of their decisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions {
    pub abandoned: Vec<Timeline>,
    pub successors: Vec<Timeline>,
}

/// A timeline that goes on, up to its last transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GoesOn {
    pub timeline: Timeline,
    pub lsn: Lsn,
    pub time: Timestamp,
}

impl std::fmt::Display for GoesOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "timeline {} has transactions up to {} ({})", self.timeline, crate::clock::seconds(self.time), self.lsn)
    }
}

/// What `latest` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Followed {
    Nothing,
    Timeline(Timeline),
    /// Two go on after `parent` was left, and nobody said which one is the cluster. One of them may be the parent.
    Undecided {
        parent: Timeline,
        one: GoesOn,
        other: GoesOn,
    },
}

/// Decides: from the successor that was declared last, or from the first timeline, to whoever took over since.
pub fn decide(lines: &[Line], decisions: &Decisions, segment_bytes: u64) -> Followed {
    let usable: Vec<&Line> = lines.iter().filter(|line| !decisions.abandoned.contains(&line.timeline)).collect();
    let of = |timeline: Timeline| usable.iter().copied().find(|line| line.timeline == timeline);
    let declared = decisions.successors.iter().rev().find_map(|timeline| of(*timeline));
    let is_first = |line: &&&Line| line.left.is_none_or(|(parent, _)| of(parent).is_none());
    let Some(mut at) = declared.or_else(|| usable.iter().rfind(is_first).copied()) else { return Followed::Nothing };
    // Each step goes to a later timeline.
    loop {
        let mut children: Vec<(&Line, Lsn)> = usable
            .iter()
            .filter_map(|line| line.left.filter(|(parent, _)| *parent == at.timeline).map(|(_, fork)| (*line, fork)))
            .filter(|(line, _)| line.timeline > at.timeline)
            .collect();
        children.sort_by_key(|(line, _)| line.timeline);
        let alive: Vec<(&Line, Lsn, GoesOn)> =
            children.iter().filter_map(|(line, fork)| Some((*line, *fork, goes_on(line, &usable)?))).collect();
        // The rest of the segment with the fork is what every failover leaves behind, unless the parent archived it later.
        let beyond = |child: &Line, fork: Lsn| {
            let is_later = |on: &GoesOn| on.lsn.segment(segment_bytes) > fork.last_segment_before(segment_bytes);
            own(at).filter(|on| is_later(on) || (child.parent_since && on.lsn >= fork))
        };
        match alive.as_slice() {
            [] => match children.last() {
                Some((child, fork)) if beyond(child, *fork).is_none() => at = child,
                _ => return Followed::Timeline(at.timeline),
            },
            [(child, fork, one)] => match beyond(child, *fork) {
                Some(other) => return Followed::Undecided { parent: at.timeline, one: other, other: *one },
                None => at = child,
            },
            [.., (_, _, one), (_, _, other)] => {
                return Followed::Undecided { parent: at.timeline, one: *one, other: *other };
            }
        }
    }
}

fn own(line: &Line) -> Option<GoesOn> {
    line.last.map(|(lsn, time)| GoesOn { timeline: line.timeline, lsn, time })
}

/// Whether a timeline, or one that came from it, has transactions.
fn goes_on(line: &Line, all: &[&Line]) -> Option<GoesOn> {
    let later = all
        .iter()
        .filter(|other| other.timeline > line.timeline && other.left.is_some_and(|(parent, _)| parent == line.timeline));
    later.filter_map(|other| goes_on(other, all)).max_by_key(|on| on.time).or_else(|| own(line))
}

/// The timelines of an archive, without looking into their WAL: each that has some counts as one with transactions.
pub fn by_names(archive: &Archive) -> Vec<Line> {
    let timelines = archive.timelines();
    let line = |timeline: &Timeline| {
        let path = archive.path(*timeline)?;
        let before = path.stretches().iter().rev().skip(1);
        let left =
            before.filter_map(|stretch| Some((stretch.timeline, stretch.end?))).find(|(parent, _)| timelines.contains(parent));
        let last = archive.numbers(*timeline).last().map(|(_, last)| archive.segment_start(last + 1));
        let last = last.map(|end| (Lsn(end.0 - 1), Timestamp::UNIX_EPOCH));
        Some(Line { timeline: *timeline, left, last, parent_since: false })
    };
    timelines.iter().filter_map(line).collect()
}

/// What `latest` means in an archive; WAL is only read where names alone do not decide.
pub async fn of(archive: &Archive, decisions: &Decisions) -> Result<Followed, RepoError> {
    let mut lines = by_names(archive);
    for line in &mut lines {
        line.parent_since = went_on_since(archive, line).await?;
    }
    let by_names = decide(&lines, decisions, archive.segment_bytes);
    if !matches!(by_names, Followed::Undecided { .. }) {
        return Ok(by_names);
    }
    for line in &mut lines {
        line.last = last_transaction(archive, line).await?;
    }
    Ok(decide(&lines, decisions, archive.segment_bytes))
}

/// Whether the parent's own segment with the fork came after the timeline's history file, which says what was there when it came.
async fn went_on_since(archive: &Archive, line: &Line) -> Result<bool, RepoError> {
    let Some((parent, fork)) = line.left else { return Ok(false) };
    let segment = SegmentName::new(parent, fork.segment(archive.segment_bytes), archive.segment_bytes);
    if !archive.is_archived(segment) {
        return Ok(false);
    }
    let (cluster, system) = (archive.cluster(), archive.system);
    let read = async |file: WalFile| match object::absent(segment::read_trailer(cluster, system, &file).await) {
        Err(error) if error.is_damage() || error.is_newer_epoch() => Ok(None),
        read => read,
    };
    let Some(entered) = read(WalFile::History(line.timeline)).await? else { return Ok(false) };
    // Who stored it did not look: nothing is known of the order.
    let Some(entered) = Fork::of_trailer(entered.summary.as_ref()) else { return Ok(false) };
    let now = read(WalFile::Segment(segment)).await?.map(|trailer| trailer.sha256);
    Ok(now.is_some() && entered.behind.map(|behind| behind.sha256) != now)
}

/// The last transaction that ended on a timeline itself.
async fn last_transaction(archive: &Archive, line: &Line) -> Result<Option<(Lsn, Timestamp)>, RepoError> {
    let Some(path) = archive.path(line.timeline) else { return Ok(None) };
    let begin = line.left.map_or(Lsn(0), |(_, fork)| fork);
    let first = begin.segment(archive.segment_bytes);
    let runs = archive.numbers(line.timeline);
    let numbers = runs.iter().rev().flat_map(|(from, to)| ((*from).max(first)..=*to).rev());
    for number in numbers.take(LOOK_BACK as usize) {
        let name = SegmentName::new(line.timeline, number, archive.segment_bytes);
        if archive.on_path(&path, number) != Some(name) {
            continue;
        }
        let summary = archive.summaries(&path, [number]).await?.pop().and_then(|(_, summary)| summary);
        let may_hold = summary.as_ref().is_none_or(|summary| summary.latest.is_some() || summary.open);
        if !may_hold {
            continue;
        }
        // The first segment begins with what is the parent's.
        let mut last = None;
        scan::segment(archive, &path, number, number + 1, |event| {
            if event.lsn >= begin && event.xid().is_some() {
                last = Some((event.lsn, event.time));
            }
            true
        })
        .await?;
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 16 << 20;

    /// A timeline, the one it left and in which segment, and the segment of its last transaction.
    fn line(timeline: u32, left: Option<(u32, u64)>, last: Option<u64>) -> Line {
        let at = |segment: u64| Lsn(segment * BYTES + 5000);
        let time = Timestamp::from_second(1_700_000_000 + last.unwrap_or(0) as i64).unwrap();
        Line {
            timeline: Timeline(timeline),
            left: left.map(|(parent, segment)| (Timeline(parent), at(segment))),
            last: last.map(|segment| (Lsn(at(segment).0 + 100), time)),
            parent_since: false,
        }
    }

    fn latest(lines: &[Line], abandoned: &[u32], successors: &[u32]) -> Result<u32, (u32, u32, u32)> {
        let all = |numbers: &[u32]| numbers.iter().map(|number| Timeline(*number)).collect();
        match decide(lines, &Decisions { abandoned: all(abandoned), successors: all(successors) }, BYTES) {
            Followed::Nothing => Ok(0),
            Followed::Timeline(timeline) => Ok(timeline.0),
            Followed::Undecided { parent, one, other } => Err((parent.0, one.timeline.0, other.timeline.0)),
        }
    }

    #[test]
    fn an_ordinary_failover_is_followed() {
        let first = line(1, None, Some(10));
        assert_eq!(latest(&[], &[], &[]), Ok(0));
        assert_eq!(latest(std::slice::from_ref(&first), &[], &[]), Ok(1));
        // In health, with the torn rest of the fork's segment, before the new primary wrote, and before it archived anything.
        for (fork, last) in [(11, Some(12)), (10, Some(10)), (10, None)] {
            assert_eq!(latest(&[first.clone(), line(2, Some((1, fork)), last)], &[], &[]), Ok(2), "{fork} {last:?}");
        }
        let again = [first, line(2, Some((1, 10)), Some(12)), line(3, Some((2, 12)), Some(13)), line(4, Some((3, 13)), None)];
        assert_eq!(latest(&again, &[], &[]), Ok(4));
    }

    #[test]
    fn two_that_go_on_wait_for_a_decision() {
        // A copy that branched off in the past of a cluster that lives on.
        let copy = [line(1, None, Some(20)), line(2, Some((1, 10)), Some(12))];
        assert_eq!(latest(&copy, &[], &[]), Err((1, 1, 2)));
        assert_eq!(latest(&copy, &[], &[2]), Ok(2));
        assert_eq!(latest(&copy, &[2], &[1]), Ok(1));
        assert_eq!(latest(&copy, &[2], &[2, 1]), Ok(1), "taken back");
        // One that never wrote decides nothing.
        assert_eq!(latest(&[line(1, None, Some(20)), line(2, Some((1, 10)), None)], &[], &[]), Ok(1));
        // Two that left one parent, whichever came later.
        let split = [line(1, None, Some(10)), line(2, Some((1, 10)), Some(14)), line(3, Some((1, 11)), Some(12))];
        assert_eq!(latest(&split, &[], &[]), Err((1, 2, 3)));
        assert_eq!(latest(&split, &[3], &[]), Ok(2));
        assert_eq!(latest(&split, &[], &[2]), Ok(2));
        let silent = [split[0].clone(), split[1].clone(), line(3, Some((1, 11)), None)];
        assert_eq!(latest(&silent, &[], &[]), Ok(2), "a history file alone");
        // What came from a rival is one as well.
        let deeper = [split[0].clone(), split[1].clone(), line(3, Some((1, 11)), None), line(4, Some((3, 12)), Some(13))];
        assert_eq!(latest(&deeper, &[], &[]), Err((1, 2, 4)));
    }

    /// Inside one segment: what the parent had when the other came is a failover's loss; what it archived since is a second primary.
    #[test]
    fn a_parent_that_was_not_silent_since_waits_for_a_decision() {
        let first = line(1, None, Some(10));
        let failover = line(2, Some((1, 10)), Some(12));
        assert_eq!(latest(&[first.clone(), failover.clone()], &[], &[]), Ok(2));
        let since = Line { parent_since: true, ..failover };
        assert_eq!(latest(&[first.clone(), since.clone()], &[], &[]), Err((1, 1, 2)));
        assert_eq!(latest(&[first, since.clone()], &[], &[2]), Ok(2));
        assert_eq!(latest(&[line(1, None, Some(9)), since], &[], &[]), Ok(2), "nothing of it ended beyond the fork");
    }

    #[test]
    fn a_successor_is_followed_through_its_failovers() {
        let lines = [
            line(1, None, Some(30)),
            line(2, Some((1, 10)), Some(12)),
            line(3, Some((2, 12)), Some(15)),
            line(4, Some((1, 30)), Some(40)),
        ];
        assert_eq!(latest(&lines, &[], &[2]), Ok(3));
        assert_eq!(latest(&lines, &[], &[2, 4]), Ok(4));
        assert_eq!(latest(&lines, &[4], &[4, 2]), Ok(3));
    }
}
