//! The index of a segment: what its records did, small enough to be kept beside it.
//!
//! # What
//! [`fold::Fold`] takes the pages of one segment and gives a [`SegmentIndex`] (and the summary that stands in the segment's trailer): positions and times, activity per minute, changed
//! blocks of every relation fork ([`changed`]), marks that belong to no transaction ([`Mark`]), and facts about transactions
//! ([`facts`]) from which `timeline::events` says what was dropped, truncated, rewritten or deleted.
//!
//! # One segment alone
//! An index is made from its segment and nothing else, so segments can be indexed in any order and by several at a time. What
//! reaches over a border is kept on both sides and put together when indexes are read one after another:
//! - a **record** that begins in one segment and ends in the next: its head and its rest ([`seam`]). It belongs to the segment
//!   in which it begins; put together it is a small index of its own, between the two.
//! - a **transaction**: its facts of each segment in which it was still open, and its end.
//!
//! # What is left out
//! Transactions of which nothing but small row counts is known ([`facts::FEW_ROWS`]). What had to be cut is said in
//! [`Cut`]; nothing is ever guessed.

pub mod changed;
mod codec;
mod collect;
pub mod encode;
pub mod facts;
pub mod fold;
pub mod proof;
pub mod seam;

pub use collect::MappedFiles;

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::replay::Boundary;
use super::storage::RelationMap;
use super::xlog::Parameters;
use crate::postgres::lsn::{Lsn, Timeline};
use changed::ChangedBlocks;
use facts::{BriefEnd, Transaction};
use seam::{Continuation, OpenRecord};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    pub major: u32,
    /// Of the first page.
    pub timeline: u32,
    /// Where the segment begins.
    pub start: Lsn,
    pub records: u64,
    /// Where the first and the last complete record begin.
    pub first_record: Option<Lsn>,
    pub last_record: Option<Lsn>,
    /// Where the WAL ends before the segment does, other than by a switch.
    pub ends_at: Option<Lsn>,
    pub activity: Activity,
    pub changed: ChangedBlocks,
    /// In the order of their LSNs.
    pub marks: Vec<Mark>,
    /// Those that ended in the order of their ends, then those that are open, by id.
    pub transactions: Vec<Transaction>,
    /// Ends of the transactions with the lowest ids, which may have begun in an earlier segment, unless they are among
    /// `transactions`.
    pub early_ends: Vec<BriefEnd>,
    /// The oldest transaction that ran when the server said so last (`xl_running_xacts`): what is older has ended.
    pub oldest_running: Option<u32>,
    /// The rest of a record that begins in the segment before.
    pub continuation: Option<Continuation>,
    /// The head of a record that ends in the next segment.
    pub open: Option<OpenRecord>,
    pub cut: Cut,
    /// Absent in indexes from before this was looked at.
    pub neighbour: Option<Neighbour>,
}

/// What the segment says of the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Neighbour {
    /// What the first record that begins here names as the one before it.
    pub previous: Option<Lsn>,
    /// The record that the segment before begins was never finished.
    pub overwrites: bool,
}

/// Rows of one relation, changed or deleted in one segment by one transaction, that are worth a second look.
const MANY_ROWS: u64 = 1000;

impl SegmentIndex {
    /// What the neighbours must agree to; `None` where nobody looked.
    pub fn boundary(&self) -> Option<Boundary> {
        let Neighbour { previous, overwrites } = self.neighbour?;
        Some(Boundary::new(previous, overwrites, self.continuation.as_ref(), self.open.as_ref()))
    }

    /// Whether a closer look may find that something was destroyed here, or began to be: cheap, and never wrongly `false` but for
    /// fewer than [`MANY_ROWS`] rows.
    pub fn may_destroy(&self) -> bool {
        let mark = |mark: &Mark| {
            matches!(mark.what, What::DatabaseInvalid { .. } | What::DatabaseDropped { .. } | What::TablespaceDropped { .. })
        };
        let transaction = |facts: &Transaction| {
            let leaves = facts.end.as_ref().is_some_and(|end| !end.files.is_empty() || !end.dropped.is_empty() || end.is_cut);
            let rows = facts.uses.iter().any(|used| used.updated.saturating_add(used.deleted) >= MANY_ROWS);
            leaves || rows || facts.is_cut || !facts.locks.is_empty()
        };
        self.cut.transactions || self.marks.iter().any(mark) || self.transactions.iter().any(transaction)
    }
}

/// Ends of transactions, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activity {
    pub commits: u64,
    pub aborts: u64,
    /// Commit times do not rise strictly with LSN.
    pub earliest: Option<Timestamp>,
    pub latest: Option<Timestamp>,
    /// Commits and aborts by minute since 1970.
    pub minutes: BTreeMap<i64, (u32, u32)>,
}

impl Activity {
    fn add(&mut self, time: Timestamp, is_commit: bool) {
        let (commits, aborts) = self.minutes.entry(time.as_second().div_euclid(60)).or_default();
        if is_commit {
            (self.commits, *commits) = (self.commits + 1, *commits + 1);
        } else {
            (self.aborts, *aborts) = (self.aborts + 1, *aborts + 1);
        }
        self.earliest = Some(self.earliest.map_or(time, |known| known.min(time)));
        self.latest = Some(self.latest.map_or(time, |known| known.max(time)));
    }
}

/// A record that means something by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub lsn: Lsn,
    pub xid: u32,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Checkpoint {
        shutdown: bool,
        redo: Lsn,
        time: Timestamp,
    },
    RestorePoint {
        time: Timestamp,
        name: String,
    },
    ParameterChange(Parameters),
    EndOfRecovery {
        time: Timestamp,
        timeline: Timeline,
        previous_timeline: Timeline,
    },
    /// Changes were made that WAL does not hold: an index of changed blocks over this position proves nothing.
    MinimalWal,
    DatabaseCreated {
        oid: u32,
        tablespace: u32,
        logged: bool,
    },
    /// `pg_database.datconnlimit` became -2 in place: the beginning of DROP DATABASE.
    DatabaseInvalid {
        oid: u32,
    },
    /// The files are removed.
    DatabaseDropped {
        oid: u32,
        tablespaces: Vec<u32>,
    },
    TablespaceCreated {
        oid: u32,
        location: String,
    },
    TablespaceDropped {
        oid: u32,
    },
    /// Mapped catalogs got other files.
    RelationMap(RelationMap),
}

/// What was more than an index holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Facts of transactions are missing.
    pub transactions: bool,
    /// Relation files are missing: the changed blocks prove nothing.
    pub blocks: bool,
}

/// Why there is no index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoIndex {
    #[error("the record at {lsn} is not built as PostgreSQL 13 to 18 build records")]
    Malformed { lsn: Lsn },
    #[error("the segment holds no WAL of PostgreSQL 13 to 18")]
    NoWal,
    #[error("the index is damaged: {what}")]
    Damaged { what: &'static str },
    #[error("the index would be {bytes} bytes long")]
    TooLong { bytes: usize },
    #[error("no index could be made of it when it was rolled up")]
    NeverMade,
    #[error("it is not kept on this host, and the configured key is a writer's, which cannot open the archive's")]
    Sealed,
    #[error("the index has version {version}, which this lastgood does not know")]
    Newer { version: u64 },
}
