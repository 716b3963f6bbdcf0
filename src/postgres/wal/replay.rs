//! How far PostgreSQL replays: marks in the records of a segment that stop it, and whether two segments follow one another.
//!
//! # Marks
//! A record that says `wal_level = minimal` ends every recovery with FATAL, because changes were made that WAL does not hold
//! (`CheckRequiredParameterValues` in `xlogrecovery.c`). A checkpoint or an end of recovery of a timeline that is not the path's
//! ends it with PANIC (`checkTimeLineSwitch`).
//!
//! # Boundaries
//! Each segment says of its two ends what the neighbour must agree to: the position that its first record names as the one
//! before it (`xl_prev`), and the two parts of a record that crosses. The record's CRC proves that the parts belong together;
//! `xl_prev` only refutes, because servers that were idle since they parted have the same. What contradicts is where PostgreSQL
//! stops as well: it makes the same two comparisons (`ReadRecord` in `xlogreader.c`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::index::seam::{Continuation, OpenRecord};
use super::manager;
use super::reader::{RECORD_HEADER_BYTES, Record};
use super::xlog::{self, Control};
use crate::postgres::control::Limits;
use crate::postgres::lsn::{Lsn, Timeline};

/// Marks of a kind that are noted of one segment; no server starts so often in one.
const MARKS_MAX: usize = 256;
/// Of what continues a record, so much may belong to its header.
const FRONT_BYTES: usize = 16;
/// `XLOG_SWITCH`.
const SWITCH: u8 = 0x40;

/// What one segment says about how far replay goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Records that say `wal_level = minimal`: a snapshot may lie between two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub minimal: Vec<Lsn>,
    /// Checkpoints and ends of recovery: where one names another timeline than the one before, and for the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timelines: Vec<(Lsn, Timeline)>,
    /// The latest time that any record tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The highest limits of the server that any record tells: a hot standby below them pauses there, and 13 ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    pub boundary: Boundary,
}

/// What a segment says about its two ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boundary {
    /// What the first record that begins here names as the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Lsn>,
    /// The record that the segment before begins was never finished, and PostgreSQL said so here (13.5, 14.1 and later).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overwrites: bool,
    /// What is here of a record that began before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<Rest>,
    /// The beginning of a record that goes on in the next segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    pub bytes: u64,
    /// The first of them: they may belong to the record's header.
    #[serde(with = "hexadecimal")]
    pub front: Vec<u8>,
    /// CRC32C of all, and of the first 8 and 16.
    pub crc: u32,
    pub crc_8: u32,
    pub crc_16: u32,
    /// The record ends in this segment.
    pub is_end: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub lsn: Lsn,
    /// Length of the record.
    pub total: u32,
    /// Bytes of it in this segment.
    pub bytes: u64,
    /// As much of its header as is here: 8, 16 or 24 bytes.
    #[serde(with = "hexadecimal")]
    pub header: Vec<u8>,
    /// CRC32C of what follows the header.
    pub crc: u32,
}

impl Replay {
    pub(super) fn add(&mut self, record: &Record) {
        let Some(control) = xlog::control(record) else { return };
        let (level, time, timeline) = match control {
            Control::Checkpoint { wal_level, time, timeline, .. } => (wal_level, Some(time), Some(timeline)),
            Control::EndOfRecovery { wal_level, time, timeline, .. } => (wal_level, Some(time), Some(timeline)),
            Control::CheckpointBegin { wal_level } => (Some(wal_level), None, None),
            Control::ParameterChange(parameters) => (Some(parameters.wal_level), None, None),
            Control::RestorePoint { time, .. } => (None, Some(time), None),
            Control::Switch | Control::FullPageWrites { .. } => (None, None, None),
        };
        if let Control::ParameterChange(parameters) = control {
            self.limits = Some(self.limits.unwrap_or_default().or_higher(parameters.limits()));
        }
        if level.is_some_and(|level| level.is_minimal()) && self.minimal.len() < MARKS_MAX {
            self.minimal.push(record.lsn);
        }
        let is_new = |timeline: &Timeline| self.timelines.last().is_none_or(|(_, last)| last != timeline);
        if let Some(timeline) = timeline.filter(is_new).filter(|_| self.timelines.len() < MARKS_MAX) {
            self.timelines.push((record.lsn, timeline));
        }
        self.until = self.until.max(time);
    }

