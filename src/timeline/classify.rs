//! What a transaction did, from its facts.
//!
//! # The signs
//! A row of `pg_class` that a transaction deletes and did not make itself is a relation that is gone; whether it was a table shows
//! in `pg_type`, where each has its row type, and an index in `pg_index`. A relation that is made and deleted again, named
//! `pg_temp_<OID>`, held the rows of a rewrite. Files that are removed without any of these were replaced: by empty ones
//! (TRUNCATE) or by rebuilt ones (REINDEX, another tablespace).
//!
//! From 15 on a commit lists the OIDs of what it dropped (as dropped statistics); before, the exclusive locks tell which
//! relations it can have been.
//!
//! Without a catalogue, doubts are decided for what destroys more.

use std::collections::{BTreeMap, BTreeSet};

use crate::postgres::lsn::Lsn;
use crate::postgres::wal::heap::ClassRow;
use crate::postgres::wal::index::facts::{CatalogChange, End, PG_CLASS, PG_INDEX, PG_TYPE, RowPlace, Transaction, Use};
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
    /// Tables were written anew: VACUUM FULL, CLUSTER, ALTER TABLE, REFRESH MATERIALIZED VIEW.
    Rewrite { relations: Vec<(u32, u32)>, files: Vec<RelFileLocator> },
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

    /// What it did that a person may want to take back. `many` rows of one relation are worth telling.
    pub fn deeds(&self, end: &End, many: u64) -> Vec<Deed> {
        let mut deeds = Vec::new();
        let lost: Vec<RelFileLocator> = end.files.iter().filter(|file| !self.created.contains(file)).copied().collect();
        let class = self.rows(PG_CLASS);
        let dropped = self.dropped(end, &class);
        let rewritten = self.rewritten(&class);
        if !rewritten.is_empty() && !self.lost_tables(&class) {
            deeds.push(Deed::Rewrite { relations: rewritten, files: lost.clone() });
        } else if class.gone > 0 || (end.dropped.iter().any(|item| item.kind == STATS_OF_RELATION) && !dropped.is_empty()) {
            let only_indexes = class.gone > 0 && self.rows(PG_INDEX).gone >= class.gone && self.rows(PG_TYPE).gone == 0;
            deeds.push(Deed::Drop { relations: dropped, files: lost.clone(), only_indexes });
        } else if !lost.is_empty() {
            deeds.push(self.replaced(lost.clone()));
        }
        for used in self.uses.values() {
            let is_own = used.locator.number < FIRST_NORMAL || self.created.contains(&used.locator);
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

    /// Database and OID of what was dropped and was there before. Before 15, of what can have been.
    fn dropped(&self, end: &End, class: &Rows) -> Vec<(u32, u32)> {
        let is_born = |database: u32, oid: u32| {
            let by_row = class.born.iter().any(|(known, row)| *known == database && row.oid == oid);
            // The first file of a relation has its OID for a number.
            by_row || self.created.iter().any(|file| file.database == database && file.number == oid)
        };
        let listed: Vec<(u32, u32)> = if self.major >= 15 || !end.dropped.is_empty() {
            let relations = end.dropped.iter().filter(|item| item.kind == STATS_OF_RELATION);
            relations.map(|item| (item.database, item.object)).collect()
        } else {
            self.locks.iter().copied().collect()
        };
        listed.into_iter().filter(|(database, oid)| !is_born(*database, *oid)).collect()
    }

    /// Whether more is gone than toast tables and indexes of rewritten tables. In 13, toast tables have row types too.
    fn lost_tables(&self, class: &Rows) -> bool {
        let toasts = if self.major == 13 { class.transient_count } else { 0 };
        self.rows(PG_TYPE).gone > toasts
    }

    /// Files that went while their relations stayed.
    fn replaced(&self, lost: Vec<RelFileLocator>) -> Deed {
        let in_place =
            |new: &&RelFileLocator| lost.iter().any(|old| old.tablespace == new.tablespace && old.database == new.database);
        // A rebuilt file has blocks from the transaction that built it, but not by inserting rows.
        let is_emptied = self.created.iter().filter(in_place).any(|new| self.uses.get(new).is_none_or(|used| used.rows() > 0));
        if is_emptied {
            Deed::Truncate { relations: self.locks.iter().copied().collect(), files: lost }
        } else {
            Deed::Rebuild { files: lost }
        }
    }
}

/// The relation for whose rewrite this one was made (`make_new_heap`).
fn original(row: &ClassRow) -> Option<u32> {
    row.name.strip_prefix("pg_temp_")?.parse().ok()
}
