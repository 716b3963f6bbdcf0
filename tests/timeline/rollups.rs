//! Indexes of archived segments: kept, rolled up, read from wherever they are, and the same from everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood::postgres::lsn::Timeline;
use lastgood::postgres::wal::index::SegmentIndex;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::fs::DirectoryStorage;
use lastgood::timeline::archive::Archive;
use lastgood::timeline::indexes::{self, Sources, Wanted, nothing_local};

use crate::support::world::{World, tamper};

const SEGMENT_BYTES: u64 = 1 << 20;

/// Some sixty segments of small transactions, and a table that is dropped in the middle.
async fn busy() -> World {
    let mut world = World::bare(15, &["--wal-segsize=1"], "max_wal_size = '256MB'", None).await;
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.sql("CREATE TABLE t (id int, what text); CREATE TABLE gone AS SELECT 1 AS x").await;
    world.backup(&[]);
    for round in 0..20 {
        world.sql(&format!("INSERT INTO t SELECT i, repeat('{round:x}', 900) FROM generate_series(1, 3000) i")).await;
        if round == 6 {
            world.sql("DROP TABLE gone").await;
        }
    }
    world.archive().await;
    world
}

async fn open(world: &World) -> (Cluster, Archive) {
    let storage = Arc::new(DirectoryStorage::new(world.repository()));
    let repository = Repository::open(storage, &Keys::default()).await.unwrap();
    let (cluster, record) = repository.registered("shop").await.unwrap();
    let system = record.current().unwrap().system_identifier;
    let archive = Archive::load(&cluster, system, SEGMENT_BYTES).await.unwrap();
    (cluster, archive)
}

async fn read(archive: &Archive) -> (BTreeMap<u64, SegmentIndex>, Sources) {
    let path = archive.newest().unwrap();
    let mut found = BTreeMap::new();
    let wanted = Wanted {
        archive,
        path: &path,
        numbers: 0..=u64::MAX,
        local: &nothing_local,
        mapped: Arc::default(),
        passes_sealed: false,
    };
    let sources = indexes::each(&wanted, &mut |indexed| {
        assert!(found.insert(indexed.number, indexed.index.unwrap()).is_none(), "each once");
        true
    })
    .await
    .unwrap();
    (found, sources)
}

#[tokio::test(flavor = "multi_thread")]
async fn roll_ups_say_what_the_segments_say() {
    let mut world = busy().await;
    world.server.stop(lastgood::postgres::scratch::Stop::Immediate);
    let rolled_up = world.objects("clusters/shop/wal").into_iter().filter(|key| key.contains("/index/1/")).collect::<Vec<_>>();
    assert!(rolled_up.len() >= 2, "{rolled_up:?}");
    let (_, archive) = open(&world).await;
    let (with, sources) = read(&archive).await;
    assert_eq!(sources.rolled_up, 16 * rolled_up.len() as u64);
    assert!(sources.made > 0, "an incomplete group is read from its segments: {sources:?}");

    // The listing is the same when the roll-ups' segments are not listed at all: their keys prove them.
    let runs = |archive: &Archive| archive.numbers(Timeline(1));
    let before = runs(&archive);

    // Damaged, they are passed over: a frame, and a whole one.
    tamper(&world.repository().join(&rolled_up[0]), |bytes| bytes[40] ^= 1);
    tamper(&world.repository().join(&rolled_up[1]), |bytes| bytes.truncate(bytes.len() / 2));
    let (_, archive) = open(&world).await;
    let (damaged, sources) = read(&archive).await;
    assert_eq!(damaged, with);
    assert!(sources.made >= 32, "{sources:?}");

    // Without any, everything is made from the segments.
    for key in &rolled_up {
        std::fs::remove_file(world.repository().join(key)).unwrap();
    }
    let (_, archive) = open(&world).await;
    assert_eq!(runs(&archive), before);
    let (made, sources) = read(&archive).await;
    assert_eq!((sources.rolled_up, sources.made), (0, made.len() as u64));
    assert_eq!(made, with);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_segment_is_a_gap_in_the_story_and_nothing_else() {
    let world = busy().await;
    let dropped = world.ok(&["--json", "timeline", "--kind", "drop"]).json()["events"][0].clone();
    assert_eq!(dropped["text"], "DROP postgres.public.gone");
    // The last whole segments are in no group yet.
    let segments = world.objects("clusters/shop/wal").into_iter().filter(|key| key.contains("/segments/")).collect::<Vec<_>>();
    let lost = &segments[segments.len() - 3];
    std::fs::remove_file(world.repository().join(lost)).unwrap();
    for key in world.objects("clusters/shop/wal").iter().filter(|key| key.contains("/index/")) {
        std::fs::remove_file(world.repository().join(key)).unwrap();
    }
    let damaged = &segments[segments.len() - 6];
    tamper(&world.repository().join(damaged), |bytes| bytes.truncate(bytes.len() / 2));
    // Who kept the index of it still knows what happened; nobody else does.
    std::fs::remove_dir_all(world.path("spool")).unwrap();
    let said = world.ok(&["timeline"]);
    let name = lost.rsplit('/').next().unwrap();
    assert!(
        said.out.contains(&format!("{name} to {name}: not in the archive; what happened there is not known")),
        "{}",
        said.out
    );
    let name = damaged.rsplit('/').next().unwrap();
    assert!(said.out.contains(&format!("GAP        {name} to {name}:")), "{}", said.out);
    assert!(said.out.contains("DROP postgres.public.gone"), "{}", said.out);
}