    pub(super) fn saw(&mut self, time: Timestamp) {
        self.until = self.until.max(Some(time));
    }
}

impl Boundary {
    pub(super) fn new(
        previous: Option<Lsn>,
        overwrites: bool,
        rest: Option<&Continuation>,
        head: Option<&OpenRecord>,
    ) -> Boundary {
        let rest = rest.map(|rest| Rest {
            bytes: rest.kept.bytes,
            front: rest.kept.front.iter().copied().take(FRONT_BYTES).collect(),
            crc: rest.crc,
            crc_8: rest.crc_8,
            crc_16: rest.crc_16,
            is_end: rest.is_end,
        });
        let head = head.map(|head| Head {
            lsn: head.lsn,
            total: head.total,
            bytes: head.header.len() as u64 + head.payload.bytes,
            header: head.header.clone(),
            crc: head.crc,
        });
        Boundary { previous, overwrites, rest, head }
    }

    /// Whether a record that goes on in the next segment may carry a mark; then only the record itself says.
    pub fn may_cross_with_a_mark(&self) -> bool {
        let kind = |head: &Head| match (head.header.get(16), head.header.get(17)) {
            (Some(info), Some(manager)) => *manager == manager::XLOG && matches!(info & 0xF0, 0x00 | 0x10 | 0x60 | 0x90 | 0xE0),
            _ => true,
        };
        self.head.as_ref().is_some_and(kind)
    }
}

/// The CRC of what follows the first `skipped` (0, 8 or 16) of `bytes` bytes.
pub(super) fn crc_after((crc, crc_8, crc_16): (u32, u32, u32), bytes: u64, skipped: u64) -> u32 {
    let prefix = match skipped {
        8 => crc_8,
        16 => crc_16,
        _ => return crc,
    };
    crc ^ crc32c::crc32c_combine(prefix, 0, bytes.saturating_sub(skipped) as usize)
}

/// What a segment is, as its neighbour sees it.
#[derive(Debug, Clone, Copy)]
pub struct Link<'a> {
    /// Absent where nobody looked.
    pub boundary: Option<&'a Boundary>,
    /// Where the last complete record begins.
    pub last_record: Option<Lsn>,
    /// Where the WAL ends before the segment does, other than by a switch.
    pub ends_at: Option<Lsn>,
}

/// Why replay does not go on from one segment into the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The record that begins here is not finished by the next segment.
    Record(Lsn),
    /// The next segment follows another record than the last one here.
    Border,
    /// The WAL of the segment before ends within it.
    Ends(Lsn),
}

/// Segments one after the other.
#[derive(Debug, Clone, Default)]
pub struct Chain(Option<Before>);

/// What is known at the end of a segment.
#[derive(Debug, Clone)]
struct Before {
    last: Option<Lsn>,
    open: Open,
    ends_at: Option<Lsn>,
}

#[derive(Debug, Clone)]
enum Open {
    Nothing,
    /// A record goes on of which the beginning was not seen.
    Unknown,
    Record(Crossing),
}

/// A record while its parts come together.
#[derive(Debug, Clone)]
struct Crossing {
    lsn: Lsn,
    total: u32,
    bytes: u64,
    header: Vec<u8>,
    crc: u32,
}

impl Crossing {
    fn of(head: &Head) -> Crossing {
        Crossing { lsn: head.lsn, total: head.total, bytes: head.bytes, header: head.header.clone(), crc: head.crc }
    }

