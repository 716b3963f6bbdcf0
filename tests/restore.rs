//! Restores: every kind of target, every refusal, and what a restored directory holds. Rules 35 to 46.

mod copies;
mod links;
mod places;
mod recover;
pub mod standby;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use rustix::process::{Resource, Rlimit};

use crate::support::world::{World, said};

/// A cluster whose table holds one row for each transaction, with the moment after each.
struct Told {
    world: World,
    /// After row `i + 1` was committed: server time and the transaction's id.
    moments: Vec<(String, String)>,
    first: String,
}

async fn told() -> Told {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t (x int)").await;
    let first = world.backup(&[])["id"].as_str().unwrap().to_string();
    let mut moments = Vec::new();
    for row in 1..=6 {
        world.sql(&format!("BEGIN; INSERT INTO t VALUES ({row})")).await;
        let xid = world.value("SELECT txid_current()").await;
        world.sql("COMMIT").await;
        let time = world.value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'").await;
        moments.push((time, xid));
        if row == 3 {
            world.sql("SELECT pg_create_restore_point('half')").await;
            world.archive().await;
            world.backup(&[]);
        }
    }
    world.archive().await;
    Told { world, moments, first }
}

impl Told {
    async fn rows(&self, name: &str, args: &[&str]) -> String {
        let (_server, session) = self.world.restore(name, args).await;
        session.value("SELECT count(*) FROM t").await.unwrap()
    }

    fn nowhere(&self) -> String {
        self.world.path("nowhere").display().to_string()
    }
}

/// Rules 40, 42: every kind of target stops exactly where it says, and pauses unless told otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_target_is_exact() {
    let told = told().await;
    let (time, xid) = &told.moments[1];
    assert_eq!(told.rows("time", &["--to", time]).await, "2");
    assert_eq!(told.rows("xid", &["--to", xid]).await, "2");
    assert_eq!(told.rows("before", &["--to", xid, "--exclusive"]).await, "1");
    assert_eq!(told.rows("name", &["--to", "half"]).await, "3");
    assert_eq!(told.rows("snapshot", &["--to", &told.first]).await, "0");
    assert_eq!(told.rows("late", &["--to", &told.moments[4].0, "--target-action", "promote"]).await, "5");
    assert_eq!(told.rows("latest", &["--to", "latest"]).await, "6");
    let (_server, session) = told.world.restore("paused", &["--to", "latest", "--target-action", "pause"]).await;
    assert_eq!(session.value("SELECT count(*) || ' ' || pg_is_in_recovery() FROM t").await.unwrap(), "6 true");
    let plan = told.world.ok(&["--json", "restore", "--to", xid, "--exclusive", "--dry-run", "--into", &told.nowhere()]).json();
    let lsn = plan["plan"]["stop_lsn"].as_str().unwrap().to_string();
    assert_eq!(told.rows("lsn", &["--to", &lsn, "--exclusive"]).await, "1");
    assert_eq!(told.rows("with", &["--to", &lsn]).await, "2");
}

/// Rules 39, 43: what cannot be reached is said before a byte is written.
#[tokio::test(flavor = "multi_thread")]
async fn unreachable_targets_are_refused_before_anything_is_written() {
    let told = told().await;
    let into = told.nowhere();
    let refuse = |to: &str, words: &[&str]| {
        told.world.refused(&["restore", "--to", to, "--into", &into], 6, words);
        assert!(!Path::new(&into).exists(), "{to}");
    };
    refuse("2026-11-21 04:15:00", &["without a zone", "2026-11-21 04:15:00Z"]);
    refuse("2099-01-01 00:00:00Z", &["lies in the future"]);
    refuse("2001-01-01 00:00:00Z", &["before the first moment", "lastgood list"]);
    let now = lastgood::clock::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    // The clock must have passed the last commit; it has, by the time it took to get here, or by the second.
    let last = &told.moments[5].0;
    if now[..19] > last[..19] {
        refuse(&now, &["after the last transaction", "--to latest"]);
    }
    refuse("0/28", &["before the first moment"]);
    refuse("FF/28", &["after the last transaction"]);
    refuse("4000000", &["no transaction 4000000"]);
    refuse("no such point", &["no restore point \"no such point\""]);
    refuse("20200101T000000Z", &["no snapshot"]);
    refuse("2026-13-99 04:15:00Z", &["is no time"]);
    told.world.sql("SELECT pg_create_restore_point('half')").await;
    told.world.archive().await;
    refuse("half", &["several restore points", "0/"]);
}

