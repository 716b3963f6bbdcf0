//! Names for numbers: what was called what when somebody looked.
//!
//! WAL speaks of OIDs and file numbers. A catalogue is taken from the server by SQL when a snapshot is taken, and tells what they
//! mean. It is as old as the snapshot: a relation that it does not know stays a number, and is never guessed.

use std::collections::HashMap;
use std::sync::Arc;

use crate::postgres::catalogue::{Catalogue, Database, Line, Relation};
use crate::postgres::wal::heap::ClassRow;
use crate::postgres::wal::index::MappedFiles;
use crate::postgres::wal::index::facts::{PG_CLASS, PG_INDEX, PG_TYPE};
use crate::postgres::wal::reference::RelFileLocator;
use crate::repo::RepoError;
use crate::repo::document::{BYTES_MAX, Document, first_defect};
use crate::repo::manifest::{self, Manifest};
use crate::repo::repository::Cluster;

/// OIDs of `pg_default` and `pg_global`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// What was called what when this snapshot was taken; `None` where nobody could be asked.
pub async fn of_snapshot(cluster: &Cluster, manifest: &Manifest) -> Result<Option<Catalogue>, RepoError> {
    let Some(part) = &manifest.catalogue else { return Ok(None) };
    let key = cluster.layout().catalogue(&manifest.id);
    let lines: Vec<Kept> = manifest::get_part(cluster, &key, part).await?;
    Ok(Some(Catalogue::of_lines(lines.into_iter().map(|Kept(line)| line).collect())))
}

/// A line as it is kept.
#[derive(serde::Deserialize)]
struct Kept(Line);

impl Document for Kept {
    fn defect(&self) -> Option<String> {
        let Kept(Line::Relation(relation)) = self else { return None };
        first_defect([(relation.bytes <= BYTES_MAX && relation.rows.is_finite(), "a relation has an impossible length")])
    }
}

/// Where catalogs that records are looked at for lie, as far as the catalogue knows.
pub fn mapped(catalogue: &Catalogue) -> Arc<MappedFiles> {
    let is_followed =
        |relation: &&Relation| [PG_CLASS, PG_TYPE, PG_INDEX].contains(&relation.oid) && relation.file != relation.oid;
    let of = |database: &Database| {
        let oid = database.oid;
        database.relations.iter().filter(is_followed).map(|r| ((oid, r.oid), r.file)).collect::<Vec<_>>()
    };
    Arc::new(catalogue.databases.iter().flat_map(of).collect())
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
