//! What happened, from the indexes of segments read one after another.
//!
//! [`Events`] takes indexes in the order of the WAL and gives [`Event`]s. Transactions that are open at the end of a segment are
//! carried over; so is a record that crosses the border. After a gap everything open is forgotten, and what ends then is told from
//! what is known of it, marked as incomplete.
//!
//! # Exact targets
//! A transaction did not happen when recovery stops before its COMMIT record. Files of databases and tablespaces are removed by
//! records of their own, whatever becomes of the transaction: there the target is the earlier record, and for DROP DATABASE the
//! one that marked the database as invalid (minor versions since August 2023 write it).

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::catalogue::Names;
use super::classify::{Deed, Facts};
use crate::postgres::catalogue::Database;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::index::facts::{BriefEnd, End, Transaction, Use, precedes};
use crate::postgres::wal::index::seam::Seam;
use crate::postgres::wal::index::{MappedFiles, Mark, NoIndex, SegmentIndex, What};
use crate::postgres::wal::xlog::Parameters;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The first record of it that is known.
    pub first: Lsn,
    /// The COMMIT record; for what is no transaction, the record itself.
    pub lsn: Lsn,
    /// Recovery to here, exclusive, is just before it.
    pub target: Lsn,
    /// When it committed. A checkpoint's and a restore point's own time; absent where no record tells.
    pub time: Option<Timestamp>,
    /// 0 for what is no transaction.
    pub xid: u32,
    pub subtransactions: Vec<u32>,
    pub what: Happened,
    /// What the same transaction did to rows of other relations.
    pub beside: Vec<Use>,
    /// Facts may be missing: there was a gap, or more than is kept.
    pub is_incomplete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    Relations(Deed),
    DatabaseDropped {
        oid: u32,
        tablespaces: Vec<u32>,
        /// Only its files in these tablespaces went: ALTER DATABASE SET TABLESPACE.
        moved: bool,
    },
    DatabaseCreated {
        oid: u32,
        tablespace: u32,
    },
    TablespaceDropped {
        oid: u32,
    },
    TablespaceCreated {
        oid: u32,
        location: String,
    },
    RestorePoint {
        name: String,
    },
    Checkpoint {
        shutdown: bool,
    },
    ParameterChange(Parameters),
    EndOfRecovery {
        timeline: Timeline,
        previous_timeline: Timeline,
    },
    /// A transaction committed that began before what was read: it may have done anything until then.
    BegunBefore,
}

impl Event {
    /// A record that means something by itself; what, the caller says.
    fn at(mark: &Mark, time: Option<Timestamp>) -> Event {
        let (lsn, xid, what) = (mark.lsn, mark.xid, Happened::Checkpoint { shutdown: false });
        let (subtransactions, beside) = (Vec::new(), Vec::new());
        Event { first: lsn, lsn, target: lsn, time, xid, subtransactions, what, beside, is_incomplete: false }
    }
}

/// Reads indexes into events.
#[derive(Debug)]
pub struct Events {
    /// Rows of one relation that are worth an event.
    many: u64,
    open: HashMap<u32, Facts>,
    /// Marks of transactions that did not end yet.
    marks: BTreeMap<u32, Vec<Mark>>,
    /// Where databases became invalid.
    invalid: HashMap<u32, Lsn>,
    /// Tablespaces into which databases were copied.
    copied: HashMap<u32, Vec<u32>>,
    seam: Option<Seam>,
    mapped: MappedFiles,
    /// Where the next segment begins.
    next: Option<Lsn>,
    /// Where a gap ended last: what is first seen within a segment from there may have begun in the gap.
    gap_before: Option<Lsn>,
    /// The oldest transaction that ended in the first segment behind a gap. One that is older still and ends in a later segment began
    /// before the gap's end.
    floor: Option<u32>,
    segment_bytes: u64,
    names: Names,
    found: Vec<Event>,
}

impl Events {
    pub fn new(segment_bytes: u64, many: u64, names: Names) -> Events {
        Events {
            many,
            open: HashMap::new(),
            marks: BTreeMap::new(),
            invalid: HashMap::new(),
            copied: HashMap::new(),
            seam: None,
            mapped: MappedFiles::new(),
            next: None,
            gap_before: None,
            floor: None,
            segment_bytes,
            names,
            found: Vec::new(),
        }
    }

