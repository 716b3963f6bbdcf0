//! Names, kinds and sizes of relations, as the server tells them by SQL.
//!
//! WAL speaks of OIDs and file numbers only; this says what they mean.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::session::{Session, SessionError};

/// Relations that are taken of one database, the largest first: their names take some 100 bytes each.
const RELATIONS_MAX: usize = 100_000;

/// OIDs of `pg_default` and `pg_global`.
const PG_DEFAULT: u32 = 1663;
const PG_GLOBAL: u32 = 1664;

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
    /// `reltuples`, or what the cumulative statistics say of a table that was never analysed; negative when the server never counted.
    pub rows: f64,
    pub bytes: u64,
}

/// A catalogue line by line, as it is kept: a database, and then its relations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Database(Database),
    Relation(Relation),
}

impl Catalogue {
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for database in &self.databases {
            lines.push(Line::Database(Database { relations: Vec::new(), ..database.clone() }));
            lines.extend(database.relations.iter().cloned().map(Line::Relation));
        }
        lines
    }

    pub fn of_lines(lines: Vec<Line>) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for line in lines {
            match (line, catalogue.databases.last_mut()) {
                (Line::Database(database), _) => catalogue.databases.push(database),
                (Line::Relation(relation), Some(database)) => database.relations.push(relation),
                (Line::Relation(_), None) => {}
            }
        }
        catalogue
    }
}

/// Asks every database that takes connections. What cannot be asked is named, with the reason, and has no relations.
pub async fn take(session: &Session) -> Result<(Catalogue, Vec<String>), SessionError> {
    let mut catalogue = Catalogue::default();
    let mut problems = Vec::new();
    let sql = "SELECT oid, datname::text, dattablespace, datallowconn FROM pg_catalog.pg_database ORDER BY oid";
    for row in session.rows("list the databases", sql).await? {
        let mut database = Database { oid: row.get(0), name: row.get(1), tablespace: row.get(2), ..Database::default() };
        if row.get::<_, bool>(3)
            && let Err(error) = fill(session, &mut database, &mut problems).await
        {
            problems.push(format!("the relations of database {:?} are not known by name: {error}", database.name));
        }
        catalogue.databases.push(database);
    }
    Ok((catalogue, problems))
}

async fn fill(session: &Session, database: &mut Database, problems: &mut Vec<String>) -> Result<(), SessionError> {
    let inside = session.in_database(&database.name).await?;
    let schemas = "SELECT oid, nspname::text FROM pg_catalog.pg_namespace";
    for row in inside.rows("list the schemas", schemas).await? {
        database.schemas.push((row.get(0), row.get(1)));
    }
    let relations = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, \
         coalesce(pg_catalog.pg_relation_filenode(c.oid), 0::oid), c.reltablespace, \
         CASE WHEN c.relkind IN ('r', 'm') AND c.reltuples <= 0 \
         THEN greatest(c.reltuples::float8, nullif(pg_catalog.pg_stat_get_live_tuples(c.oid), 0)::float8) \
         ELSE c.reltuples::float8 END, c.relpages::int8 * 8192 \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relpersistence <> 't' ORDER BY c.relpages DESC, c.oid LIMIT {}",
        RELATIONS_MAX + 1
    );
    for row in inside.rows("list the relations", &relations).await? {
        let kind: String = row.get(3);
        database.relations.push(Relation {
            oid: row.get(0),
            schema: row.get(1),
            name: row.get(2),
            kind: kind.chars().next().unwrap_or('?'),
            file: row.get(4),
            tablespace: row.get(5),
            rows: row.get(6),
            bytes: row.get::<_, i64>(7).max(0) as u64,
        });
    }
    if database.relations.len() > RELATIONS_MAX {
        database.relations.truncate(RELATIONS_MAX);
        let name = &database.name;
        problems.push(format!("database {name:?} has more than {RELATIONS_MAX} relations; only the largest are known by name"));
    }
    Ok(())
}

impl Catalogue {
    /// Looks at the files of tables that were never analysed, of which the server knows no size.
    pub fn measure(&mut self, data_directory: &Path, major: u32) {
        let mut tablespaces: HashMap<u32, Option<PathBuf>> = HashMap::new();
        for database in &mut self.databases {
            for relation in &mut database.relations {
                if relation.bytes > 0 || relation.file == 0 || !matches!(relation.kind, 'r' | 'm') {
                    continue;
                }
                let tablespace = if relation.tablespace == 0 { database.tablespace } else { relation.tablespace };
                let place = tablespaces.entry(tablespace).or_insert_with(|| place(data_directory, tablespace, major));
                let Some(place) = place else { continue };
                relation.bytes = length(&place.join(database.oid.to_string()).join(relation.file.to_string()));
            }
        }
    }
}

/// Where a tablespace's databases lie; `None` for that of shared relations, which are no tables of anybody.
fn place(data_directory: &Path, tablespace: u32, major: u32) -> Option<PathBuf> {
    match tablespace {
        PG_DEFAULT => Some(data_directory.join("base")),
        PG_GLOBAL => None,
        oid => {
            let link = data_directory.join("pg_tblspc").join(oid.to_string());
            let mut inside = std::fs::read_dir(link).ok()?.flatten();
            inside
                .find(|entry| entry.file_name().as_encoded_bytes().starts_with(format!("PG_{major}_").as_bytes()))
                .map(|entry| entry.path())
        }
    }
}

/// Of all files of a main fork together.
fn length(first: &Path) -> u64 {
    let segment = |number: u32| match number {
        0 => first.to_path_buf(),
        number => PathBuf::from(format!("{}.{number}", first.display())),
    };
    (0..).map_while(|number| Some(std::fs::metadata(segment(number)).ok()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_were_never_counted_have_the_size_of_their_files() {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in [
            ("base/5/16384", 16_384),
            ("base/5/16384.1", 8192),
            ("base/5/16390", 8192),
            ("pg_tblspc/16500/PG_15_1/5/16400", 4096),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![0; bytes]).unwrap();
        }
        let relation = |oid, tablespace, bytes| Relation { oid, file: oid, kind: 'r', tablespace, bytes, ..Relation::default() };
        let relations = vec![relation(16384, 0, 0), relation(16390, 0, 7), relation(16400, 16500, 0), relation(16410, 0, 0)];
        let mut catalogue =
            Catalogue { databases: vec![Database { oid: 5, tablespace: PG_DEFAULT, relations, ..Database::default() }] };
        catalogue.measure(dir.path(), 15);
        let bytes: Vec<u64> = catalogue.databases[0].relations.iter().map(|relation| relation.bytes).collect();
        assert_eq!(bytes, [24_576, 7, 4096, 0]);
    }

    #[test]
    fn lines_give_the_catalogue_again() {
        let relation = |oid| Relation { oid, schema: "public".into(), name: format!("t{oid}"), kind: 'r', ..Relation::default() };
        let database = |oid, relations: &[u32]| Database {
            oid,
            name: format!("d{oid}"),
            schemas: vec![(2200, "public".into())],
            relations: relations.iter().map(|oid| relation(*oid)).collect(),
            ..Database::default()
        };
        let catalogue = Catalogue { databases: vec![database(1, &[]), database(5, &[16384, 16390]), database(7, &[9])] };
        assert_eq!(catalogue.lines().len(), 6);
        assert_eq!(Catalogue::of_lines(catalogue.lines()), catalogue);
    }
}
