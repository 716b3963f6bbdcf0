//! From records to facts.

use std::collections::BTreeMap;

use super::changed::{Collector, QuickMap};
use super::facts::{
    BriefEnd, CatalogChange, EARLY_ENDS, End, FEW_ROWS, PG_ATTRIBUTE, PG_CLASS, PG_DATABASE, PG_INDEX, PG_INHERITS, PG_NAMESPACE,
    PG_TYPE, RowPlace, Transaction, Use,
};
use super::{Mark, SegmentIndex, What};
use crate::postgres::lsn::Lsn;
use crate::postgres::wal::database::{self, DatabaseChange, TablespaceChange};
use crate::postgres::wal::ended::{self, Ended};
use crate::postgres::wal::heap::{self, Change};
use crate::postgres::wal::manager;
use crate::postgres::wal::reader::Record;
use crate::postgres::wal::reference::{self, Layout, MAIN_FORK, Malformed, Reference, RelFileLocator};
use crate::postgres::wal::storage::{self, Storage};
use crate::postgres::wal::xlog::{self, Control};

/// Catalogs that are looked at.
const FOLLOWED: [u32; 7] = [PG_CLASS, PG_TYPE, PG_INDEX, PG_INHERITS, PG_ATTRIBUTE, PG_DATABASE, PG_NAMESPACE];
/// `FirstNormalObjectId`: what has a file number from here on is no catalog that was never rewritten.
const FIRST_NORMAL: u32 = 16384;
/// `DATCONNLIMIT_INVALID_DB`.
const INVALID_DATABASE: i32 = -2;

/// Transactions, with their subtransactions, that are followed at a time.
const LIVE_MAX: usize = 200_000;
/// Items of each kind that are kept of one transaction.
const ITEMS_MAX: usize = 20_000;
/// Relation files of one transaction whose rows are counted.
const USES_MAX: usize = 256;
/// Open transactions that an index tells of.
const OPEN_MAX: usize = 1000;
pub(super) const MARKS_MAX: usize = 10_000;

/// Where mapped catalogs lie, by database and OID. What is not in it lies where initdb put it: in the file of its OID.
pub type MappedFiles = BTreeMap<(u32, u32), u32>;

/// A transaction that did not end yet.
#[derive(Debug, Default)]
struct Live {
    first: Lsn,
    facts: Option<Box<Transaction>>,
    uses: Vec<Use>,
    /// Place in `uses` of the one that was looked up last.
    recent: usize,
    uses_cut: bool,
}

impl Live {
    fn use_of(&mut self, locator: RelFileLocator) -> Option<&mut Use> {
        if self.uses.get(self.recent).is_none_or(|used| used.locator != locator) {
            self.recent = match self.uses.iter().position(|used| used.locator == locator) {
                Some(place) => place,
                None if self.uses.len() >= USES_MAX => {
                    self.uses_cut = true;
                    return None;
                }
                None => {
                    self.uses.push(Use { locator, ..Use::default() });
                    self.uses.len() - 1
                }
            };
        }
        self.uses.get_mut(self.recent)
    }

    fn facts(&mut self) -> &mut Transaction {
        self.facts.get_or_insert_default()
    }

    fn is_noteworthy(&self) -> bool {
        self.facts.is_some() || self.uses_cut || self.uses.iter().any(|used| used.rows() >= FEW_ROWS)
    }

    /// An empty place, with its buffer.
    fn clear(&mut self) {
        self.uses.clear();
        (self.facts, self.recent, self.uses_cut) = (None, 0, false);
    }

    /// All that is known, and an empty place.
    fn take(&mut self, xid: u32) -> Transaction {
        let mut facts = self.facts.take().map_or_else(Transaction::default, |facts| *facts);
        (facts.xid, facts.first) = (xid, self.first);
        facts.is_cut |= self.uses_cut;
        facts.uses = std::mem::take(&mut self.uses);
        facts.locks.sort_unstable();
        facts.locks.dedup();
        *self = Live::default();
        facts
    }
}

/// Adds to a list that has a bound; says when it was reached.
fn push<T>(list: &mut Vec<T>, item: T, is_cut: &mut bool) {
    if list.len() < ITEMS_MAX { list.push(item) } else { *is_cut = true }
}

