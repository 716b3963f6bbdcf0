//! Writes WAL as a server does, without a server: pages, records that cross pages and segments, and the records that lead recovery.
//!
//! Source: `src/include/access/xlog_internal.h` (page headers), `xlogrecord.h` (records), `src/include/catalog/pg_control.h`,
//! `src/backend/access/transam/xlog.c` (`CopyXLogRecordToWAL`, `XLogInitNewTimeline`).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use lastgood::postgres::lsn::{Lsn, SystemId, Timeline};
use lastgood::postgres::wal::name::SegmentName;

/// The smallest that PostgreSQL has.
pub const SEGMENT: u64 = 1 << 20;
const PAGE: u64 = 8192;
const HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;
const RECORD_HEADER: usize = 24;

/// Resource managers.
pub const XLOG: u8 = 0;
pub const TRANSACTION: u8 = 1;

/// `xl_info` of [`XLOG`].
pub const NOOP: u8 = 0x20;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const SWITCH: u8 = 0x40;
const BACKUP_END: u8 = 0x50;
pub const PARAMETER_CHANGE: u8 = 0x60;
const END_OF_RECOVERY: u8 = 0x90;

/// Microseconds since 2000, as PostgreSQL counts.
fn microseconds(time: Timestamp) -> [u8; 8] {
    (time.as_microsecond() - 946_684_800_000_000).to_le_bytes()
}

/// Where a record lies, and what tells it from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub lsn: u64,
    pub end: u64,
    pub crc: u32,
}

