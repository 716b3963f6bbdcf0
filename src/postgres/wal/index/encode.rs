//! An index as bytes: numbers of variable length, differences instead of positions. Whoever keeps it compresses it.
//!
//! # Layout
//! The version, then the fields of [`SegmentIndex`] in the order in which they are declared, nested ones in place.
//! A number is LEB128: seven bits a byte, the lowest first, the high bit says that more follow. A signed one is zigzag. Lists have
//! their length in front, an optional value a byte 0 or 1. LSNs, times, transaction ids and relation files are signed differences
//! to the last of their kind that was written before, wherever that was; the first to 0.
//!
//! Reading never panics, and takes no more memory than the bytes it was given can stand for.

use super::changed::{Change, ChangedBlocks, Fork};
use super::codec::{Coded, In, Out, Read, Xid, damaged};
use super::facts::{BriefEnd, CatalogChange, End, RowPlace, Transaction, Use};
use super::seam::{Continuation, Kept, OpenRecord};
use super::{Activity, Cut, Mark, Neighbour, NoIndex, SegmentIndex, What};
use crate::postgres::wal::ended::DroppedStats;
use crate::postgres::wal::heap::ClassRow;
use crate::postgres::wal::storage::RelationMap;
use crate::postgres::wal::xlog::Parameters;

/// The first had no [`Neighbour`], the second no columns and names among the changes of catalogs.
const VERSION: u64 = 3;
/// An index that would be longer is not made: the segment is read itself where it is wanted.
const MAX_BYTES: usize = 16 << 20;

/// Fields in their order, each as its type is written.
macro_rules! fields {
    ($($type:ident { $($field:ident),* })*) => {$(
        impl Coded for $type {
            fn put(&self, out: &mut Out) {
                $(self.$field.put(out);)*
            }
            fn get(from: &mut In) -> Read<Self> {
                Ok($type { $($field: Coded::get(from)?),* })
            }
        }
    )*};
}

fields! {
    Activity { commits, aborts, earliest, latest, minutes }
    Parameters {
        max_connections, max_worker_processes, max_wal_senders, max_prepared_transactions, max_locks_per_transaction, wal_level,
        wal_log_hints, track_commit_timestamp
    }
    RelationMap { database, tablespace, mappings }
    ChangedBlocks { forks, databases }
    Fork { locator, fork }
    Use { locator, inserted, updated, deleted }
    RowPlace { database, catalog, block, offset }
    ClassRow { oid, name, namespace, filenode, persistence, kind }
    DroppedStats { kind, database, object }
    Continuation { kept, crc, crc_8, crc_16, is_end }
    Cut { transactions, blocks }
    Neighbour { previous, overwrites }
}

/// Fields in their order, and what only some versions have at the end.
macro_rules! index {
    ($($field:ident),*; $($later:ident),*) => {
        impl SegmentIndex {
            fn put(&self, out: &mut Out) {
                $(self.$field.put(out);)*
                $(self.$later.put(out);)*
            }
            fn get(from: &mut In, version: u64) -> Read<Self> {
                $(let $field = Coded::get(from)?;)*
                $(let $later = if version > 1 { Coded::get(from)? } else { None };)*
                Ok(SegmentIndex { $($field,)* $($later),* })
            }
        }
    };
}

index! {
    major, timeline, start, records, first_record, last_record, ends_at, activity, changed, marks, transactions, early_ends,
    oldest_running, continuation, open, cut; neighbour
}

impl Coded for Kept {
    fn put(&self, out: &mut Out) {
        self.bytes.put(out);
        out.raw(&self.front);
        out.raw(&self.back);
    }

    fn get(from: &mut In) -> Read<Self> {
        Ok(Kept { bytes: Coded::get(from)?, front: from.raw()?, back: from.raw()? })
    }
}

impl Coded for OpenRecord {
    fn put(&self, out: &mut Out) {
        self.lsn.put(out);
        self.total.put(out);
        out.raw(&self.header);
        self.crc.put(out);
        self.payload.put(out);
    }

    fn get(from: &mut In) -> Read<Self> {
        let (lsn, total) = (Coded::get(from)?, Coded::get(from)?);
        Ok(OpenRecord { lsn, total, header: from.raw()?, crc: Coded::get(from)?, payload: Coded::get(from)? })
    }
}

