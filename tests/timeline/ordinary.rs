//! A day of ordinary work destroys nothing, and no event says so.

use std::os::unix::fs::PermissionsExt;

use lastgood::timeline::catalogue::Names;
use lastgood::timeline::classify::Deed;
use lastgood::timeline::events::Happened;

use super::play::{Done, Play, Read, is_harmless};

const TABLES: &str = "
    CREATE TABLE wide (id int PRIMARY KEY, what text); CREATE INDEX ON wide (what);
    INSERT INTO wide SELECT i, repeat('w', 100) FROM generate_series(1, 5000) i;
    CREATE MATERIALIZED VIEW sums AS SELECT count(*) AS n, what FROM wide GROUP BY what; CREATE UNIQUE INDEX ON sums (what);
    CREATE TABLE parts (id int, what text) PARTITION BY RANGE (id);
    CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (1) TO (1000);
    CREATE TABLE part_2 (id int, what text); INSERT INTO part_2 SELECT i, 'p' FROM generate_series(1000, 1999) i;
    CREATE TABLE kept (id int PRIMARY KEY, what text); INSERT INTO kept SELECT i, 'k' FROM generate_series(1, 3000) i;
    CREATE TABLE tail (id int, what text); INSERT INTO tail SELECT i, repeat('t', 500) FROM generate_series(1, 2000) i;
    CREATE VIEW shown AS SELECT * FROM kept";

/// Statements that run outside of a transaction.
const ALONE: &[&str] = &[
    "VACUUM FULL wide",
    "CLUSTER wide USING wide_pkey",
    "REINDEX TABLE wide",
    "REINDEX INDEX CONCURRENTLY wide_pkey",
    "REFRESH MATERIALIZED VIEW sums",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY sums",
    "ALTER TABLE wide ALTER id TYPE bigint",
    "ALTER TABLE wide ADD COLUMN stamp timestamptz DEFAULT clock_timestamp()",
    "ALTER TABLE wide DROP COLUMN stamp",
    "ALTER TABLE parts ATTACH PARTITION part_2 FOR VALUES FROM (1000) TO (2000)",
    "ALTER TABLE parts DETACH PARTITION part_1",
    "CREATE TABLE copied AS SELECT * FROM wide",
    "CREATE TEMPORARY TABLE passing (id int PRIMARY KEY, what text)",
    "INSERT INTO passing SELECT i, 'x' FROM generate_series(1, 3000) i",
    "DELETE FROM passing",
    "TRUNCATE passing",
    "DROP TABLE passing",
    "DROP VIEW shown",
    "DELETE FROM kept WHERE id <= 500",
    "VACUUM kept",
    "ANALYZE",
    "VACUUM FULL pg_class",
    "REINDEX SYSTEM postgres",
];

/// Parts of transactions, and how they end.
const TOGETHER: &[(&[&str], &str)] = &[
    (&["DROP TABLE kept CASCADE"], "ROLLBACK"),
    (&["TRUNCATE kept CASCADE"], "ROLLBACK"),
    (&["DELETE FROM kept"], "ROLLBACK"),
    (&["SAVEPOINT s", "DROP TABLE kept CASCADE", "ROLLBACK TO s", "INSERT INTO kept VALUES (-1, 'after')"], "COMMIT"),
    (&["SAVEPOINT s", "DELETE FROM wide", "ROLLBACK TO s", "INSERT INTO kept VALUES (-2, 'after')"], "COMMIT"),
    (&["CREATE TABLE brief (id int PRIMARY KEY, what text)", "INSERT INTO brief VALUES (1, 'b')", "DROP TABLE brief"], "COMMIT"),
    (
        &[
            "CREATE TABLE loaded (id int PRIMARY KEY, what text)",
            "INSERT INTO loaded SELECT i, 'l' FROM generate_series(1, 2000) i",
            "TRUNCATE loaded",
            "INSERT INTO loaded SELECT i, 'l' FROM generate_series(1, 2000) i",
            "DELETE FROM loaded",
        ],
        "COMMIT",
    ),
    (&["CREATE TABLE gone (id int PRIMARY KEY, what text)"], "ROLLBACK"),
    (&["DROP TABLE kept CASCADE"], "ROLLBACK PREPARED 'two phases'"),
    (&["UPDATE wide SET what = 'few' WHERE id <= 300"], "COMMIT"),
];

