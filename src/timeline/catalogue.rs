//! Names for numbers: what was called what when somebody looked.
//!
//! WAL speaks of OIDs and file numbers. A catalogue is taken from the server by SQL when a snapshot is taken, and tells what they
//! mean. It is as old as the snapshot: a relation that it does not know stays a number, and is never guessed.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::postgres::wal::heap::ClassRow;
use crate::postgres::wal::reference::RelFileLocator;

/// OIDs of `pg_default` and `pg_global`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// As it is kept: every database that could be asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalogue {
    pub databases: Vec<Database>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Database {
    pub oid: u32,
    pub name: String,
    /// Where relations without a tablespace of their own lie.
    pub tablespace: u32,
    /// OID and name of each schema.
    #[serde(default)]
    pub schemas: Vec<(u32, String)>,
    /// Empty when the database could not be asked.
    #[serde(default)]
    pub relations: Vec<Relation>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `relkind`.
    pub kind: char,
    /// The relfilenode; 0 for what has no file.
    pub file: u32,
    /// 0 for the database's own.
    #[serde(default)]
    pub tablespace: u32,
    /// `reltuples`; negative when the server never counted.
    pub rows: f64,
    pub bytes: u64,
}

/// A relation with its database.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Named<'a> {
    pub database: &'a Database,
    pub relation: &'a Relation,
}

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.database.name, self.relation.schema, self.relation.name)
    }
}

/// A catalogue that finds.
#[derive(Debug, Default)]
pub struct Names {
    catalogue: Catalogue,
    /// Database and relation, as places in the catalogue.
    by_file: HashMap<RelFileLocator, (usize, usize)>,
    by_oid: HashMap<(u32, u32), (usize, usize)>,
}

impl Names {
    pub fn new(catalogue: Catalogue) -> Names {
        let mut names = Names { catalogue, ..Names::default() };
        for database in 0..names.catalogue.databases.len() {
            for relation in 0..names.catalogue.databases[database].relations.len() {
                names.enter(database, relation);
            }
        }
        names
    }

    fn enter(&mut self, database: usize, relation: usize) {
        let known = &self.catalogue.databases[database];
        let entry = &known.relations[relation];
        self.by_oid.insert((known.oid, entry.oid), (database, relation));
        if entry.file != 0 {
            let tablespace = if entry.tablespace == 0 { known.tablespace } else { entry.tablespace };
            // Shared relations belong to no database.
            let owner = if tablespace == GLOBAL_TABLESPACE { 0 } else { known.oid };
            self.by_file.insert(RelFileLocator { tablespace, database: owner, number: entry.file }, (database, relation));
        }
    }

    /// A relation that a committed transaction made after the catalogue was taken.
    pub fn learn(&mut self, database: u32, tablespace: u32, row: &ClassRow) {
        let Some(place) = self.catalogue.databases.iter().position(|known| known.oid == database) else { return };
        if self.by_oid.contains_key(&(database, row.oid)) {
            return;
        }
        let known = &mut self.catalogue.databases[place];
        let schema = known.schemas.iter().find(|(oid, _)| *oid == row.namespace).map(|(_, name)| name.clone());
        // Of a schema that was made later only the number is known.
        let schema = schema.unwrap_or_else(|| row.namespace.to_string());
        let (name, kind) = (row.name.clone(), char::from(row.kind));
        known.relations.push(Relation { oid: row.oid, schema, name, kind, file: row.filenode, tablespace, rows: -1.0, bytes: 0 });
        let relation = known.relations.len() - 1;
        self.enter(place, relation);
    }

    /// A relation whose file another one took over, as a rewrite does it.
    pub fn moved(&mut self, database: u32, oid: u32, to: RelFileLocator) {
        if let Some(place) = self.by_oid.get(&(database, oid)) {
            self.by_file.insert(to, *place);
        }
    }

    fn named(&self, (database, relation): (usize, usize)) -> Option<Named<'_>> {
        let database = self.catalogue.databases.get(database)?;
        Some(Named { database, relation: database.relations.get(relation)? })
    }

    pub fn file(&self, locator: RelFileLocator) -> Option<Named<'_>> {
        self.named(*self.by_file.get(&locator)?)
    }

    pub fn relation(&self, database: u32, oid: u32) -> Option<Named<'_>> {
        self.named(*self.by_oid.get(&(database, oid))?)
    }

    pub fn database(&self, oid: u32) -> Option<&Database> {
        self.catalogue.databases.iter().find(|database| database.oid == oid)
    }
}