    /// Whether a transaction is open that may turn out to have destroyed something.
    pub fn has_work(&self) -> bool {
        !self.marks.is_empty() || self.open.values().any(|facts| facts.may_destroy(self.many))
    }

    /// Names as they are after what was read so far.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Names as they are after what was read.
    pub fn into_names(self) -> Names {
        self.names
    }

    /// Takes the index of the next segment. An error tells that the record that crosses into it could not be put together; all
    /// else of the segment was taken in nevertheless.
    pub fn add(&mut self, index: &SegmentIndex) -> Result<(), NoIndex> {
        let is_first = self.next != Some(index.start);
        if is_first {
            self.forget(index.start);
        }
        self.next = Some(Lsn(index.start.0.saturating_add(self.segment_bytes)));
        let crossed = self.cross(index);
        if index.cut.transactions {
            self.gap_before = Some(index.last_record.unwrap_or(index.start));
        }
        self.take(index);
        if is_first {
            let of_facts = index.transactions.iter().filter(|facts| facts.end.is_some()).map(|facts| facts.xid);
            let ended = of_facts.chain(index.early_ends.iter().map(|end| end.xid));
            self.floor = ended.filter(|xid| *xid != 0).reduce(|oldest, xid| if precedes(xid, oldest) { xid } else { oldest });
        }
        if let Some(lsn) = index.ends_at {
            // What follows in this segment nobody could read.
            self.gap_before = Some(lsn);
        }
        if let Some(open) = &index.open {
            self.seam = Some(Seam::new(open.clone(), index.major));
        }
        crossed
    }

    /// The segment before this position is not known.
    fn forget(&mut self, start: Lsn) {
        (self.seam, self.gap_before, self.floor) = (None, Some(start), None);
        self.open.clear();
        self.marks.clear();
    }

    fn cross(&mut self, index: &SegmentIndex) -> Result<(), NoIndex> {
        let (Some(head), Some(continuation)) = (self.seam.take(), &index.continuation) else { return Ok(()) };
        let lost = NoIndex::Malformed { lsn: head.lsn() };
        let continued = head.continued(continuation).ok_or(lost)?;
        if continuation.is_end {
            let between = continued.finish(&self.mapped)?;
            self.take(&between);
        } else {
            self.seam = Some(continued);
        }
        Ok(())
    }

    fn take(&mut self, index: &SegmentIndex) {
        for mark in &index.marks {
            self.mark(mark);
        }
        for facts in &index.transactions {
            self.open.entry(facts.xid).or_default().add(facts, index.major);
            if let Some(end) = &facts.end {
                self.end(facts, end);
            }
        }
        for end in &index.early_ends {
            self.early_end(end, index.major);
        }
        if let Some(oldest) = index.oldest_running {
            // Ended where no index tells: rolled back, or in a gap.
            self.open.retain(|xid, _| !precedes(*xid, oldest));
        }
    }

    fn early_end(&mut self, brief: &BriefEnd, major: u32) {
        let BriefEnd { xid, lsn, time, is_commit, subtransactions } = brief.clone();
        let is_known = self.open.contains_key(&xid) || self.marks.contains_key(&xid);
        let is_old = is_commit && self.began_before(xid);
        if !is_known && !is_old && !subtransactions.iter().any(|part| self.open.contains_key(part)) {
            return;
        }
        let end = End {
            lsn,
            time,
            is_commit,
            is_prepared: false,
            database: None,
            subtransactions,
            files: Vec::new(),
            dropped: Vec::new(),
            is_cut: false,
        };
        let facts = Transaction { xid, first: lsn, ..Transaction::default() };
        self.open.entry(xid).or_default().add(&facts, major);
        self.end(&facts, &end);
    }

    fn began_before(&self, xid: u32) -> bool {
        // Commits without an id began no transaction.
        xid != 0 && self.floor.is_some_and(|floor| precedes(xid, floor))
    }

