//! The WAL of the broken server, and room for both clusters.

use std::process::Command;

use lastgood::postgres::scratch::{self, Stop};

use super::{beside, copy, picture, stopped};
use crate::support::world::World;

/// The repository can be read and not written: nothing is archived, and the last transaction comes back all the same.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_repository_to_write_to_the_last_transaction_comes_back() {
    let world = stopped("").await;
    let data = world.server.data().to_path_buf();
    let mode = |bits: &str| assert!(Command::new("chmod").args(["-R", bits]).arg(world.repository()).status().unwrap().success());
    mode("a-w");
    let restore = ["restore", "--to", "latest", "--into", data.to_str().unwrap()];
    let (_, code) = world.planned(&restore);
    let said = world.run(&[&restore[..], &["--confirm", &code]].concat());
    mode("u+w");
    assert_eq!(said.code, 0, "{}", said.all());
    for words in ["could not be archived and stays in the directory", "without a lease", "the audit could not be written"] {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
    assert!(world.objects("clusters/shop/wal").iter().all(|key| !key.contains(".torn-")));
    let (mut server, session) = world.recovered("data").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "3");
    drop(session);
    server.stop(Stop::Fast);
    // It still lies in the one that was moved aside.
    assert_eq!(beside(&data, "replaced").len(), 1);
    world.confirmed(&["undo", "--into", data.to_str().unwrap()]);
    let (_server, session) = world.recovered("data").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "3");
}

/// Archiving had stopped long ago: whole segments and the torn one are saved, and a restore elsewhere has all of it.
#[tokio::test(flavor = "multi_thread")]
async fn everything_that_was_not_archived_is_saved() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.session().alter_system("archive_command", "false").await.unwrap();
    world.session().reload().await.unwrap();
    for row in 2..=5 {
        world.sql(&format!("INSERT INTO t VALUES ({row})")).await;
        world.session().switch_segment("unarchived").await.unwrap();
    }
    world.sql("INSERT INTO t VALUES (6)").await;
    world.server.stop(Stop::Immediate);
    let data = world.server.data().display().to_string();
    let snapshot = world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"][0]["id"].as_str().unwrap().to_string();
    // To the snapshot, giving all of it up: it is saved none the less, and can be restored to afterwards.
    let restore = ["restore", "--to", &snapshot, "--into", &data];
    let (plan, _) = world.planned(&restore);
    assert_eq!(plan["replaced"]["loss"]["transactions"], 5, "{plan:#}");
    assert_eq!(plan["replaced"]["unarchived"]["segments"].as_array().unwrap().len(), 4, "{plan:#}");
    world.confirmed(&restore);
    let (_elsewhere, session) = world.restore("elsewhere", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "6");
    world.ok(&["verify"]);
    // The old one goes on where it was, and archives what the archive has already.
    world.confirmed(&["undo", "--into", &data]);
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.sql("INSERT INTO t VALUES (7)").await;
    world.archive().await;
    let (_latest, session) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "7");
    world.server.stop(Stop::Fast);
}

/// There is no room for the new one beside the old one: said before anything is written, with what can be done.
#[tokio::test(flavor = "multi_thread")]
async fn room_for_both_is_needed_beforehand() {
    let world = stopped("").await;
    let disk = world.path("disk");
    std::fs::create_dir(&disk).unwrap();
    assert!(Command::new("mount").args(["-t", "tmpfs", "-o", "size=90m", "none"]).arg(&disk).status().unwrap().success());
    scratch::make_directory(&disk, world.user()).unwrap();
    let target = disk.join("main");
    copy(world.server.data(), &target);
    let before = picture(&target);
    let said = world.run(&["restore", "--to", "latest", "--into", target.to_str().unwrap()]);
    let after = picture(&target);
    let left = beside(&target, "lastgood-new");
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    assert_eq!(said.code, 5, "{}", said.all());
    for words in ["bytes free", "nothing is deleted to make room", "--into", "move what stands there away yourself"] {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
    assert!(after == before && left.is_empty());
}
