//! Records that begin in one segment and end in another.
//!
//! Each side keeps its part: all of a short one, beginning and end of a long one, and the CRC of everything. Put together, the
//! CRC proves that they are parts of one record. Page images are what is long, and nobody needs them: the headers, which stand
//! first, name the blocks, and the main data stands last.

use super::collect::{Collect, MappedFiles};
use super::{NoIndex, SegmentIndex};
use crate::postgres::lsn::Lsn;
use crate::postgres::wal::manager;
use crate::postgres::wal::reader::{RECORD_HEADER_BYTES, Record, Unfinished};
use crate::postgres::wal::replay::crc_after;

/// Kept of a head: more than all block headers. Of a transaction's end (its relations stand there) much more.
const HEAD_BYTES: usize = 2 << 10;
const HEAD_OF_TRANSACTION_BYTES: usize = 1 << 20;
/// Kept of a continuation, which does not know what it continues.
const FRONT_BYTES: usize = 16 << 10;
/// Kept of the end of either: more than the main data of a heap record.
const BACK_BYTES: usize = 1 << 10;

/// Some bytes of a stretch: its beginning, and its end where the beginning is not all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    pub bytes: u64,
    pub front: Vec<u8>,
    pub back: Vec<u8>,
}

impl Kept {
    fn of(all: &[u8], bytes: u64, front: usize) -> Kept {
        let front = &all[..all.len().min(front)];
        let rest = &all[front.len()..];
        // The end is only known when all is.
        let back = if all.len() as u64 == bytes { &rest[rest.len().saturating_sub(BACK_BYTES)..] } else { &[] };
        Kept { bytes, front: front.to_vec(), back: back.to_vec() }
    }

    fn take(&mut self, bytes: &[u8], front: usize) {
        self.bytes += bytes.len() as u64;
        let (to_front, rest) = bytes.split_at(bytes.len().min(front - self.front.len().min(front)));
        self.front.extend_from_slice(to_front);
        self.back.extend_from_slice(rest);
        self.back.drain(..self.back.len().saturating_sub(BACK_BYTES));
    }

    fn is_whole(&self) -> bool {
        (self.front.len() + self.back.len()) as u64 == self.bytes
    }
}

/// The head of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRecord {
    pub lsn: Lsn,
    pub total: u32,
    /// As much of the record's header as there is: 8, 16 or 24 bytes.
    pub header: Vec<u8>,
    /// Of what follows the header.
    pub crc: u32,
    pub payload: Kept,
}

impl OpenRecord {
    pub(super) fn of(unfinished: &Unfinished) -> OpenRecord {
        let Unfinished { lsn, total, header, crc, payload, seen } = unfinished;
        let is_transaction = unfinished.manager() == Some(manager::TRANSACTION);
        let front = if is_transaction { HEAD_OF_TRANSACTION_BYTES } else { HEAD_BYTES };
        let bytes = u64::from(*seen).saturating_sub(header.len() as u64);
        let payload = Kept::of(payload, bytes, front);
        OpenRecord { lsn: *lsn, total: *total, header: header.clone(), crc: *crc, payload }
    }
}

/// What a segment holds of a record that began before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Continuation {
    pub kept: Kept,
    /// Of the bytes, and of the first 8 and 16 of them, which may belong to the record's header.
    pub crc: u32,
    pub crc_8: u32,
    pub crc_16: u32,
    /// The record ends in this segment.
    pub is_end: bool,
}

impl Continuation {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        for (crc, length) in [(&mut self.crc_8, 8u64), (&mut self.crc_16, 16)] {
            let missing = length.saturating_sub(self.kept.bytes) as usize;
            *crc = crc32c::crc32c_append(*crc, &bytes[..bytes.len().min(missing)]);
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.kept.take(bytes, FRONT_BYTES);
    }

    /// The CRC of what follows the first `skipped` bytes.
    fn crc_after(&self, skipped: u64) -> u32 {
        crc_after((self.crc, self.crc_8, self.crc_16), self.kept.bytes, skipped)
    }
}

