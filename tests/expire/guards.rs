//! When nothing may go, and who is waited for.

use std::sync::Arc;

use lastgood::monitor::Silent;
use lastgood::repo::alert::{self, Acknowledgement, Alert};
use lastgood::repo::keep::Keep;
use lastgood::repo::lease::{BACKUP, Exclusive, Lease};
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::fs::DirectoryStorage;
use lastgood::upkeep::expire;

use super::crash::request;
use super::servers::{rules, step, with_snapshots};
use crate::support::world::World;

async fn cluster(world: &World) -> Cluster {
    let store = Arc::new(DirectoryStorage::new(world.repository()));
    Repository::open(store, &Keys::default()).await.unwrap().cluster("shop")
}

/// What a test writes as root is the server's user's too.
fn hand_over(world: &World) {
    if let Some(user) = world.user() {
        let owner = format!("{}:{}", user.uid, user.gid);
        std::process::Command::new("chown").arg("-R").arg(owner).arg(world.repository()).status().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_sudden_shrinking_and_other_writers_stop_it() {
    let (world, ids) = with_snapshots(2).await;
    rules(&world, "keep_last = 1");
    let cluster = cluster(&world).await;

    let lease = Exclusive::take(&cluster, BACKUP, "backup", "20990101T000000Z-0000").await.unwrap();
    hand_over(&world);
    world.refused(&["expire"], 5, &["is running already"]);
    lease.release().await;

    let system = cluster.record().await.unwrap().unwrap().histories[0].system_identifier;
    let alert = Alert {
        noticed: lastgood::clock::now(),
        host: "db".into(),
        system_identifier: system,
        timeline: lastgood::postgres::lsn::Timeline(1),
        target: lastgood::postgres::lsn::Lsn(0x300_0000),
        event: "1-0/3000000".into(),
        time: None,
        xid: 7,
        rule: "drop-table".into(),
        what: "table orders was dropped".into(),
        restore: "lastgood restore".into(),
    };
    assert!(alert.raise(&cluster).await.unwrap());
    hand_over(&world);
    world.refused(&["expire"], 5, &["not acknowledged", "orders was dropped", "nothing is expired"]);
    let shown = world.ok(&["expire", "--dry-run"]).out;
    assert!(shown.contains("REFUSED") && shown.contains(&format!("goes       {}", ids[0])), "{shown}");
    let by = Acknowledgement { at: lastgood::clock::now(), user: "me".into(), host: "here".into(), reason: String::new() };
    alert::acknowledge(&cluster, &alert.id(), &by).await.unwrap();

    world.sql("CREATE TABLE big AS SELECT repeat(md5(i::text), 30) AS y FROM generate_series(1, 60000) i").await;
    let large = step(&world, 3).await;
    world.sql("DROP TABLE big").await;
    world.sql("CHECKPOINT").await;
    let small = step(&world, 4).await;
    hand_over(&world);
    world.refused(&["expire"], 5, &[&small, &large, "--accept-shrink"]);
    // The next snapshot is as small, and the drop is still there.
    step(&world, 5).await;
    world.refused(&["expire"], 5, &[&small]);
    let audit = world.ok(&["audit"]).out;
    assert!(audit.matches("expire refused").count() >= 3, "{audit}");
    assert_eq!(world.objects("clusters/shop/snapshots").len(), 5);
    world.ok(&["expire", "--accept-shrink"]);
    assert_eq!(world.objects("clusters/shop/snapshots").len(), 1);
    step(&world, 6).await;
    world.ok(&["expire"]);
    world.ok(&["verify"]);
}

/// Readers hold what they need; who is at work on something unknown holds everything.
#[tokio::test(flavor = "multi_thread")]
async fn readers_on_any_host_are_waited_for() {
    let (world, ids) = with_snapshots(3).await;
    let cluster = cluster(&world).await;
    let record = cluster.record().await.unwrap().unwrap();
    let expire = async |show: &mut (dyn FnMut(&expire::plan::Plan) + Send)| {
        expire::run(&cluster, &record, &request(1), show, Arc::new(Silent)).await
    };

    let mirror = Lease::take(&cluster, "mirror-1", "everything").await.unwrap();
    let refused = expire(&mut |_| {}).await.unwrap_err().to_string();
    assert!(refused.contains("is not known") && refused.contains("mirror-1"), "{refused}");
    mirror.release().await;

    let drill = Lease::take(&cluster, "drill-1", &ids[0]).await.unwrap();
    assert_eq!(expire(&mut |_| {}).await.unwrap().snapshots, 1);
    assert_eq!(cluster.snapshot_ids().await.unwrap(), [ids[0].clone(), ids[2].clone()]);
    let first_wal = world.objects("clusters/shop/wal").iter().filter(|key| key.contains("/segments/")).count();

    // A pin, and a restore, that come between the plan and the deletion.
    drill.release().await;
    let keep = |pinned| Keep { pinned, until: None, reason: String::new(), at: lastgood::clock::now(), who: request(1).who };
    let pinned = expire(&mut |_| {
        let put = async { keep(true).put(&cluster, &ids[0]).await };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(put)).unwrap();
    })
    .await;
    assert!(pinned.unwrap_err().to_string().contains("was pinned"));
    assert_eq!(cluster.snapshot_ids().await.unwrap().len(), 2);
    keep(false).put(&cluster, &ids[0]).await.unwrap();
    let mut late = None;
    let begun = expire(&mut |_| {
        let take = Lease::take(&cluster, "restore-2", &ids[0]);
        late = Some(tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(take)).unwrap());
    })
    .await;
    let said = begun.unwrap_err().to_string();
    assert!(said.contains("restore-2") && said.contains("began"), "{said}");
    assert_eq!(cluster.snapshot_ids().await.unwrap(), [ids[2].clone()]);
    assert!(!world.objects(&format!("clusters/shop/files/{}", ids[0])).is_empty());
    // The next run still waits for it, and then tidies up.
    assert_eq!(expire(&mut |_| {}).await.unwrap().objects, 0);
    assert!(!world.objects(&format!("clusters/shop/files/{}", ids[0])).is_empty());
    assert_eq!(world.objects("clusters/shop/wal").iter().filter(|key| key.contains("/segments/")).count(), first_wal);
    late.unwrap().release().await;
    assert!(expire(&mut |_| {}).await.unwrap().objects > 0);
    assert!(world.objects(&format!("clusters/shop/files/{}", ids[0])).is_empty());
    assert!(world.objects("clusters/shop/wal").iter().filter(|key| key.contains("/segments/")).count() < first_wal);
    hand_over(&world);
    world.ok(&["verify"]);
}

/// The expiry host of an encrypted repository needs no key that opens data.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_key_is_enough() {
    let mut world = World::bare(15, &["--no-sync"], "", None).await;
    let passphrase = world.write_private("passphrase", "correct horse battery staple\n").display().to_string();
    let key = world.path("writer.key").display().to_string();
    let rules = "[retention]\nkeep_last = 1\n";
    world.write_config(None, &format!("[encryption]\nargon2_memory_kib = 64\npassphrase_file = \"{passphrase}\"\n{rules}"));
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.ok(&["key", "export", "--writer", "--to", &key]);
    world.write_config(None, &format!("[encryption]\nkey_file = \"{key}\"\n{rules}"));
    world.sql("CREATE TABLE t (x int)").await;
    for n in 0..3 {
        step(&world, n).await;
    }
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("removed 2 snapshots"), "{}", said.all());
    world.write_config(None, &format!("[encryption]\nargon2_memory_kib = 64\npassphrase_file = \"{passphrase}\"\n{rules}"));
    world.ok(&["verify"]);
    let (_server, session) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "6");
}