/// A database that cannot be copied: what fails removes what it made, and nothing else.
async fn failures(play: &Play) {
    let data = play.world.server.data();
    let aside = play.world.path("aside");
    lastgood::postgres::scratch::make_directory(&aside, play.world.user()).unwrap();
    play.sql(&format!("CREATE TABLESPACE aside LOCATION '{}'", aside.display())).await;
    play.sql("CREATE DATABASE pattern").await;
    let oid = play.world.value("SELECT oid FROM pg_database WHERE datname = 'pattern'").await;
    let unreadable = data.join(format!("base/{oid}/unreadable"));
    std::fs::write(&unreadable, "").unwrap();
    std::fs::set_permissions(&unreadable, std::fs::Permissions::from_mode(0o000)).unwrap();
    let strategy = if play.major >= 15 { "STRATEGY file_copy" } else { "" };
    for sql in
        [format!("CREATE DATABASE broken TEMPLATE pattern {strategy}"), "ALTER DATABASE pattern SET TABLESPACE aside".into()]
    {
        let failed = play.world.session().run(&sql).await.unwrap_err().to_string();
        assert!(failed.contains("unreadable"), "{sql}: {failed}");
    }
    std::fs::remove_file(unreadable).unwrap();
}

fn is_rewrite(read: &Read, relation: (u32, u32)) -> bool {
    let is_it =
        |what: &Happened| matches!(what, Happened::Relations(Deed::Rewrite { relations, .. }) if relations.contains(&relation));
    read.events.iter().any(|event| is_it(&event.what))
}

async fn harmless(major: u32) {
    let play = Play::new(major, "").await;
    play.sql(TABLES).await;
    let (wide, sums) = (play.oid("wide").await, play.oid("sums").await);
    for sql in ALONE {
        play.sql(sql).await;
    }
    failures(&play).await;
    // Truncates the empty end of the file.
    play.sql("DELETE FROM tail WHERE id > 1100").await;
    play.sql("VACUUM tail").await;
    let mut done: Vec<(Done, &[&str])> = Vec::new();
    for (sql, end) in TOGETHER {
        done.push((play.transaction(play.world.session(), sql, end).await, sql));
    }
    // Names of catalogs' rows are read although VACUUM FULL moved pg_class.
    play.sql("CREATE TABLE made_after_the_move (id int, what text)").await;
    let made = play.oid("made_after_the_move").await;
    let database = play.database;
    let mut empty = lastgood::postgres::catalogue::Catalogue::default();
    empty.databases.push(lastgood::postgres::catalogue::Database {
        oid: database,
        name: "shop".into(),
        tablespace: 1663,
        schemas: vec![(2200, "public".into())],
        relations: Vec::new(),
    });
    let read = play.read(Names::new(empty)).await;
    let harm: Vec<_> = read.events.iter().filter(|event| !is_harmless(event)).collect();
    assert!(harm.is_empty(), "{harm:#?}");
    for (done, sql) in &done {
        let is_drop = |event: &&lastgood::timeline::events::Event| matches!(event.what, Happened::Relations(Deed::Drop { .. }));
        let events = read.of(done);
        assert!(events.iter().all(|event| is_harmless(event)) && !events.iter().any(is_drop), "{sql:?}: {events:#?}");
    }
    assert!(is_rewrite(&read, wide) && is_rewrite(&read, sums), "{:#?}", read.events);
    let rebuilt = |what: &Happened| matches!(what, Happened::Relations(Deed::Rebuild { .. }));
    assert!(read.events.iter().any(|event| rebuilt(&event.what)));
    assert_eq!(
        read.names.relation(made.0, made.1).map(|named| named.to_string()).as_deref(),
        Some("shop.public.made_after_the_move")
    );
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            harmless($major).await;
        }
    )*};
}

versions!(
    ordinary_work_on_postgresql_13 13,
    ordinary_work_on_postgresql_14 14,
    ordinary_work_on_postgresql_15 15,
    ordinary_work_on_postgresql_16 16,
    ordinary_work_on_postgresql_17 17,
    ordinary_work_on_postgresql_18 18
);
