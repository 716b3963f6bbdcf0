//! The first page of a WAL segment: whose it is and where it belongs (rule 21).
//!
//! Source: `src/include/access/xlog_internal.h`, `XLogLongPageHeaderData`; `XLOG_PAGE_MAGIC` per version.

use super::fields::Fields;
use super::name::SegmentName;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};

/// `SizeOfXLogLongPHD`.
pub const LONG_HEADER_BYTES: usize = 40;
/// `SizeOfXLogShortPHD`.
pub const SHORT_HEADER_BYTES: usize = 24;
/// `XLP_LONG_HEADER`.
const LONG_HEADER_FLAG: u16 = 0x0002;
/// `XLP_FIRST_IS_CONTRECORD`.
pub const FIRST_IS_CONTINUATION: u16 = 0x0001;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD` (13.5, 14.1 and later): the record begun before was never finished.
pub const FIRST_IS_OVERWRITE: u16 = 0x0008;

/// `XLOG_PAGE_MAGIC` of a major version.
pub fn major_of_magic(magic: u16) -> Option<u32> {
    match magic {
        0xD106 => Some(13),
        0xD10D => Some(14),
        0xD110 => Some(15),
        0xD113 => Some(16),
        0xD116 => Some(17),
        0xD118 => Some(18),
        _ => None,
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    #[error("the file is {bytes} bytes long, too short for a WAL segment")]
    Short { bytes: usize },
    #[error("the file does not begin like WAL of PostgreSQL 13 to 18 (page magic {magic:04X})")]
    Magic { magic: u16 },
    #[error("the first page has no long header, so this is not the beginning of a segment")]
    NotFirstPage,
    #[error("the header says segments of {bytes} bytes, which no PostgreSQL has")]
    SegmentSize { bytes: u32 },
    #[error("the file is {actual} bytes long, but its header says segments of {expected}")]
    Length { actual: u64, expected: u64 },
    #[error("the file is named {name}, but its first page belongs at {address}")]
    Address { name: SegmentName, address: Lsn },
    #[error("the file is named {name}, but its first page is of the later timeline {timeline}")]
    LaterTimeline { name: SegmentName, timeline: Timeline },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub major: u32,
    pub system_identifier: SystemId,
    /// The timeline of the first page: at a switch older than the one in the file's name.
    pub timeline: Timeline,
    pub address: Lsn,
    pub segment_bytes: u64,
}

/// Whether segments can have this length: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`).
pub fn is_segment_length(bytes: u64) -> bool {
    bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)
}

impl SegmentHeader {
    /// Reads the header at the beginning of a segment.
    pub fn parse(bytes: &[u8]) -> Result<SegmentHeader, HeaderError> {
        if bytes.len() < LONG_HEADER_BYTES {
            return Err(HeaderError::Short { bytes: bytes.len() });
        }
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let magic = u16_at(0);
        let major = major_of_magic(magic).ok_or(HeaderError::Magic { magic })?;
        if u16_at(2) & LONG_HEADER_FLAG == 0 {
            return Err(HeaderError::NotFirstPage);
        }
        let segment_bytes = u32_at(32);
        if !is_segment_length(segment_bytes.into()) {
            return Err(HeaderError::SegmentSize { bytes: segment_bytes });
        }
        Ok(SegmentHeader {
            major,
            timeline: Timeline(u32_at(4)),
            address: Lsn(u64_at(8)),
            system_identifier: SystemId(u64_at(24)),
            segment_bytes: u64::from(segment_bytes),
        })
    }

    /// Checks that a file of this length and name is the segment its header describes.
    pub fn check(&self, name: SegmentName, file_bytes: u64) -> Result<(), HeaderError> {
        if file_bytes != self.segment_bytes {
            return Err(HeaderError::Length { actual: file_bytes, expected: self.segment_bytes });
        }
        if name.start(self.segment_bytes) != Some(self.address) {
            return Err(HeaderError::Address { name, address: self.address });
        }
        if self.timeline > name.timeline {
            return Err(HeaderError::LaterTimeline { name, timeline: self.timeline });
        }
        Ok(())
    }
}

/// What every page begins with (`XLogPageHeaderData`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    pub major: u32,
    pub flags: u16,
    pub timeline: Timeline,
    pub address: Lsn,
    /// Bytes of the record that is continued here, in this and later pages (`xlp_rem_len`).
    pub remaining: u32,
    /// Length of the header itself.
    pub bytes: usize,
}

impl PageHeader {
    /// `None` for what is not the first page of anything that 13 to 18 wrote.
    pub fn parse(page: &[u8]) -> Option<PageHeader> {
        let mut fields = Fields(page);
        let (major, flags) = (major_of_magic(fields.u16()?)?, fields.u16()?);
        let (timeline, address, remaining) = (Timeline(fields.u32()?), Lsn(fields.u64()?), fields.u32()?);
        let bytes = if flags & LONG_HEADER_FLAG != 0 { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES };
        (page.len() >= bytes).then_some(PageHeader { major, flags, timeline, address, remaining, bytes })
    }
}
