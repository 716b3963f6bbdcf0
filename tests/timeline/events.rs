//! Each kind of event is found on every version, with its transaction, place and time, under concurrent traffic.

use std::os::unix::fs::chown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lastgood::postgres::catalogue::Catalogue;
use lastgood::postgres::session::Session;
use lastgood::postgres::wal::index::facts::FEW_ROWS;
use lastgood::timeline::catalogue::Names;
use lastgood::timeline::classify::Deed;
use lastgood::timeline::events::Happened;

use super::play::{Done, Play, Read, is_harmless};

/// Small transactions, with parts, some rolled back, until told to stop.
async fn traffic(session: Session, stop: Arc<AtomicBool>) {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let end = if round % 5 == 0 { "ROLLBACK" } else { "COMMIT" };
        let sql = format!(
            "BEGIN; INSERT INTO traffic SELECT i, 'x' FROM generate_series(1, 20) i; SAVEPOINT s; UPDATE traffic SET what = 'y' \
             WHERE id = 3; ROLLBACK TO s; DELETE FROM traffic WHERE id < 5; {end}"
        );
        session.run(&sql).await.unwrap();
    }
}

const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders SELECT i, repeat('o', 50) FROM generate_series(1, 3000) i;
    CREATE TABLE notes (id int PRIMARY KEY, what text); INSERT INTO notes SELECT i, 'n' FROM generate_series(1, 200) i;
    CREATE TABLE rewritten (id int PRIMARY KEY, what text); INSERT INTO rewritten SELECT i, 'w' FROM generate_series(1, 50) i;
    CREATE TABLE beside (id int PRIMARY KEY, what text); INSERT INTO beside VALUES (1, 'b');
    CREATE SCHEMA branch; CREATE TABLE branch.a (id serial PRIMARY KEY, what text); CREATE TABLE branch.b (id int REFERENCES branch.a);
    CREATE VIEW branch.v AS SELECT * FROM branch.a; INSERT INTO branch.a (what) VALUES ('x');
    CREATE MATERIALIZED VIEW sums AS SELECT count(*) FROM orders;
    CREATE TABLE emptied (id int PRIMARY KEY, what text); INSERT INTO emptied SELECT i, 'e' FROM generate_series(1, 500) i;
    CREATE TABLE refilled (id int PRIMARY KEY, what text); INSERT INTO refilled SELECT i, 'r' FROM generate_series(1, 500) i;
    CREATE TABLE deleted (id int, what text); INSERT INTO deleted SELECT i, repeat('d', 30) FROM generate_series(1, 60000) i;
    CREATE TABLE updated (id int, what text); INSERT INTO updated SELECT i, 'u' FROM generate_series(1, 5000) i;
    CREATE TABLE in_part (id int, what text); INSERT INTO in_part SELECT i, 'p' FROM generate_series(1, 100) i;
    CREATE TABLE two_phases (id int PRIMARY KEY, what text); INSERT INTO two_phases VALUES (1, 't');
    CREATE TABLE indexed (id int PRIMARY KEY, what text); CREATE INDEX extra ON indexed (what); INSERT INTO indexed VALUES (1, 'i');
    CREATE TABLE columns (id int PRIMARY KEY, what text, more text); CREATE INDEX ON columns (more); INSERT INTO columns VALUES (1, 'c');
    CREATE TABLE retyped (id int, n numeric(10, 2)); INSERT INTO retyped VALUES (1, 1.25);
    CREATE TABLE parts (id int, what text) PARTITION BY RANGE (id);
    CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (1) TO (1000); CREATE TABLE part_2 PARTITION OF parts FOR VALUES FROM (1000) TO (2000);
    INSERT INTO parts SELECT i, 'p' FROM generate_series(1, 1999) i;
    CREATE ROLE clerk; CREATE TABLE owned (id int); INSERT INTO owned VALUES (1); ALTER TABLE owned OWNER TO clerk;
    CREATE TABLE under_lock (id int PRIMARY KEY); INSERT INTO under_lock VALUES (1);
    CREATE TABLE emptied_under_lock (id int PRIMARY KEY, what text); INSERT INTO emptied_under_lock VALUES (1, 'e');
    CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); INSERT INTO unlogged VALUES (1);
    CREATE TABLE traffic (id int, what text)";

