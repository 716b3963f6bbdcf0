//! What a restore target can mean: commits, aborts and restore points; tablespaces that replay will make; and the summary of
//! all that for one segment.
//!
//! Source: `src/include/access/xact.h` (`xl_xact_commit`, `xl_xact_abort`, `XACT_XINFO_*`), `xlogrecord.h` (block headers),
//! `src/include/catalog/pg_control.h` (`XLOG_RESTORE_POINT`), `xlog_internal.h` (`xl_restore_point`), `commands/tablespace.h`
//! (`xl_tblspc_create_rec`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::reader::{End, PAGE_BYTES, RM_TABLESPACE, RM_TRANSACTION, RM_XLOG, Record, Walk};
use crate::postgres::lsn::Lsn;

/// Seconds from 1970-01-01 to 2000-01-01, where PostgreSQL's timestamps begin.
const EPOCH_2000_S: i64 = 946_684_800;
const RESTORE_POINT: u8 = 0x70;

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
    match (record.resource_manager, record.info & 0x70) {
        (RM_XLOG, RESTORE_POINT) if record.info & 0xF0 == RESTORE_POINT => restore_point(record),
        (RM_TRANSACTION, 0x00) => transaction_end(record, false, false),
        (RM_TRANSACTION, 0x20) => transaction_end(record, true, false),
        (RM_TRANSACTION, 0x30) => transaction_end(record, false, true),
        (RM_TRANSACTION, 0x40) => transaction_end(record, true, true),
        _ => None,
    }
}

/// The main data of a record without block references: what follows the small headers.
fn main_data(payload: &[u8]) -> Option<&[u8]> {
    let mut rest = payload;
    loop {
        let (id, after) = rest.split_first()?;
        match id {
            255 => {
                let (length, data) = after.split_first()?;
                return data.get(..*length as usize);
            }
            254 => {
                let length = u32::from_le_bytes(after.get(..4)?.try_into().ok()?);
                return after[4..].get(..length as usize);
            }
            // Replication origin and top-level transaction id.
            253 => rest = after.get(2..)?,
            252 => rest = after.get(4..)?,
            _ => return None,
        }
    }
}

fn timestamp(raw: &[u8]) -> Option<Timestamp> {
    let microseconds = i64::from_le_bytes(raw.get(..8)?.try_into().ok()?);
    Timestamp::from_microsecond(microseconds.checked_add(EPOCH_2000_S * 1_000_000)?).ok()
}

fn restore_point(record: &Record) -> Option<Event> {
    let data = main_data(record.payload)?;
    // MAXFNAMELEN
    let name = data.get(8..72)?;
    let name = &name[..name.iter().position(|b| *b == 0)?];
    let name = String::from_utf8_lossy(name).into_owned();
    Some(Event { lsn: record.lsn, time: timestamp(data)?, kind: Kind::RestorePoint { name } })
}

/// A tablespace that replay of this record makes, in the directory that the original had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceCreated {
    pub lsn: Lsn,
    pub oid: u32,
    pub location: String,
}

fn tablespace_created(record: &Record) -> Option<TablespaceCreated> {
    // XLOG_TBLSPC_CREATE
    if record.resource_manager != RM_TABLESPACE || record.info & 0xF0 != 0 {
        return None;
    }
    let data = main_data(record.payload)?;
    let oid = u32::from_le_bytes(data.get(..4)?.try_into().ok()?);
    let location = data[4..].split(|b| *b == 0).next()?;
    Some(TablespaceCreated { lsn: record.lsn, oid, location: String::from_utf8_lossy(location).into_owned() })
}

/// Takes fields from the front of a record's data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.0.get(..count)?;
        self.0 = &self.0[count..];
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    /// A count and that many items of `item_bytes`.
    fn array(&mut self, item_bytes: usize) -> Option<&'a [u8]> {
        let count = self.u32()? as usize;
        self.bytes(count.checked_mul(item_bytes)?)
    }
}

fn transaction_end(record: &Record, is_abort: bool, is_prepared: bool) -> Option<Event> {
    let data = main_data(record.payload)?;
    let time = timestamp(data)?;
    let mut fields = Fields(&data[8..]);
    // XLOG_XACT_HAS_INFO
    let info = if record.info & 0x80 != 0 { fields.u32()? } else { 0 };
    let has = |bit: u32| info & (1 << bit) != 0;
    if has(0) {
        fields.bytes(8)?; // database and tablespace
    }
    let mut subtransactions = Vec::new();
    if has(1) {
        let raw = fields.array(4)?;
        subtransactions = raw.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
    }
    let mut xid = record.xid;
    if is_prepared {
        if has(2) {
            fields.array(12)?; // relfilenodes
        }
        if has(8) {
            // xl_xact_stats_item: kind, database, object; the last grew from 4 to 8 bytes in 18.
            fields.array(if record.major >= 18 { 16 } else { 12 })?;
        }
        if has(3) {
            fields.array(16)?; // invalidation messages
        }
        if has(4) {
            xid = fields.u32()?;
        }
    }
    let kind = if is_abort { Kind::Abort { xid } } else { Kind::Commit { xid, subtransactions } };
    Some(Event { lsn: record.lsn, time, kind })
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
}

/// Builds a [`SegmentSummary`] from the pages of one segment, in whatever pieces they come.
#[derive(Debug)]
pub struct Summarizer {
    walk: Walk,
    next_page: Lsn,
    buffer: Vec<u8>,
    summary: SegmentSummary,
    ended: bool,
}

impl Summarizer {
    pub fn new(start: Lsn, segment_bytes: u64) -> Summarizer {
        Summarizer {
            walk: Walk::new(segment_bytes),
            next_page: start,
            buffer: Vec::new(),
            summary: SegmentSummary::default(),
            ended: false,
        }
    }

    pub fn feed(&mut self, mut bytes: &[u8]) {
        if !self.buffer.is_empty() {
            let missing = (PAGE_BYTES - self.buffer.len()).min(bytes.len());
            self.buffer.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.buffer.len() < PAGE_BYTES {
                return;
            }
            let page = std::mem::take(&mut self.buffer);
            self.page(&page);
        }
        let whole = bytes.len() / PAGE_BYTES * PAGE_BYTES;
        for page in bytes[..whole].chunks_exact(PAGE_BYTES) {
            self.page(page);
        }
        self.buffer.extend_from_slice(&bytes[whole..]);
    }

    fn page(&mut self, page: &[u8]) {
        let address = self.next_page;
        self.next_page = Lsn(address.0 + PAGE_BYTES as u64);
        if self.ended {
            return;
        }
        let summary = &mut self.summary;
        let walked = self.walk.page(page, address, &mut |record| summary.add(&record));
        if let Err(end) = walked {
            self.ended = true;
            self.summary.ends_at = Some(end.lsn());
        }
    }

    pub fn finish(mut self) -> SegmentSummary {
        let relevant = |manager: Option<u8>| manager.is_none_or(|m| matches!(m, RM_XLOG | RM_TRANSACTION | RM_TABLESPACE));
        self.summary.open = !self.ended && self.walk.open_record().is_some_and(relevant);
        self.summary
    }
}

impl SegmentSummary {
    fn add(&mut self, record: &Record) {
        self.last_record = Some(record.lsn);
        self.tablespaces.extend(tablespace_created(record));
        let Some(event) = event(record) else { return };
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
