//! Which WAL belongs together: by content and LSN, whatever the names say.

use std::path::Path;
use std::process::Command;

use lastgood::clock;
use lastgood::postgres::lsn::SystemId;
use lastgood::postgres::scratch::Stop;
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::repo::segment::{self, WalFileTrailer};
use lastgood::storage::fs::DirectoryStorage;

use crate::support::world::{PATIENCE, Said, World, said, tamper};

/// The program in the data directory, where PostgreSQL runs it.
fn push(world: &World, name: &str) -> Said {
    said(world.command(&["archive-push", &format!("pg_wal/{name}")]).current_dir(world.server.data()))
}

async fn cluster(world: &World) -> (Cluster, SystemId) {
    let storage = std::sync::Arc::new(DirectoryStorage::new(world.repository()));
    let repository = Repository::open(storage, &Keys::default()).await.unwrap();
    let (cluster, record) = repository.registered("shop").await.unwrap();
    (cluster, record.current().unwrap().system_identifier)
}

async fn trailer(world: &World, name: &str) -> WalFileTrailer {
    let (cluster, system) = cluster(world).await;
    segment::read_trailer(&cluster, system, &name.parse::<WalFile>().unwrap()).await.unwrap()
}

/// Archived segments and history files, by name.
fn archived(world: &World) -> Vec<String> {
    let keys = world.objects("clusters/shop/wal").into_iter().filter(|key| !key.contains("/index/"));
    keys.map(|key| key.rsplit('/').next().unwrap().to_string()).collect()
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// The name of the segment that holds `insert`, archived whole; and a position in it from before the insert.
async fn insert(world: &World, value: u32) -> (String, String) {
    let before = world.value("SELECT pg_current_wal_insert_lsn()").await;
    world.sql(&format!("INSERT INTO t VALUES ({value})")).await;
    let name = world.value("SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    world.archive().await;
    (name, before)
}

/// A volume is set back to a state from before what was archived. The server goes on under the same names: no backup mixes the two
/// histories, and a restore over it says what is its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_set_back() {
    let mut world = World::with(15, &["--data-checksums"], "autovacuum = off", None).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.server.stop(Stop::Fast);
    let (data, away) = (world.server.data().to_path_buf(), world.path("away"));
    copy(&data, &away);
    world.start().await;
    for value in 2..4 {
        insert(&world, value).await;
    }
    world.backup(&[]);
    world.server.stop(Stop::Immediate);
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&away, &data).unwrap();
    world.start().await;
    for value in 100..107 {
        world.sql(&format!("INSERT INTO t VALUES ({value})")).await;
    }
    let before = archived(&world);
    world.refused(&["backup"], 5, &["archiving does not work", "with other content", "cluster] name of its own"]);
    world.refused(&["check"], 9, &["with other content"]);
    world.server.stop(Stop::Fast);

    let restore = ["restore", "--to", "latest", "--into", data.to_str().unwrap()];
    let (plan, _) = world.planned(&restore);
    let replaced = &plan["replaced"];
    assert!(replaced["unarchived"]["parted"]["from"].is_string(), "{plan:#}");
    assert_eq!((&replaced["loss"]["transactions"], &replaced["loss"]["at_least"]), (&7.into(), &false.into()), "{plan:#}");
    let said = world.confirmed(&restore);
    assert!(said.out.contains("APART") && said.out.contains("LOST       7 transactions"), "{}", said.out);
    assert!(!said.out.contains("nothing that was committed is taken back"), "{}", said.out);
    assert_eq!(archived(&world), before, "nothing of the other history was archived");
    let (mut server, session) = world.recovered("data").await;
    assert_eq!(session.value("SELECT string_agg(x::text, ' ' ORDER BY x) FROM t").await.unwrap(), "1 2 3");
    drop(session);
    server.stop(Stop::Fast);
}

/// The way out that the refusal names: under a name of its own the server that was set back has a history of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_back_goes_on_under_another_name() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.server.stop(Stop::Fast);
    let (data, away) = (world.server.data().to_path_buf(), world.path("away"));
    copy(&data, &away);
    world.start().await;
    insert(&world, 2).await;
    world.server.stop(Stop::Immediate);
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&away, &data).unwrap();
    world.start().await;
    world.sql("INSERT INTO t VALUES (3)").await;
    let text = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), text.replace("name = \"shop\"", "name = \"shop-again\"")).unwrap();
    world.ok(&["init", "--apply"]);
    world.backup(&[]);
    let (mut server, session) = world.restore("copy", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT string_agg(x::text, ' ' ORDER BY x) FROM t").await.unwrap(), "1 3");
    drop(session);
    server.stop(Stop::Fast);
}

