//! Names for numbers: what was called what when somebody looked.
//!
//! WAL speaks of OIDs and file numbers. A catalogue is taken from the server by SQL when a snapshot is taken, and tells what they
//! mean. It is as old as the snapshot. What WAL tells of names that were given since, and catalogues of later snapshots, are added to it; a
//! relation that none of them knows stays a number, and is never guessed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::postgres::catalogue::{Catalogue, Database, Line, Relation};
use crate::postgres::wal::heap::ClassRow;
use crate::postgres::wal::index::MappedFiles;
use crate::postgres::wal::index::facts::{PG_ATTRIBUTE, PG_CLASS, PG_DATABASE, PG_INDEX, PG_INHERITS, PG_NAMESPACE, PG_TYPE};
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

/// `PG_PUBLIC_NAMESPACE`.
const PUBLIC: u32 = 2200;
/// Temporary relations that are remembered.
const TEMPORARY_MAX: usize = 1_000_000;
/// `relpersistence` of temporary relations.
const TEMPORARY: u8 = b't';
/// Catalogs of a database whose rows are looked at.
const FOLLOWED: [u32; 6] = [PG_CLASS, PG_TYPE, PG_INDEX, PG_INHERITS, PG_ATTRIBUTE, PG_NAMESPACE];

/// Where catalogs that records are looked at for lie, as far as the catalogue knows.
pub fn mapped(catalogue: &Catalogue) -> Arc<MappedFiles> {
    let is_followed = |relation: &&Relation| FOLLOWED.contains(&relation.oid) && relation.file != relation.oid;
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
        let Named { database, relation } = self;
        match database.name.as_str() {
            "" => write!(f, "(database {}).{}.{}", database.oid, relation.schema, relation.name),
            name => write!(f, "{name}.{}.{}", relation.schema, relation.name),
        }
    }
}

/// A catalogue that finds.
#[derive(Debug, Default)]
pub struct Names {
    catalogue: Catalogue,
    /// Database and relation, as places in the catalogue.
    by_file: HashMap<RelFileLocator, (usize, usize)>,
    by_oid: HashMap<(u32, u32), (usize, usize)>,
    /// Files that relations got since they were asked for; `None` where WAL does not say which.
    since: HashMap<(u32, u32), Option<RelFileLocator>>,
    /// Temporary relations that were made and not yet dropped.
    temporary: HashSet<(u32, u32)>,
}

/// What is known of where a relation's rows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOf {
    Known(RelFileLocator),
    /// A view, a partitioned or a foreign table.
    Nothing,
    Unknown,
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
        if let Some(file) = file(known, entry) {
            self.by_file.insert(file, (database, relation));
        }
    }

    /// Adds what was called what at a later time; where both know a relation, this is newer.
    pub fn merge(&mut self, later: Catalogue) {
        for mut database in later.databases {
            let relations = std::mem::take(&mut database.relations);
            let place = self.place(database.oid);
            let known = &mut self.catalogue.databases[place];
            (known.name, known.tablespace) = (database.name, database.tablespace);
            if !database.schemas.is_empty() {
                known.schemas = database.schemas;
            }
            for relation in relations {
                let known = &mut self.catalogue.databases[place];
                let at = match self.by_oid.get(&(known.oid, relation.oid)) {
                    Some((_, at)) => *at,
                    None => {
                        known.relations.push(Relation::default());
                        known.relations.len() - 1
                    }
                };
                known.relations[at] = relation;
                self.enter(place, at);
            }
        }
    }

    /// The database's place in the catalogue, one without a name if it is not known.
    fn place(&mut self, oid: u32) -> usize {
        let databases = &mut self.catalogue.databases;
        databases.iter().position(|known| known.oid == oid).unwrap_or_else(|| {
            databases.push(Database { oid, tablespace: DEFAULT_TABLESPACE, ..Database::default() });
            databases.len() - 1
        })
    }

    /// A database whose files were made.
    pub fn made_database(&mut self, oid: u32, tablespace: u32) {
        let place = self.place(oid);
        self.catalogue.databases[place].tablespace = tablespace;
    }

    /// A name that a committed transaction gave to a database (then `database` is 0) or a schema.
    pub fn learn_name(&mut self, database: u32, catalog: u32, oid: u32, name: &str) {
        if catalog == PG_DATABASE {
            let place = self.place(oid);
            self.catalogue.databases[place].name = name.into();
        } else {
            let place = self.place(database);
            self.catalogue.databases[place].schemas.push((oid, name.into()));
        }
    }

    /// A relation that a committed transaction made after the catalogue was taken.
    pub fn learn(&mut self, database: u32, tablespace: u32, row: &ClassRow) {
        if row.persistence == TEMPORARY {
            // Before 15 nothing says when they go. One that is forgotten is a relation without a name and a file, which alarms nobody.
            if self.temporary.len() >= TEMPORARY_MAX {
                self.temporary.clear();
            }
            self.temporary.insert((database, row.oid));
            return;
        }
        if self.by_oid.contains_key(&(database, row.oid)) {
            return;
        }
        let place = self.place(database);
        let known = &mut self.catalogue.databases[place];
        let schema = known.schemas.iter().find(|(oid, _)| *oid == row.namespace).map(|(_, name)| name.clone());
        // Of another schema that was made before what was read only the number is known.
        let schema = schema.unwrap_or_else(|| match row.namespace {
            PUBLIC => "public".into(),
            number => number.to_string(),
        });
        let (name, kind) = (row.name.clone(), char::from(row.kind));
        known.relations.push(Relation { oid: row.oid, schema, name, kind, file: row.filenode, tablespace, rows: -1.0, bytes: 0 });
        let relation = known.relations.len() - 1;
        self.enter(place, relation);
    }

    /// A relation whose file another one took over, as a rewrite does it.
    pub fn moved(&mut self, database: u32, oid: u32, to: RelFileLocator) {
        if let Some(place) = self.by_oid.get(&(database, oid)) {
            self.by_file.insert(to, *place);
            self.since.insert((database, oid), Some(to));
        }
    }

    /// A relation that got another file, and which one WAL does not say.
    pub fn replaced(&mut self, file: RelFileLocator) {
        if let Some(named) = self.file(file) {
            let relation = (named.database.oid, named.relation.oid);
            self.since.insert(relation, None);
        }
    }

    pub fn file_of(&self, (database, oid): (u32, u32)) -> FileOf {
        let Some(named) = self.relation(database, oid) else { return FileOf::Unknown };
        match self.since.get(&(database, oid)) {
            Some(Some(known)) => FileOf::Known(*known),
            Some(None) => FileOf::Unknown,
            None => file(named.database, named.relation).map_or(FileOf::Nothing, FileOf::Known),
        }
    }

    pub fn is_temporary(&self, relation: (u32, u32)) -> bool {
        self.temporary.contains(&relation)
    }

    /// A relation that is gone. There are many temporary ones in a day.
    pub fn dropped(&mut self, relation: (u32, u32)) {
        self.temporary.remove(&relation);
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

    /// A database that has a name.
    pub fn database(&self, oid: u32) -> Option<&Database> {
        self.catalogue.databases.iter().find(|database| database.oid == oid && !database.name.is_empty())
    }
}

