//! Roll-ups of the WAL index: made where they are missing, and few requests whatever the number of segments.

use std::sync::Arc;

use lastgood::postgres::history::History;
use lastgood::postgres::lsn::{Lsn, SystemId, Timeline};
use lastgood::postgres::wal::index::{MappedFiles, Neighbour, SegmentIndex};
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::repo::repository::Cluster;
use lastgood::repo::rollup::{self, Group};
use lastgood::repo::vault::Vault;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::{Log, Record};
use lastgood::storage::{Body, Storage};
use lastgood::timeline::archive::Archive;
use lastgood::timeline::indexes::{self, Sources, Wanted, nothing_local};
use lastgood::upkeep::reindex::{self, Bounds};

use crate::support::world::World;

const SYSTEM: SystemId = SystemId(7);
const BYTES: u64 = 16 << 20;
const ONE: Timeline = Timeline(1);

fn store() -> (Cluster, Log) {
    let store = Record::new(MemoryStorage::new());
    let log = store.log();
    (Cluster::unchecked(Vault::plain(Arc::new(store) as Arc<dyn Storage>), "shop"), log)
}

async fn put(cluster: &Cluster, number: u64) {
    let name = WalFile::Segment(SegmentName::new(ONE, number, BYTES));
    let key = cluster.layout().wal(SYSTEM, &name);
    cluster.storage().create(&key, Body::from(b"a segment that nobody reads".to_vec())).await.unwrap();
}

fn index(number: u64) -> Vec<u8> {
    SegmentIndex {
        major: 15,
        timeline: 1,
        start: Lsn(number * BYTES),
        neighbour: Some(Neighbour::default()),
        ..SegmentIndex::default()
    }
    .to_bytes()
    .unwrap()
}

/// Numbers whose indexes were read, and from where.
async fn read(archive: &Archive, numbers: std::ops::RangeInclusive<u64>) -> (Vec<u64>, Sources) {
    let path = History::first(ONE);
    let wanted = Wanted { archive, path: &path, numbers, local: &nothing_local, mapped: Arc::default(), passes_sealed: false };
    let mut seen = Vec::new();
    let sources = indexes::each(&wanted, &mut |indexed| {
        assert_eq!(indexed.index.unwrap().start, Lsn(indexed.number * BYTES));
        seen.push(indexed.number);
        true
    })
    .await
    .unwrap();
    (seen, sources)
}

/// 100,000 segments, as a month of a busy server leaves them.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_segments_are_a_hundred_requests() {
    const COUNT: u64 = 100_000;
    let (cluster, log) = store();
    for number in 0..COUNT {
        put(&cluster, number).await;
    }
    for level in rollup::LEVELS.rev() {
        let size = Group::size(level);
        for first in (0..COUNT / size * size).step_by(size as usize) {
            let group = Group { timeline: ONE, level, first };
            // Those below others are only looked at as keys.
            let is_covered = level < 3 && first / (size * rollup::FAN) < COUNT / (size * rollup::FAN);
            if is_covered {
                let key = group.key(&cluster, SYSTEM, BYTES);
                cluster.storage().create(&key, Body::from(b"covered".to_vec())).await.unwrap();
            } else {
                assert!(rollup::write(&cluster, SYSTEM, BYTES, &group, group.numbers().map(index)).await.unwrap());
            }
        }
    }
    log.clear();
    let archive = Archive::load(&cluster, SYSTEM, BYTES).await.unwrap();
    assert_eq!(archive.count(), COUNT);
    let (seen, sources) = read(&archive, 0..=COUNT - 1).await;
    assert!(seen.into_iter().eq(0..COUNT));
    assert_eq!((sources.rolled_up, sources.made), (COUNT, 0));
    let calls = log.calls().len();
    println!("{calls} requests: {:?}", log.counts());
    assert!(calls <= 100, "{calls} requests: {:?}", log.counts());
}