/// The first block's distance from the end of the stretch before, doubled, and 1 added when the number of further blocks follows.
impl Coded for Change {
    fn put(&self, out: &mut Out) {
        self.limit.put(out);
        out.number(self.ranges.len() as u64);
        let mut at = 0;
        for (first, last) in &self.ranges {
            let more = u64::from(last - first);
            out.number((u64::from(*first) - at) << 1 | u64::from(more > 0));
            if more > 0 {
                out.number(more);
            }
            at = u64::from(*last);
        }
    }

    fn get(from: &mut In) -> Read<Self> {
        let limit = Coded::get(from)?;
        let (mut at, mut ranges) = (0u64, Vec::new());
        for _ in 0..from.count()? {
            let number = from.number()?;
            let first = at + (number >> 1);
            at = first.saturating_add(if number & 1 == 1 { from.number()? } else { 0 });
            match (u32::try_from(first), u32::try_from(at)) {
                (Ok(first), Ok(last)) => ranges.push((first, last)),
                _ => return damaged("a block beyond all files"),
            }
        }
        Ok(Change { limit, ranges })
    }
}

fn put_xids(xids: &[u32], out: &mut Out) {
    out.number(xids.len() as u64);
    xids.iter().for_each(|xid| Xid(*xid).put(out));
}

fn get_xids(from: &mut In) -> Read<Vec<u32>> {
    (0..from.count()?).map(|_| Ok(Xid::get(from)?.0)).collect()
}

impl Coded for BriefEnd {
    fn put(&self, out: &mut Out) {
        Xid(self.xid).put(out);
        self.lsn.put(out);
        self.time.put(out);
        self.is_commit.put(out);
        put_xids(&self.subtransactions, out);
    }

    fn get(from: &mut In) -> Read<Self> {
        let (xid, lsn, time) = (Xid::get(from)?.0, Coded::get(from)?, Coded::get(from)?);
        Ok(BriefEnd { xid, lsn, time, is_commit: Coded::get(from)?, subtransactions: get_xids(from)? })
    }
}

impl Coded for End {
    fn put(&self, out: &mut Out) {
        self.lsn.put(out);
        self.time.put(out);
        (self.is_commit, self.is_prepared).put(out);
        self.database.put(out);
        put_xids(&self.subtransactions, out);
        self.files.put(out);
        self.dropped.put(out);
        self.is_cut.put(out);
    }

    fn get(from: &mut In) -> Read<Self> {
        let (lsn, time) = (Coded::get(from)?, Coded::get(from)?);
        let ((is_commit, is_prepared), database) = (Coded::get(from)?, Coded::get(from)?);
        let (subtransactions, files) = (get_xids(from)?, Coded::get(from)?);
        let (dropped, is_cut) = (Coded::get(from)?, Coded::get(from)?);
        Ok(End { lsn, time, is_commit, is_prepared, database, subtransactions, files, dropped, is_cut })
    }
}

impl Coded for Transaction {
    fn put(&self, out: &mut Out) {
        Xid(self.xid).put(out);
        self.first.put(out);
        self.locks.put(out);
        self.created.put(out);
        self.catalog.put(out);
        self.uses.put(out);
        self.end.put(out);
        self.is_cut.put(out);
    }

    fn get(from: &mut In) -> Read<Self> {
        let (xid, first, locks) = (Xid::get(from)?.0, Coded::get(from)?, Coded::get(from)?);
        let (created, catalog) = (Coded::get(from)?, Coded::get(from)?);
        let (uses, end, is_cut) = (Coded::get(from)?, Coded::get(from)?, Coded::get(from)?);
        Ok(Transaction { xid, first, locks, created, catalog, uses, end, is_cut })
    }
}

impl Coded for CatalogChange {
    fn put(&self, out: &mut Out) {
        match self {
            CatalogChange::Insert { at, row } => {
                out.number(0);
                at.put(out);
                row.put(out);
            }
            CatalogChange::Update { from, to } => {
                out.number(1);
                from.put(out);
                to.put(out);
            }
            CatalogChange::Delete { at } => {
                out.number(2);
                at.put(out);
            }
            CatalogChange::Column { database, is_dropped } => {
                out.number(3);
                database.put(out);
                is_dropped.put(out);
            }
            CatalogChange::Named { database, catalog, oid, name } => {
                out.number(4);
                [database, catalog, oid].into_iter().for_each(|number| number.put(out));
                name.put(out);
            }
        }
    }

