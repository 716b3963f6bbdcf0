//! Why a target cannot be reached, and what to do instead.

use super::latest::GoesOn;
use super::reach::Stop;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error("there is no snapshot yet; `lastgood backup` takes one")]
    NoSnapshot,
    #[error("there is no snapshot {id:?}; `lastgood list` shows them")]
    UnknownSnapshot { id: String },
    #[error("snapshot {id} is not on the path to timeline {timeline}: it was taken on timeline {taken}; leave --timeline out, or name {taken:X}", taken = taken.0)]
    NotOnTimeline { id: String, taken: Timeline, timeline: Timeline },
    #[error("{id:?} is the beginning of several snapshots: {}", found.join(", "))]
    AmbiguousSnapshot { id: String, found: Vec<String> },
    #[error("{target} lies before the first moment that can be restored, which is {}; `lastgood list` shows the windows", first)]
    BeforeFirst { target: String, first: String },
    #[error("{target} lies in the future: it is {now} now")]
    Future { target: String, now: String },
    #[error(
        "{target} lies after the last transaction in the archive ({last}), so recovery could not know when to stop; use --to latest, or archive more WAL"
    )]
    AfterLast { target: String, last: String },
    #[error("{target} cannot be reached: WAL is missing from {first_missing} on{}; the last moment before the gap is {last}", resumes.as_ref().map(|r| format!(" (it goes on at {r})")).unwrap_or_default())]
    Gap { target: String, first_missing: String, resumes: Option<String>, last: String },
    #[error("no transaction {xid} ended in the WAL of any window that leads to timeline {timeline}; `lastgood list` shows the windows{}", if others.is_empty() { String::new() } else { format!("; the archive has timelines {} too: --timeline follows another", others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")) })]
    UnknownXid { xid: u32, timeline: Timeline, others: Vec<Timeline> },
    #[error("transaction {xid} is a part (subtransaction) of transaction {parent}; use --to {parent}")]
    Subtransaction { xid: u32, parent: u32 },
    #[error("there is no restore point {name:?} in the WAL of any window")]
    UnknownName { name: String },
    #[error("there are several restore points {name:?}, at {}; use --to with one of these LSNs", found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    AmbiguousName { name: String, found: Vec<Lsn> },
    #[error("timeline {timeline} is not in the archive{}", if known.is_empty() { String::new() } else { format!("; there are {}", known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")) })]
    UnknownTimeline { timeline: Timeline, known: Vec<Timeline> },
    #[error("no snapshot can be restored on timeline {timeline}: {reason}")]
    NoCandidate { timeline: Timeline, reason: String },
    #[error(
        "{target} lies inside {what} (it began at {begin} and committed at {commit}): its files would be gone, or the database could not be opened. To stop before it: --before {event}"
    )]
    Inside { target: String, what: String, begin: Lsn, commit: Lsn, event: String },
    #[error("snapshot {id} cannot be restored: WAL segment {segment} is missing, without which it is not consistent")]
    Incomplete { id: String, segment: SegmentName },
    #[error("snapshot {id} cannot be restored: before it is consistent, {stop}")]
    Inconsistent { id: String, stop: Stop },
    #[error(
        "{target} cannot be reached: {stop}. The last moment before that is {last}; to restore to it: --to {last_lsn} --timeline {timeline:X}. What came later can be restored only from a snapshot that was taken later; `lastgood backup` takes one", timeline = timeline.0
    )]
    Stopped { target: String, stop: Stop, last: String, last_lsn: Lsn, timeline: Timeline },
    #[error(
        "latest is not decided: timeline {parent} was left by two servers, and both go on: {one}; {other}. Decide with `lastgood release` which one is the cluster, or name a timeline: --timeline {first:X} or --timeline {second:X}", first = one.timeline.0, second = other.timeline.0
    )]
    Undecided { parent: Timeline, one: GoesOn, other: GoesOn },
}
