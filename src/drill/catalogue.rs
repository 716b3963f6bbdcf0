//! What the snapshot knew of the database, against what is there.
//!
//! The catalogue was taken while the snapshot was, and the target lies later. So a difference is no failure when the WAL between the two
//! tells of it: a drop, a truncate, a rewrite. Only what nothing explains is.

use std::collections::{HashMap, HashSet};

use crate::postgres::catalogue::{self, Catalogue, Database, Relation};
use crate::postgres::session::SessionError;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;
use crate::repo::report::Report;
use crate::timeline::archive::Archive;
use crate::timeline::catalogue::of_snapshot;
use crate::timeline::story::{self, MANY_ROWS, Story};
use crate::timeline::told::Kind;

use super::server::Server;
use super::target::{Expected, Reached};

/// A table whose file has less than this share of what it had may have lost its rows.
const SHARE_MIN: f64 = 0.1;
/// Smaller tables come and go.
const BYTES_MIN: u64 = 40 * 8192;
/// Differences that are named.
const NAMED: usize = 10;

/// What the server has: the catalogue, and how long the files of tables are, by database and OID.
struct There {
    catalogue: Catalogue,
    bytes: HashMap<(u32, u32), u64>,
    /// Locked, so that nobody can ask how long they are.
    locked: HashSet<(u32, u32)>,
}

/// How long each table is. Asking that of a table that is locked would wait for replay, which waits for us.
const SIZES: &str = "SELECT c.oid || ' ' || CASE WHEN c.oid IN (SELECT l.relation FROM pg_locks l WHERE l.granted \
     AND l.mode = 'AccessExclusiveLock' AND l.relation IS NOT NULL \
     AND l.database IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))) \
     THEN 'locked' ELSE coalesce(pg_relation_size(c.oid), 0)::text END FROM pg_class c WHERE c.relkind IN ('r', 'm')";

#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    compared: u64,
    /// Databases, by name.
    databases: Vec<String>,
    /// Tables, as `database.schema.name`.
    relations: Vec<String>,
    shrunk: Vec<(String, u64, u64)>,
    /// Tables that the transaction at the target has locked: replay has paused, and it never ends.
    locked: Vec<String>,
}

/// Compares, and puts what it finds into the report.
pub async fn check(
    server: &Server,
    archive: &Archive,
    (manifest, expected): (&Manifest, &Expected),
    reached: &Reached,
    report: &mut Report,
) -> Result<(), RepoError> {
    let Some(before) = of_snapshot(archive.cluster(), manifest).await? else {
        report.warn("catalogue", "the snapshot has none, so nothing could be compared with it");
        return Ok(());
    };
    let there = match look(server).await {
        Ok(there) => there,
        Err(error) => {
            report.fail("catalogue", format!("the server cannot be asked: {error}"));
            return Ok(());
        }
    };
    let found = compare(&before, &there);
    report.checked.catalogued = found.compared;
    if let Some(first) = found.locked.first() {
        let more = if found.locked.len() > 1 { format!(" and {} more", found.locked.len() - 1) } else { String::new() };
        let text = format!("table {first}{more} cannot be measured yet: locked by the transaction at the target");
        report.warn("catalogue", text);
    }
    if found.databases.is_empty() && found.relations.is_empty() && found.shrunk.is_empty() {
        let tables = found.compared;
        let databases = before.databases.len();
        report.ok("catalogue", format!("{databases} databases and {tables} tables are as the snapshot knows them"));
        return Ok(());
    }
    let question = story::Question {
        archive,
        manifests: std::slice::from_ref(manifest),
        path: &expected.path,
        since: None,
        until: None,
        from: Some(manifest.start_lsn),
        to: Some(reached.lsn),
        many_rows: MANY_ROWS,
        numbers: Some(manifest.start_lsn.segment(archive.segment_bytes)..=reached.lsn.last_segment_before(archive.segment_bytes)),
        local: &|_| None,
        passes_sealed: false,
    };
    let mut story = story::tell(&question).await?;
    story.events.retain(|event| event.lsn < reached.lsn);
    judge(&found, &story, report);
    Ok(())
}

async fn look(server: &Server) -> Result<There, SessionError> {
    let session = server.session(server.database()).await?;
    let (catalogue, _) = catalogue::take(&session).await?;
    let (mut bytes, mut locked) = (HashMap::new(), HashSet::new());
    for database in catalogue.databases.iter().filter(|database| !database.relations.is_empty()) {
        for line in server.session(&database.name).await?.column(SIZES).await? {
            let Some((oid, size)) = line.split_once(' ') else { continue };
            match (oid.parse(), size.parse()) {
                (Ok(oid), Ok(size)) => drop(bytes.insert((database.oid, oid), size)),
                (Ok(oid), Err(_)) => drop(locked.insert((database.oid, oid))),
                _ => {}
            }
        }
    }
    Ok(There { catalogue, bytes, locked })
}

