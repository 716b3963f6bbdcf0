//! On every version: disasters among writers, each found by name and undone to the row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lastgood::postgres::scratch::Stop;
use lastgood::postgres::session::Session;

use crate::support::world::World;

/// Counts up in a table of its own, and answers what it was told is committed.
async fn count_up(session: Session, stop: Arc<AtomicBool>) -> u64 {
    let mut committed = 0;
    while !stop.load(Ordering::Relaxed) {
        session.run(&format!("INSERT INTO ledger VALUES ({})", committed + 1)).await.unwrap();
        committed += 1;
    }
    committed
}

async fn undo_all(major: u32) {
    let world = World::new(major).await;
    world.sql("CREATE DATABASE other").await;
    world
        .sql(
            "CREATE TABLE ledger (n int); CREATE TABLE orders (id int PRIMARY KEY, what text); CREATE TABLE emptied (id int);
             CREATE TABLE deleted (id int); INSERT INTO orders SELECT i, repeat('o', 50) FROM generate_series(1, 3000) i;
             INSERT INTO emptied SELECT generate_series(1, 2000); INSERT INTO deleted SELECT generate_series(1, 5000); ANALYZE",
        )
        .await;
    world.backup(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(count_up(world.connect().await, stop.clone()));
    let disasters = [
        ("DROP TABLE orders", "drop of orders", "SELECT count(*) FROM orders", "3000"),
        ("TRUNCATE emptied", "truncate of emptied", "SELECT count(*) FROM emptied", "2000"),
        ("DELETE FROM deleted WHERE id > 100", "delete from deleted", "SELECT count(*) FROM deleted", "5000"),
        ("DROP DATABASE other", "drop database other", "SELECT count(*) FROM pg_database WHERE datname = 'other'", "1"),
    ];
    let mut seen = Vec::new();
    for (sql, ..) in &disasters {
        // What another session was told is committed before the disaster begins.
        seen.push(world.value("SELECT coalesce(max(n), 0) FROM ledger").await.parse::<u64>().unwrap());
        world.sql(sql).await;
    }
    stop.store(true, Ordering::Relaxed);
    let committed = writer.await.unwrap();
    world.archive().await;
    for (number, (_, words, question, answer)) in disasters.iter().enumerate() {
        let name = format!("restored-{number}");
        let (mut server, session) = world.restore(&name, &["--before", words, "--target-action", "promote"]).await;
        assert_eq!(session.value(question).await.unwrap(), *answer, "{words} on {major}");
        let (count, most) =
            (session.value("SELECT count(*) FROM ledger").await, session.value("SELECT coalesce(max(n), 0) FROM ledger").await);
        let (count, most) = (count.unwrap().parse::<u64>().unwrap(), most.unwrap().parse::<u64>().unwrap());
        assert!(
            count == most && (seen[number]..=committed).contains(&count),
            "{words}: {count} of {most}, seen {}",
            seen[number]
        );
        server.stop(Stop::Immediate);
    }
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            undo_all($major).await;
        }
    )*};
}

versions!(undone_on_13 13, undone_on_14 14, undone_on_15 15, undone_on_16 16, undone_on_17 17, undone_on_18 18);