/// Rule 43: a gap splits a window; a target in it is refused, and one before it still works.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_seen_before_the_copy() {
    let told = told().await;
    let world = &told.world;
    // The segment with rows 1 to 3.
    let plan = world.ok(&["--json", "restore", "--to", &told.moments[0].1, "--dry-run", "--into", &told.nowhere()]).json();
    let low = u64::from_str_radix(plan["plan"]["stop_lsn"].as_str().unwrap().split('/').nth(1).unwrap(), 16).unwrap() >> 24;
    let lost = format!("0000000100000000{low:08X}");
    world.sql("INSERT INTO t VALUES (7)").await;
    let missing = world.objects("clusters/shop/wal").into_iter().find(|k| k.ends_with(&lost)).unwrap();
    std::fs::rename(world.repository().join(&missing), world.path("lost")).unwrap();
    let said = world.ok(&["list"]);
    assert!(said.out.contains(&format!("gap: segment {lost} is missing")), "{}", said.out);
    world.refused(
        &["restore", "--to", &told.moments[1].0, "--into", &told.nowhere()],
        6,
        &["cannot be reached", &lost, "goes on at"],
    );
    world.refused(&["verify"], 7, &[&lost, "nothing in this gap can be restored", "breaks the window"]);
    assert_eq!(told.rows("after", &["--to", &told.moments[4].0]).await, "5");
    assert_eq!(told.rows("at", &["--to", &told.first]).await, "0");
}

/// Rules 35, 36: a place that is not empty, a link, a file, somebody else's, a living server's: refused, and left as it was.
#[tokio::test(flavor = "multi_thread")]
async fn no_place_is_ever_overwritten() {
    let told = told().await;
    let world = &told.world;
    let refuse = |into: &Path, words: &[&str]| {
        world.refused(&["restore", "--to", "latest", "--into", into.to_str().unwrap()], 5, words);
    };
    let full = world.path("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("precious"), "x").unwrap();
    if let Some(user) = world.user() {
        std::os::unix::fs::chown(&full, Some(user.uid), None).unwrap();
    }
    refuse(&full, &["not empty", "precious"]);
    assert_eq!(std::fs::read(full.join("precious")).unwrap(), b"x");
    let link = world.path("link");
    std::os::unix::fs::symlink(&full, &link).unwrap();
    refuse(&link, &["symbolic link"]);
    refuse(&full.join("precious"), &["no directory"]);
    refuse(&world.path("a/b"), &["does not exist"]);
    refuse(world.server.data(), &["a PostgreSQL server runs in"]);
    if world.user().is_some() {
        let foreign = world.path("foreign");
        std::fs::create_dir(&foreign).unwrap();
        refuse(&foreign, &["belongs to another user"]);
    }
}

/// Rule 37: an interrupted restore cannot be started, and can be run again over its own remains.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_can_be_run_again() {
    let told = told().await;
    let world = &told.world;
    let into = world.path("killed");
    // Killed at many moments: each time the place is either untouched, or marked and without pg_control, or complete.
    for pause_ms in [0, 5, 10, 20, 40, 80, 120, 160] {
        let mut child = world.command(&["restore", "--to", "latest", "--into", into.to_str().unwrap()]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        let _ = child.kill();
        child.wait().unwrap();
        if into.join("global/pg_control").exists() && !into.join("lastgood.restoring").exists() {
            std::fs::remove_dir_all(&into).unwrap();
        } else if into.join("global/pg_control").exists() {
            std::fs::remove_file(into.join("global/pg_control")).unwrap();
        }
    }
    world.ok(&["restore", "--to", "latest", "--into", into.to_str().unwrap()]);
    let (_server, session) = world.recovered("killed").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "6");
}

