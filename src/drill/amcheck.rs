//! What `pg_amcheck` does: every B-tree against its table, every table against its own rules.
//!
//! A page may carry a right checksum and hold nonsense: a checksum says what was written, not whether it was right. The functions come
//! with the extension `amcheck`, and an extension can only be made in a server that can be written. So the server has left recovery by
//! now; the target was proven before. It still acts on nothing, and everybody else's transactions are read only.

use std::time::{Duration, Instant};

use super::server::Server;
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::session::{Session, SessionError};
use crate::repo::report::Report;

/// Failures that are named one by one.
const NAMED: usize = 20;
/// Ours, in a copy that is thrown away; the name must not be one of the original's.
const SCHEMA: &str = "lastgood_drill_amcheck";
/// `QUERY_CANCELED`: the time is over.
const CANCELED: &str = "57014";

/// Tables and indexes of one database, in random order: what the time allows is a fair sample. Unlogged ones are empty by now.
const RELATIONS: &str = "SELECT c.oid || ' ' || c.relkind::text || ' ' || c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam \
    LEFT JOIN pg_index i ON i.indexrelid = c.oid WHERE c.relpersistence = 'p' AND \
    (a.amname = 'btree' AND c.relkind = 'i' AND i.indisvalid AND i.indisready OR a.amname = 'heap' AND c.relkind IN ('r', 'm', 't')) \
    ORDER BY random()";

/// Checks relations of all databases until the time is over.
pub async fn check(server: &Server, databases: &[String], budget: Duration, report: &mut Report, monitor: &dyn Monitor) {
    let deadline = clock::monotonic() + budget;
    let mut found = Found::default();
    for database in databases {
        if let Err(error) = one_database(server, database, deadline, &mut found, monitor).await {
            report.fail("amcheck", format!("database {database}: {error}"));
        }
    }
    (report.checked.relations, report.checked.relations_there) = (found.checked, found.there);
    for problem in found.problems.iter().take(NAMED) {
        report.fail("amcheck", problem.clone());
    }
    if found.problems.len() > NAMED {
        report.fail("amcheck", format!("and {} more", found.problems.len() - NAMED));
    }
    for database in &found.without {
        let what = "has no extension amcheck (package postgresql-contrib): its tables were only read";
        report.warn("amcheck", format!("the server for database {database} {what}"));
    }
    let what = format!("{} of {} tables and indexes checked", found.checked, found.there);
    match (found.problems.is_empty(), found.checked == found.there) {
        (false, _) => {}
        (true, true) => report.ok("amcheck", what),
        (true, false) => report.ok("amcheck", format!("{what}, by chance, in {} s", budget.as_secs())),
    }
}

#[derive(Default)]
struct Found {
    checked: u64,
    there: u64,
    problems: Vec<String>,
    /// Databases without amcheck.
    without: Vec<String>,
}

async fn one_database(
    server: &Server,
    database: &str,
    deadline: Instant,
    found: &mut Found,
    monitor: &dyn Monitor,
) -> Result<(), SessionError> {
    let session = server.session(database).await?;
    // Triggers on events are the original's and might act.
    session
        .run("SET default_transaction_read_only = off; SET session_replication_role = replica; SET enable_indexonlyscan = off")
        .await?;
    let schema = install(&session).await?;
    if schema.is_none() {
        found.without.push(database.into());
    }
    for relation in session.column(RELATIONS).await? {
        let mut fields = relation.splitn(3, ' ');
        let (oid, kind, name) =
            (fields.next().unwrap_or_default(), fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let Some(sql) = sql(schema.as_deref(), server.major(), (oid, kind, name)) else { continue };
        found.there += 1;
        let left = deadline.saturating_duration_since(clock::monotonic());
        if left.is_zero() {
            continue;
        }
        session.run(&format!("SET statement_timeout = {}", left.as_millis().clamp(1, 1 << 30))).await?;
        match session.value(&sql).await {
            Ok(answer) => {
                found.checked += 1;
                monitor.advance(0);
                if !answer.is_empty() && kind != "i" {
                    found.problems.push(format!("{name} in database {database}: {answer}"));
                }
            }
            Err(SessionError::Query { detail, .. }) if detail.contains(CANCELED) => {}
            Err(SessionError::Query { detail, .. }) => {
                found.checked += 1;
                found.problems.push(format!("{name} in database {database}: {detail}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The schema with amcheck's functions, quoted; `None` where this installation of PostgreSQL does not have it.
async fn install(session: &Session) -> Result<Option<String>, SessionError> {
    if session.value("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'").await? == "0" {
        return Ok(None);
    }
    let place = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'amcheck'";
    let before = session.value(place).await?;
    if before.is_empty() {
        session.run(&format!("CREATE SCHEMA {SCHEMA}; CREATE EXTENSION amcheck SCHEMA {SCHEMA}")).await?;
        return Ok(Some(SCHEMA.into()));
    }
    // The original may have an old version of it.
    session.run("ALTER EXTENSION amcheck UPDATE").await?;
    Ok(Some(before))
}

/// What proves one relation. Of tables, PostgreSQL 13's amcheck knows nothing: they are read.
fn sql(schema: Option<&str>, major: u32, (oid, kind, name): (&str, &str, &str)) -> Option<String> {
    match (schema, kind) {
        (Some(schema), "i") => Some(format!("SELECT {schema}.bt_index_parent_check({oid}, true)")),
        (Some(schema), _) if major >= 14 => Some(format!(
            "SELECT coalesce(string_agg(format('block %s, line %s, attribute %s: %s', blkno, offnum, attnum, msg), '; '), '') \
             FROM (SELECT * FROM {schema}.verify_heapam({oid}, check_toast => true) LIMIT 5) found"
        )),
        (_, "r" | "m") => Some(format!("SELECT left(count(*)::text, 0) FROM ONLY {name}")),
        _ => None,
    }
}