/// A record while its parts come together.
#[derive(Debug, Clone)]
pub struct Seam {
    head: OpenRecord,
    major: u32,
    crc: u32,
    seen: u64,
    /// The payload; zeros where it was not kept.
    payload: Vec<u8>,
    /// Bytes of the payload before the first that was not kept.
    whole: usize,
    has_gap: bool,
}

/// Longest payload that is put together with gaps; of a longer one the beginning is enough.
const ASSEMBLED_BYTES: usize = 1 << 20;

impl Seam {
    /// `major` is that of the segment with the head.
    pub fn new(head: OpenRecord, major: u32) -> Seam {
        let (crc, seen) = (head.crc, (head.header.len() as u64).saturating_add(head.payload.bytes));
        let mut seam = Seam { crc, seen, major, payload: Vec::new(), whole: 0, has_gap: false, head };
        let payload = std::mem::take(&mut seam.head.payload);
        seam.add(&payload, 0);
        seam
    }

    pub fn lsn(&self) -> Lsn {
        self.head.lsn
    }

    fn add(&mut self, kept: &Kept, skipped: usize) {
        let front = kept.front.get(skipped..).unwrap_or_default();
        self.payload.extend_from_slice(front);
        if !self.has_gap {
            self.whole = self.payload.len();
        }
        let bytes = kept.bytes.saturating_sub(skipped as u64) as usize;
        if !kept.is_whole() {
            self.has_gap = true;
            let gap = bytes.saturating_sub(front.len() + kept.back.len());
            let room = ASSEMBLED_BYTES.saturating_sub(self.payload.len());
            self.payload.resize(self.payload.len() + gap.min(room), 0);
        }
        self.payload.extend_from_slice(&kept.back);
        if !self.has_gap {
            self.whole = self.payload.len();
        }
    }

    /// Adds what the next segment holds of the record; `None` when that is something else.
    pub fn continued(mut self, continuation: &Continuation) -> Option<Seam> {
        let missing = RECORD_HEADER_BYTES - self.head.header.len().min(RECORD_HEADER_BYTES);
        let header = continuation.kept.front.get(..missing.min(continuation.kept.bytes as usize))?;
        self.head.header.extend_from_slice(header);
        self.seen = self.seen.saturating_add(continuation.kept.bytes);
        let payload_bytes = continuation.kept.bytes.saturating_sub(missing as u64) as usize;
        self.crc = crc32c::crc32c_combine(self.crc, continuation.crc_after(header.len() as u64), payload_bytes);
        self.add(&continuation.kept, header.len());
        let fits =
            if continuation.is_end { self.seen == u64::from(self.head.total) } else { self.seen < u64::from(self.head.total) };
        fits.then_some(self)
    }

    /// The index of this one record, once all its parts are there.
    pub fn finish(self, mapped: &MappedFiles) -> Result<SegmentIndex, NoIndex> {
        let damaged = NoIndex::Damaged { what: "the parts of a record do not fit together" };
        let header: &[u8; RECORD_HEADER_BYTES] = self.head.header.as_slice().try_into().map_err(|_| damaged.clone())?;
        let stored = u32::from_le_bytes([header[20], header[21], header[22], header[23]]);
        if crc32c::crc32c_append(self.crc, &header[..20]) != stored {
            return Err(damaged);
        }
        // A transaction's lists must not be read over a gap; elsewhere only images lie there.
        let is_list = header[17] == manager::TRANSACTION || self.payload.len() >= ASSEMBLED_BYTES;
        let payload = if is_list { &self.payload[..self.whole] } else { &self.payload };
        let record = Record {
            major: self.major,
            lsn: self.head.lsn,
            xid: u32::from_le_bytes([header[4], header[5], header[6], header[7]]),
            resource_manager: header[17],
            info: header[16],
            payload,
            payload_bytes: self.head.total.saturating_sub(RECORD_HEADER_BYTES as u32),
        };
        let mut collect = Collect::new(mapped.clone());
        collect.record(&record).map_err(|_| NoIndex::Malformed { lsn: record.lsn })?;
        let mut index = collect.finish();
        index.start = record.lsn;
        Ok(index)
    }
}
