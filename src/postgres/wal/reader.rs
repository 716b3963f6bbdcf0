//! Walks the records of a stretch of WAL, page by page, with the CRC of every record checked.
//!
//! # What
//! The caller feeds pages in order ([`Walk::page`]); complete records go to its closure. A record that lies in one page is
//! handed on as a slice of it; one that crosses pages or segments is put together first. Of a long one only the beginning is
//! kept ([`manager::kept_bytes`]), and the CRC of all, so memory stays small whatever a record's size (up to 1,020 MiB).
//!
//! # Where it ends
//! WAL ends where a page does not carry its own address, a length or CRC does not fit, or nothing but zeros follows.
//! An `XLOG_SWITCH` record ends a segment early; the walk goes on at the next one.
//!
//! Source: `src/backend/access/transam/xlogreader.c`, `src/include/access/xlogrecord.h`; the record header has been the same
//! since 9.5.

use super::{header, manager};
use crate::postgres::lsn::Lsn;

/// `XLOG_BLCKSZ`, as built everywhere.
pub const PAGE_BYTES: usize = 8192;
/// `SizeOfXLogRecord`.
pub const RECORD_HEADER_BYTES: usize = 24;
/// `XLogRecordMaxSize`, since 16; nothing longer was ever readable.
const RECORD_MAX_BYTES: u32 = 1020 << 20;

/// `XLOG_SWITCH`.
const SWITCH: u8 = 0x40;

/// One complete record with a good CRC.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Of the server that wrote it.
    pub major: u32,
    pub lsn: Lsn,
    pub xid: u32,
    pub resource_manager: u8,
    /// `xl_info`; the upper four bits belong to the resource manager.
    pub info: u8,
    /// What follows the record header; only the beginning of it in a record that is cut.
    pub payload: &'a [u8],
    /// Length of the whole payload.
    pub payload_bytes: u32,
}

impl Record<'_> {
    /// The payload was too long to be kept whole.
    pub fn is_cut(&self) -> bool {
        self.payload.len() < self.payload_bytes as usize
    }
}

/// Why the walk stopped for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Nothing was ever written from here on.
    Zeros(Lsn),
    /// Something else than the continuation of this WAL begins here: an older, recycled page, or damage.
    Broken(Lsn, &'static str),
}

impl End {
    pub fn lsn(&self) -> Lsn {
        match self {
            End::Zeros(lsn) | End::Broken(lsn, _) => *lsn,
        }
    }
}

/// A record of which only the head was seen so far.
#[derive(Debug, Clone)]
pub struct Unfinished {
    pub lsn: Lsn,
    /// As much as there is of the [`RECORD_HEADER_BYTES`].
    pub header: Vec<u8>,
    /// As much as is kept of the payload.
    pub payload: Vec<u8>,
    /// Of the payload so far.
    pub crc: u32,
    /// Bytes of the record seen so far, header included.
    pub seen: u32,
    pub total: u32,
}

/// The state between pages.
#[derive(Debug)]
pub struct Walk {
    segment_bytes: u64,
    /// Of the page that is being read.
    major: u32,
    unfinished: Option<Unfinished>,
    /// The buffers of the last record that crossed pages.
    spare: Option<Unfinished>,
    /// Set by a switch record: nothing before this position holds records.
    resume_at: Lsn,
    /// Where the last complete record begins: the next one names it.
    previous: Option<Lsn>,
    /// What the first complete record names as the one before it.
    first_previous: Option<Lsn>,
    records: u64,
}

impl Walk {
    /// A walk that begins at any page border; what continues a record from before is passed over.
    pub fn new(segment_bytes: u64) -> Walk {
        Walk {
            segment_bytes,
            major: 0,
            unfinished: None,
            spare: None,
            resume_at: Lsn(0),
            previous: None,
            first_previous: None,
            records: 0,
        }
    }

    /// Complete records seen so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// What the first record names as the one before it, as far as its header is there.
    pub fn first_previous(&self) -> Option<Lsn> {
        let open = self.unfinished.as_ref().filter(|_| self.records == 0);
        let of_open = || Some(Lsn(u64::from_le_bytes(open?.header.get(8..16)?.try_into().ok()?)));
        self.first_previous.or_else(of_open)
    }

    /// Resource manager of a record that the pages so far begin but do not finish; `Some(None)` when even its header
    /// is cut.
    pub fn open_record(&self) -> Option<Option<u8>> {
        self.unfinished.as_ref().map(Unfinished::manager)
    }

    /// The record that the pages so far begin but do not finish.
    pub fn unfinished(&self) -> Option<&Unfinished> {
        self.unfinished.as_ref()
    }

    /// Reads one page at `address`; records that end in it go to `visit`.
    pub fn page(&mut self, page: &[u8], address: Lsn, visit: &mut dyn FnMut(Record)) -> Result<(), End> {
        let u16_at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
        if page.len() != PAGE_BYTES {
            return Err(End::Broken(address, "a page is cut short"));
        }
        if address < self.resume_at {
            return Ok(());
        }
        let Some(major) = header::major_of_magic(u16_at(0)) else {
            let zeros = page.iter().all(|b| *b == 0);
            return Err(if zeros {
                End::Zeros(self.lsn_or(address))
            } else {
                End::Broken(self.lsn_or(address), "not a WAL page")
            });
        };
        self.major = major;
        if u64::from_le_bytes(page[8..16].try_into().expect("eight bytes")) != address.0 {
            return Err(End::Broken(self.lsn_or(address), "the page belongs elsewhere"));
        }
        let is_first = address.0.is_multiple_of(self.segment_bytes);
        let mut at = if is_first { header::LONG_HEADER_BYTES } else { header::SHORT_HEADER_BYTES };
        let flags = u16_at(2);
        let remaining = u32::from_le_bytes(page[16..20].try_into().expect("four bytes"));
        if flags & header::FIRST_IS_OVERWRITE != 0 {
            self.unfinished = None;
        }
        if flags & header::FIRST_IS_CONTINUATION != 0 {
            at = self.continue_record(page, at, remaining, address, visit)?;
        } else if let Some(unfinished) = self.unfinished.take() {
            return Err(End::Broken(unfinished.lsn, "a record is not continued on the next page"));
        }
        self.records_from(page, at, address, visit)
    }