/// A server's WAL. Cloning it is cheap: segments are shared until one of the two writes into them.
#[derive(Debug, Clone)]
pub struct WalWriter {
    pub major: u32,
    pub system: SystemId,
    pub timeline: u32,
    /// Where the next record goes, or the page before it ends.
    pub at: u64,
    /// Where the last record began.
    previous: u64,
    segments: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl WalWriter {
    /// A fresh system whose WAL begins with segment `first`.
    pub fn new(major: u32, system: SystemId, first: u64) -> WalWriter {
        WalWriter { major, system, timeline: 1, at: first * SEGMENT, previous: 0, segments: BTreeMap::new() }
    }

    fn magic(&self) -> u16 {
        [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118][self.major as usize - 13]
    }

    /// A segment as it lies in `pg_wal`: zeros behind what was written.
    pub fn segment(&self, number: u64) -> Option<&Arc<Vec<u8>>> {
        self.segments.get(&number)
    }

    /// The segment before, as long as it lies beside this one: `pg_resetwal` takes it away.
    pub fn before(&self, number: u64) -> Option<&Arc<Vec<u8>>> {
        let segment = self.segments.get(&number)?;
        let begins_anew = segment[2] & 1 == 0 && segment[48..56] == [0; 8];
        self.segments.get(&number.checked_sub(1)?).filter(|_| !begins_anew)
    }

    /// The segment that is being written.
    pub fn number(&self) -> u64 {
        self.at / SEGMENT
    }

    /// Bytes that are left in it.
    pub fn room(&self) -> u64 {
        SEGMENT - self.at % SEGMENT
    }

    pub fn name(&self, number: u64) -> SegmentName {
        SegmentName::new(Timeline(self.timeline), number, SEGMENT)
    }

    fn put(&mut self, bytes: &[u8]) {
        let place = (self.at % SEGMENT) as usize;
        let segment = self.segments.entry(self.at / SEGMENT).or_insert_with(|| Arc::new(vec![0; SEGMENT as usize]));
        Arc::make_mut(segment)[place..place + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len() as u64;
    }

    /// The header of the page that begins here, with what is left of a record.
    fn page_header(&mut self, remaining: u32) {
        let is_first = self.at.is_multiple_of(SEGMENT);
        let flags = u16::from(remaining > 0) | if is_first { 2 } else { 0 };
        let mut header = Vec::new();
        header.extend(self.magic().to_le_bytes());
        header.extend(flags.to_le_bytes());
        header.extend(self.timeline.to_le_bytes());
        header.extend(self.at.to_le_bytes());
        header.extend(remaining.to_le_bytes());
        header.extend([0; 4]);
        if is_first {
            header.extend(self.system.0.to_le_bytes());
            header.extend((SEGMENT as u32).to_le_bytes());
            header.extend((PAGE as u32).to_le_bytes());
        }
        self.put(&header);
    }

    /// Adds a record with this main data.
    pub fn append(&mut self, manager: u8, info: u8, xid: u32, main: &[u8]) -> Written {
        if self.at.is_multiple_of(PAGE) {
            self.page_header(0);
        }
        let mut payload = Vec::with_capacity(main.len() + 5);
        match main.len() {
            0 => {}
            1..=255 => payload.extend([255, main.len() as u8]),
            long => {
                payload.push(254);
                payload.extend((long as u32).to_le_bytes());
            }
        }
        payload.extend(main);
        let mut record = Vec::with_capacity(RECORD_HEADER + payload.len());
        record.extend(((RECORD_HEADER + payload.len()) as u32).to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&payload), &record);
        record.extend(crc.to_le_bytes());
        record.extend(payload);
        let lsn = self.at;
        let mut rest = &record[..];
        while !rest.is_empty() {
            if self.at.is_multiple_of(PAGE) {
                self.page_header(rest.len() as u32);
            }
            let here = rest.len().min((PAGE - self.at % PAGE) as usize);
            self.put(&rest[..here]);
            rest = &rest[here..];
        }
        self.at = self.at.next_multiple_of(8);
        self.previous = lsn;
        Written { lsn, end: self.at, crc }
    }

    pub fn commit(&mut self, xid: u32, time: Timestamp) -> Written {
        self.append(TRANSACTION, 0, xid, &microseconds(time))
    }

    /// Ends the segment. The rest of its pages carry headers and nothing else.
    pub fn switch(&mut self) -> Written {
        let mut written = self.append(XLOG, SWITCH, 0, &[]);
        let end = self.at.next_multiple_of(SEGMENT);
        self.at = self.at.next_multiple_of(PAGE);
        while self.at < end {
            self.page_header(0);
            self.at = self.at.next_multiple_of(PAGE);
        }
        written.end = end;
        written
    }

    /// The change of `wal_level` at a start of the server.
    pub fn parameters(&mut self, wal_level: u32) -> Written {
        let mut main = Vec::new();
        [100, 8, 10, 0, 64, wal_level].iter().for_each(|word: &u32| main.extend(word.to_le_bytes()));
        main.extend([0, 0, 0, 0]);
        self.append(XLOG, PARAMETER_CHANGE, 0, &main)
    }

    /// A checkpoint whose redo is itself, as one after a clean end of the server.
    pub fn checkpoint(&mut self, shutdown: bool, time: Timestamp) -> Written {
        let begins = match self.at % PAGE {
            0 => self.at + if self.at.is_multiple_of(SEGMENT) { LONG_HEADER } else { HEADER },
            _ => self.at,
        };
        let mut main = begins.to_le_bytes().to_vec();
        main.extend(self.timeline.to_le_bytes());
        main.extend(self.timeline.to_le_bytes());
        main.extend(1u32.to_le_bytes());
        // wal_level, since 17.
        main.extend(1u32.to_le_bytes());
        main.extend([0; 40]);
        main.extend(time.as_second().to_le_bytes());
        main.extend([0; 32]);
        self.append(XLOG, if shutdown { CHECKPOINT_SHUTDOWN } else { CHECKPOINT_ONLINE }, 0, &main)
    }

    /// The end of a base backup that began at `start`.
    pub fn backup_end(&mut self, start: u64) -> Written {
        self.append(XLOG, BACKUP_END, 0, &start.to_le_bytes())
    }

    /// Goes on as another timeline from here; its first segment begins as a copy of the one that was left.
    pub fn promote(&mut self, timeline: u32, time: Timestamp) -> Written {
        let before = std::mem::replace(&mut self.timeline, timeline);
        let mut main = microseconds(time).to_vec();
        main.extend(timeline.to_le_bytes());
        main.extend(before.to_le_bytes());
        // wal_level, since 17.
        main.extend(1u32.to_le_bytes());
        self.append(XLOG, END_OF_RECOVERY, 0, &main)
    }

    /// `pg_resetwal`: nothing leads from what was written to the next segment.
    pub fn reset(&mut self, time: Timestamp) -> Written {
        self.at = (self.at / SEGMENT + 1) * SEGMENT;
        self.previous = 0;
        self.checkpoint(true, time)
    }

    /// The same WAL, ended behind the record that began at `previous` and ended at `end`, on the timeline that it was written on.
    pub fn cut(&mut self, timeline: u32, previous: u64, end: u64) {
        let last = end.saturating_sub(1) / SEGMENT;
        self.segments.retain(|number, _| *number <= last);
        if let Some(segment) = self.segments.get_mut(&last)
            && !end.is_multiple_of(SEGMENT)
        {
            Arc::make_mut(segment)[(end % SEGMENT) as usize..].fill(0);
        }
        (self.timeline, self.previous, self.at) = (timeline, previous, end);
    }
}

/// A `pg_control` with what is read of one: the system, its timeline, the length of segments.
pub fn control_file(system: SystemId, timeline: u32, checkpoint: u64) -> Vec<u8> {
    let mut bytes = vec![0u8; 8192];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &system.0.to_le_bytes());
    put(8, &1300u32.to_le_bytes());
    put(12, &202_209_061u32.to_le_bytes());
    // DB_SHUTDOWNED
    put(16, &1u32.to_le_bytes());
    put(32, &checkpoint.to_le_bytes());
    put(40, &checkpoint.to_le_bytes());
    put(48, &timeline.to_le_bytes());
    const FLOAT: usize = 208;
    put(FLOAT - 36, &1u32.to_le_bytes());
    put(FLOAT, &1_234_567.0f64.to_le_bytes());
    put(FLOAT + 8, &8192u32.to_le_bytes());
    put(FLOAT + 12, &131_072u32.to_le_bytes());
    put(FLOAT + 16, &8192u32.to_le_bytes());
    put(FLOAT + 20, &(SEGMENT as u32).to_le_bytes());
    put(FLOAT + 44, &1u32.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..FLOAT + 80]);
    bytes[FLOAT + 80..FLOAT + 84].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// A position as PostgreSQL prints it.
pub fn lsn(position: u64) -> Lsn {
    Lsn(position)
}