/// The same with tablespaces: what the first run left in them is never removed by us, because it may be somebody's by now.
#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_of_an_interrupted_restore_are_for_a_person() {
    let world = World::new(15).await;
    let space = world.path("space");
    lastgood::postgres::scratch::make_directory(&space, world.user()).unwrap();
    world.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    world.sql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 100) x").await;
    world.backup(&[]);
    world.archive().await;
    let (into, below) = (world.path("restored"), world.path("spaces"));
    lastgood::postgres::scratch::make_directory(&below, world.user()).unwrap();
    let oid = world.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    let pack = world.objects("clusters/shop/packs").into_iter().find(|k| k.contains("/d0")).unwrap();
    let pack = world.repository().join(pack);
    let good = std::fs::read(&pack).unwrap();
    // The last frame is pg_control's: all else is written when the restore stops at it.
    let at = good.windows(4).rposition(|w| w == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
    crate::support::world::tamper(&pack, |bytes| bytes[at + 20] ^= 1);
    let args = ["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--tablespaces-below", below.to_str().unwrap()];
    world.refused(&args, 7, &["is damaged"]);
    assert!(std::fs::read_dir(below.join(&oid)).unwrap().count() > 1, "the tablespace was written");
    std::fs::write(&pack, &good).unwrap();
    world.refused(&args, 5, &["tablespace", "an interrupted restore left files here"]);
    for entry in std::fs::read_dir(below.join(&oid)).unwrap().flatten().filter(|e| e.path().is_dir()) {
        std::fs::remove_dir_all(entry.path()).unwrap();
    }
    world.ok(&args);
    assert!(!below.join(&oid).join("lastgood.restoring").exists());
    let (_server, session) = world.recovered("restored").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "100");
}

/// A file system without room is refused before anything is written; one that fills up meanwhile leaves nothing that starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_restore() {
    let told = told().await;
    let world = &told.world;
    if world.user().is_none() {
        eprintln!("not root: no small file system can be made here, so this promise is not tested in this run");
        return;
    }
    let small = world.path("small");
    std::fs::create_dir(&small).unwrap();
    let mount = |size: &str| {
        let done = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(&small).status().unwrap();
        assert!(done.success());
    };
    let into = small.join("restored");
    let restore = ["restore", "--to", "latest", "--into", into.to_str().unwrap()];
    mount("size=8m,mode=777");
    let refused = world.run(&restore);
    let untouched = !into.exists();
    // Room for the bytes, but not for the files: the plan cannot see it, the write does.
    let remount =
        std::process::Command::new("mount").args(["-o", "remount,size=200m,nr_inodes=500"]).arg(&small).status().unwrap();
    let stopped = world.run(&restore);
    let no_control = !into.join("global/pg_control").exists();
    let unmounted = std::process::Command::new("umount").arg(&small).status().unwrap();
    assert!(remount.success() && unmounted.success());
    assert!(refused.code == 5 && refused.err.contains("bytes free") && untouched, "{}", refused.all());
    assert!(stopped.code == 10 && stopped.err.contains("No space left") && no_control, "{}", stopped.all());
}

/// What is open at a time keeps within what this process may have open.
#[tokio::test(flavor = "multi_thread")]
async fn few_open_files_are_enough() {
    let told = told().await;
    let into = told.world.path("few");
    let mut command = told.world.command(&["restore", "--to", "latest", "--into", into.to_str().unwrap()]);
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        let few = Rlimit { current: Some(300), maximum: Some(300) };
        command.pre_exec(move || Ok(rustix::process::setrlimit(Resource::Nofile, few)?));
    }
    let said = said(&mut command);
    assert_eq!(said.code, 0, "{}", said.all());
    let found = std::process::Command::new("find").arg(&into).args(["-type", "f"]).output().unwrap().stdout;
    let files = found.iter().filter(|byte| **byte == b'\n').count();
    assert!(files > 600, "{files} files could all be open at once");
}

/// Two restores into one place: the second is refused while the first works.
#[tokio::test(flavor = "multi_thread")]
async fn two_restores_do_not_meet() {
    let told = told().await;
    let into = told.world.path("both");
    std::fs::create_dir(&into).unwrap();
    std::fs::set_permissions(&into, std::fs::Permissions::from_mode(0o700)).unwrap();
    if let Some(user) = told.world.user() {
        std::os::unix::fs::chown(&into, Some(user.uid), None).unwrap();
    }
    // What a running restore holds: its mark, locked.
    let mark = std::fs::File::create(into.join("lastgood.restoring")).unwrap();
    std::fs::set_permissions(into.join("lastgood.restoring"), std::fs::Permissions::from_mode(0o666)).unwrap();
    rustix::fs::flock(&mark, rustix::fs::FlockOperation::LockExclusive).unwrap();
    told.world.refused(&["restore", "--to", "latest", "--into", into.to_str().unwrap()], 5, &["another restore"]);
    drop(mark);
    told.world.ok(&["restore", "--to", "latest", "--into", into.to_str().unwrap()]);
}

