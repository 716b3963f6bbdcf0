//! What a transaction did, from its facts.
//!
//! # The signs
//! A row of `pg_class` that a transaction deletes and did not make itself is a relation that is gone; whether it was a table shows
//! in `pg_type`, where each has its row type, and an index in `pg_index`. A relation that is made and deleted again, named
//! `pg_temp_<OID>`, held the rows of a rewrite. Files that are removed without any of these were replaced: by empty ones
//! (TRUNCATE) or by rebuilt ones (REINDEX, another tablespace).
//!
//! From 15 on a commit lists the OIDs of what it dropped (as dropped statistics); before, the exclusive locks tell which
//! relations it can have been: those whose files went, and of those without files no more than there are rows of `pg_class` left. A table that
//! was locked beside them is not among them.
//!
//! Temporary relations are nobody's loss: nothing of them is in WAL but their rows in catalogs. Unlogged ones are.
//!
//! Without a catalogue, doubts are decided for what destroys more.

use std::collections::{BTreeMap, BTreeSet};

use super::catalogue::{FileOf, Names};
use crate::postgres::lsn::Lsn;
use crate::postgres::wal::heap::ClassRow;
use crate::postgres::wal::index::facts::{
    CatalogChange, End, PG_CLASS, PG_INDEX, PG_INHERITS, PG_TYPE, RowPlace, Transaction, Use,
};
use crate::postgres::wal::reference::RelFileLocator;

/// `FirstNormalObjectId`: below it are catalogs.
const FIRST_NORMAL: u32 = 16384;
/// `PGSTAT_KIND_RELATION`.
const STATS_OF_RELATION: u32 = 2;

/// Facts of a transaction with all its parts, from all segments.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub first: Option<Lsn>,
    pub subtransactions: BTreeSet<u32>,
    locks: BTreeSet<(u32, u32)>,
    created: BTreeSet<RelFileLocator>,
    catalog: Vec<CatalogChange>,
    uses: BTreeMap<RelFileLocator, Use>,
    /// Of the server that wrote them.
    pub major: u32,
    /// Something is missing.
    pub is_cut: bool,
}

/// What was done to relations of one database, or of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Relations are gone, with these files. Without files they held nothing: views, partitioned or temporary tables.
    Drop { relations: Vec<(u32, u32)>, files: Vec<RelFileLocator>, only_indexes: bool },
    /// Files were replaced by empty ones.
    Truncate { relations: Vec<(u32, u32)>, files: Vec<RelFileLocator> },
    /// Tables were written anew: VACUUM FULL, CLUSTER, ALTER TABLE, REFRESH MATERIALIZED VIEW. Where columns changed as well it was ALTER
    /// TABLE, which may have lost something: `numeric(10, 2)` to `int`.
    Rewrite { relations: Vec<(u32, u32)>, files: Vec<RelFileLocator>, changes_columns: bool },
    /// Columns of these tables are gone. Their values stay in the files, where nothing finds them.
    DropColumns { relations: Vec<(u32, u32)>, count: usize },
    /// Tables are no longer partitions, or children, of others.
    Detach { relations: Vec<(u32, u32)> },
    /// Files were replaced by rebuilt ones: REINDEX, another tablespace.
    Rebuild { files: Vec<RelFileLocator> },
    /// Many rows of one relation.
    Rows { used: Use },
}