/// What matters of a row whose place is not followed.
fn noted(record: &Record, change: Change, (database, catalog): (u32, u32)) -> Option<CatalogChange> {
    match change {
        Change::Update { new_offset, .. } if catalog == PG_ATTRIBUTE => {
            Some(CatalogChange::Column { database, is_dropped: heap::drops_column(record, new_offset) })
        }
        Change::Insert { offset } if catalog != PG_ATTRIBUTE => {
            let (oid, name) = heap::inserted_name(record, offset)?;
            Some(CatalogChange::Named { database, catalog, oid, name })
        }
        _ => None,
    }
}

#[derive(Debug, Default)]
pub(super) struct Collect {
    pub index: SegmentIndex,
    mapped: MappedFiles,
    changed: Collector,
    places: QuickMap<u32, usize>,
    live: Vec<Live>,
    free: Vec<usize>,
    recent: Option<(u32, usize)>,
    early: Vec<BriefEnd>,
}

impl Collect {
    pub fn new(mapped: MappedFiles) -> Collect {
        Collect { mapped, ..Collect::default() }
    }

    pub fn record(&mut self, record: &Record) -> Result<(), Malformed> {
        let index = &mut self.index;
        index.major = record.major;
        index.records += 1;
        index.first_record.get_or_insert(record.lsn);
        index.last_record = Some(record.lsn);
        let place = if record.xid == 0 { None } else { self.place(record.xid, record.lsn) };
        let changed = &mut self.changed;
        let mut live = place.and_then(|place| self.live.get_mut(place));
        let mut blocks: [Option<Reference>; 2] = [None, None];
        let layout = reference::each(record, |reference| {
            changed.mark(reference.locator, reference.fork, reference.block);
            if reference.fork == MAIN_FORK
                && let Some(live) = &mut live
            {
                live.use_of(reference.locator);
            }
            if let Some(known) = blocks.get_mut(usize::from(reference.id)) {
                *known = Some(*reference);
            }
        })?;
        match record.resource_manager {
            manager::HEAP | manager::HEAP2 => self.rows(record, &layout, blocks, place),
            manager::XLOG => self.control(record),
            manager::TRANSACTION => self.end(record),
            manager::STORAGE => self.storage(record, place),
            manager::DATABASE | manager::TABLESPACE | manager::RELATION_MAP => self.database(record, place),
            manager::STANDBY => self.standby(record),
            _ => {}
        }
        Ok(())
    }

    /// The place of a transaction that goes on; `None` when there are too many.
    fn place(&mut self, xid: u32, lsn: Lsn) -> Option<usize> {
        if let Some((known, place)) = self.recent
            && known == xid
        {
            return Some(place);
        }
        let place = match self.places.get(&xid) {
            Some(place) => *place,
            None if self.places.len() >= LIVE_MAX => {
                self.index.cut.transactions = true;
                return None;
            }
            None => {
                let place = self.free.pop().unwrap_or_else(|| {
                    self.live.push(Live::default());
                    self.live.len() - 1
                });
                self.live[place].first = lsn;
                self.places.insert(xid, place);
                place
            }
        };
        self.recent = Some((xid, place));
        Some(place)
    }

    fn rows(&mut self, record: &Record, layout: &Layout, blocks: [Option<Reference>; 2], place: Option<usize>) {
        let ([Some(block), old], Some(change)) = (blocks, heap::change(record, layout)) else { return };
        let live = place.and_then(|place| self.live.get_mut(place));
        if let Some(used) = live.and_then(|live| live.use_of(block.locator)) {
            match change {
                Change::Insert { .. } => used.inserted += 1,
                Change::MultiInsert { rows } => used.inserted += u64::from(rows),
                Change::Delete { .. } => used.deleted += 1,
                Change::Update { .. } => used.updated += 1,
                Change::InPlace { .. } => {}
            }
        }
        if block.locator.number < FIRST_NORMAL || !self.mapped.is_empty() {
            self.catalog_row(record, change, (block, old.unwrap_or(block)), place);
        }
    }

    fn is_catalog(&self, locator: RelFileLocator, oid: u32) -> bool {
        // Nothing else ever lies where initdb put a catalog.
        locator.number == oid || self.mapped.get(&(locator.database, oid)) == Some(&locator.number)
    }

