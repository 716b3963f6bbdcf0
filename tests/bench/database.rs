//! The database that everything is measured with: half pgbench, half text and JSON that compresses two to four times.
//!
//! It is built once for each size, kept, and copied for each round, so that every round begins with the same bytes. All rows are
//! frozen and vacuumed, so that later reading changes no page.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lastgood::owner::Ids;
use lastgood::postgres::scratch::{self, Scratch, Stop};
use lastgood::postgres::session::Session;

use crate::measure::quietly;
use crate::settings::Settings;

/// Debian's PostgreSQL 15: it has pgbench and `pg_basebackup`, which the npm packages lack.
pub const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// Raised when what is built changes, so that what an earlier version built is not used.
const VERSION: u32 = 1;
/// What one unit of pgbench's scale takes with a fill factor of 90, with its index.
pub const SCALE_BYTES: u64 = 16_300_000;
/// Rows of each kind that are made at a time.
const BATCH_ROWS: u64 = 50_000;
/// Rows that [`work`] adds.
const WORK_ROWS: u64 = 12_000;
/// Longest time for a server to answer.
const START: Duration = Duration::from_secs(600);

/// Checks, forced flushing and WAL are for a database that must survive; this one is built anew when anything fails.
pub const WHILE_BUILDING: &str = "fsync = off\nfull_page_writes = off\nwal_level = minimal\nmax_wal_senders = 0\narchive_mode = off\n\
    shared_buffers = '512MB'\nmaintenance_work_mem = '256MB'\nmax_wal_size = '8GB'\ncheckpoint_timeout = '1h'\nautovacuum = off";

/// Sentences of made-up words in a skewed mix, and rows made of them. Only a variable of PL/pgSQL is an array whose elements are
/// found at once.
const FUNCTIONS: &str = "
CREATE SCHEMA bench;
CREATE FUNCTION bench.sentences(wanted int) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    w text[] := (SELECT array_agg(substr(translate(md5(i::text), '0123456789abcdef', 'etaoinshrdlucmfw'), 1, 2 + (i * 7) % 9))
        FROM generate_series(1, 2000) i);
    made text[] := '{}';
    sentence text;
BEGIN
    FOR i IN 1 .. wanted LOOP
        sentence := w[1 + floor(2000 * random() * random())::int];
        FOR word IN 2 .. 8 LOOP
            sentence := sentence || ' ' || w[1 + floor(2000 * random() * random())::int];
        END LOOP;
        made[i] := sentence;
    END LOOP;
    RETURN made;
END $$;
CREATE TABLE bench.documents (id bigint, author int, written timestamptz, title text, body text, touched int)
    WITH (fillfactor = 90);
