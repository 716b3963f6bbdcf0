//! Ends of transactions, with all that their records carry.
//!
//! Source: `src/include/access/xact.h` (`xl_xact_commit`, `xl_xact_abort`, `XACT_XINFO_*`, `xl_xact_stats_item`),
//! `src/backend/access/rmgrdesc/xactdesc.c` (`ParseCommitRecord`).

use jiff::Timestamp;

use super::fields::{Fields, u32_of};
use super::manager;
use super::reader::Record;
use super::reference::{RelFileLocator, main_data};
use super::transaction::timestamp;

/// An object whose statistics are dropped (15 and later): `PGSTAT_KIND_DATABASE` is 1, `PGSTAT_KIND_RELATION` 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DroppedStats {
    pub kind: u32,
    pub database: u32,
    pub object: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Of a prepared transaction its own, not the one of the record.
    pub xid: u32,
    pub is_commit: bool,
    pub is_prepared: bool,
    pub time: Timestamp,
    /// Where it ran; `None` when the record does not say.
    pub database: Option<u32>,
    pub subtransactions: Vec<u32>,
    /// Files that are removed.
    pub files: Vec<RelFileLocator>,
    pub dropped: Vec<DroppedStats>,
    /// The record was longer than what is kept of one: the lists may be shorter than they were.
    pub is_cut: bool,
}

/// A commit or an abort; `None` for other records, and for what is not built as we know it.
pub fn ended(record: &Record) -> Option<Ended> {
    if record.resource_manager != manager::TRANSACTION {
        return None;
    }
    let (is_commit, is_prepared) = match record.info & 0x70 {
        0x00 => (true, false),
        0x20 => (false, false),
        0x30 => (true, true),
        0x40 => (false, true),
        _ => return None,
    };
    let cut = record.is_cut();
    let mut main = Fields(main_data(record)?);
    let time = timestamp(main.bytes(8)?)?;
    let mut ended = Ended {
        xid: record.xid,
        is_commit,
        is_prepared,
        time,
        database: None,
        subtransactions: Vec::new(),
        files: Vec::new(),
        dropped: Vec::new(),
        is_cut: cut,
    };
    // XLOG_XACT_HAS_INFO
    let info = if record.info & 0x80 != 0 { main.u32()? } else { 0 };
    match ended.parts(&mut main, info, record.major, cut) {
        Some(()) => Some(ended),
        // What was read before the cut is true.
        None => cut.then_some(ended),
    }
}

impl Ended {
    fn parts(&mut self, main: &mut Fields, info: u32, major: u32, cut: bool) -> Option<()> {
        let has = |bit: u32| info & (1 << bit) != 0;
        if has(0) {
            self.database = Some(main.u32()?);
            main.u32()?;
        }
        if has(1) {
            self.subtransactions = main.array::<4>(cut)?.iter().map(|item| u32_of(item, 0)).collect();
        }
        if has(2) {
            self.files = main.array::<12>(cut)?.iter().map(RelFileLocator::of).collect();
        }
        if has(8) {
            self.dropped = dropped_stats(main, major, cut)?;
        }
        // Invalidation messages.
        if has(3) {
            main.array::<16>(cut)?;
        }
        if has(4) {
            let prepared = main.u32()?;
            if self.is_prepared {
                self.xid = prepared;
            }
        }
        Some(())
    }
}

fn dropped_stats(main: &mut Fields, major: u32, cut: bool) -> Option<Vec<DroppedStats>> {
    let read = |item: &[u8]| {
        let mut item = Fields(item);
        Some(DroppedStats { kind: item.u32()?, database: item.u32()?, object: item.u32()? })
    };
    // The object grew from 4 to 8 bytes in 18, low half first; a relation's or database's is an OID still.
    if major >= 18 {
        main.array::<16>(cut)?.iter().map(|item| read(item)).collect()
    } else {
        main.array::<12>(cut)?.iter().map(|item| read(item)).collect()
    }
}