    fn catalog_row(&mut self, record: &Record, change: Change, (block, old): (Reference, Reference), place: Option<usize>) {
        let (locator, lsn) = (block.locator, record.lsn);
        if let Change::InPlace { offset } = change
            && self.is_catalog(locator, PG_DATABASE)
            && let Some((oid, INVALID_DATABASE)) = heap::database_limit(record, offset)
        {
            self.mark(lsn, record.xid, What::DatabaseInvalid { oid });
        }
        let Some(catalog) = FOLLOWED.into_iter().find(|oid| self.is_catalog(locator, *oid)) else { return };
        let Some(live) = place.and_then(|place| self.live.get_mut(place)) else { return };
        let database = locator.database;
        if [PG_ATTRIBUTE, PG_DATABASE, PG_NAMESPACE].contains(&catalog) {
            let Some(change) = noted(record, change, (database, catalog)) else { return };
            let facts = live.facts();
            return push(&mut facts.catalog, change, &mut facts.is_cut);
        }
        let at = |reference: Reference, offset| RowPlace { database, catalog, block: reference.block, offset };
        let change = match change {
            Change::Insert { offset } => {
                let row = if catalog == PG_CLASS { heap::inserted_class_row(record, offset) } else { None };
                CatalogChange::Insert { at: at(block, offset), row }
            }
            Change::Update { old_offset, new_offset } => {
                CatalogChange::Update { from: at(old, old_offset), to: at(block, new_offset) }
            }
            Change::Delete { offset } => CatalogChange::Delete { at: at(block, offset) },
            Change::MultiInsert { .. } | Change::InPlace { .. } => return,
        };
        let facts = live.facts();
        push(&mut facts.catalog, change, &mut facts.is_cut);
    }

    fn mark(&mut self, lsn: Lsn, xid: u32, what: What) {
        if self.index.marks.len() < MARKS_MAX {
            self.index.marks.push(Mark { lsn, xid, what });
        } else {
            self.index.cut.transactions = true;
        }
    }

    fn control(&mut self, record: &Record) {
        let Some(control) = xlog::control(record) else { return };
        let (wal_level, what) = match control {
            Control::Checkpoint { shutdown, redo, time, wal_level, .. } => {
                (wal_level, Some(What::Checkpoint { shutdown, redo, time }))
            }
            Control::CheckpointBegin { wal_level } => (Some(wal_level), None),
            Control::ParameterChange(parameters) => (Some(parameters.wal_level), Some(What::ParameterChange(parameters))),
            Control::RestorePoint { time, name } => (None, Some(What::RestorePoint { time, name })),
            Control::EndOfRecovery { time, timeline, previous_timeline, wal_level } => {
                (wal_level, Some(What::EndOfRecovery { time, timeline, previous_timeline }))
            }
            Control::Switch | Control::FullPageWrites { .. } => (None, None),
        };
        if let Some(what) = what {
            self.mark(record.lsn, record.xid, what);
        }
        if wal_level.is_some_and(|level| level.is_minimal()) {
            self.mark(record.lsn, record.xid, What::MinimalWal);
        }
    }

    fn storage(&mut self, record: &Record, place: Option<usize>) {
        match storage::storage(record) {
            Some(Storage::Create { locator, fork }) => {
                self.changed.set_limit(locator, fork, 0);
                if let Some(live) = place.and_then(|place| self.live.get_mut(place)) {
                    let facts = live.facts();
                    // Each fork has a record of its own.
                    if !facts.created.contains(&locator) {
                        push(&mut facts.created, locator, &mut facts.is_cut);
                    }
                }
            }
            Some(Storage::Truncate { locator, blocks, heap, visibility_map }) => {
                if heap {
                    self.changed.set_limit(locator, MAIN_FORK, blocks);
                }
                if visibility_map {
                    self.changed.cut_visibility_map(locator, blocks);
                }
            }
            None => {}
        }
    }

    fn database(&mut self, record: &Record, place: Option<usize>) {
        if let Some(map) = storage::relation_map(record) {
            for (oid, number) in &map.mappings {
                self.mapped.insert((map.database, *oid), *number);
            }
            self.mark(record.lsn, record.xid, What::RelationMap(map));
        }
        let what = match (database::database(record), database::tablespace(record)) {
            (Some(DatabaseChange::Create { database: oid, tablespace, logged }), _) => {
                self.changed.new_database(tablespace, oid);
                What::DatabaseCreated { oid, tablespace, logged }
            }
            (Some(DatabaseChange::Drop { database: oid, tablespaces }), _) => {
                tablespaces.iter().for_each(|tablespace| self.changed.new_database(*tablespace, oid));
                What::DatabaseDropped { oid, tablespaces }
            }
            (_, Some(TablespaceChange::Create { oid, location })) => What::TablespaceCreated { oid, location },
            (_, Some(TablespaceChange::Drop { oid })) => What::TablespaceDropped { oid },
            (None, None) => return,
        };
        self.mark(record.lsn, record.xid, what);
        // Its end is wanted.
        if let Some(live) = place.and_then(|place| self.live.get_mut(place)) {
            live.facts();
        }
    }

