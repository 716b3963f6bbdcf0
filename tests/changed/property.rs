//! Random workloads: a snapshot that reads only what WAL names holds the same as one that reads everything.
//!
//! `LASTGOOD_SEED` repeats a run.

use lastgood::postgres::scratch::Stop;

use super::content::{EVERYTHING, compare, indexed, total};
use super::copies::move_files;
use super::workload::{Workload, together};
use crate::property::dice::Dice;
use crate::support::world::World;

const ROUNDS: usize = 4;

fn seed() -> u64 {
    let given = std::env::var("LASTGOOD_SEED").ok().map(|text| text.parse().unwrap());
    given.unwrap_or_else(|| u64::from_str_radix(&lastgood::clock::random_hex(6), 16).unwrap())
}

/// With checksums, hint bits leave their mark on page LSNs: then the reference is `--full`, which believes nothing. Without, it is
/// `--paranoid`, which reads everything and decides by page LSN.
async fn play(segment_megabytes: u32, checksums: bool) {
    let seed = seed();
    eprintln!("repeat with LASTGOOD_SEED={seed}");
    let mut dice = Dice::new(seed);
    let segments = format!("--wal-segsize={segment_megabytes}");
    let initdb = [segments.as_str(), "--data-checksums"];
    let settings = format!(
        "max_prepared_transactions = 20\nautovacuum = off\nwal_log_hints = {}\nwal_compression = {}\nfull_page_writes = {}",
        *dice.pick(&["on", "off"]),
        *dice.pick(&["on", "off"]),
        *dice.pick(&["on", "off"]),
    );
    let mut world = World::with(15, &initdb[..1 + usize::from(checksums)], &settings, None).await;
    let mut workload = Workload::begin(&world).await;
    world.backup(&[]);
    let mut unread = 0;
    for round in 0..ROUNDS {
        for _ in 0..4 + dice.below(20) {
            workload.step(&mut world, &mut dice).await;
        }
        if dice.chance(70) {
            // One while others write: what they wrote in the meantime is for the next one to find.
            let (mut command, table) = (world.command(&["--json", "backup"]), *dice.pick(&["a", "b", "c"]));
            let taking = tokio::task::spawn_blocking(move || crate::support::world::said(&mut command));
            while !taking.is_finished() {
                together(&world, table, 30).await;
                world.sql(&format!("UPDATE {table} SET what = 'meanwhile' WHERE id % 50 = {}", dice.below(50))).await;
            }
            let said = taking.await.unwrap();
            assert!(said.code == 0 && !said.all().contains(EVERYTHING), "seed {seed}, round {round}: {}", said.all());
            for _ in 0..dice.below(3) {
                workload.step(&mut world, &mut dice).await;
            }
        }
        // A copy: its files are others for the file system.
        if dice.chance(30) {
            world.server.stop(Stop::Fast);
            move_files(world.server.data());
            world.start().await;
        }
        let (snapshot, said) = compare(&world, if checksums { "--full" } else { "--paranoid" }).await;
        assert!(!said.contains(EVERYTHING) && !said.contains("warning"), "seed {seed}, round {round}: {said}");
        unread += total(&snapshot, "unread_bytes");
    }
    assert!(unread > 0, "seed {seed}");
    world.ok(&["verify"]);
}

/// Segments of 1 MB, so that many records cross from one into the next.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_in_small_segments_with_checksums() {
    play(1, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_in_usual_segments_with_checksums() {
    play(16, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_without_checksums() {
    play(1, false).await;
}

/// The gain: after a few changes in a large table, the next snapshot reads a few pages of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_few_changes_are_a_few_pages_read() {
    let world = World::with(15, &["--data-checksums"], "autovacuum = off", None).await;
    world.sql("CREATE TABLE t AS SELECT i AS id, repeat('x', 200) AS what FROM generate_series(1, 200000) i").await;
    world.sql("CREATE INDEX ON t (id)").await;
    world.sql("VACUUM (FREEZE) t").await;
    let first = world.backup(&[]);
    world.sql("UPDATE t SET what = 'changed' WHERE id IN (1, 70000, 140000, 199999)").await;
    let (second, said) = indexed(&world);
    let table: u64 = world.value("SELECT pg_relation_size('t')").await.parse().unwrap();
    assert!(total(&first, "read_bytes") > table && !said.contains(EVERYTHING), "{said}");
    assert!(total(&second, "unread_bytes") > table * 9 / 10, "{second}");
    assert!(total(&second, "read_bytes") < table / 10, "{second}");
    // The same by reading, and nothing more is known without the index.
    let (third, _) = compare(&world, "--full").await;
    assert_eq!(third["parent"], second["id"]);
    let paranoid = world.backup(&["--paranoid"]);
    assert!(total(&paranoid, "read_bytes") > table && total(&paranoid, "unread_bytes") == 0);
}
