//! A server whose WAL is read into events, and statements whose transactions are known.

use jiff::Timestamp;
use lastgood::postgres::lsn::{Lsn, Timeline};
use lastgood::postgres::scratch::Stop;
use lastgood::postgres::session::Session;
use lastgood::postgres::wal::index::fold::Fold;
use lastgood::postgres::wal::index::{MappedFiles, SegmentIndex, What};
use lastgood::postgres::wal::name::SegmentName;
use lastgood::postgres::wal::reader::{PAGE_BYTES, Walk};
use lastgood::postgres::wal::reference::RelFileLocator;
use lastgood::postgres::wal::transaction::{self, Kind};
use lastgood::timeline::catalogue::Names;
use lastgood::timeline::classify::Deed;
use lastgood::timeline::events::{Event, Events, Happened};

use crate::support::world::World;

pub const SEGMENT_BYTES: u64 = 1 << 20;
pub const MANY: u64 = 1000;
const SETTINGS: &str = "max_prepared_transactions = 20\nautovacuum = off\nmax_wal_size = '4GB'\nwal_compression = on";

/// A transaction as its client saw it.
#[derive(Debug, Clone)]
pub struct Done {
    pub xid: u32,
    pub before: Timestamp,
    pub after: Timestamp,
}

pub struct Play {
    pub world: World,
    pub database: u32,
    pub major: u32,
    /// First segment that is read.
    first: u64,
}

impl Play {
    pub async fn new(major: u32, settings: &str) -> Play {
        let mut world = World::bare(major, &["--wal-segsize=1"], &format!("{SETTINGS}\n{settings}"), None).await;
        world.start().await;
        let database = world.value("SELECT oid FROM pg_database WHERE datname = current_database()").await.parse().unwrap();
        world.sql("SELECT pg_switch_wal()").await;
        let at: Lsn = world.value("SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
        Play { world, database, major, first: at.segment(SEGMENT_BYTES) }
    }

    pub async fn sql(&self, sql: &str) {
        self.world.sql(sql).await;
    }

    /// Runs statements in a transaction that ends as `end` says.
    pub async fn transaction(&self, session: &Session, sql: &[&str], end: &str) -> Done {
        let run = async |sql: &str| session.run(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        run("BEGIN").await;
        let mut xid = String::new();
        for statement in sql {
            run(statement).await;
            // After the first statement, so that it is the statement that begins the transaction's WAL.
            if xid.is_empty() {
                xid = session.value("SELECT txid_current()").await.unwrap();
            }
        }
        if end.contains("PREPARED") {
            run("PREPARE TRANSACTION 'two phases'").await;
        }
        let before = session.now().await.unwrap();
        run(end).await;
        Done { xid: xid.parse().unwrap(), before, after: session.now().await.unwrap() }
    }

    /// The same on the world's own session, committed.
    pub async fn committed(&self, sql: &[&str]) -> Done {
        self.transaction(self.world.session(), sql, "COMMIT").await
    }

    pub async fn oid(&self, relation: &str) -> (u32, u32) {
        let oid = self.world.value(&format!("SELECT '{relation}'::regclass::oid")).await;
        (self.database, oid.parse().unwrap())
    }

    pub async fn file(&self, relation: &str) -> RelFileLocator {
        let number = self.world.value(&format!("SELECT pg_relation_filenode('{relation}')")).await.parse().unwrap();
        RelFileLocator { tablespace: 1663, database: self.database, number }
    }

    /// Stops the server and reads all it wrote.
    pub async fn read(mut self, names: Names) -> Read {
        self.world.sql("SELECT pg_switch_wal(); CREATE TABLE behind_the_switch (x int)").await;
        let end: Lsn = self.world.value("SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
        self.world.server.stop(Stop::Immediate);
        let mut read = Read { events: Vec::new(), ends: Vec::new(), index_bytes: 0, segments: 0, names: Names::default() };
        let mut events = Events::new(SEGMENT_BYTES, MANY, names);
        let (mut walk, mut mapped) = (Walk::new(SEGMENT_BYTES), MappedFiles::new());
        for number in self.first..end.segment(SEGMENT_BYTES) {
            let name = SegmentName::new(Timeline(1), number, SEGMENT_BYTES);
            let bytes = std::fs::read(self.world.server.data().join("pg_wal").join(name.to_string())).unwrap();
            let start = Lsn(number * SEGMENT_BYTES);
            let mut fold = Fold::new(start, SEGMENT_BYTES, mapped.clone());
            fold.feed(&bytes);
            let index = fold.finish().index.unwrap();
            let encoded = index.to_bytes().unwrap();
            assert_eq!(SegmentIndex::parse(&encoded).unwrap(), index);
            for mark in &index.marks {
                if let What::RelationMap(map) = &mark.what {
                    mapped.extend(map.mappings.iter().map(|(oid, number)| ((map.database, *oid), *number)));
                }
            }
            events.add(&index).unwrap_or_else(|e| panic!("{name}: {e}"));
            (read.index_bytes, read.segments) =
                (read.index_bytes + zstd::bulk::compress(&encoded, 6).unwrap().len(), read.segments + 1);
            for (page, bytes) in bytes.chunks(PAGE_BYTES).enumerate() {
                let address = Lsn(start.0 + (page * PAGE_BYTES) as u64);
                walk.page(bytes, address, &mut |record| read.ends.extend(transaction::event(&record))).unwrap();
            }
        }
        read.events = events.drain();
        read.names = events.into_names();
        read
    }
}

/// What was found.
pub struct Read {
    pub events: Vec<Event>,
    /// Ends of transactions, as the walk finds them.
    ends: Vec<transaction::Event>,
    pub index_bytes: usize,
    pub segments: usize,
    pub names: Names,
}

impl Read {
    /// Events of a transaction.
    pub fn of(&self, done: &Done) -> Vec<&Event> {
        self.events.iter().filter(|event| event.xid == done.xid).collect()
    }

    /// The one event of a transaction, whose commit is where and when the walk and the client saw it.
    pub fn one(&self, done: &Done) -> &Event {
        let found = self.of(done);
        let [event] = found[..] else { panic!("{done:?}: {found:#?}") };
        let is_commit = |end: &&transaction::Event| matches!(end.kind, Kind::Commit { xid, .. } if xid == done.xid);
        let commit = self.ends.iter().find(is_commit).unwrap();
        assert_eq!((event.lsn, event.time), (commit.lsn, Some(commit.time)), "{done:?}");
        assert!((done.before..=done.after).contains(&commit.time), "{done:?}: {}", commit.time);
        assert!(event.first < event.lsn && event.target <= event.lsn && !event.is_incomplete, "{event:?}");
        event
    }

    pub fn deed(&self, done: &Done) -> &Deed {
        let event = self.one(done);
        assert_eq!(event.target, event.lsn, "just before the commit");
        let Happened::Relations(deed) = &event.what else { panic!("{event:?}") };
        deed
    }
}

/// What nobody would want to take back: nothing that was stored is gone.
pub fn is_harmless(event: &Event) -> bool {
    match &event.what {
        Happened::Relations(Deed::Drop { files, only_indexes, .. }) => files.is_empty() || *only_indexes,
        Happened::Relations(Deed::Truncate { .. } | Deed::Rows { .. }) => false,
        Happened::DatabaseDropped { moved, .. } => *moved,
        Happened::TablespaceDropped { .. } => false,
        _ => true,
    }
}