CREATE TABLE bench.events (id bigint, payload jsonb, touched int) WITH (fillfactor = 90);
CREATE FUNCTION bench.fill(first bigint, rows int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    s text[] := bench.sentences(100000);
    prose text;
    at timestamptz;
    title text;
    street text;
BEGIN
    FOR number IN first .. first + rows - 1 LOOP
        at := '2026-01-01'::timestamptz + random() * interval '300 days';
        title := s[1 + floor(random() * 100000)::int];
        street := s[1 + floor(random() * 100000)::int];
        prose := s[1 + floor(random() * 100000)::int];
        FOR sentence IN 1 .. 2 + number % 10 LOOP
            prose := prose || '. ' || s[1 + floor(random() * 100000)::int];
        END LOOP;
        INSERT INTO bench.documents VALUES (number, (random() * 50000)::int, at, title, prose, 0);
        INSERT INTO bench.events VALUES (number, jsonb_build_object('user', (random() * 900000)::int,
            'kind', (ARRAY['view', 'search', 'order', 'refund', 'login'])[1 + floor(random() * 5)::int],
            'session', md5(random()::text), 'amount', round((random() * 5000)::numeric, 2), 'at', at,
            'items', jsonb_build_array((random() * 9999)::int, (random() * 9999)::int, (random() * 9999)::int),
            'note', title, 'address', jsonb_build_object('city', (random() * 4000)::int, 'street', street)), 0);
    END LOOP;
END $$;
";

/// The server, answering; it is given up on after some minutes.
pub async fn start(server: &mut Scratch) -> Result<Session> {
    let started = tokio::time::timeout(START, server.start()).await;
    started.with_context(|| format!("the server does not answer:\n{}", server.log()))??;
    let session = Session::open(&server.connection()).await?;
    session.run("SET search_path = public, pg_catalog").await?;
    Ok(session)
}

/// The data directory of a stopped server with the wanted size, built when it is not there yet.
pub async fn base(settings: &Settings, user: Option<Ids>) -> Result<PathBuf> {
    let home = settings.work.join(format!("base-{}-v{VERSION}", settings.size_text));
    let data = home.join("data");
    let ready = home.join("ready");
    if ready.exists() {
        return Ok(data);
    }
    if home.exists() {
        std::fs::remove_dir_all(&home)?;
    }
    println!("building a database of {} in {} (once)", settings.size_text, home.display());
    scratch::make_directory(&home, user)?;
    let mut server = Scratch::new(Path::new(PROGRAMS), &data, &home.join("sockets"), user)?;
    server.initdb(&["--data-checksums"])?;
    server.configure(WHILE_BUILDING)?;
    let session = start(&mut server).await?;
    fill(&server, &session, settings.size_bytes).await?;
    server.stop(Stop::Fast);
    std::fs::remove_dir_all(home.join("sockets"))?;
    std::fs::write(&ready, "")?;
    rustix::fs::syncfs(std::fs::File::open(&home)?)?;
    Ok(data)
}

async fn fill(server: &Scratch, session: &Session, bytes: u64) -> Result<()> {
    accounts(server, bytes / 2)?;
    session.run("SELECT setseed(0.42)").await?;
    session.run(FUNCTIONS).await?;
    let mut first = 1;
    while size(session, "bench.documents").await? + size(session, "bench.events").await? < bytes / 2 {
        session.run(&format!("SELECT bench.fill({first}, {BATCH_ROWS})")).await?;
        first += BATCH_ROWS;
    }
    session.run("VACUUM (FREEZE, ANALYZE)").await?;
    session.run("ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)").await?;
    session.run("ALTER TABLE bench.documents ADD PRIMARY KEY (id)").await?;
    session.run("VACUUM (FREEZE, ANALYZE)").await?;
    session.run("CHECKPOINT").await?;
    Ok(())
}

/// pgbench's tables, without their index, so large that they take about so many bytes with it.
pub fn accounts(server: &Scratch, bytes: u64) -> Result<()> {
    let scale = (bytes / SCALE_BYTES).max(1);
    pgbench(server, &["-i", "-I", "dtG", "-F", "90", "-q", "-s", &scale.to_string()])
}

pub fn pgbench(server: &Scratch, args: &[&str]) -> Result<()> {
    let mut command = server.command("pgbench");
    command.arg("-h").arg(server.sockets()).args(["-U", "postgres"]).args(args).arg("postgres");
    let output = command.output().context("start pgbench")?;
    if !output.status.success() {
        bail!("pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

async fn size(session: &Session, table: &str) -> Result<u64> {
    Ok(session.value(&format!("SELECT pg_total_relation_size('{table}')::text")).await?.parse()?)
}

/// Copies a directory with owners and times.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    quietly(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to), None)?;
    Ok(())
}

pub const TABLES: [&str; 3] = ["public.pgbench_accounts", "bench.documents", "bench.events"];

/// Changes one page in a hundred of the whole database, spread evenly over the heaps of `tables`: one row of each, in place.
pub async fn scatter(session: &Session, tables: &[&str]) -> Result<()> {
    let whole: u64 = session.value("SELECT pg_database_size(current_database())::text").await?.parse()?;
    let mut heaps = 0;
    for table in tables {
        heaps += session.value(&format!("SELECT pg_relation_size('{table}')::text")).await?.parse::<u64>()?;
    }
    // Indexes do not change, so that the tables must make up for them.
    let step = (100 * heaps / whole).max(1);
    for table in tables {
        let column = if table.ends_with("accounts") { "abalance" } else { "touched" };
        let pages = format!("generate_series(0::bigint, pg_relation_size('{table}') / 8192 - 1, {step}) block");
        let rows = format!("ARRAY(SELECT format('(%s,1)', block)::tid FROM {pages})");
        session.run(&format!("UPDATE {table} SET {column} = {column} + 1 WHERE ctid = ANY({rows})")).await?;
    }
    session.run("CHECKPOINT").await?;
    Ok(())
}

/// Adds a tenth to the database, at the ends of its text and JSON tables.
pub async fn append(session: &Session) -> Result<()> {
    let before: u64 = session.value("SELECT pg_database_size(current_database())::text").await?.parse()?;
    for (table, columns) in [("documents", "author, written, title, body, touched"), ("events", "payload, touched")] {
        // These two are half of the database, so a fifth of them is a tenth of it.
        let sql = format!(
            "INSERT INTO bench.{table} SELECT id + top, {columns} FROM bench.{table}, \
             (SELECT max(id) AS top, max(id) / 5 AS many FROM bench.{table}) bounds WHERE id <= many"
        );
        session.run(&sql).await?;
    }
    session.run("CHECKPOINT").await?;
    let after: u64 = session.value("SELECT pg_database_size(current_database())::text").await?.parse()?;
    if after * 100 < before * 107 {
        bail!("the database grew from {before} to {after} bytes only");
    }
    Ok(())
}

/// Writes some MiB of WAL: rows come, and rows all over the largest table change. Each `turn` has other rows.
pub async fn work(session: &Session, turn: u64) -> Result<()> {
    let columns = "author, written, title, body, touched";
    // There are as many at least, see `fill`.
    let first = turn * WORK_ROWS % (BATCH_ROWS - WORK_ROWS);
    let id = 1_000_000_000 + turn * WORK_ROWS * 100;
    let rows = format!("id > {first} AND id <= {first} + {WORK_ROWS}");
    session.run(&format!("INSERT INTO bench.documents SELECT id + {id}, {columns} FROM bench.documents WHERE {rows}")).await?;
    let scattered =
        "SELECT DISTINCT (1 + random() * (SELECT max(aid) - 1 FROM pgbench_accounts))::int FROM generate_series(1, 800)";
    session.run(&format!("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN ({scattered})")).await?;
    Ok(())
}