/// Rule 31 and 35: a missing or damaged object stops the restore; a missing one before anything is written.
#[tokio::test(flavor = "multi_thread")]
async fn damage_stops_the_restore() {
    let told = told().await;
    let world = &told.world;
    let pack = world.objects("clusters/shop/packs").into_iter().find(|k| k.contains("/d0")).unwrap();
    let pack = world.repository().join(pack);
    let good = std::fs::read(&pack).unwrap();
    let into = world.path("damaged");
    let restore = ["restore", "--to", "latest", "--into", into.to_str().unwrap()];
    std::fs::rename(&pack, world.path("pack")).unwrap();
    world.refused(&restore, 7, &["missing", "lastgood verify"]);
    assert!(!into.exists());
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    std::fs::write(&pack, &flipped).unwrap();
    world.refused(&restore, 7, &["is damaged"]);
    assert!(!into.join("global/pg_control").exists(), "it cannot be started by mistake");
    std::fs::write(&pack, &good).unwrap();
    world.ok(&restore);
}

/// Rules 41, 44, 45: what a restored directory holds: no archiving, no old recovery settings, links from the mapping, modes.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_directory_is_safe() {
    let world = World::new(15).await;
    let space = world.path("space");
    lastgood::postgres::scratch::make_directory(&space, world.user()).unwrap();
    world.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    world.sql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 100) x").await;
    world.sql("ALTER SYSTEM SET recovery_target_time = '2020-01-01 00:00:00+00'").await;
    world.backup(&[]);
    world.archive().await;
    let oid = world.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    let into = world.path("restored");
    // The original place is taken by the living server.
    world.refused(&["restore", "--to", "latest", "--into", into.to_str().unwrap()], 5, &["tablespace", "--tablespace OID=PATH"]);
    let mapped = world.path("mapped");
    world.refused(
        &["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--tablespace", "1=/tmp/x"],
        5,
        &["no tablespace \"1\""],
    );
    let inside = format!("{oid}={}", into.join("x").display());
    world.refused(&["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--tablespace", &inside], 5, &["x"]);
    assert!(!into.exists() && !mapped.exists());
    let mapping = format!("{oid}={}", mapped.display());
    let (_server, session) = world.restore("restored", &["--to", "latest", "--tablespace", &mapping]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "100");
    assert_eq!(std::fs::read_link(into.join(format!("pg_tblspc/{oid}"))).unwrap(), mapped);
    let settings = std::fs::read_to_string(into.join("postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("2020-01-01"), "{settings}");
    assert_eq!(session.value("SHOW archive_mode").await.unwrap(), "off");
    assert!(into.join("lastgood.restored").exists() && !into.join("tablespace_map").exists());
    assert_eq!(std::fs::metadata(&into).unwrap().permissions().mode() & 0o777, 0o700);
    // The original lives on, unharmed.
    assert_eq!(world.value("SELECT count(*) FROM t").await, "100");
}

/// A tablespace made after the snapshot is made again by replay, where the original has it: never into a living server's files.
#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_made_after_the_snapshot_is_not_shared() {
    let world = World::new(15).await;
    let first = world.backup(&[]);
    let space = world.path("space");
    lastgood::postgres::scratch::make_directory(&space, world.user()).unwrap();
    world.sql("CREATE TABLE before AS SELECT 1").await;
    world.sql("SELECT pg_create_restore_point('before')").await;
    world.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    world.sql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 100) x").await;
    world.archive().await;
    let into = world.path("restored");
    let restore = |to: &str| world.run(&["restore", "--to", to, "--into", into.to_str().unwrap()]);
    let said = restore("latest");
    assert_eq!(said.code, 5, "{}", said.all());
    assert!(said.err.contains("is made here by WAL after the snapshot") && said.err.contains("later snapshot"), "{}", said.err);
    assert!(!into.exists());
    assert_eq!(restore(first["id"].as_str().unwrap()).code, 0, "before it, nothing stands in the way");
    let (_server, session) = world.restore("named", &["--to", "before"]).await;
    assert_eq!(session.value("SELECT count(*) FROM before").await.unwrap(), "1");
    // With the place free, as on another host, replay may make it.
    world.sql("DROP TABLE t").await;
    let oid = world.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    assert!(oid.parse::<u32>().is_ok());
    std::fs::rename(&space, world.path("gone")).unwrap();
    lastgood::postgres::scratch::make_directory(&space, world.user()).unwrap();
    let (_server, session) = world.restore("free", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "100");
}

