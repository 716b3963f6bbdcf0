//! What a restore target can mean: commits, aborts and restore points; tablespaces that replay will make; and the summary of
//! all that for one segment.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::database::{self, TablespaceChange};
use super::ended::{self, Ended};
use super::manager;
use super::reader::{End, PAGE_BYTES, Record, Walk};
use super::replay::{Link, Replay};
use super::xlog::{self, Control};
use crate::postgres::lsn::Lsn;

/// Seconds from 1970-01-01 to 2000-01-01, where PostgreSQL's timestamps begin.
const EPOCH_2000_S: i64 = 946_684_800;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub lsn: Lsn,
    pub time: Timestamp,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Commit { xid: u32, subtransactions: Vec<u32> },
    Abort { xid: u32 },
    RestorePoint { name: String },
}

impl Event {
    /// The transaction that ended, as `recovery_target_xid` compares it.
    pub fn xid(&self) -> Option<u32> {
        match self.kind {
            Kind::Commit { xid, .. } | Kind::Abort { xid } => Some(xid),
            Kind::RestorePoint { .. } => None,
        }
    }
}

/// Reads a record; `None` for all that is none of these events, or that is not built as we know it.
pub fn event(record: &Record) -> Option<Event> {
    let lsn = record.lsn;
    if let Some(Control::RestorePoint { time, name }) = xlog::control(record) {
        return Some(Event { lsn, time, kind: Kind::RestorePoint { name } });
    }
    let Ended { xid, is_commit, time, subtransactions, .. } = ended::ended(record)?;
    let kind = if is_commit { Kind::Commit { xid, subtransactions } } else { Kind::Abort { xid } };
    Some(Event { lsn, time, kind })
}

/// A `TimestampTz`.
pub(super) fn timestamp(raw: &[u8]) -> Option<Timestamp> {
    let microseconds = i64::from_le_bytes(raw.get(..8)?.try_into().ok()?);
    Timestamp::from_microsecond(microseconds.checked_add(EPOCH_2000_S * 1_000_000)?).ok()
}

/// A tablespace that replay of this record makes, in the directory that the original had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceCreated {
    pub lsn: Lsn,
    pub oid: u32,
    pub location: String,
}

fn tablespace_created(record: &Record) -> Option<TablespaceCreated> {
    match database::tablespace(record)? {
        TablespaceChange::Create { oid, location } => Some(TablespaceCreated { lsn: record.lsn, oid, location }),
        TablespaceChange::Drop { .. } => None,
    }
}

/// What one segment's records say about time and transactions, kept beside the stored segment.
///
/// Made from the segment alone: a record that begins in it and ends in the next is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentSummary {
    /// Where the last complete record begins; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_record: Option<Lsn>,
    pub commits: u64,
    pub aborts: u64,
    /// Earliest and latest end of a transaction; commit times do not rise strictly with LSN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_xid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_xid: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tablespaces: Vec<TablespaceCreated>,
    /// A commit, an abort or a restore point may begin here and end in the next segment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
    /// Where the WAL ends before the segment does, other than by a switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Lsn>,
    /// How far replay goes; absent in summaries from before this was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
}

impl SegmentSummary {
    /// Whether a record of this manager (`None`: not known yet) that ends in the next segment could be in a summary.
    pub(super) fn wants(manager: Option<u8>) -> bool {
        manager.is_none_or(|m| matches!(m, manager::XLOG | manager::TRANSACTION | manager::TABLESPACE))
    }

    /// What its neighbours must agree to.
    pub fn link(&self) -> Link<'_> {
        let boundary = self.replay.as_ref().map(|replay| &replay.boundary);
        Link { boundary, last_record: self.last_record, ends_at: self.ends_at }
    }

    pub(super) fn add(&mut self, record: &Record) {
        self.last_record = Some(record.lsn);
        self.tablespaces.extend(tablespace_created(record));
        let replay = self.replay.get_or_insert_default();
        replay.add(record);
        let Some(event) = event(record) else { return };
        replay.saw(event.time);
        match &event.kind {
            Kind::RestorePoint { name } => {
                self.restore_points.push(name.clone());
                return;
            }
            Kind::Commit { .. } => self.commits += 1,
            Kind::Abort { .. } => self.aborts += 1,
        }
        self.earliest = Some(self.earliest.map_or(event.time, |t| t.min(event.time)));
        self.latest = Some(self.latest.map_or(event.time, |t| t.max(event.time)));
        for xid in event.xid().into_iter().filter(|xid| *xid != 0) {
            self.lowest_xid = Some(self.lowest_xid.map_or(xid, |x| x.min(xid)));
            self.highest_xid = Some(self.highest_xid.map_or(xid, |x| x.max(xid)));
        }
    }
}

/// Walks pages of a segment that begin at `start`, and hands every event to `visit`. `walk` carries records over from the
/// segment before.
pub fn events(walk: &mut Walk, bytes: &[u8], start: Lsn, visit: &mut dyn FnMut(Event)) -> Result<(), End> {
    for (index, page) in bytes.chunks(PAGE_BYTES).enumerate() {
        let address = Lsn(start.0 + (index * PAGE_BYTES) as u64);
        walk.page(page, address, &mut |record| {
            if let Some(event) = event(&record) {
                visit(event);
            }
        })?;
    }
    Ok(())
}
