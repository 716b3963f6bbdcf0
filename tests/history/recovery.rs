//! Recovery as PostgreSQL does it, over segments by their names: what a restore with these settings would replay.
//!
//! Source: `src/backend/access/transam/xlogrecovery.c` (`ReadRecord`, `XLogFileReadAnyTLI`, `recoveryStopsBefore`,
//! `CheckRequiredParameterValues`), `xlogreader.c` (`XLogReaderValidatePageHeader`, `ValidXLogRecord`). Written from those, and not with the
//! program's own reader, so that the two can be held against each other.

use std::sync::Arc;

use jiff::Timestamp;
use lastgood::postgres::history::History;
use lastgood::postgres::lsn::Timeline;
use lastgood::postgres::settings::RecoveryTarget;
use lastgood::postgres::wal::name::SegmentName;

use crate::support::wal_writer::{PARAMETER_CHANGE, SEGMENT, TRANSACTION, XLOG};

const PAGE: u64 = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    pub lsn: u64,
    pub end: u64,
    pub crc: u32,
    pub commit: Option<Timestamp>,
}

/// What was replayed from where recovery began, and how it ended.
#[derive(Debug)]
pub struct Recovered {
    pub records: Vec<Replayed>,
    /// The server refuses to go on: WAL of `wal_level = minimal`.
    pub died: bool,
}

pub struct Reader<'a> {
    /// The bytes of an archived file.
    pub archive: &'a dyn Fn(SegmentName) -> Option<Arc<Vec<u8>>>,
    pub path: &'a History,
    segment: Option<(u64, u32, Arc<Vec<u8>>)>,
    latest_timeline: u32,
}

struct Ended;

impl<'a> Reader<'a> {
    pub fn new(archive: &'a dyn Fn(SegmentName) -> Option<Arc<Vec<u8>>>, path: &'a History) -> Reader<'a> {
        Reader { archive, path, segment: None, latest_timeline: 0 }
    }

    /// The segment of the newest timeline that reaches into it and has it; never of an older one than before.
    fn open(&mut self, number: u64) -> Result<(), Ended> {
        if self.segment.as_ref().is_some_and(|(open, ..)| *open == number) {
            return Ok(());
        }
        let current = self.segment.as_ref().map_or(0, |(_, timeline, _)| *timeline);
        for stretch in self.path.stretches().iter().rev() {
            if stretch.timeline.0 < current {
                break;
            }
            if stretch.begin.segment(SEGMENT) > number {
                continue;
            }
            if let Some(bytes) = (self.archive)(SegmentName::new(stretch.timeline, number, SEGMENT)) {
                self.segment = Some((number, stretch.timeline.0, bytes));
                return Ok(());
            }
        }
        Err(Ended)
    }

    /// The page at an address, when its header is one that recovery takes.
    fn page(&mut self, address: u64) -> Result<[u8; PAGE as usize], Ended> {
        self.open(address / SEGMENT)?;
        let Some((_, _, bytes)) = &self.segment else { return Err(Ended) };
        let at = (address % SEGMENT) as usize;
        let page: [u8; PAGE as usize] = bytes[at..at + PAGE as usize].try_into().map_err(|_| Ended)?;
        let timeline = u32_at(&page, 4);
        let is_sane = u16_at(&page, 0) == 0xD110
            && u64_at(&page, 8) == address
            && (u16_at(&page, 2) & 2 != 0) == address.is_multiple_of(SEGMENT)
            && timeline >= self.latest_timeline
            && self.path.left(Timeline(timeline)).is_some();
        if !is_sane {
            return Err(Ended);
        }
        self.latest_timeline = timeline;
        Ok(page)
    }

    /// The record at or after `at`, and where the next may begin.
    fn record(&mut self, mut at: u64, previous: &mut Option<u64>) -> Result<(Replayed, u8, u8, Vec<u8>), Ended> {
        let header = |address: u64| if address.is_multiple_of(SEGMENT) { 40 } else { 24 };
        let mut page = self.page(at - at % PAGE)?;
        if at.is_multiple_of(PAGE) {
            if u16_at(&page, 2) & 1 != 0 {
                return Err(Ended);
            }
            at += header(at);
        }
        let lsn = at;
        let total = u32_at(&page, (at % PAGE) as usize) as usize;
        if total < 24 {
            return Err(Ended);
        }
        let mut record = Vec::with_capacity(total);
        loop {
            let from = (at % PAGE) as usize;
            let here = (total - record.len()).min(PAGE as usize - from);
            record.extend_from_slice(&page[from..from + here]);
            at += here as u64;
            if record.len() == total {
                break;
            }
            page = self.page(at)?;
            if u16_at(&page, 2) & 1 == 0 || u32_at(&page, 16) as usize != total - record.len() {
                return Err(Ended);
            }
            at += header(at);
        }
        let crc = u32_at(&record, 20);
        let is_whole = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]) == crc;
        if !is_whole || previous.is_some_and(|previous| previous != u64_at(&record, 8)) {
            return Err(Ended);
        }
        *previous = Some(lsn);
        let (info, manager) = (record[16], record[17]);
        let mut end = at.next_multiple_of(8);
        if manager == XLOG && info == 0x40 {
            end = end.next_multiple_of(SEGMENT);
        }
        let main = record[24..].get(2..).unwrap_or_default().to_vec();
        let commit = (manager == TRANSACTION).then(|| {
            let microseconds = i64::from_le_bytes(main[..8].try_into().unwrap());
            Timestamp::from_microsecond(microseconds + 946_684_800_000_000).unwrap()
        });
        Ok((Replayed { lsn, end, crc, commit }, manager, info, main))
    }

    /// Replays from `start` as far as it goes.
    pub fn replay(mut self, start: u64) -> Recovered {
        let (mut recovered, mut at, mut previous) = (Recovered { records: Vec::new(), died: false }, start, None);
        while let Ok((record, manager, info, main)) = self.record(at, &mut previous) {
            if manager == XLOG && info == PARAMETER_CHANGE && u32_at(&main, 20) == 0 {
                recovered.died = true;
                break;
            }
            at = record.end;
            recovered.records.push(record);
        }
        recovered
    }
}

impl Recovered {
    /// How many records are replayed with a target; `None` when the server ends with FATAL.
    pub fn until(&self, target: RecoveryTarget, consistent: u64) -> Option<usize> {
        let all = (!self.died).then_some(self.records.len());
        let is_consistent = |count: &usize| self.records[..*count].last().is_some_and(|record| record.end >= consistent);
        let reached = match target {
            RecoveryTarget::End => all,
            RecoveryTarget::Immediate => self.records.iter().position(|record| record.end >= consistent).map(|at| at + 1),
            RecoveryTarget::Lsn { lsn, inclusive } => {
                let at = self.records.iter().position(|record| record.lsn >= lsn.0);
                at.map(|at| if inclusive { at + 1 } else { at })
            }
        };
        reached.filter(is_consistent)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