/// After a fork both futures are listed and verified; a successor is told what its archive lacks.
#[tokio::test(flavor = "multi_thread")]
async fn both_futures_of_a_fork_are_windows() {
    let told = told().await;
    let world = &told.world;
    let (mut copy, _session) = world.restore("copy", &["--to", &told.moments[3].1, "--target-action", "promote"]).await;
    world.sql("INSERT INTO t VALUES (7)").await;
    world.archive().await;
    // The copy becomes a successor beside its original: declared, archiving on.
    world.release("copy");
    copy.stop(lastgood::postgres::scratch::Stop::Fast);
    copy.start().await.unwrap();
    let history = world.objects("clusters/shop/wal").into_iter().find(|key| key.ends_with("00000002.history")).unwrap();
    std::fs::remove_file(world.repository().join(history)).unwrap();
    let config = std::fs::read_to_string(world.config()).unwrap();
    let own = world.server.sockets().display().to_string();
    std::fs::write(world.config(), config.replace(&own, &copy.sockets().display().to_string())).unwrap();
    let said = world.refused(&["backup"], 8, &["the history file 00000002.history", "archive-push pg_wal/00000002.history"]);
    assert!(world.objects("clusters/shop/snapshots").len() == 2, "{}", said.all());
    world.refused(&["check"], 9, &["00000002.history"]);
    let push = crate::support::world::said(world.command(&["archive-push", "pg_wal/00000002.history"]).current_dir(copy.data()));
    assert_eq!(push.code, 0, "{}", push.all());
    let snapshot = world.backup(&[]);
    let listing = world.ok(&["--json", "list"]).json();
    let windows = listing["histories"][0]["windows"].as_array().unwrap().clone();
    let of = |timeline: u64| windows.iter().filter(move |w| w["timeline"] == timeline).cloned().collect::<Vec<_>>();
    assert!(!of(1).is_empty() && !of(2).is_empty(), "{windows:#?}");
    let newest = of(2).iter().any(|w| w["snapshots"].as_array().unwrap().contains(&snapshot["id"]) && w["to_lsn"].is_string());
    assert!(newest, "{windows:#?}");
    world.ok(&["verify"]);
    let (_first, session) = world.restore("first", &["--to", "latest", "--timeline", "1"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "7");
    let (_second, session) = world.restore("second", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "4");
}

/// Rule 40: a target that stands in postgresql.conf, harmless in production, does not stop the restore there.
#[tokio::test(flavor = "multi_thread")]
async fn old_targets_in_postgresql_conf_do_not_count() {
    let world = World::with(15, &[], "recovery_target_time = '2020-01-01 00:00:00+00'", None).await;
    world.sql("CREATE TABLE t AS SELECT 1").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (2)").await;
    let lsn = world.value("SELECT pg_current_wal_lsn()").await;
    world.sql("INSERT INTO t VALUES (3)").await;
    world.archive().await;
    let (_server, session) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "3");
    let (_server, session) = world.restore("lsn", &["--to", &lsn, "--exclusive"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "2");
}

/// A repository that cannot be written (full, locked, read-only credentials) still gives everything back.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_only_readable_is_enough() {
    let told = told().await;
    let world = &told.world;
    let mode = |bits: &str| {
        let done = std::process::Command::new("chmod").args(["-R", bits]).arg(world.repository()).status().unwrap();
        assert!(done.success());
    };
    mode("a-w");
    let said = world.run(&["restore", "--to", "latest", "--into", world.path("restored").to_str().unwrap()]);
    mode("u+w");
    assert!(said.code == 0 && said.err.contains("without a lease"), "{}", said.all());
    let (_server, session) = world.recovered("restored").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "6");
}