/// Transactions, and what must be found of each.
type Expected = Vec<(Done, Box<dyn Fn(&Read, &Done)>)>;

/// Of relations and schemas, as `lastgood backup` keeps them.
async fn catalogue(play: &Play) -> Catalogue {
    let relations = play
        .world
        .value(
            "SELECT json_agg(json_build_object('oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
                 'file', coalesce(pg_relation_filenode(c.oid), 0)::int8, 'tablespace', c.reltablespace::int8, 'rows', c.reltuples, 'bytes', 0))
             FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid >= 16384",
        )
        .await;
    let json = format!(
        "{{\"databases\": [{{\"oid\": {}, \"name\": \"shop\", \"tablespace\": 1663, \"schemas\": [[2200, \"public\"]], \"relations\": {relations}}}]}}",
        play.database
    );
    serde_json::from_str(&json).unwrap()
}

async fn drops(play: &Play, read: &mut Expected) {
    for (sql, relation, table) in [
        (&["DROP MATERIALIZED VIEW sums"][..], "sums", true),
        (&["DROP TABLE orders"], "orders", true),
        (&["DROP SCHEMA branch CASCADE"], "branch.a", true),
        (&["DROP INDEX extra"], "extra", false),
        // A rewrite does not hide what went beside it.
        (&["ALTER TABLE rewritten ALTER id TYPE bigint", "DROP TABLE beside"], "beside", true),
    ] {
        let (oid, file) = (play.oid(relation).await, play.file(relation).await);
        let done = play.committed(sql).await;
        let check = move |read: &Read, done: &Done| {
            let Deed::Drop { relations, files, only_indexes } = read.deed(done) else { panic!("{sql:?}: {:?}", read.one(done)) };
            assert!(relations.contains(&oid) && files.contains(&file), "{sql:?}: {relations:?} {files:?}");
            assert_eq!(*only_indexes, !table, "{sql:?}");
            let (by_oid, by_file) = (read.names.relation(oid.0, oid.1).unwrap(), read.names.file(file).unwrap());
            assert_eq!((by_oid.to_string(), by_oid), (format!("shop.{}", with_schema(relation)), by_file));
        };
        read.push((done, Box::new(check)));
    }
}

fn with_schema(name: &str) -> String {
    if name.contains('.') { name.into() } else { format!("public.{name}") }
}

async fn truncations(play: &Play, read: &mut Expected) {
    for (sql, relation) in [
        (&["TRUNCATE emptied"][..], "emptied"),
        (&["TRUNCATE refilled", "INSERT INTO refilled SELECT i, 'again' FROM generate_series(1, 300) i"], "refilled"),
        (&["SAVEPOINT s", "TRUNCATE in_part", "RELEASE s"], "in_part"),
    ] {
        let (oid, file) = (play.oid(relation).await, play.file(relation).await);
        let done = play.committed(sql).await;
        let check = move |read: &Read, done: &Done| {
            let Deed::Truncate { relations, files } = read.deed(done) else { panic!("{sql:?}: {:?}", read.one(done)) };
            assert!(relations.contains(&oid) && files.contains(&file), "{sql:?}: {relations:?} {files:?}");
        };
        read.push((done, Box::new(check)));
    }
}

async fn rows(play: &Play, read: &mut Expected) {
    for (sql, relation, updated, deleted) in [
        (&["DELETE FROM deleted"][..], "deleted", 0, 60000),
        (
            &["SAVEPOINT s", "UPDATE updated SET what = 'all'", "RELEASE s", "DELETE FROM updated WHERE id <= 10"],
            "updated",
            5000,
            10,
        ),
    ] {
        let file = play.file(relation).await;
        let done = play.committed(sql).await;
        let check = move |read: &Read, done: &Done| {
            let Deed::Rows { used } = read.deed(done) else { panic!("{sql:?}: {:?}", read.one(done)) };
            assert_eq!(used.locator, file, "{sql:?}");
            // Where the border of a segment falls between the last rows and the commit, a few are not counted (`FEW_ROWS`).
            let is_right = |counted: u64, rows: u64| counted <= rows && counted + FEW_ROWS > rows;
            assert!(is_right(used.updated, updated) && is_right(used.deleted, deleted), "{sql:?}: {used:?}");
        };
        read.push((done, Box::new(check)));
    }
}