/// Each trailer holds the digest of the segment before; a push whose predecessor is another than the archive's is refused.
#[tokio::test(flavor = "multi_thread")]
async fn segments_are_a_chain() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let mut names = Vec::new();
    for value in 2..5 {
        names.push(insert(&world, value).await.0);
    }
    for pair in names.windows(2) {
        let (before, after) = (trailer(&world, &pair[0]).await, trailer(&world, &pair[1]).await);
        assert_eq!(after.previous, Some(before.sha256), "{pair:?}");
    }
    // The archiver believed that the last one was stored, and the archive has it otherwise: what follows does not belong there.
    world.session().alter_system("archive_command", "true").await.unwrap();
    world.session().reload().await.unwrap();
    let (next, _) = insert(&world, 5).await;
    world.forget_spool();
    let last = world.server.data().join("pg_wal").join(&names[2]);
    tamper(&last, |bytes| bytes[9000] ^= 1);
    let before = archived(&world);
    let refused = push(&world, &next);
    assert!(refused.code == 5 && refused.err.contains("another segment") && refused.err.contains(&names[2]), "{}", refused.all());
    assert_eq!(archived(&world), before);
    tamper(&last, |bytes| bytes[9000] ^= 1);
    assert_eq!(push(&world, &next).code, 0);
    assert_eq!(trailer(&world, &next).await.previous, Some(trailer(&world, &names[2]).await.sha256));
    // Unknown refuses nothing.
    let (after, _) = insert(&world, 6).await;
    world.forget_spool();
    std::fs::remove_file(world.server.data().join("pg_wal").join(&next)).unwrap();
    assert_eq!(push(&world, &after).code, 0);
    assert_eq!(trailer(&world, &after).await.previous, None);
}

/// Timelines that contradict the archive when they come: later than where another left the parent, in the past of what went on, or
/// through a timeline whose number was taken for another.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_contradicts_the_archive_is_refused() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let (_, past) = insert(&world, 2).await;
    let (_, early) = insert(&world, 3).await;
    let late = world.value("SELECT pg_current_wal_insert_lsn()").await;
    let history = |timeline: u32, text: &str| {
        let name = format!("{timeline:08X}.history");
        std::fs::write(world.server.data().join("pg_wal").join(&name), text).unwrap();
        push(&world, &name)
    };
    let refused = |said: Said, words: &str| assert!(said.code == 5 && said.err.contains(words), "{words}: {}", said.all());
    refused(history(2, &format!("1\t{past}\tx\n")), "goes on beyond");
    assert_eq!(history(2, &format!("1\t{early}\tx\n")).code, 0, "the parent archived no whole segment beyond that");
    refused(history(3, &format!("1\t{late}\tx\n")), "before that");
    refused(history(4, &format!("1\t{past}\tx\n2\t{late}\tx\n")), "is another one, which begins at");
    refused(history(2, &format!("1\t{late}\tx\n")), "timeline 00000002 of \"shop\" was taken twice");
    assert_eq!(history(5, &format!("1\t{early}\tx\n2\t{late}\tx\n")).code, 0);
    assert_eq!(archived(&world).iter().filter(|name| name.ends_with(".history")).count(), 2);
}

/// An asynchronous failover: the parent had archived a segment that goes beyond the fork. It is stored, and somebody is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_something_is_stored_and_told() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let (name, fork) = insert(&world, 2).await;
    let file = "00000002.history";
    std::fs::write(world.server.data().join("pg_wal").join(file), format!("1\t{fork}\tx\n")).unwrap();
    assert_eq!(push(&world, file).code, 0);
    let summary = trailer(&world, file).await.summary.unwrap();
    assert_eq!((summary["parent"].as_u64(), summary["behind"]["segment"].as_str()), (Some(1), Some(name.as_str())), "{summary}");
    let began = clock::monotonic();
    let alert = loop {
        let out = world.ok(&["--json", "alerts"]).out;
        if let Some(line) = out.lines().find(|line| line.contains("\"rule\":\"fork\"")) {
            break line.to_string();
        }
        assert!(began.elapsed() < PATIENCE, "nobody was told: {out}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(alert.contains("1 transaction on timeline 00000001") && alert.contains("--timeline 1"), "{alert}");
    let name: SegmentName = name.parse().unwrap();
    assert_eq!(name.timeline.0, 1);
}