    fn get(from: &mut In) -> Read<Self> {
        Ok(match from.number()? {
            0 => CatalogChange::Insert { at: Coded::get(from)?, row: Coded::get(from)? },
            1 => CatalogChange::Update { from: Coded::get(from)?, to: Coded::get(from)? },
            2 => CatalogChange::Delete { at: Coded::get(from)? },
            3 => CatalogChange::Column { database: Coded::get(from)?, is_dropped: Coded::get(from)? },
            4 => {
                let (database, catalog, oid) = (Coded::get(from)?, Coded::get(from)?, Coded::get(from)?);
                CatalogChange::Named { database, catalog, oid, name: Coded::get(from)? }
            }
            _ => return damaged("an unknown change of a catalog"),
        })
    }
}

impl Coded for Mark {
    fn put(&self, out: &mut Out) {
        self.lsn.put(out);
        Xid(self.xid).put(out);
        self.what.put(out);
    }

    fn get(from: &mut In) -> Read<Self> {
        Ok(Mark { lsn: Coded::get(from)?, xid: Xid::get(from)?.0, what: Coded::get(from)? })
    }
}

/// One after the other, so that each is written before the next.
macro_rules! tagged {
    ($out:ident, $tag:literal, $($field:ident),*) => {{
        $out.number($tag);
        $($field.put($out);)*
    }};
}

impl Coded for What {
    fn put(&self, out: &mut Out) {
        match self {
            What::Checkpoint { shutdown, redo, time } => tagged!(out, 0, shutdown, redo, time),
            What::RestorePoint { time, name } => tagged!(out, 1, time, name),
            What::ParameterChange(parameters) => tagged!(out, 2, parameters),
            What::EndOfRecovery { time, timeline, previous_timeline } => tagged!(out, 3, time, timeline, previous_timeline),
            What::MinimalWal => out.number(4),
            What::DatabaseCreated { oid, tablespace, logged } => tagged!(out, 5, oid, tablespace, logged),
            What::DatabaseInvalid { oid } => tagged!(out, 6, oid),
            What::DatabaseDropped { oid, tablespaces } => tagged!(out, 7, oid, tablespaces),
            What::TablespaceCreated { oid, location } => tagged!(out, 8, oid, location),
            What::TablespaceDropped { oid } => tagged!(out, 9, oid),
            What::RelationMap(map) => tagged!(out, 10, map),
        }
    }

    fn get(from: &mut In) -> Read<Self> {
        Ok(match from.number()? {
            0 => What::Checkpoint { shutdown: Coded::get(from)?, redo: Coded::get(from)?, time: Coded::get(from)? },
            1 => What::RestorePoint { time: Coded::get(from)?, name: Coded::get(from)? },
            2 => What::ParameterChange(Coded::get(from)?),
            3 => {
                let (time, timeline) = (Coded::get(from)?, Coded::get(from)?);
                What::EndOfRecovery { time, timeline, previous_timeline: Coded::get(from)? }
            }
            4 => What::MinimalWal,
            5 => What::DatabaseCreated { oid: Coded::get(from)?, tablespace: Coded::get(from)?, logged: Coded::get(from)? },
            6 => What::DatabaseInvalid { oid: Coded::get(from)? },
            7 => What::DatabaseDropped { oid: Coded::get(from)?, tablespaces: Coded::get(from)? },
            8 => What::TablespaceCreated { oid: Coded::get(from)?, location: Coded::get(from)? },
            9 => What::TablespaceDropped { oid: Coded::get(from)? },
            10 => What::RelationMap(Coded::get(from)?),
            _ => return damaged("an unknown mark"),
        })
    }
}

impl SegmentIndex {
    pub fn to_bytes(&self) -> Result<Vec<u8>, NoIndex> {
        let mut out = Out::default();
        out.number(VERSION);
        self.put(&mut out);
        if out.bytes.len() > MAX_BYTES {
            return Err(NoIndex::TooLong { bytes: out.bytes.len() });
        }
        Ok(out.bytes)
    }

    /// Reads what [`SegmentIndex::to_bytes`] wrote.
    pub fn parse(raw: &[u8]) -> Result<SegmentIndex, NoIndex> {
        let mut from = In::new(raw);
        let version = from.number()?;
        if !(1..=VERSION).contains(&version) {
            return Err(NoIndex::Newer { version });
        }
        let index = SegmentIndex::get(&mut from, version)?;
        if from.is_empty() { Ok(index) } else { damaged("it goes on behind its end") }
    }
}