async fn two_phases(play: &Play, read: &mut Expected) {
    let (oid, file) = (play.oid("two_phases").await, play.file("two_phases").await);
    let done = play.transaction(play.world.session(), &["DROP TABLE two_phases"], "COMMIT PREPARED 'two phases'").await;
    let check = move |read: &Read, done: &Done| {
        let Deed::Drop { relations, files, only_indexes: false } = read.deed(done) else { panic!("{:?}", read.one(done)) };
        assert!(relations.contains(&oid) && files.contains(&file), "{relations:?} {files:?}");
    };
    read.push((done, Box::new(check)));
}

/// What tables are is changed; and what was only locked is not told of.
async fn definitions(play: &Play, read: &mut Expected) {
    let notes = play.oid("notes").await;
    const LOCK: &str = "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE";
    type Is = fn(&Deed) -> Option<&[(u32, u32)]>;
    let drop: Is =
        |deed| if let Deed::Drop { relations, files, .. } = deed { (!files.is_empty()).then_some(&relations[..]) } else { None };
    let cases: [(&'static [&'static str], &str, Is); 8] = [
        (&["ALTER TABLE columns DROP COLUMN more"], "columns", |deed| match deed {
            Deed::DropColumns { relations, count: 1 } => Some(relations),
            _ => None,
        }),
        (&["ALTER TABLE retyped ALTER n TYPE int"], "retyped", |deed| match deed {
            Deed::Rewrite { relations, changes_columns: true, .. } => Some(relations),
            _ => None,
        }),
        (&["ALTER TABLE parts DETACH PARTITION part_1"], "parts", |deed| match deed {
            Deed::Detach { relations } => Some(relations),
            _ => None,
        }),
        (&["DROP TABLE part_2"], "part_2", drop),
        (&["DROP OWNED BY clerk"], "owned", drop),
        (&[LOCK, "DROP TABLE under_lock"], "under_lock", drop),
        (&[LOCK, "TRUNCATE emptied_under_lock"], "emptied_under_lock", |deed| match deed {
            Deed::Truncate { relations, .. } => Some(relations),
            _ => None,
        }),
        (&["DROP TABLE unlogged"], "unlogged", drop),
    ];
    for (sql, relation, is_it) in cases {
        let oid = play.oid(relation).await;
        let done = play.committed(sql).await;
        let check = move |read: &Read, done: &Done| {
            let deeds = read.of(done).into_iter().filter_map(|event| match &event.what {
                Happened::Relations(deed) => is_it(deed),
                _ => None,
            });
            let deeds: Vec<_> = deeds.collect();
            let [relations] = deeds[..] else { panic!("{sql:?}: {:#?}", read.of(done)) };
            assert!(relations.contains(&oid) && !relations.contains(&notes), "{sql:?}: {relations:?}");
        };
        read.push((done, Box::new(check)));
    }
}

/// Temporary tables of a session, dropped by a later transaction: nobody lost anything.
async fn passing(play: &Play) {
    let session = play.world.connect().await;
    for sql in [
        "CREATE TEMP TABLE passing (id serial PRIMARY KEY, what text)",
        "INSERT INTO passing (what) SELECT 'p' FROM generate_series(1, 100)",
        "CREATE TEMP VIEW seen AS SELECT * FROM passing",
        "CREATE TEMP TABLE dropped (id int)",
        "DROP TABLE dropped",
        "ALTER TABLE passing DROP COLUMN what CASCADE",
        "DISCARD TEMP",
    ] {
        session.run(sql).await.unwrap();
    }
}

/// Drops a database and a tablespace; gives their OIDs.
async fn directories(play: &Play) -> (u32, u32) {
    let place = play.world.path("fast");
    std::fs::create_dir(&place).unwrap();
    if let Some(user) = play.world.user() {
        chown(&place, Some(user.uid), Some(user.gid)).unwrap();
    }
    play.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", place.display())).await;
    play.sql("CREATE DATABASE doomed").await;
    let database = play.world.value("SELECT oid FROM pg_database WHERE datname = 'doomed'").await.parse().unwrap();
    let tablespace = play.world.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await.parse().unwrap();
    play.sql("CREATE DATABASE wandering").await;
    play.sql("ALTER DATABASE wandering SET TABLESPACE fast").await;
    play.sql("DROP DATABASE doomed").await;
    play.sql("ALTER DATABASE wandering SET TABLESPACE pg_default").await;
    play.sql("DROP TABLESPACE fast").await;
    (database, tablespace)
}