    fn end(&mut self, own: &Transaction, end: &End) {
        let mut facts = self.open.remove(&own.xid).unwrap_or_default();
        let mut marks = self.marks.remove(&own.xid).unwrap_or_default();
        for xid in &end.subtransactions {
            if let Some(part) = self.open.remove(xid) {
                facts.join(part);
            }
            marks.extend(self.marks.remove(xid).unwrap_or_default());
        }
        let first = facts.first.unwrap_or(end.lsn);
        let is_incomplete = facts.is_cut
            || end.is_cut
            || self.began_before(own.xid)
            || self.gap_before.is_some_and(|gap| first.0.saturating_sub(gap.0) < self.segment_bytes);
        let base = Event {
            first,
            lsn: end.lsn,
            target: end.lsn,
            time: Some(end.time),
            xid: own.xid,
            subtransactions: end.subtransactions.clone(),
            what: Happened::Checkpoint { shutdown: false },
            beside: Vec::new(),
            is_incomplete,
        };
        for mark in &marks {
            // What a rolled back transaction did to whole directories was done nevertheless.
            if end.is_commit || self.was_there(&mark.what) {
                self.directories(mark, &base);
            }
        }
        if !end.is_commit {
            return;
        }
        let deeds = facts.deeds(end, self.many, &self.names);
        self.learn(&facts, &deeds, end);
        if deeds.is_empty() && self.began_before(own.xid) {
            self.found.push(Event { what: Happened::BegunBefore, ..base.clone() });
        }
        for deed in deeds {
            let beside = match &deed {
                Deed::Drop { only_indexes: true, .. } | Deed::Rebuild { .. } | Deed::Rows { .. } => Vec::new(),
                Deed::Drop { files, .. } | Deed::Truncate { files, .. } | Deed::Rewrite { files, .. } => {
                    facts.beside(files, &self.names)
                }
                Deed::DropColumns { .. } | Deed::Detach { .. } => facts.beside(&[], &self.names),
            };
            self.found.push(Event { what: Happened::Relations(deed), beside, ..base.clone() });
        }
    }

    /// Names and files as they are after a transaction.
    fn learn(&mut self, facts: &Facts, deeds: &[Deed], end: &End) {
        let names = &mut self.names;
        for (database, catalog, oid, name) in facts.named() {
            names.learn_name(database, catalog, oid, name);
        }
        for deed in deeds {
            if let Deed::Truncate { files, .. } | Deed::Rebuild { files } = deed {
                files.iter().for_each(|file| names.replaced(*file));
            }
        }
        for (database, oid, file) in facts.moved() {
            names.moved(database, oid, file);
        }
        for (database, row) in facts.born() {
            let tablespace = facts.tablespace_of(database, row.filenode);
            names.learn(database, tablespace, &row);
        }
        end.dropped.iter().for_each(|item| names.dropped((item.database, item.object)));
    }

    /// Whether a transaction that was rolled back removed what others had made. CREATE DATABASE that fails removes its own copy, and so
    /// does ALTER DATABASE SET TABLESPACE.
    fn was_there(&self, what: &What) -> bool {
        match what {
            What::DatabaseDropped { oid, tablespaces } => {
                let is_home = |database: &Database| tablespaces.contains(&database.tablespace);
                self.invalid.contains_key(oid) || self.names.database(*oid).is_some_and(is_home)
            }
            What::TablespaceDropped { .. } => true,
            _ => false,
        }
    }

    /// Databases and tablespaces, at the end of the transaction.
    fn directories(&mut self, mark: &Mark, base: &Event) {
        let (what, target) = match &mark.what {
            What::DatabaseDropped { oid, tablespaces } => {
                let invalid = self.invalid.remove(oid);
                // DROP DATABASE has an id; to move one, and to fail in it, takes none.
                let is_elsewhere = |copies: &Vec<u32>| !copies.iter().all(|copy| tablespaces.contains(copy));
                let moved = invalid.is_none() && (base.xid == 0 || self.copied.get(oid).is_some_and(is_elsewhere));
                (Happened::DatabaseDropped { oid: *oid, tablespaces: tablespaces.clone(), moved }, invalid.unwrap_or(mark.lsn))
            }
            What::DatabaseCreated { oid, tablespace, .. } => {
                self.names.made_database(*oid, *tablespace);
                (Happened::DatabaseCreated { oid: *oid, tablespace: *tablespace }, base.target)
            }
            What::TablespaceDropped { oid } => (Happened::TablespaceDropped { oid: *oid }, mark.lsn),
            What::TablespaceCreated { oid, location } => {
                (Happened::TablespaceCreated { oid: *oid, location: location.clone() }, base.target)
            }
            _ => return,
        };
        self.found.push(Event { what, target, first: base.first.min(target), ..base.clone() });
    }

