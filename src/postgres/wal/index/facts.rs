//! What the records of one segment tell about a transaction.
//!
//! Facts only: what they mean is said by `timeline::events`, which sees all segments of a transaction and the catalogue.

use jiff::Timestamp;

use crate::postgres::lsn::Lsn;
use crate::postgres::wal::ended::DroppedStats;
use crate::postgres::wal::heap::ClassRow;
use crate::postgres::wal::reference::RelFileLocator;

/// Rows that a transaction which does nothing else must change in a relation, in the segment in which it ends, to be told of.
pub const FEW_ROWS: u64 = 50;
/// Transactions with the lowest ids of a segment whose ends are always kept. Who began earlier has one of the lowest ids: each id
/// below it that the segment mentions began earlier too, and no more can have been open at its start than ran then.
pub const EARLY_ENDS: usize = 128;

/// The facts of one (sub)transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    pub xid: u32,
    /// Its first record in this segment.
    pub first: Lsn,
    /// Database and OID of relations that it locked exclusively.
    pub locks: Vec<(u32, u32)>,
    /// Files that it made.
    pub created: Vec<RelFileLocator>,
    /// What it did to catalogs, in order.
    pub catalog: Vec<CatalogChange>,
    /// What it wrote.
    pub uses: Vec<Use>,
    /// Absent when it was open at the end of the segment, or is a part of another one.
    pub end: Option<End>,
    /// Something is missing here: there was more than is kept of one transaction.
    pub is_cut: bool,
}

/// What a transaction did to a relation file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    pub locator: RelFileLocator,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

impl Use {
    pub fn rows(&self) -> u64 {
        self.inserted.saturating_add(self.updated).saturating_add(self.deleted)
    }
}

/// OIDs of the catalogs whose rows are followed.
pub const PG_CLASS: u32 = 1259;
pub const PG_TYPE: u32 = 1247;
pub const PG_INDEX: u32 = 2610;
pub const PG_INHERITS: u32 = 2611;
/// Of these only what matters is kept: names that are given, and columns that are changed.
pub const PG_ATTRIBUTE: u32 = 1249;
pub const PG_DATABASE: u32 = 1262;
pub const PG_NAMESPACE: u32 = 2615;

/// Where a row lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPlace {
    pub database: u32,
    pub catalog: u32,
    pub block: u32,
    pub offset: u16,
}

/// A change of a row of a catalog. Followed from place to place, changes tell the rows that were born in a transaction from
/// those that it found, on every version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogChange {
    /// With the row where it is one of `pg_class` and can be read.
    Insert {
        at: RowPlace,
        row: Option<ClassRow>,
    },
    Update {
        from: RowPlace,
        to: RowPlace,
    },
    Delete {
        at: RowPlace,
    },
    /// A row of `pg_attribute` was updated; it is that of a dropped column then, or not.
    Column {
        database: u32,
        is_dropped: bool,
    },
    /// A row of `pg_database` (whose database is 0) or `pg_namespace` was made.
    Named {
        database: u32,
        catalog: u32,
        oid: u32,
        name: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub lsn: Lsn,
    pub time: Timestamp,
    pub is_commit: bool,
    pub is_prepared: bool,
    pub database: Option<u32>,
    pub subtransactions: Vec<u32>,
    /// Files that it removed.
    pub files: Vec<RelFileLocator>,
    pub dropped: Vec<DroppedStats>,
    pub is_cut: bool,
}

/// The end of a transaction of which this segment tells nothing else that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BriefEnd {
    pub xid: u32,
    pub lsn: Lsn,
    pub time: Timestamp,
    pub is_commit: bool,
    pub subtransactions: Vec<u32>,
}

impl Transaction {
    /// Whether it did anything but change rows.
    pub fn is_special(&self) -> bool {
        !self.locks.is_empty() || !self.created.is_empty() || !self.catalog.is_empty() || self.is_cut
    }
}

/// The order of transaction ids, which come round (`TransactionIdPrecedes`).
pub fn precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