fn check_directories(read: &Read, (database, tablespace): (u32, u32)) {
    let dropped = read.events.iter().filter(|event| matches!(&event.what, Happened::DatabaseDropped { moved: false, .. }));
    let dropped: Vec<_> = dropped.collect();
    let [event] = dropped[..] else { panic!("{dropped:#?}") };
    assert!(
        matches!(&event.what, Happened::DatabaseDropped { oid, tablespaces, .. } if *oid == database && *tablespaces == [1663])
    );
    // The mark of an invalid database comes before its files go, and much before the commit.
    assert!(event.target < event.lsn && event.first <= event.target && event.time.is_some(), "{event:?}");
    let moved = read.events.iter().filter(|event| matches!(&event.what, Happened::DatabaseDropped { moved: true, .. })).count();
    assert_eq!(moved, 2);
    let created = |event: &&lastgood::timeline::events::Event| matches!(event.what, Happened::DatabaseCreated { oid, .. } if oid == database);
    assert_eq!(read.events.iter().filter(created).count(), 1);
    let gone: Vec<_> = read.events.iter().filter(|event| matches!(event.what, Happened::TablespaceDropped { .. })).collect();
    assert!(
        matches!(&gone[..], [event] if event.what == Happened::TablespaceDropped { oid: tablespace } && event.target < event.lsn)
    );
    let made = |event: &lastgood::timeline::events::Event| matches!(&event.what, Happened::TablespaceCreated { oid, location } if *oid == tablespace && location.ends_with("/fast"));
    assert!(read.events.iter().any(made));
}

async fn found(major: u32) {
    let play = Play::new(major, "").await;
    play.sql(TABLES).await;
    let names = Names::new(catalogue(&play).await);
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = [play.world.connect().await, play.world.connect().await]
        .into_iter()
        .map(|session| tokio::spawn(traffic(session, stop.clone())))
        .collect();
    let mut expected = Expected::new();
    drops(&play, &mut expected).await;
    play.sql("SELECT pg_create_restore_point('half way'); CHECKPOINT").await;
    truncations(&play, &mut expected).await;
    rows(&play, &mut expected).await;
    definitions(&play, &mut expected).await;
    passing(&play).await;
    two_phases(&play, &mut expected).await;
    let directories = directories(&play).await;
    stop.store(true, Ordering::Relaxed);
    for session in busy {
        session.await.unwrap();
    }
    let read = play.read(names).await;
    for (done, check) in &expected {
        check(&read, done);
    }
    check_directories(&read, directories);
    let points = read.events.iter().filter(|event| matches!(&event.what, Happened::RestorePoint { name } if name == "half way"));
    assert!(matches!(points.collect::<Vec<_>>()[..], [point] if point.time.is_some()));
    assert!(read.events.iter().any(|event| event.what == Happened::Checkpoint { shutdown: false }));
    let is_of_nothing = |what: &Happened| match what {
        Happened::Relations(Deed::Drop { files, .. }) => files.is_empty(),
        Happened::Relations(Deed::DropColumns { relations, .. }) => relations.is_empty(),
        _ => false,
    };
    let passing: Vec<_> = read.events.iter().filter(|event| is_of_nothing(&event.what)).collect();
    assert!(passing.is_empty(), "temporary tables: {passing:#?}");
    // Nothing else destroyed anything, with two sessions at work.
    let known = |xid: u32| expected.iter().any(|(done, _)| done.xid == xid);
    let others: Vec<_> = read
        .events
        .iter()
        .filter(|event| !is_harmless(event) && !known(event.xid))
        .filter(|event| !matches!(event.what, Happened::DatabaseDropped { .. } | Happened::TablespaceDropped { .. }))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(read.segments > 5, "{} segments", read.segments);
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            found($major).await;
        }
    )*};
}

versions!(
    events_of_postgresql_13 13,
    events_of_postgresql_14 14,
    events_of_postgresql_15 15,
    events_of_postgresql_16 16,
    events_of_postgresql_17 17,
    events_of_postgresql_18 18
);