    fn mark(&mut self, mark: &Mark) {
        let Mark { lsn, xid, what } = mark;
        let (time, what) = match what {
            What::Checkpoint { shutdown, time, .. } => (Some(*time), Happened::Checkpoint { shutdown: *shutdown }),
            What::RestorePoint { time, name } => (Some(*time), Happened::RestorePoint { name: name.clone() }),
            What::ParameterChange(parameters) => (None, Happened::ParameterChange(*parameters)),
            What::EndOfRecovery { time, timeline, previous_timeline } => {
                (Some(*time), Happened::EndOfRecovery { timeline: *timeline, previous_timeline: *previous_timeline })
            }
            What::DatabaseInvalid { oid } => {
                self.invalid.insert(*oid, *lsn);
                return;
            }
            What::RelationMap(map) => {
                self.mapped.extend(map.mappings.iter().map(|(oid, number)| ((map.database, *oid), *number)));
                return;
            }
            What::MinimalWal => return,
            What::DatabaseCreated { oid, tablespace, .. } => {
                self.copied.entry(*oid).or_default().push(*tablespace);
                return self.marks.entry(*xid).or_default().push(mark.clone());
            }
            // ALTER DATABASE SET TABLESPACE removes files in a transaction that has no id.
            What::DatabaseDropped { .. } if *xid == 0 => return self.directories(mark, &Event::at(mark, None)),
            What::DatabaseDropped { .. } | What::TablespaceCreated { .. } | What::TablespaceDropped { .. } => {
                return self.marks.entry(*xid).or_default().push(mark.clone());
            }
        };
        self.found.push(Event { what, ..Event::at(mark, time) });
    }

