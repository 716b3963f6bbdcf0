//! Names of the files that PostgreSQL archives.
//!
//! Source: `src/include/access/xlog_internal.h` (`XLogFileName`, `IsXLogFileName`, `IsPartialXLogFileName`,
//! `IsTLHistoryFileName`, `IsBackupHistoryFileName`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::postgres::lsn::{Lsn, Timeline};

/// The name of a segment: timeline, and the number split in two halves whose meaning depends on the segment size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    pub timeline: Timeline,
    high: u32,
    low: u32,
}

impl SegmentName {
    pub fn new(timeline: Timeline, number: u64, segment_bytes: u64) -> Self {
        let per_high = segments_per_high(segment_bytes);
        SegmentName { timeline, high: (number / per_high) as u32, low: (number % per_high) as u32 }
    }

    /// The segment's number on its timeline, counted from 0; `None` when no segment of that size has this name, nor any that WAL can
    /// reach: numbers behind it can be counted on.
    pub fn number(&self, segment_bytes: u64) -> Option<u64> {
        let per_high = segments_per_high(segment_bytes);
        let number = (u64::from(self.low) < per_high).then(|| u64::from(self.high) * per_high + u64::from(self.low))?;
        (number < u64::MAX / segment_bytes - UNREACHED).then_some(number)
    }

    /// What orders segments of whatever timeline.
    pub fn position(&self) -> (u32, u32) {
        (self.high, self.low)
    }

    pub fn start(&self, segment_bytes: u64) -> Option<Lsn> {
        Some(Lsn(self.number(segment_bytes)? * segment_bytes))
    }

    /// The name that follows on the same timeline.
    pub fn next(&self, segment_bytes: u64) -> Option<SegmentName> {
        Some(SegmentName::new(self.timeline, self.number(segment_bytes)? + 1, segment_bytes))
    }
}

/// So many segments at the end of all positions are none: more than a roll-up has, so that the end of one is still a position.
const UNREACHED: u64 = 8192;

/// `XLogSegmentsPerXLogId`.
fn segments_per_high(segment_bytes: u64) -> u64 {
    0x1_0000_0000 / segment_bytes
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline, self.high, self.low)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not the name of a WAL segment, history, .partial or .backup file")]
pub struct NameError {
    pub text: String,
}

impl FromStr for SegmentName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = || NameError { text: text.into() };
        if text.len() != 24 || !is_upper_hex(text) {
            return Err(bad());
        }
        let part = |at: usize| u32::from_str_radix(&text[at..at + 8], 16).map_err(|_| bad());
        Ok(SegmentName { timeline: Timeline(part(0)?), high: part(8)?, low: part(16)? })
    }
}

impl Serialize for SegmentName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SegmentName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything that `archive_command` and `restore_command` are called with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFile {
    Segment(SegmentName),
    /// The last, unfinished segment of a timeline that was left by a promotion.
    Partial(SegmentName),
    History(Timeline),
    /// The beginning of a segment that a broken server was writing, saved by lastgood; the number is the CRC32C of the file. PostgreSQL's
    /// own `.partial` of the same segment may come later, with other bytes behind the end of the WAL.
    Torn(SegmentName, u32),
    /// A backup history file; the number is the offset of the start in its segment.
    Backup(SegmentName, u32),
}

impl WalFile {
    pub fn timeline(&self) -> Timeline {
        match self {
            WalFile::Segment(segment) | WalFile::Partial(segment) => segment.timeline,
            WalFile::Torn(segment, _) | WalFile::Backup(segment, _) => segment.timeline,
            WalFile::History(timeline) => *timeline,
        }
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalFile::Segment(segment) => write!(f, "{segment}"),
            WalFile::Partial(segment) => write!(f, "{segment}.partial"),
            WalFile::Torn(segment, crc) => write!(f, "{segment}.torn-{crc:08X}"),
            WalFile::History(timeline) => write!(f, "{timeline}.history"),
            WalFile::Backup(segment, offset) => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for WalFile {
    type Err = NameError;

    /// Exact names only: nothing is trimmed, and nothing is taken by its beginning (rule 34).
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = || NameError { text: text.into() };
        if let Some(timeline) = text.strip_suffix(".history") {
            return parse_hex8(timeline).map(|t| WalFile::History(Timeline(t))).ok_or_else(bad);
        }
        if let Some(segment) = text.strip_suffix(".partial") {
            return segment.parse().map(WalFile::Partial).map_err(|_| bad());
        }
        if let Some((segment, crc)) = text.split_once(".torn-") {
            let crc = parse_hex8(crc).ok_or_else(bad)?;
            return segment.parse().map(|s| WalFile::Torn(s, crc)).map_err(|_| bad());
        }
        if let Some(rest) = text.strip_suffix(".backup") {
            let (segment, offset) = rest.split_once('.').ok_or_else(bad)?;
            let offset = parse_hex8(offset).ok_or_else(bad)?;
            return segment.parse().map(|s| WalFile::Backup(s, offset)).map_err(|_| bad());
        }
        text.parse().map(WalFile::Segment)
    }
}

fn parse_hex8(text: &str) -> Option<u32> {
    (text.len() == 8 && is_upper_hex(text)).then(|| u32::from_str_radix(text, 16).ok())?
}

fn is_upper_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_name_reads_and_prints_the_same() {
        for text in [
            "0000000A00000001000000FF",
            "0000000A00000001000000FF.partial",
            "0000000A00000001000000FF.torn-00C0FFEE",
            "0000000A.history",
            "0000000A00000001000000FF.00000028.backup",
        ] {
            assert_eq!(text.parse::<WalFile>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "",
            "0000000a00000001000000ff",
            "0000000A00000001000000F",
            "0000000A00000001000000FF.",
            "A.history",
            "0000000A00000001000000FF.28.backup",
            "0000000A00000001000000FF.gz",
            "RECOVERYXLOG",
            "0000000A00000001000000FF.partial.partial",
        ] {
            assert!(text.parse::<WalFile>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_follow_the_segment_size() {
        for (bytes, low_of_last) in [(1u64 << 20, 0xFFF), (16 << 20, 0xFF), (1 << 30, 3)] {
            let last = SegmentName::new(Timeline(1), segments_per_high(bytes) - 1, bytes);
            assert_eq!(last.to_string(), format!("0000000100000000{low_of_last:08X}"));
            assert_eq!(last.next(bytes).unwrap().to_string(), "000000010000000100000000");
            assert_eq!(last.number(bytes), Some(segments_per_high(bytes) - 1));
        }
        let last: SegmentName = "00000001FFFFFFFF000000FF".parse().unwrap();
        assert_eq!((last.number(16 << 20), last.next(16 << 20)), (None, None), "nothing can be added to it");
        let foreign: SegmentName = "0000000100000000000000FF".parse().unwrap();
        assert_eq!(foreign.number(1 << 30), None);
    }
}
