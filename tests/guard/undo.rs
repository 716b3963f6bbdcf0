//! What is replaced can be brought back, from wherever it was interrupted.

use std::path::{Path, PathBuf};

use lastgood::postgres::scratch::{self, Stop};

use super::{beside, picture, stopped};
use crate::support::world::{World, tamper};

async fn rows(world: &World, name: &str) -> String {
    let (mut server, session) = world.recovered(name).await;
    let rows = session.value("SELECT count(*) FROM t").await.unwrap();
    drop(session);
    server.stop(Stop::Fast);
    rows
}

/// Without the marks that say what happened, and the times of the directories that hold them.
fn content(dir: &Path) -> Vec<(PathBuf, String)> {
    let marks = ["", "lastgood.replaced", "lastgood.switched", "global", "pg_tblspc"];
    picture(dir).into_iter().filter(|(path, _)| !marks.contains(&path.to_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_puts_the_old_one_back_and_can_be_undone() {
    let world = stopped("production").await;
    let data = world.server.data().to_path_buf();
    let into = data.to_str().unwrap();
    let old = content(&data);
    let snapshot = world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"][0]["id"].as_str().unwrap().to_string();
    let restore = ["restore", "--to", &snapshot, "--target-action", "promote", "--into", into];
    let (plan, _) = world.planned(&restore);
    assert_eq!(plan["replaced"]["loss"]["transactions"], 2, "{plan:#}");
    assert_eq!(plan["replaced"]["unarchived"]["torn"].as_str().map(str::len), Some(24), "{plan:#}");
    let said = world.confirmed(&restore);
    assert!(said.out.contains("to put it back: lastgood undo"), "{}", said.out);
    let note = std::fs::read_to_string(beside(&data, "replaced")[0].join("lastgood.replaced")).unwrap();
    assert!(note.contains("moved aside by lastgood") && note.contains(into) && note.contains("lastgood undo --into"), "{note}");
    assert_eq!(rows(&world, "data").await, "1");

    let undo = ["undo", "--into", into];
    world.refused(&undo, 5, &["nobody has confirmed", "PRODUCTION"]);
    let said = world.confirmed(&undo);
    assert!(said.out.contains("put back into"), "{}", said.out);
    assert_eq!(content(&data), old, "the old one is back, as it was");
    assert!(!data.join("lastgood.replaced").exists());
    assert_eq!(rows(&world, "data").await, "3", "with what was never archived");

    // Once more: the restored one comes back, and what only the old one has is counted.
    let (plan, _) = world.planned(&undo);
    assert_eq!(plan["loss"]["transactions"], 2, "{plan:#}");
    world.confirmed(&undo);
    assert_eq!(rows(&world, "data").await, "1");
    assert_eq!((beside(&data, "replaced").len(), beside(&data, "undone").len()), (0, 1));
    world.refused(&["undo", "--into", world.path("nowhere").to_str().unwrap()], 5, &["nothing to undo"]);
    std::fs::remove_dir_all(&beside(&data, "undone")[0]).unwrap();
    world.refused(&undo, 5, &["is neither there nor in"]);
}

/// Tablespaces are exchanged with their cluster, one of them a mount point; the old cluster can be started where it lies.
#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_go_with_their_cluster() {
    let mut world = World::new(15).await;
    let spaces = [world.path("fast"), world.path("slow")];
    for (space, name) in spaces.iter().zip(["fast", "slow"]) {
        scratch::make_directory(space, world.user()).unwrap();
        if name == "slow" {
            let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(space).status().unwrap();
            assert!(mounted.success());
            scratch::make_directory(space, world.user()).unwrap();
        }
        world.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", space.display())).await;
        world.sql(&format!("CREATE TABLE {name} (x int) TABLESPACE {name}; INSERT INTO {name} VALUES (1)")).await;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(spaces[1].clone());
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.sql("INSERT INTO fast VALUES (2); INSERT INTO slow VALUES (2)").await;
    let xid = world.value("SELECT txid_current()").await;
    world.sql("DROP TABLE fast; INSERT INTO slow VALUES (3)").await;
    world.server.stop(Stop::Fast);
    let data = world.server.data().to_path_buf();
    let into = data.to_str().unwrap().to_string();

    world.confirmed(&[
        "restore",
        "--to",
        &format!("xid:{}", xid.parse::<u32>().unwrap() + 1),
        "--exclusive",
        "--target-action",
        "promote",
        "--into",
        &into,
    ]);
    assert_eq!(std::fs::read_link(data.join("pg_tblspc").join(oid(&data, &spaces[0]))).unwrap(), spaces[0], "the same place");
    let (mut new, session) = world.recovered("data").await;
    assert_eq!(session.value("SELECT (SELECT count(*) FROM fast) || ' ' || (SELECT count(*) FROM slow)").await.unwrap(), "2 2");
    // Both at once: the old one beside the new one, each with its own files.
    let aside = beside(&data, "replaced")[0].clone();
    let link = std::fs::read_link(aside.join("pg_tblspc").join(oid(&data, &spaces[1]))).unwrap();
    assert!(link.starts_with(&spaces[1]) && link != spaces[1] && link.is_dir(), "the old one's links follow its files: {link:?}");
    let name = aside.file_name().unwrap().to_str().unwrap().to_string();
    let auto = std::fs::read_to_string(aside.join("postgresql.auto.conf")).unwrap();
    std::fs::write(aside.join("postgresql.auto.conf"), format!("{auto}archive_mode = 'off'\n")).unwrap();
    let (mut old, other) = world.recovered(&name).await;
    assert_eq!(other.value("SELECT count(*) FROM slow").await.unwrap(), "3");
    assert_eq!(session.value("SELECT count(*) FROM slow").await.unwrap(), "2");
    drop((session, other));
    old.stop(Stop::Fast);
    new.stop(Stop::Fast);

    world.confirmed(&["undo", "--into", &into]);
    let (mut old, session) = world.recovered("data").await;
    assert_eq!(
        session.value("SELECT coalesce(to_regclass('fast')::text, 'gone') || (SELECT count(*) FROM slow)").await.unwrap(),
        "gone3"
    );
    drop(session);
    old.stop(Stop::Fast);
    world.confirmed(&["undo", "--into", &into]);
    let (_new, session) = world.recovered("data").await;
    assert_eq!(session.value("SELECT count(*) FROM fast").await.unwrap(), "2");
}

fn oid(data: &Path, space: &Path) -> String {
    let links = std::fs::read_dir(data.join("pg_tblspc")).unwrap().flatten();
    let mut found = links.filter(|l| std::fs::read_link(l.path()).unwrap() == space);
    found.next().unwrap().file_name().to_str().unwrap().to_string()
}

/// Power is lost in the middle of the exchange: nothing can be started by accident, a second restore is refused, and `undo` puts the
/// old one back.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_exchange_is_taken_back() {
    let world = stopped("").await;
    let data = world.server.data().to_path_buf();
    let into = data.to_str().unwrap();
    let old = content(&data);
    let restore = ["restore", "--to", "latest", "--into", into];
    world.confirmed(&restore);
    // As it is right after the exchange: the new one without pg_control, the old one under the name it was built with.
    std::fs::rename(data.join("global/pg_control"), data.join("global/pg_control.lastgood")).unwrap();
    std::fs::write(data.join("lastgood.restoring"), "").unwrap();
    let aside = beside(&data, "replaced")[0].clone();
    std::fs::remove_file(aside.join("lastgood.replaced")).unwrap();
    std::fs::rename(&aside, data.with_extension("lastgood-new")).unwrap();
    let before = picture(&data);
    world.refused(&restore, 5, &["interrupted here while it exchanged", "lastgood undo"]);
    assert!(picture(&data) == before);
    assert!(world.restored("data").start().await.is_err(), "it cannot be started");
    world.ok(&["undo", "--into", into]);
    assert_eq!(content(&data), old);
    // Interrupted in an undo, what stands there may hold somebody's work: it is asked for.
    std::fs::remove_dir_all(&beside(&data, "undone")[0]).unwrap();
    let _ = std::fs::remove_file(data.join("lastgood.switched"));
    world.confirmed(&restore);
    std::fs::rename(data.join("global/pg_control"), data.join("global/pg_control.lastgood")).unwrap();
    world.refused(&["undo", "--into", into], 5, &["nobody has confirmed"]);
    world.confirmed(&["undo", "--into", into]);
    assert_eq!(content(&data), old);
    assert!(beside(&data, "undone")[0].join("global/pg_control").exists());
    // Restored long ago, and damaged since: no exchange was interrupted, and it can be restored over.
    world.confirmed(&["undo", "--into", into]);
    std::fs::remove_file(data.join("global/pg_control")).unwrap();
    world.refused(&restore, 5, &["PRODUCTION its pg_control cannot be read"]);
    world.confirmed(&restore);
    assert_eq!(rows(&world, "data").await, "3");
}

/// Killed at any moment while it stands over a cluster: either the old one is there, whole, or the new one, or `undo` brings the
/// old one back.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_over_a_cluster_loses_nothing() {
    let world = stopped("").await;
    let data = world.server.data().to_path_buf();
    let into = data.to_str().unwrap();
    let old = content(&data);
    for pause_ms in [0, 20, 60, 120, 200, 300, 450, 600] {
        let args = ["restore", "--to", "latest", "--into", into];
        let (_, code) = world.planned(&args);
        let mut child = world.command(&[&args[..], &["--confirm", &code]].concat()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        let _ = child.kill();
        child.wait().unwrap();
        for ours in ["postmaster.pid", "postmaster.pid.lastgood"] {
            let _ = std::fs::remove_file(data.join(ours));
        }
        if data.join("lastgood.switched").exists() {
            world.confirmed(&["undo", "--into", into]);
            let _ = std::fs::remove_file(data.join("lastgood.switched"));
            for undone in beside(&data, "undone") {
                std::fs::remove_dir_all(undone).unwrap();
            }
        }
        let now: Vec<_> = content(&data).into_iter().filter(|(path, _)| path != Path::new("postmaster.pid")).collect();
        let then: Vec<_> = old.iter().filter(|(path, _)| path != Path::new("postmaster.pid")).cloned().collect();
        assert_eq!(now, then, "killed after {pause_ms} ms");
    }
    assert_eq!(rows(&world, "data").await, "3");
}

/// The audit tells the story, and an entry that is changed, removed or cut off is named.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_cannot_be_edited() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1").await;
    world.backup(&[]);
    let data = world.server.data().to_path_buf();
    let refused = ["restore", "--to", "latest", "--into", data.to_str().unwrap()];
    for _ in 0..4 {
        world.refused(&refused, 5, &["living server"]);
    }
    world.ok(&["restore", "--to", "latest", "--into", world.path("one").to_str().unwrap()]);
    world.backup(&[]);
    let said = world.ok(&["audit"]);
    assert!(said.out.contains("6 entries, each vouched for by the next"), "{}", said.out);
    for word in ["restore refused", "restore attempted", "restore done", "by postgres@", "cluster shop", "living server"] {
        assert!(said.out.contains(word), "{word}: {}", said.out);
    }
    let entries = world.objects("audit");
    assert_eq!(entries.len(), 6);
    let path = |number: usize| world.repository().join(&entries[number - 1]);
    let keep: Vec<Vec<u8>> = (1..=6).map(|n| std::fs::read(path(n)).unwrap()).collect();
    // Changed, with a trailer that fits: as somebody would who knows the format.
    let raw = zstd::decode_all(&keep[2][..]).unwrap();
    let edited = String::from_utf8(raw).unwrap().replace("refused", "done");
    std::fs::write(path(3), lastgood::repo::object::document(edited.as_bytes(), None)).unwrap();
    world.refused(&["audit"], 7, &["DAMAGED entry 3: it was changed"]);
    world.refused(&["verify", "--quick"], 7, &["audit/0000000/0000000003: it was changed"]);
    tamper(&path(3), |bytes| bytes[20] ^= 1);
    world.refused(&["audit"], 7, &["cannot be read"]);
    std::fs::write(path(3), &keep[2]).unwrap();
    std::fs::remove_file(path(2)).unwrap();
    world.refused(&["audit"], 7, &["DAMAGED entry 2: it is missing"]);
    std::fs::write(path(2), &keep[1]).unwrap();
    std::fs::rename(path(5), path(5).with_file_name("0000000009")).unwrap();
    world.refused(&["audit"], 7, &["says that it is entry 5"]);
    std::fs::rename(path(5).with_file_name("0000000009"), path(5)).unwrap();
    // The end cut off: the snapshot remembers it.
    std::fs::remove_file(path(6)).unwrap();
    world.refused(&["audit"], 7, &["the end of the audit was removed"]);
    std::fs::write(path(6), &keep[5]).unwrap();
    world.ok(&["audit"]);
    world.server.stop(Stop::Fast);
}

/// Interrupted after the mark and before the exchange: the old one stands where it always stood, nobody is told to undo anything, and
/// the same restore can be run again.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_without_an_exchange_is_no_trap() {
    let world = stopped("").await;
    let data = world.server.data().to_path_buf();
    let into = data.to_str().unwrap();
    let restore = ["restore", "--to", "latest", "--into", into];
    world.confirmed(&restore);
    // As it would have been: back in its place, the new one beside it with the mark, its pg_control withheld.
    let staging = data.with_extension("lastgood-new");
    std::fs::rename(&data, &staging).unwrap();
    let aside = beside(&data, "replaced")[0].clone();
    std::fs::remove_file(aside.join("lastgood.replaced")).unwrap();
    std::fs::rename(&aside, &data).unwrap();
    std::fs::rename(staging.join("global/pg_control"), staging.join("global/pg_control.lastgood")).unwrap();
    std::fs::write(staging.join("lastgood.restoring"), "").unwrap();
    let owner = world.user().unwrap();
    std::os::unix::fs::chown(staging.join("lastgood.restoring"), Some(owner.uid), Some(owner.gid)).unwrap();
    let before = content(&data);
    world.refused(&["undo", "--into", staging.to_str().unwrap()], 5, &["nothing to undo"]);
    assert_eq!(content(&data), before);
    world.confirmed(&restore);
    assert_eq!(rows(&world, "data").await, "3");
}

/// Interrupted in the middle of an undo, after the exchange: the next one gives back a cluster that starts.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_undo_gives_back_a_whole_cluster() {
    let world = stopped("").await;
    let data = world.server.data().to_path_buf();
    let into = data.to_str().unwrap();
    world.confirmed(&["restore", "--to", "latest", "--into", into]);
    world.confirmed(&["undo", "--into", into]);
    // The one aside did not get its pg_control back.
    let aside = beside(&data, "undone")[0].clone();
    std::fs::rename(aside.join("global/pg_control"), aside.join("global/pg_control.lastgood")).unwrap();
    world.confirmed(&["undo", "--into", into]);
    assert!(data.join("global/pg_control").exists());
    assert_eq!(rows(&world, "data").await, "3");
}