    /// What was found since, in the order of the LSNs.
    pub fn drain(&mut self) -> Vec<Event> {
        self.found.sort_by_key(|event| event.lsn);
        std::mem::take(&mut self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::wal::index::seam::{Continuation, Kept, OpenRecord};

    const BYTES: u64 = 1 << 20;

    fn index(number: u64, transactions: Vec<Transaction>) -> SegmentIndex {
        SegmentIndex { major: 15, start: Lsn(number * BYTES), transactions, ..SegmentIndex::default() }
    }

    /// A transaction that removes a file and commits at the end of segment `number`.
    fn dropping(number: u64) -> Transaction {
        let file = crate::postgres::wal::reference::RelFileLocator { tablespace: 1663, database: 5, number: 16384 };
        let end = End {
            lsn: Lsn((number + 1) * BYTES - 100),
            time: Timestamp::UNIX_EPOCH,
            is_commit: true,
            is_prepared: false,
            database: Some(5),
            subtransactions: Vec::new(),
            files: vec![file],
            dropped: Vec::new(),
            is_cut: false,
        };
        Transaction { xid: 7, first: Lsn(number * BYTES + 5000), end: Some(end), ..Transaction::default() }
    }

    fn told(indexes: &[SegmentIndex]) -> Vec<Event> {
        let mut events = Events::new(BYTES, 1000, Names::default());
        indexes.iter().for_each(|index| events.add(index).unwrap());
        events.drain()
    }

    #[test]
    fn behind_a_gap_nothing_is_pieced_together_with_what_was_before() {
        let begun = Transaction { xid: 7, first: Lsn(3 * BYTES + 5000), locks: vec![(5, 16384)], ..Transaction::default() };
        let whole = told(&[index(3, vec![begun.clone()]), index(4, vec![dropping(4)])]);
        assert_eq!((whole.len(), whole[0].first, whole[0].is_incomplete), (1, Lsn(3 * BYTES + 5000), true), "{whole:?}");
        let whole = told(&[index(2, Vec::new()), index(3, vec![begun.clone()]), index(4, vec![dropping(4)])]);
        assert!(!whole[0].is_incomplete, "{whole:?}");
        // Of another transaction with this id, perhaps; and a record of which the middle is lost.
        let mut before = index(3, vec![begun]);
        before.open =
            Some(OpenRecord { lsn: Lsn(4 * BYTES - 8), total: 100, header: vec![0; 8], crc: 0, payload: Kept::default() });
        let mut behind = index(5, vec![dropping(5)]);
        behind.continuation =
            Some(Continuation { kept: Kept { bytes: 8, ..Kept::default() }, is_end: true, ..Continuation::default() });
        let gap = told(&[index(2, Vec::new()), before, behind]);
        assert_eq!((gap.len(), gap[0].first, gap[0].is_incomplete), (1, Lsn(5 * BYTES + 5000), true), "{gap:?}");
    }

    #[test]
    fn a_removal_that_was_rolled_back_was_done_and_a_failed_copy_removed_only_itself() {
        let rolled_back = |is_marked: bool| {
            let mark = |at, what| Mark { lsn: Lsn(3 * BYTES + at), xid: 7, what };
            let mut transaction = dropping(3);
            transaction.end.as_mut().unwrap().is_commit = false;
            let mut index = index(3, vec![transaction]);
            index.marks.extend(is_marked.then(|| mark(6000, What::DatabaseInvalid { oid: 9 })));
            index.marks.push(mark(7000, What::DatabaseDropped { oid: 9, tablespaces: vec![1663] }));
            told(&[index])
        };
        let done = rolled_back(true);
        assert_eq!((done.len(), done[0].target), (1, Lsn(3 * BYTES + 6000)), "{done:?}");
        assert!(matches!(done[0].what, Happened::DatabaseDropped { oid: 9, moved: false, .. }), "{done:?}");
        assert_eq!(rolled_back(false), []);
        // ALTER DATABASE SET TABLESPACE takes no id; where the copy was made may lie in a gap.
        let mut moved = index(3, Vec::new());
        moved.marks.push(Mark {
            lsn: Lsn(3 * BYTES + 7000),
            xid: 0,
            what: What::DatabaseDropped { oid: 9, tablespaces: vec![1663] },
        });
        assert!(matches!(told(&[moved])[0].what, Happened::DatabaseDropped { oid: 9, moved: true, .. }));
    }

    /// It deleted everything in segments that were expired since, and committed long after.
    #[test]
    fn a_commit_of_what_began_before_all_that_is_kept_is_told() {
        let brief = |xid, number: u64| BriefEnd {
            xid,
            lsn: Lsn(number * BYTES + 9000),
            time: Timestamp::UNIX_EPOCH,
            is_commit: true,
            subtransactions: Vec::new(),
        };
        let with = |number, ends: &[u32]| SegmentIndex {
            early_ends: ends.iter().map(|xid| brief(*xid, number)).collect(),
            ..index(number, Vec::new())
        };
        let found = told(&[with(3, &[710, 705]), with(4, &[0, 700, 706, 711]), with(5, &[712])]);
        assert_eq!(found.iter().map(|event| (event.xid, event.is_incomplete)).collect::<Vec<_>>(), [(700, true)], "{found:?}");
        assert_eq!(found[0].what, Happened::BegunBefore);
        // Where a few of its rows are known it is no smaller for that.
        let mut begun = Transaction { xid: 700, first: Lsn(3 * BYTES + 5000), ..Transaction::default() };
        let locator = crate::postgres::wal::reference::RelFileLocator { tablespace: 1663, database: 5, number: 16384 };
        begun.uses.push(Use { locator, deleted: 30, ..Use::default() });
        let first = SegmentIndex { transactions: vec![begun], ..with(3, &[705]) };
        let found = told(&[first.clone(), with(4, &[700])]);
        assert_eq!((found.len(), &found[0].what), (1, &Happened::BegunBefore), "{found:?}");
        // One that began later is known from its beginning.
        let found = told(&[with(2, &[690]), first, with(4, &[700])]);
        assert_eq!(found, []);
    }

    #[test]
    fn behind_what_could_not_be_read_events_may_be_incomplete() {
        let broken = SegmentIndex { ends_at: Some(Lsn(3 * BYTES + 9000)), ..index(3, Vec::new()) };
        assert!(told(&[index(2, Vec::new()), broken.clone(), index(4, vec![dropping(4)])])[0].is_incomplete);
        // What the end of WAL itself holds is whole.
        let last = SegmentIndex { transactions: vec![dropping(3)], ..broken };
        assert!(!told(&[index(2, Vec::new()), last])[0].is_incomplete);
    }
}
