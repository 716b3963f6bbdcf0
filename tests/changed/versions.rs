//! The same on every version.

use super::content::{EVERYTHING, compare, total};
use super::workload::together;
use crate::support::world::World;

async fn smoke(major: u32) {
    let world = World::with(major, &["--data-checksums"], "autovacuum = off", None).await;
    world.sql("CREATE TABLE t AS SELECT i AS id, repeat('x', 200) AS what FROM generate_series(1, 20000) i").await;
    world.sql("CREATE TABLE cut AS SELECT 'x' || i AS what FROM generate_series(1, 100000) i").await;
    world.sql("CREATE INDEX ON t (id); CREATE INDEX ON t USING hash (what)").await;
    world.sql("CREATE DATABASE pattern").await;
    world.sql("VACUUM (FREEZE) t").await;
    world.backup(&[]);
    world.sql("UPDATE t SET what = 'changed' WHERE id % 1000 = 0").await;
    world.sql("DELETE FROM cut WHERE ctid > '(20,0)'").await;
    world.sql("VACUUM cut").await;
    together(&world, "cut", 150).await;
    world.sql("CREATE DATABASE copied TEMPLATE pattern").await;
    world.sql("SELECT pg_switch_wal()").await;
    world
        .sql("BEGIN; CREATE TABLE made AS SELECT * FROM t; SAVEPOINT s; DELETE FROM t WHERE id % 500 = 1; ROLLBACK TO s; COMMIT")
        .await;
    let (snapshot, said) = compare(&world, "--full").await;
    assert!(!said.contains(EVERYTHING) && !said.contains("warning"), "{said}");
    assert!(total(&snapshot, "unread_bytes") > 1 << 20, "{snapshot}");
    world.sql("DROP DATABASE copied").await;
    world.sql("VACUUM (FREEZE) t").await;
    world.sql("TRUNCATE made; REINDEX TABLE t").await;
    let (_, said) = compare(&world, "--full").await;
    assert!(!said.contains(EVERYTHING) && !said.contains("warning"), "{said}");
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            smoke($major).await;
        }
    )*};
}

versions!(postgresql_13 13, postgresql_14 14, postgresql_15 15, postgresql_16 16, postgresql_17 17, postgresql_18 18);