    /// Where valid WAL ended when `address` turned out not to continue it.
    fn lsn_or(&self, address: Lsn) -> Lsn {
        self.unfinished.as_ref().map_or(address, |u| u.lsn)
    }

    fn records_from(&mut self, page: &[u8], mut at: usize, address: Lsn, visit: &mut dyn FnMut(Record)) -> Result<(), End> {
        loop {
            at = at.next_multiple_of(8);
            if at >= PAGE_BYTES || Lsn(address.0 + at as u64) < self.resume_at {
                return Ok(());
            }
            let lsn = Lsn(address.0 + at as u64);
            let total = u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"));
            if total == 0 {
                let zeros = page[at..].iter().all(|b| *b == 0);
                return Err(if zeros { End::Zeros(lsn) } else { End::Broken(lsn, "a record without length") });
            }
            if (total as usize) < RECORD_HEADER_BYTES || total > RECORD_MAX_BYTES {
                return Err(End::Broken(lsn, "a record with an impossible length"));
            }
            let here = &page[at..PAGE_BYTES.min(at + total as usize)];
            if here.len() < total as usize {
                let mut unfinished = self.spare.take().unwrap_or_else(Unfinished::empty);
                (unfinished.lsn, unfinished.total) = (lsn, total);
                unfinished.take(here);
                self.unfinished = Some(unfinished);
                return Ok(());
            }
            let (header, payload) = here.split_at(RECORD_HEADER_BYTES);
            let crc = crc32c::crc32c(payload);
            self.finish((lsn, address), header, (payload, total), crc, visit)?;
            at += total as usize;
        }
    }

    /// Takes the rest of a record from the beginning of a page; returns where the next record may begin.
    fn continue_record(
        &mut self,
        page: &[u8],
        at: usize,
        remaining: u32,
        address: Lsn,
        visit: &mut dyn FnMut(Record),
    ) -> Result<usize, End> {
        let end = PAGE_BYTES.min(at + remaining as usize);
        let Some(unfinished) = &mut self.unfinished else { return Ok(end) };
        if unfinished.total - unfinished.seen != remaining {
            let lsn = unfinished.lsn;
            self.unfinished = None;
            return Err(End::Broken(lsn, "a record is continued with another length"));
        }
        unfinished.take(&page[at..end]);
        if unfinished.seen == unfinished.total {
            let Some(mut done) = self.unfinished.take() else { return Ok(end) };
            self.finish((done.lsn, address), &done.header, (&done.payload, done.total), done.crc, visit)?;
            done.reset();
            self.spare = Some(done);
        }
        Ok(end)
    }

    /// Checks and hands on a record that ends on the page at `page`.
    fn finish(
        &mut self,
        (lsn, page): (Lsn, Lsn),
        header: &[u8],
        (payload, total): (&[u8], u32),
        crc: u32,
        visit: &mut dyn FnMut(Record),
    ) -> Result<(), End> {
        let stored = u32::from_le_bytes(header[20..24].try_into().expect("four bytes"));
        if crc32c::crc32c_append(crc, &header[..20]) != stored {
            return Err(End::Broken(lsn, "a record's checksum does not hold"));
        }
        let previous = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
        if self.previous.is_some_and(|expected| expected.0 != previous) {
            return Err(End::Broken(lsn, "a record does not follow the one before"));
        }
        self.previous = Some(lsn);
        self.first_previous.get_or_insert(Lsn(previous));
        let record = Record {
            major: self.major,
            lsn,
            xid: u32::from_le_bytes(header[4..8].try_into().expect("four bytes")),
            info: header[16],
            resource_manager: header[17],
            payload,
            payload_bytes: total - RECORD_HEADER_BYTES as u32,
        };
        self.records += 1;
        if record.resource_manager == manager::XLOG && record.info & 0xF0 == SWITCH {
            // A switch record that ends in a segment ends that one, wherever it began.
            self.resume_at = Lsn((page.segment(self.segment_bytes) + 1) * self.segment_bytes);
        }
        visit(record);
        Ok(())
    }
}

impl Unfinished {
    fn empty() -> Unfinished {
        Unfinished { lsn: Lsn(0), header: Vec::new(), payload: Vec::new(), crc: 0, seen: 0, total: 0 }
    }

    /// Keeps the buffers, unless one of them grew for a record as there are few.
    fn reset(&mut self) {
        self.header.clear();
        self.payload.clear();
        self.payload.shrink_to(PAGE_BYTES * 4);
        (self.crc, self.seen) = (0, 0);
    }

    /// The resource manager, unless the header is cut before it.
    pub fn manager(&self) -> Option<u8> {
        self.header.get(17).copied()
    }

    fn take(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u32;
        let missing = (RECORD_HEADER_BYTES - self.header.len()).min(bytes.len());
        let (header, payload) = bytes.split_at(missing);
        self.header.extend_from_slice(header);
        self.crc = crc32c::crc32c_append(self.crc, payload);
        let room = manager::kept_bytes(self.manager().unwrap_or_default()).saturating_sub(self.payload.len());
        self.payload.extend_from_slice(&payload[..payload.len().min(room)]);
    }
}