/// The main file of a relation that has one.
fn file(database: &Database, relation: &Relation) -> Option<RelFileLocator> {
    let tablespace = if relation.tablespace == 0 { database.tablespace } else { relation.tablespace };
    // Shared relations belong to no database.
    let owner = if tablespace == GLOBAL_TABLESPACE { 0 } else { database.oid };
    (relation.file != 0).then_some(RelFileLocator { tablespace, database: owner, number: relation.file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(oid: u32, name: &str, file: u32) -> Relation {
        Relation { oid, schema: "public".into(), name: name.into(), kind: 'r', file, rows: 5.0, ..Relation::default() }
    }

    fn catalogue(oid: u32, name: &str, relations: Vec<Relation>) -> Catalogue {
        let schemas = vec![(2200, "public".into())];
        Catalogue { databases: vec![Database { oid, name: name.into(), tablespace: DEFAULT_TABLESPACE, schemas, relations }] }
    }

    fn row(oid: u32, name: &str, persistence: u8) -> ClassRow {
        ClassRow { oid, name: name.into(), namespace: 2200, filenode: oid, persistence, kind: b'r' }
    }

    #[test]
    fn a_later_catalogue_adds_and_renews_and_forgets_nothing() {
        let mut names = Names::new(catalogue(5, "shop", vec![relation(16384, "orders", 16384), relation(16390, "old", 16390)]));
        names.merge(catalogue(5, "store", vec![relation(16384, "orders_2", 17000), relation(16400, "new", 16400)]));
        names.merge(catalogue(6, "other", vec![relation(16384, "orders", 16384)]));
        let named = |oid| names.relation(5, oid).map(|named| named.to_string());
        assert_eq!(named(16384).as_deref(), Some("store.public.orders_2"));
        assert_eq!(named(16390).as_deref(), Some("store.public.old"));
        assert_eq!(named(16400).as_deref(), Some("store.public.new"));
        assert_eq!(names.relation(6, 16384).unwrap().to_string(), "other.public.orders");
        let file = |number| RelFileLocator { tablespace: DEFAULT_TABLESPACE, database: 5, number };
        assert_eq!(names.file(file(16384)), names.file(file(17000)), "the file before, and the one since");
        assert_eq!(names.file_of((5, 16384)), FileOf::Known(file(17000)));
    }

    #[test]
    fn what_is_made_in_a_database_of_which_nothing_is_known_has_a_name_once_the_database_has_one() {
        let mut names = Names::default();
        names.learn(7, 0, &row(16384, "orders", b'p'));
        assert_eq!(names.relation(7, 16384).unwrap().to_string(), "(database 7).public.orders");
        assert!(names.database(7).is_none());
        names.learn_name(0, PG_DATABASE, 7, "shop");
        names.learn_name(7, PG_NAMESPACE, 16500, "branch");
        names.learn(7, 0, &ClassRow { namespace: 16500, ..row(16385, "unlogged", b'u') });
        assert_eq!(names.relation(7, 16385).unwrap().to_string(), "shop.branch.unlogged");
        names.learn(7, 0, &row(16386, "passing", b't'));
        assert!(names.relation(7, 16386).is_none() && names.is_temporary((7, 16386)) && !names.is_temporary((7, 16385)));
    }
}