/// From the spool, and then each level from the one below; once made, nothing is left to do.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_made_level_by_level() {
    const COUNT: u64 = 4096 + 256 + 16 + 5;
    let (cluster, log) = store();
    // Begins in the middle of a group, and has a gap in its last one.
    let missing = 4096 + 256 + 3;
    for number in (0..COUNT).filter(|number| *number != missing) {
        put(&cluster, number).await;
    }
    let mut archive = Archive::load(&cluster, SYSTEM, BYTES).await.unwrap();
    let local = |name: SegmentName| Some(index(name.number(BYTES).unwrap()));
    let quiet = lastgood::monitor::Silent;
    let mapped = || Arc::new(MappedFiles::new());
    let done = reindex::reindex(&mut archive, &local, mapped(), Bounds::NONE, &quiet).await.unwrap();
    assert_eq!((done.written, done.read, done.left, done.without), (272 + 17 + 1, 0, 0, 0));
    // What it added to what it knew is what is there.
    let loaded = Archive::load(&cluster, SYSTEM, BYTES).await.unwrap();
    for archive in [&archive, &loaded] {
        let (seen, sources) = read(archive, 0..=4096 + 255).await;
        assert!(seen.into_iter().eq(0..4096 + 256));
        assert_eq!((sources.rolled_up, sources.local, sources.made), (4096 + 256, 0, 0));
    }
    log.clear();
    let mut archive = loaded;
    let again = reindex::reindex(&mut archive, &local, mapped(), Bounds::NONE, &quiet).await.unwrap();
    assert_eq!((again.written, again.left, log.calls().len()), (0, 0, 0));
    // Levels above are made from those below: nothing local, and no segment is read.
    let top = Group { timeline: ONE, level: 3, first: 0 }.key(&cluster, SYSTEM, BYTES);
    cluster.storage().delete(&[top]).await.unwrap();
    let mut archive = Archive::load(&cluster, SYSTEM, BYTES).await.unwrap();
    let done = reindex::reindex(&mut archive, &nothing_local, mapped(), Bounds::SNAPSHOT, &quiet).await.unwrap();
    assert_eq!((done.written, done.read, done.left), (1, 0, 0));
    assert_eq!(read(&archive, 0..=4095).await.1.rolled_up, 4096);
    // What would have to be fetched is left, when that was said.
    let bounds = Bounds { segments: u64::MAX, fetched: 15 };
    for number in COUNT..COUNT + 64 {
        put(&cluster, number).await;
    }
    let mut archive = Archive::load(&cluster, SYSTEM, BYTES).await.unwrap();
    let done = reindex::reindex(&mut archive, &nothing_local, mapped(), bounds, &quiet).await.unwrap();
    assert_eq!((done.written, done.left), (0, 4));
}

/// Spool and roll-ups are lost: `verify --reindex` makes them from the segments, and what is told stays the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_made_again() {
    let world = World::with(15, &["--wal-segsize=1", "--data-checksums"], "autovacuum = off", None).await;
    world.sql("CREATE TABLE t (id int, what text); CREATE TABLE doomed AS SELECT 1 AS one").await;
    world.backup(&[]);
    for number in 0..40 {
        world
            .sql(&format!("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 1500) i WHERE i % 40 <> {number}"))
            .await;
        if number == 20 {
            world.sql("DROP TABLE doomed").await;
        }
        world.sql("SELECT pg_switch_wal()").await;
    }
    world.archive().await;
    let told = |world: &World| world.ok(&["--json", "timeline", "--all"]).json()["events"].clone();
    let before = told(&world);
    assert!(before.as_array().unwrap().iter().any(|event| event["text"].as_str().unwrap().contains("doomed")), "{before}");
    let rollups = || world.objects("clusters/shop/wal").into_iter().filter(|key| key.contains("/index/")).collect::<Vec<_>>();
    let made = rollups();
    assert!(made.len() >= 2, "{made:?}");
    for key in &made {
        std::fs::remove_file(world.repository().join(key)).unwrap();
    }
    world.forget_spool();
    assert_eq!(told(&world), before);
    let said = world.ok(&["--json", "verify", "--reindex"]).json();
    assert_eq!((said["reindexed"]["without"].as_u64(), said["reindexed"]["left"].as_u64()), (Some(0), Some(0)), "{said}");
    assert!(said["reindexed"]["read"].as_u64() >= Some(32), "{said}");
    assert!(made.iter().all(|key| rollups().contains(key)), "{made:?} {:?}", rollups());
    assert_eq!(told(&world), before);
    let again = world.ok(&["verify", "--quick", "--reindex"]);
    assert!(again.out.contains("0 roll-ups written, 0 segments read"), "{}", again.out);
}