    /// `None` when what continues here is something else.
    fn continued(mut self, rest: &Rest) -> Option<Crossing> {
        let missing = (RECORD_HEADER_BYTES - self.header.len().min(RECORD_HEADER_BYTES)) as u64;
        let header = rest.front.get(..missing.min(rest.bytes) as usize)?;
        self.header.extend_from_slice(header);
        self.bytes = self.bytes.saturating_add(rest.bytes);
        let payload = rest.bytes.saturating_sub(header.len() as u64) as usize;
        let crc = crc_after((rest.crc, rest.crc_8, rest.crc_16), rest.bytes, header.len() as u64);
        self.crc = crc32c::crc32c_combine(self.crc, crc, payload);
        let total = u64::from(self.total);
        let fits = if rest.is_end { self.bytes == total && self.is_proven() } else { self.bytes < total };
        fits.then_some(self)
    }

    fn is_proven(&self) -> bool {
        let Some(header) = self.header.get(..RECORD_HEADER_BYTES) else { return false };
        let stored = u32::from_le_bytes([header[20], header[21], header[22], header[23]]);
        crc32c::crc32c_append(self.crc, &header[..20]) == stored
    }

    fn is_switch(&self) -> bool {
        self.header.get(17) == Some(&manager::XLOG) && self.header.get(16).is_some_and(|info| info & 0xF0 == SWITCH)
    }
}

impl Chain {
    /// Takes the next segment; an error tells why replay does not reach it.
    pub fn next(&mut self, link: &Link) -> Result<(), Break> {
        let before = self.0.take();
        let Some(boundary) = link.boundary else { return Ok(()) };
        let (fits, crossed) = match &before {
            None => (Ok(()), Open::Unknown),
            Some(before) => before.meets(boundary),
        };
        let ends_by_switch = match (&crossed, &boundary.rest) {
            (Open::Record(record), Some(rest)) => rest.is_end && record.is_switch(),
            // Nothing but the rest of a record: it may be a switch.
            (_, Some(rest)) => rest.is_end && link.last_record.is_none(),
            _ => false,
        };
        let open = match (&boundary.rest, &boundary.head) {
            (Some(rest), _) if !rest.is_end => crossed.clone(),
            (_, Some(head)) => Open::Record(Crossing::of(head)),
            _ => Open::Nothing,
        };
        let of_crossing = match (&crossed, &boundary.rest) {
            (Open::Record(record), Some(_)) => Some(record.lsn),
            (_, Some(_)) => None,
            _ => before.and_then(|before| before.last),
        };
        let last = link.last_record.or(of_crossing);
        self.0 = Some(Before { last, open, ends_at: link.ends_at.filter(|_| !ends_by_switch) });
        fits
    }
}

impl Before {
    /// Whether a segment follows this one, and the record that crosses, as far as it is known.
    fn meets(&self, boundary: &Boundary) -> (Result<(), Break>, Open) {
        if let Some(lsn) = self.ends_at {
            return (Err(Break::Ends(lsn)), Open::Unknown);
        }
        let (expected, crossed) = match (&self.open, &boundary.rest) {
            (Open::Unknown, _) => (None, Open::Unknown),
            (Open::Record(open), Some(rest)) => match open.clone().continued(rest) {
                Some(crossed) => (Some(open.lsn), Open::Record(crossed)),
                None => return (Err(Break::Record(open.lsn)), Open::Unknown),
            },
            (Open::Record(_), None) if boundary.overwrites => (self.last, Open::Nothing),
            (Open::Record(open), None) => return (Err(Break::Record(open.lsn)), Open::Unknown),
            (Open::Nothing, Some(_)) => return (Err(Break::Border), Open::Unknown),
            (Open::Nothing, None) => (self.last, Open::Nothing),
        };
        match (expected, boundary.previous) {
            (Some(expected), Some(previous)) if expected != previous => (Err(Break::Border), crossed),
            _ => (Ok(()), crossed),
        }
    }
}

/// Bytes as text.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
