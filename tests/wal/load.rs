//! A mixed load of several sessions, what its clients know of it, and the WAL it left.

use std::path::Path;

use jiff::Timestamp;
use lastgood::postgres::lsn::{Lsn, Timeline};
use lastgood::postgres::session::Session;
use lastgood::postgres::wal::name::SegmentName;
use lastgood::postgres::wal::reader::{PAGE_BYTES, Walk};
use lastgood::postgres::wal::transaction::{self, Event, Kind};

use crate::support::world::World;

/// Nothing is archived, so nothing is removed.
pub const SETTINGS: &str = "max_prepared_transactions = 20\nautovacuum = off\nmax_wal_size = '4GB'";
const SESSIONS: usize = 4;
const ROUNDS: usize = 12;

/// A transaction as its client saw it.
#[derive(Debug)]
struct Transaction {
    xid: u32,
    commits: bool,
    before: Timestamp,
    after: Timestamp,
}

pub struct Known {
    transactions: Vec<Transaction>,
    points: Vec<String>,
    segment_bytes: u64,
    /// First segment of the load, and the one after its last.
    first: u64,
    end: u64,
}

impl Known {
    /// Each of them is among the events, once.
    pub fn check(&self, events: &[Event]) {
        assert!(self.transactions.len() >= SESSIONS * ROUNDS && self.points.len() >= SESSIONS * ROUNDS);
        for known in &self.transactions {
            let found: Vec<&Event> = events.iter().filter(|event| event.xid() == Some(known.xid)).collect();
            let [event] = found.as_slice() else { panic!("{known:?}: {found:?}") };
            assert_eq!(matches!(event.kind, Kind::Commit { .. }), known.commits, "{known:?}: {event:?}");
            assert!((known.before..=known.after).contains(&event.time), "{known:?}: {event:?}");
        }
        let found: Vec<&String> =
            events.iter().filter_map(|e| if let Kind::RestorePoint { name } = &e.kind { Some(name) } else { None }).collect();
        for name in &self.points {
            assert_eq!(found.iter().filter(|found| **found == name).count(), 1, "{name}");
        }
    }
}

/// Plays about as much as fills two segments.
pub async fn play(world: &World, segment_bytes: u64) -> Known {
    let position = async || world.value("SELECT pg_current_wal_insert_lsn()").await.parse::<Lsn>().unwrap();
    world.sql("CREATE TABLE big (what text); ALTER TABLE big ALTER what SET STORAGE EXTERNAL").await;
    world.sql("SELECT pg_switch_wal()").await;
    let first = position().await.segment(segment_bytes);
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let session = world.connect().await;
        sessions.push(tokio::spawn(async move { one_session(&session, number).await }));
    }
    // Records of every length, so that each part of one lies at each place of a page.
    world.sql("SELECT pg_logical_emit_message(false, 'p', repeat('y', i)) FROM generate_series(1, 9000, 7) i").await;
    // A record longer than a small segment.
    world.sql("SELECT pg_logical_emit_message(true, 'large', repeat('z', 2500000))").await;
    let megabytes = 2 * (segment_bytes >> 20);
    world.sql(&format!("INSERT INTO big SELECT repeat(i::text, 200000) FROM generate_series(1, {megabytes}) i")).await;
    let (mut transactions, mut points) = (Vec::new(), Vec::new());
    for session in sessions {
        let (more, names) = session.await.unwrap();
        transactions.extend(more);
        points.extend(names);
    }
    world.sql("SELECT pg_switch_wal()").await;
    // A few bytes at the beginning of the next one, so that the switch is on disk.
    world.sql("CREATE TABLE flushed (x int)").await;
    Known { transactions, points, segment_bytes, first, end: position().await.segment(segment_bytes) }
}

struct Client<'a> {
    session: &'a Session,
    transactions: Vec<Transaction>,
}