fn is_table(relation: &&Relation) -> bool {
    matches!(relation.kind, 'r' | 'm')
}

fn compare(before: &Catalogue, there: &There) -> Differences {
    let mut found = Differences::default();
    let known: HashSet<u32> = there.catalogue.databases.iter().map(|database| database.oid).collect();
    for database in &before.databases {
        if !known.contains(&database.oid) {
            found.databases.push(database.name.clone());
            continue;
        }
        for relation in database.relations.iter().filter(is_table) {
            found.compared += 1;
            compare_one(database, relation, there, &mut found);
        }
    }
    found
}

fn compare_one(database: &Database, relation: &Relation, there: &There, found: &mut Differences) {
    let name = || format!("{}.{}.{}", database.name, relation.schema, relation.name);
    match there.bytes.get(&(database.oid, relation.oid)) {
        None if there.locked.contains(&(database.oid, relation.oid)) => found.locked.push(name()),
        None => found.relations.push(name()),
        Some(bytes) if relation.bytes >= BYTES_MIN && (*bytes as f64) < SHARE_MIN * relation.bytes as f64 => {
            found.shrunk.push((name(), relation.bytes, *bytes));
        }
        Some(_) => {}
    }
}

fn judge(found: &Differences, story: &Story, report: &mut Report) {
    let names_of = |kinds: &[Kind]| -> HashSet<&str> {
        let events = story.events.iter().filter(|event| kinds.contains(&event.kind));
        events.flat_map(|event| event.relations.iter().map(|touched| touched.name.as_str())).collect()
    };
    let dropped = names_of(&[Kind::Drop]);
    let emptied = names_of(&[Kind::Truncate, Kind::Delete, Kind::Rewrite, Kind::Drop]);
    let gone = |name: &str| {
        let mut drops = story.events.iter().filter(|event| event.kind == Kind::DropDatabase);
        drops.any(|event| event.database.as_deref() == Some(name) || event.text.contains(name))
    };
    // Where the WAL could not be told, nothing can be said to be unexplained.
    let is_sure = story.gaps.is_empty() && !story.is_cut && story.events.iter().all(|event| !event.is_incomplete);
    let mut unexplained: Vec<String> = Vec::new();
    unexplained.extend(found.databases.iter().filter(|name| !gone(name)).map(|name| format!("database {name} is missing")));
    let missing = found.relations.iter().filter(|name| !dropped.contains(name.as_str()));
    unexplained.extend(missing.map(|name| format!("table {name} is missing")));
    let shrunk = found.shrunk.iter().filter(|(name, ..)| !emptied.contains(name.as_str()));
    unexplained.extend(shrunk.map(|(name, before, now)| format!("table {name} had {before} bytes, and has {now}")));
    let explained = found.databases.len() + found.relations.len() + found.shrunk.len() - unexplained.len();
    if explained > 0 {
        report.ok(
            "catalogue",
            format!("{} tables compared; {explained} changes since the snapshot are told by the WAL", found.compared),
        );
    }
    let more = unexplained.len().saturating_sub(NAMED);
    for problem in unexplained.into_iter().take(NAMED) {
        let text = format!("{problem}, and the WAL since the snapshot does not say why");
        if is_sure { report.fail("catalogue", text) } else { report.warn("catalogue", text) }
    }
    if more > 0 {
        report.warn("catalogue", format!("and {more} more"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(tables: &[(u32, u64)]) -> Catalogue {
        let relation = |(oid, bytes): &(u32, u64)| Relation {
            oid: *oid,
            schema: "s".into(),
            name: format!("t{oid}"),
            kind: 'r',
            bytes: *bytes,
            ..Relation::default()
        };
        let relations = tables.iter().map(relation).collect();
        Catalogue { databases: vec![Database { oid: 5, name: "shop".into(), relations, ..Database::default() }] }
    }

    #[test]
    fn what_is_missing_or_has_shrunk_is_found() {
        let before = catalogue(&[(1, 1 << 20), (2, 1 << 20), (3, 8192), (4, 1 << 20), (9, 1 << 20)]);
        let bytes = HashMap::from([((5, 1), 1 << 20), ((5, 2), 8192), ((5, 3), 0)]);
        let there = There { catalogue: catalogue(&[]), bytes, locked: HashSet::from([(5, 9)]) };
        let found = compare(&before, &there);
        assert_eq!((found.compared, &found.relations[..]), (5, &["shop.s.t4".to_string()][..]));
        assert_eq!(found.locked, ["shop.s.t9"]);
        assert_eq!(found.shrunk, [("shop.s.t2".to_string(), 1 << 20, 8192)]);
        let nothing = There { catalogue: Catalogue::default(), bytes: HashMap::new(), locked: HashSet::new() };
        assert_eq!(compare(&before, &nothing).databases, ["shop"]);
    }
}