/// What became of the rows of one catalog.
#[derive(Debug, Default)]
struct Rows<'a> {
    born: Vec<(u32, &'a ClassRow)>,
    /// Made and deleted again.
    transient: Vec<(u32, &'a ClassRow)>,
    transient_count: usize,
    /// Found, and deleted.
    gone: usize,
}

impl Facts {
    pub fn add(&mut self, facts: &Transaction, major: u32) {
        self.major = major;
        self.first = Some(self.first.map_or(facts.first, |first| first.min(facts.first)));
        self.locks.extend(&facts.locks);
        self.created.extend(&facts.created);
        self.catalog.extend_from_slice(&facts.catalog);
        self.is_cut |= facts.is_cut;
        for used in &facts.uses {
            self.count(used);
        }
    }

    fn count(&mut self, used: &Use) {
        let known = self.uses.entry(used.locator).or_insert(Use { locator: used.locator, ..Use::default() });
        known.inserted = known.inserted.saturating_add(used.inserted);
        known.updated = known.updated.saturating_add(used.updated);
        known.deleted = known.deleted.saturating_add(used.deleted);
    }

    /// Whether a commit may turn out to have destroyed something.
    pub fn may_destroy(&self, many: u64) -> bool {
        let rows = |used: &Use| used.updated.saturating_add(used.deleted) >= many;
        self.is_cut || !self.locks.is_empty() || self.uses.values().any(rows)
    }

    /// Takes in a subtransaction that committed with it.
    pub fn join(&mut self, part: Facts) {
        self.first = self.first.into_iter().chain(part.first).min();
        self.major = self.major.max(part.major);
        self.locks.extend(part.locks);
        self.created.extend(part.created);
        self.catalog.extend(part.catalog);
        self.is_cut |= part.is_cut;
        part.uses.values().for_each(|used| self.count(used));
    }

    /// Follows rows from place to place. A place is not used twice in a transaction, so the order does not matter.
    fn rows(&self, catalog: u32) -> Rows<'_> {
        let mut rows = Rows::default();
        let mut origin: BTreeMap<RowPlace, RowPlace> = BTreeMap::new();
        let mut inserted: BTreeMap<RowPlace, Option<&ClassRow>> = BTreeMap::new();
        let mut deleted = Vec::new();
        for change in &self.catalog {
            match change {
                CatalogChange::Insert { at, row } if at.catalog == catalog => {
                    inserted.insert(*at, row.as_ref());
                }
                CatalogChange::Update { from, to } if from.catalog == catalog => {
                    origin.insert(*to, *from);
                }
                CatalogChange::Delete { at } if at.catalog == catalog => deleted.push(*at),
                _ => {}
            }
        }
        rows.born = inserted.iter().filter_map(|(at, row)| Some((at.database, (*row)?))).collect();
        for mut at in deleted {
            // Each step removes what it follows, so no ring can hold it.
            while let Some(from) = origin.remove(&at) {
                at = from;
            }
            match inserted.get(&at) {
                Some(row) => {
                    rows.transient_count += 1;
                    rows.transient.extend(row.map(|row| (at.database, row)));
                }
                None => rows.gone += 1,
            }
        }
        rows
    }

    /// Relations that were made, for who keeps names; with where their rows' database is.
    pub fn born(&self) -> Vec<(u32, ClassRow)> {
        let rows = self.rows(PG_CLASS);
        let is_transient = |oid: u32| rows.transient.iter().any(|(_, row)| row.oid == oid);
        rows.born.iter().filter(|(_, row)| !is_transient(row.oid)).map(|(database, row)| (*database, (*row).clone())).collect()
    }

    /// The tablespace of a file that it made; 0, the database's own, when that is not known.
    pub fn tablespace_of(&self, database: u32, number: u32) -> u32 {
        let file = self.created.iter().find(|file| file.database == database && file.number == number);
        file.map_or(0, |file| file.tablespace)
    }

    /// Relations that were rewritten, and the files that they have now.
    pub fn moved(&self) -> Vec<(u32, u32, RelFileLocator)> {
        let rows = self.rows(PG_CLASS);
        let moved = rows.transient.iter().filter_map(|(database, row)| {
            let file = self.created.iter().find(|file| file.database == *database && file.number == row.filenode)?;
            Some((*database, original(row)?, *file))
        });
        moved.collect()
    }

    /// Names that it gave: database (0 for that of a database), catalog, OID and name.
    pub fn named(&self) -> impl Iterator<Item = (u32, u32, u32, &str)> {
        self.catalog.iter().filter_map(|change| match change {
            CatalogChange::Named { database, catalog, oid, name } => Some((*database, *catalog, *oid, name.as_str())),
            _ => None,
        })
    }

    /// Rows of other relations that it changed beside `files`, the most first: they go with it when it is taken back.
    pub fn beside(&self, files: &[RelFileLocator], names: &Names) -> Vec<Use> {
        const KEPT: usize = 20;
        let is_beside = |used: &&Use| {
            used.rows() > 0 && !files.contains(&used.locator) && !self.created.contains(&used.locator) && !is_catalog(used, names)
        };
        let mut beside: Vec<Use> = self.uses.values().filter(is_beside).copied().collect();
        beside.sort_by_key(|used| std::cmp::Reverse(used.rows()));
        beside.truncate(KEPT);
        beside
    }

    /// What it did that a person may want to take back. `many` rows of one relation are worth telling.
    pub fn deeds(&self, end: &End, many: u64, names: &Names) -> Vec<Deed> {
        let mut deeds = Vec::new();
        let lost: Vec<RelFileLocator> = end.files.iter().filter(|file| !self.created.contains(file)).copied().collect();
        let class = self.rows(PG_CLASS);
        let dropped = self.dropped(end, &class, &lost, names);
        let is_all_temporary = !dropped.is_empty() && lost.is_empty() && dropped.iter().all(|one| names.is_temporary(*one));
        let is_listed = end.dropped.iter().any(|item| item.kind == STATS_OF_RELATION) && !dropped.is_empty();
        let is_drop = class.gone > 0 || is_listed;
        let rewritten = self.rewritten(&class);
        if !rewritten.is_empty() && !self.lost_tables(&class) {
            let changes_columns = self.columns(false) > 0;
            deeds.push(Deed::Rewrite { relations: rewritten, files: lost.clone(), changes_columns });
        } else if is_drop && !is_all_temporary {
            let relations = dropped.iter().filter(|one| !names.is_temporary(**one)).copied().collect();
            let only_indexes = class.gone > 0 && self.rows(PG_INDEX).gone >= class.gone && self.rows(PG_TYPE).gone == 0;
            deeds.push(Deed::Drop { relations, files: lost.clone(), only_indexes });
        } else if !lost.is_empty() {
            deeds.push(self.replaced(lost.clone(), names));
        }
        deeds.extend(self.definitions(&class, &dropped, names));
        for used in self.uses.values() {
            let is_own = is_catalog(used, names) || self.created.contains(&used.locator);
            if !is_own && !lost.contains(&used.locator) && used.updated.saturating_add(used.deleted) >= many {
                deeds.push(Deed::Rows { used: *used });
            }
        }
        deeds
    }

    /// Relations for whose rewrite another one was made. Its end need not show: VACUUM FULL of `pg_class` deletes its row in the
    /// new file, of which nothing is known yet.
    fn rewritten(&self, class: &Rows) -> Vec<(u32, u32)> {
        let of = |(database, row): &(u32, &ClassRow)| Some((*database, original(row)?));
        class.born.iter().filter_map(of).filter(|relation| self.locks.contains(relation)).collect()
    }

    /// Updates of rows of `pg_attribute`: those that made a column a dropped one, or the others.
    fn columns(&self, dropped: bool) -> usize {
        let is_it =
            |change: &&CatalogChange| matches!(change, CatalogChange::Column { is_dropped, .. } if *is_dropped == dropped);
        self.catalog.iter().filter(is_it).count()
    }

    /// Changes of what tables are, not of what lies in them.
    fn definitions(&self, class: &Rows, dropped: &[(u32, u32)], names: &Names) -> Vec<Deed> {
        let is_old_table = |one: &(u32, u32)| {
            let kind = names.relation(one.0, one.1).map(|named| named.relation.kind);
            let is_table = kind.is_none_or(|kind| matches!(kind, 'r' | 'p' | 'f'));
            is_table && !names.is_temporary(*one) && !dropped.contains(one) && !self.is_born(class, *one)
        };
        let relations: Vec<(u32, u32)> = self.locks.iter().copied().filter(is_old_table).collect();
        if relations.is_empty() {
            return Vec::new();
        }
        let count = self.columns(true);
        let drop = (count > 0).then(|| Deed::DropColumns { relations: relations.clone(), count });
        // A partition that is dropped leaves its parent as well.
        let is_detached = class.gone == 0 && self.rows(PG_INHERITS).gone > 0;
        drop.into_iter().chain(is_detached.then_some(Deed::Detach { relations })).collect()
    }

    /// Whether the transaction made the relation.
    fn is_born(&self, class: &Rows, (database, oid): (u32, u32)) -> bool {
        let by_row = class.born.iter().any(|(known, row)| *known == database && row.oid == oid);
        // The first file of a relation has its OID for a number.
        by_row || self.created.iter().any(|file| file.database == database && file.number == oid)
    }

    /// Database and OID of what was dropped and was there before. Before 15, of what can have been.
    fn dropped(&self, end: &End, class: &Rows, lost: &[RelFileLocator], names: &Names) -> Vec<(u32, u32)> {
        let listed: Vec<(u32, u32)> = if self.major >= 15 || !end.dropped.is_empty() {
            let relations = end.dropped.iter().filter(|item| item.kind == STATS_OF_RELATION);
            relations.map(|item| (item.database, item.object)).collect()
        } else {
            self.can_have_lost(lost, class.gone > lost.len(), names)
        };
        listed.into_iter().filter(|one| !self.is_born(class, *one)).collect()
    }

    /// Of the relations that were locked, those that these files can have belonged to, and with `others` those that have no file.
    fn can_have_lost(&self, lost: &[RelFileLocator], others: bool, names: &Names) -> Vec<(u32, u32)> {
        let has_stranger = lost.iter().any(|file| names.file(*file).is_none());
        let is_it = |one: &(u32, u32)| match names.file_of(*one) {
            FileOf::Known(file) => lost.contains(&file),
            FileOf::Nothing => others,
            FileOf::Unknown => {
                let is_first = |file: &RelFileLocator| file.database == one.0 && file.number == one.1;
                others || has_stranger || lost.iter().any(is_first)
            }
        };
        self.locks.iter().copied().filter(is_it).collect()
    }

    /// Whether more is gone than toast tables and indexes of rewritten tables. In 13, toast tables have row types too.
    fn lost_tables(&self, class: &Rows) -> bool {
        let toasts = if self.major == 13 { class.transient_count } else { 0 };
        self.rows(PG_TYPE).gone > toasts
    }

    /// Files that went while their relations stayed.
    fn replaced(&self, lost: Vec<RelFileLocator>, names: &Names) -> Deed {
        let in_place =
            |new: &&RelFileLocator| lost.iter().any(|old| old.tablespace == new.tablespace && old.database == new.database);
        // A rebuilt file has blocks from the transaction that built it, but not by inserting rows.
        let is_emptied = self.created.iter().filter(in_place).any(|new| self.uses.get(new).is_none_or(|used| used.rows() > 0));
        if is_emptied {
            let mut relations = self.can_have_lost(&lost, false, names);
            // A partitioned table is truncated with its partitions.
            let kind = |one: &(u32, u32)| names.relation(one.0, one.1).map(|named| named.relation.kind);
            relations.extend(self.locks.iter().filter(|one| kind(one) == Some('p')));
            Deed::Truncate { relations, files: lost }
        } else {
            Deed::Rebuild { files: lost }
        }
    }
}

/// Rows of catalogs change all day.
fn is_catalog(used: &Use, names: &Names) -> bool {
    used.locator.number < FIRST_NORMAL || names.file(used.locator).is_some_and(|named| named.relation.oid < FIRST_NORMAL)
}

/// The relation for whose rewrite this one was made (`make_new_heap`).
fn original(row: &ClassRow) -> Option<u32> {
    row.name.strip_prefix("pg_temp_")?.parse().ok()
}
