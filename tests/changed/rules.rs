//! Each rule of the changed pages by itself: where only that rule keeps an old page out of a snapshot.

use std::path::{Path, PathBuf};

use lastgood::postgres::page::{self, PAGE_BYTES};
use lastgood::postgres::scratch::Stop;

use super::content::{EVERYTHING, compare, quiet};
use crate::support::world::{World, tamper};

/// A server and a snapshot of a table of some 400 pages that nobody touches.
async fn world(major: u32) -> World {
    with(major, 16).await
}

async fn with(major: u32, segment_megabytes: u32) -> World {
    let segments = format!("--wal-segsize={segment_megabytes}");
    let world = World::with(major, &["--data-checksums", &segments], "autovacuum = off", None).await;
    world.sql("CREATE TABLE t (what text)").await;
    world.sql("INSERT INTO t SELECT repeat('x', 100) || i FROM generate_series(1, 25000) i").await;
    world.sql("VACUUM (FREEZE) t").await;
    // Whole segments of WAL are taken: in the one in which the snapshot begins, what made the table would name its pages.
    world.archive().await;
    world
}

async fn file(world: &World, relation: &str) -> PathBuf {
    world.server.data().join(world.value(&format!("SELECT pg_relation_filepath('{relation}')")).await)
}

/// Does something to files of a server that was shut down in order.
async fn offline(world: &mut World, change: impl FnOnce()) {
    world.server.stop(Stop::Fast);
    change();
    world.start().await;
}

/// The next snapshot is through the index, and holds what one holds that reads everything.
async fn is_right(world: &World) {
    let (_, said) = compare(world, "--full").await;
    assert!(!said.contains(EVERYTHING) && !said.contains("warning"), "{said}");
}

fn pages(path: &Path) -> usize {
    std::fs::read(path).unwrap().len() / PAGE_BYTES
}

/// A page with its own checksum, after a change that WAL knows nothing of.
fn change_page(bytes: &mut [u8], number: usize) {
    let page = &mut bytes[number * PAGE_BYTES..][..PAGE_BYTES];
    page[PAGE_BYTES - 50] ^= 1;
    let checksum = page::checksum(page, number as u32);
    page[8..10].copy_from_slice(&checksum.to_le_bytes());
}

/// The limit of a relation. VACUUM cuts a table in its file; a COPY makes it grow by many pages at once, of which WAL names those
/// that got rows. The others are zero, and the parent has old rows there.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_cut_and_grew_again_has_no_old_rows() {
    let world = world(17).await;
    world.backup(&[]);
    let path = file(&world, "t").await;
    let before = pages(&path);
    world.sql("DELETE FROM t WHERE ctid > '(20,0)'").await;
    world.sql("VACUUM t").await;
    assert!(pages(&path) < 30, "not cut");
    // More than a quarter of what it was: of a file that shrank below, the parent's map is not used at all.
    world.sql("COPY t FROM PROGRAM 'seq 1 40000'").await;
    quiet(&world).await;
    let bytes = std::fs::read(&path).unwrap();
    let empty = bytes[..before.min(bytes.len() / PAGE_BYTES) * PAGE_BYTES].chunks(PAGE_BYTES).filter(|page| page::is_zero(page));
    assert!(empty.count() > 0, "no page was left empty where the table had rows before: {} pages of {before}", pages(&path));
    is_right(&world).await;
}

/// New databases. On a file system that knows no times of birth, a file that comes again may look like the one before; and copied pages
/// are older than the parent, so that neither WAL nor their LSNs tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_came_again_in_an_old_file_is_read() {
    let mut world = world(15).await;
    for (name, columns) in [("one", "a int, b int"), ("two", "c int, d int")] {
        world.sql(&format!("CREATE DATABASE {name}")).await;
        let inside = world.session().in_database(name).await.unwrap();
        inside.run(&format!("CREATE TABLE public.t ({columns})")).await.unwrap();
        // No hint bits are left to be set, which with checksums would go through WAL.
        inside.run("VACUUM (FREEZE) pg_attribute").await.unwrap();
    }
    world.sql("CREATE DATABASE d OID 90000 TEMPLATE one STRATEGY file_copy").await;
    world.backup(&[]);
    let path = world.server.data().join("base/90000/1249");
    let (old, first) = (world.path("old-inode"), std::fs::read(&path).unwrap());
    std::fs::hard_link(&path, &old).unwrap();
    world.sql("DROP DATABASE d").await;
    world.sql("CREATE DATABASE d OID 90000 TEMPLATE two STRATEGY file_copy").await;
    offline(&mut world, || {
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes != first && bytes.len() == first.len());
        std::fs::write(&old, bytes).unwrap();
        std::fs::rename(&old, &path).unwrap();
    })
    .await;
    is_right(&world).await;
}

/// The inode. A file that somebody replaced while the server was down is another one, whatever WAL says.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_replaced_is_read() {
    let mut world = world(15).await;
    world.backup(&[]);
    let path = file(&world, "t").await;
    let user = world.user();
    offline(&mut world, || {
        let mut bytes = std::fs::read(&path).unwrap();
        change_page(&mut bytes, 7);
        let beside = path.with_extension("new");
        std::fs::write(&beside, bytes).unwrap();
        if let Some(user) = user {
            std::os::unix::fs::chown(&beside, Some(user.uid), Some(user.gid)).unwrap();
        }
        std::fs::rename(&beside, &path).unwrap();
    })
    .await;
    is_right(&world).await;
}

/// The length. A server that broke while a file grew leaves empty pages of which WAL knows nothing, or a part of one.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_at_the_end_of_a_file_is_in_the_snapshot() {
    let mut world = world(15).await;
    world.sql("CREATE TABLE part AS SELECT 1 AS x").await;
    world.sql("VACUUM (FREEZE) part").await;
    let (whole, part) = (file(&world, "t").await, file(&world, "part").await);
    offline(&mut world, || tamper(&part, |bytes| bytes.extend([1; 4096]))).await;
    world.backup(&[]);
    offline(&mut world, || {
        tamper(&whole, |bytes| bytes.resize(bytes.len() + 2 * PAGE_BYTES, 0));
        tamper(&part, |bytes| bytes[PAGE_BYTES..].fill(2));
    })
    .await;
    is_right(&world).await;
}

/// A record that crosses from one segment into the next. Each page is named by one record with its image, so that the borders of
/// segments fall into records of which no other names the page.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_only_a_crossing_record_names_is_read() {
    let world = with(15, 1).await;
    world.backup(&[]);
    let segment = "SELECT pg_walfile_name(pg_current_wal_lsn())";
    let before = world.value(segment).await;
    world
        .sql("DELETE FROM t WHERE ctid = ANY (ARRAY(SELECT format('(%s,1)', page)::tid FROM generate_series(0, 400) page))")
        .await;
    assert!(world.value(segment).await > before);
    is_right(&world).await;
}