    fn standby(&mut self, record: &Record) {
        for lock in storage::locks(record).unwrap_or_default() {
            let Some(place) = self.place(lock.xid, record.lsn) else { continue };
            let facts = self.live[place].facts();
            push(&mut facts.locks, (lock.database, lock.relation), &mut facts.is_cut);
        }
        if let Some(oldest) = storage::oldest_running(record) {
            self.index.oldest_running = Some(oldest);
        }
    }

    fn end(&mut self, record: &Record) {
        let Some(ended) = ended::ended(record) else { return };
        ended.files.iter().for_each(|locator| self.changed.remove(*locator));
        self.index.cut.blocks |= ended.is_cut;
        self.index.activity.add(ended.time, ended.is_commit);
        let left_files = !ended.files.is_empty() || !ended.dropped.is_empty() || ended.is_cut;
        let ids = || std::iter::once(&ended.xid).chain(&ended.subtransactions);
        let is_noteworthy = ended.is_commit && (left_files || ids().any(|xid| self.is_noteworthy(*xid)));
        // The transaction itself is the last one.
        let left = ids().rev().filter_map(|xid| self.leave(*xid, is_noteworthy));
        if !is_noteworthy {
            left.for_each(drop);
            self.early_end(record.lsn, ended);
            return;
        }
        let mut parts: Vec<Transaction> = left.collect();
        let own = parts.pop_if(|facts| facts.xid == ended.xid);
        let mut own = own.unwrap_or_else(|| Transaction { xid: ended.xid, first: record.lsn, ..Transaction::default() });
        let Ended { time, is_commit, is_prepared, database, subtransactions, files, dropped, is_cut, .. } = ended;
        let lsn = record.lsn;
        own.end = Some(End { lsn, time, is_commit, is_prepared, database, subtransactions, files, dropped, is_cut });
        parts.push(own);
        if self.index.transactions.len() + parts.len() > ITEMS_MAX {
            self.index.cut.transactions = true;
            return;
        }
        self.index.transactions.extend(parts);
    }

    fn is_noteworthy(&self, xid: u32) -> bool {
        self.places.get(&xid).is_some_and(|place| self.live[*place].is_noteworthy())
    }

    /// Forgets a transaction that ended, and gives its facts where they are wanted.
    fn leave(&mut self, xid: u32, is_wanted: bool) -> Option<Transaction> {
        let place = self.places.remove(&xid)?;
        self.recent = None;
        self.free.push(place);
        let live = &mut self.live[place];
        if !is_wanted {
            live.clear();
            return None;
        }
        Some(live.take(xid))
    }

    fn early_end(&mut self, lsn: Lsn, ended: Ended) {
        let Ended { xid, time, is_commit, subtransactions, .. } = ended;
        self.early.push(BriefEnd { xid, lsn, time, is_commit, subtransactions });
        if self.early.len() >= 4 * EARLY_ENDS {
            self.keep_earliest();
        }
    }

    fn keep_earliest(&mut self) {
        // Around one of them: ids come round.
        let Some(first) = self.early.first().map(|end| end.xid) else { return };
        self.early.sort_by_key(|end| (end.xid.wrapping_sub(first) as i32, end.lsn));
        self.early.truncate(EARLY_ENDS);
    }

    /// Everything, once there are no more records.
    pub fn finish(mut self) -> SegmentIndex {
        self.keep_earliest();
        let mut open: Vec<Transaction> = Vec::new();
        for (xid, place) in std::mem::take(&mut self.places) {
            open.push(self.live[place].take(xid));
        }
        // What says most first, so that the cut takes what says least.
        open.sort_unstable_by_key(|facts| {
            (!facts.is_special(), std::cmp::Reverse(facts.uses.iter().map(Use::rows).max()), facts.xid)
        });
        self.index.cut.transactions |= open.len() > OPEN_MAX;
        open.truncate(OPEN_MAX);
        open.sort_unstable_by_key(|facts| facts.xid);
        self.index.transactions.extend(open);
        self.index.early_ends = self.early;
        self.index.cut.blocks |= self.changed.is_cut();
        self.index.changed = self.changed.finish();
        self.index
    }
}