impl Client<'_> {
    async fn sql(&self, sql: &str) {
        self.session.run(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    async fn value(&self, sql: &str) -> String {
        self.session.value(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    async fn xid(&self) -> u32 {
        self.value("SELECT txid_current()").await.parse().unwrap()
    }

    /// Ends a transaction with `sql` and remembers it.
    async fn end(&mut self, xid: u32, sql: &str) {
        let before = self.session.now().await.unwrap();
        self.sql(sql).await;
        let after = self.session.now().await.unwrap();
        self.transactions.push(Transaction { xid, commits: sql.starts_with("COMMIT"), before, after });
    }

    async fn round(&mut self, number: usize, round: usize) {
        let table = format!("t{number}");
        // Rows, updates, and an abort now and then.
        self.sql(&format!("BEGIN; INSERT INTO {table} SELECT i, md5(i::text) FROM generate_series(1, 50) i")).await;
        self.sql(&format!("UPDATE {table} SET what = 'round {round}' WHERE id % 7 = {round} % 7")).await;
        let xid = self.xid().await;
        self.end(xid, if round % 4 == 3 { "ROLLBACK" } else { "COMMIT" }).await;
        // Subtransactions: few, and more than a backend keeps in memory; one of them is rolled back.
        self.sql("BEGIN").await;
        for _ in 0..if round.is_multiple_of(5) { 80 } else { 3 } {
            self.sql(&format!("SAVEPOINT s; INSERT INTO {table} VALUES (-1, 'sub')")).await;
        }
        self.sql("ROLLBACK TO s").await;
        let xid = self.xid().await;
        self.end(xid, "COMMIT").await;
        // Two phases, with everything their records can carry: dropped files and statistics, invalidations, a name.
        let (gid, extra) = (format!("session {number} round {round}"), format!("extra_{number}_{round}"));
        self.sql(&format!("CREATE TABLE {extra} (id int PRIMARY KEY, what text); INSERT INTO {extra} VALUES (1, 'x')")).await;
        self.sql(&format!("BEGIN; SAVEPOINT s; INSERT INTO {table} VALUES (-2, 'sub'); RELEASE s")).await;
        match round % 3 {
            0 => self.sql(&format!("DROP TABLE {extra}")).await,
            1 => self.sql(&format!("ALTER TABLE {extra} ADD COLUMN more int; CREATE TABLE new_{extra} (x int)")).await,
            _ => {}
        }
        let xid = self.xid().await;
        self.sql(&format!("PREPARE TRANSACTION '{gid}'")).await;
        self.end(xid, &format!("{} PREPARED '{gid}'", if round % 4 == 1 { "ROLLBACK" } else { "COMMIT" })).await;
        // The same in one phase.
        self.sql(&format!("BEGIN; DROP TABLE IF EXISTS {extra}; TRUNCATE {table}")).await;
        let xid = self.xid().await;
        self.end(xid, "COMMIT").await;
    }
}

async fn one_session(session: &Session, number: usize) -> (Vec<Transaction>, Vec<String>) {
    let mut client = Client { session, transactions: Vec::new() };
    client.sql(&format!("CREATE TABLE t{number} (id int, what text); CREATE INDEX ON t{number} (id)")).await;
    let mut points = Vec::new();
    for round in 0..ROUNDS {
        client.round(number, round).await;
        // The longest name there is has 63 bytes.
        let name = format!("{:é<width$}", format!("point {number} {round} "), width = 14 + 2 * round);
        client.sql(&format!("SELECT pg_create_restore_point('{name}')")).await;
        points.push(name);
        if round == ROUNDS / 2 {
            client.sql("SELECT pg_switch_wal()").await;
        }
    }
    (client.transactions, points)
}

/// Whole segments, one after another.
pub struct Wal {
    pub segment_bytes: u64,
    pub files: Vec<(SegmentName, Vec<u8>)>,
}

/// A record, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    pub lsn: Lsn,
    pub xid: u32,
    pub manager: u8,
    pub info: u8,
    pub payload: u32,
}

impl Wal {
    pub fn read(world: &World, known: &Known) -> Wal {
        Wal::from(&world.server.data().join("pg_wal"), known)
    }

    fn from(dir: &Path, known: &Known) -> Wal {
        let name = |number: u64| SegmentName::new(Timeline(1), number, known.segment_bytes);
        let read = |name: SegmentName| (name, std::fs::read(dir.join(name.to_string())).unwrap());
        Wal { segment_bytes: known.segment_bytes, files: (known.first..known.end).map(name).map(read).collect() }
    }

    /// All records and events; there must be no end before the last byte.
    pub fn walk(&self) -> (Vec<Short>, Vec<Event>) {
        let mut walk = Walk::new(self.segment_bytes);
        let (mut records, mut events) = (Vec::new(), Vec::new());
        for (name, bytes) in &self.files {
            let start = name.start(self.segment_bytes).unwrap();
            for (index, page) in bytes.chunks(PAGE_BYTES).enumerate() {
                let address = Lsn(start.0 + (index * PAGE_BYTES) as u64);
                let mut visit = |record: lastgood::postgres::wal::reader::Record| {
                    records.push(Short::of(&record));
                    events.extend(transaction::event(&record));
                };
                walk.page(page, address, &mut visit).unwrap_or_else(|end| panic!("{name}: {end:?}"));
            }
        }
        assert_eq!(walk.records(), records.len() as u64);
        (records, events)
    }
}

impl Short {
    pub fn of(record: &lastgood::postgres::wal::reader::Record) -> Short {
        Short {
            lsn: record.lsn,
            xid: record.xid,
            manager: record.resource_manager,
            info: record.info,
            payload: crc32c::crc32c(record.payload),
        }
    }
}
