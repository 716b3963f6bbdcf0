//! Where WAL does not tell everything, everything is read; where it does in another way, that way is found.

use lastgood::postgres::scratch::Stop;
use lastgood::postgres::wal::name::SegmentName;

use super::content::{EVERYTHING, compare, total};
use crate::support::world::World;

/// A table of some pages, and a snapshot of it.
async fn world() -> World {
    let world = World::with(15, &["--data-checksums"], "autovacuum = off", None).await;
    world.sql("CREATE TABLE t AS SELECT i AS id, repeat('x', 200) AS what FROM generate_series(1, 30000) i").await;
    world.sql("VACUUM (FREEZE) t").await;
    world.backup(&[]);
    world
}

async fn change(world: &World, id: u32) {
    world.sql(&format!("UPDATE t SET what = 'changed' WHERE id = {id}")).await;
}

/// The segment that is being written, archived.
async fn archived(world: &World) -> String {
    let name = world.value("SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    world.archive().await;
    name
}

/// Files below a directory of the world whose name is this.
fn named(world: &World, below: &str, name: &str) -> Vec<std::path::PathBuf> {
    fn collect(dir: &std::path::Path, name: &str, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                collect(&entry.path(), name, found);
            } else if entry.file_name().to_str() == Some(name) {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    collect(&world.path(below), name, &mut found);
    found
}

/// A segment that is no longer in the server's `pg_wal`.
async fn recycled(world: &World, name: &str) {
    for _ in 0..3 {
        world.sql("SELECT pg_create_restore_point('r'); SELECT pg_switch_wal(); CHECKPOINT").await;
    }
    world.archive().await;
    world.sql("CHECKPOINT").await;
    assert!(!world.server.data().join("pg_wal").join(name).exists(), "{name} is still there");
}

/// No index is kept of a segment: it is made from the segment.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_the_index_is_filled_from_the_segments() {
    let world = world().await;
    change(&world, 5).await;
    let name = archived(&world).await;
    change(&world, 9000).await;
    let index = named(&world, "spool", &name);
    assert_eq!(index.len(), 1, "{index:?}");
    std::fs::remove_file(&index[0]).unwrap();
    let (snapshot, said) = compare(&world, "--full").await;
    assert!(!said.contains(EVERYTHING) && total(&snapshot, "unread_bytes") > 4 << 20, "{said}");
    assert!(total(&snapshot, "new_bytes") < 1 << 20, "{snapshot}");
}

/// A segment is gone: nothing tells what it changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_segment_makes_everything_read() {
    let world = world().await;
    change(&world, 5).await;
    let name = archived(&world).await;
    change(&world, 9000).await;
    recycled(&world, &name).await;
    std::fs::remove_file(&named(&world, "spool", &name)[0]).unwrap();
    let object = named(&world, "repository", &name);
    std::fs::remove_file(&object[0]).unwrap();
    let (snapshot, said) = compare(&world, "--full").await;
    assert!(said.contains(EVERYTHING) && said.contains(&format!("{name} is neither archived")), "{said}");
    assert_eq!(total(&snapshot, "unread_bytes"), 0);
}

/// A segment cannot be understood, neither when it was archived nor now.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_makes_everything_read() {
    let world = world().await;
    change(&world, 5).await;
    let name = archived(&world).await;
    change(&world, 9000).await;
    recycled(&world, &name).await;
    // What is kept is no index.
    std::fs::write(&named(&world, "spool", &name)[0], zstd::encode_all(&b"nonsense"[..], 1).unwrap()).unwrap();
    crate::support::world::tamper(&named(&world, "repository", &name)[0], |bytes| bytes[300] ^= 1);
    let (snapshot, said) = compare(&world, "--full").await;
    assert!(said.contains(EVERYTHING) && said.contains(&name), "{said}");
    assert_eq!(total(&snapshot, "unread_bytes"), 0);
}

/// Changes without WAL.
#[tokio::test(flavor = "multi_thread")]
async fn minimal_wal_makes_everything_read() {
    let mut world = world().await;
    change(&world, 5).await;
    let configure = |level: &str, archive: &str, senders: &str| {
        format!("wal_level = {level}\narchive_mode = {archive}\nmax_wal_senders = {senders}")
    };
    world.server.stop(Stop::Fast);
    world.server.configure(&configure("minimal", "off", "0")).unwrap();
    world.start().await;
    // Such a table's pages are written without WAL, and so are an older one's that is truncated in the same transaction.
    world.sql("BEGIN; TRUNCATE t; INSERT INTO t SELECT i, repeat('m', 200) FROM generate_series(1, 30000) i; COMMIT").await;
    world.server.stop(Stop::Fast);
    world.server.configure(&configure("replica", "on", "10")).unwrap();
    world.start().await;
    change(&world, 9000).await;
    let (snapshot, said) = compare(&world, "--full").await;
    assert!(said.contains(EVERYTHING) && said.contains("wal_level = minimal"), "{said}");
    assert_eq!(total(&snapshot, "unread_bytes"), 0);
}

/// The server was promoted: its WAL goes on under another timeline, from a copy of the segment in which it was promoted.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_breaks_nothing() {
    let mut world = world().await;
    change(&world, 5).await;
    archived(&world).await;
    change(&world, 9000).await;
    world.server.stop(Stop::Fast);
    world.write_private("data/recovery.signal", "");
    world.server.configure("restore_command = 'false'").unwrap();
    world.start().await;
    let began = lastgood::clock::monotonic();
    while world.session().in_recovery().await.unwrap() {
        assert!(began.elapsed() < crate::support::world::PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    change(&world, 17000).await;
    let (snapshot, said) = compare(&world, "--full").await;
    assert_eq!(snapshot["timeline"], 2);
    assert!(!said.contains(EVERYTHING) && total(&snapshot, "unread_bytes") > 4 << 20, "{said}");
}

/// An index that lies: the sample finds it out.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lacks_changes_is_found_out() {
    let world = world().await;
    // Every page of it, whose images fill half a segment that begins here.
    archived(&world).await;
    world.sql("UPDATE t SET what = 'w' WHERE id % 20 = 0").await;
    // Nobody reads the table from here on: that would prune its pages, and name them again.
    let name = archived(&world).await;
    let (parsed, bytes) = (name.parse::<SegmentName>().unwrap(), 16 << 20);
    let index = lastgood::postgres::wal::index::SegmentIndex {
        major: 15,
        timeline: 1,
        start: parsed.start(bytes).unwrap(),
        ..Default::default()
    };
    let path = &named(&world, "spool", &name)[0];
    std::fs::write(path, zstd::encode_all(&index.to_bytes().unwrap()[..], 1).unwrap()).unwrap();
    let (snapshot, said) = compare(&world, "--full").await;
    assert!(said.contains("warning") && said.contains("which the WAL index does not say"), "{said}");
    assert_eq!(total(&snapshot, "unread_bytes"), 0);
}
