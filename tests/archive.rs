//! `archive-push` and `archive-get`: rules 21 to 34, with the program as PostgreSQL calls it.

#[path = "archive/ahead.rs"]
mod ahead;
mod inquiry;
mod segment_size;
mod standby;

use std::path::{Path, PathBuf};

use crate::support::garage::{self, Garage};
use crate::support::world::{Said, World, said, tamper};

/// Runs the program in the data directory, where PostgreSQL runs it.
fn in_data(world: &World, args: &[&str]) -> Said {
    said(world.command(args).current_dir(world.server.data()))
}

fn segments(world: &World) -> Vec<String> {
    let key = world.objects("clusters/shop/wal");
    key.iter().filter(|k| k.contains("/segments/")).map(|k| k.rsplit('/').next().unwrap().to_string()).collect()
}

/// A copy of the last archived segment's file, under its own name in another directory.
fn copied(world: &World, name: &str) -> PathBuf {
    let to = world.path("copies");
    std::fs::create_dir_all(&to).unwrap();
    let file = to.join(name);
    let mut bytes = Vec::new();
    let place = world.objects("clusters/shop/wal").into_iter().find(|k| k.ends_with(name)).unwrap();
    let output = std::process::Command::new("zstd").args(["-dcq"]).arg(world.repository().join(place)).output().unwrap();
    bytes.extend(output.stdout);
    std::fs::write(&file, bytes).unwrap();
    file
}

async fn with_wal() -> World {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1").await;
    world.archive().await;
    world
}

/// Rule 22: the same content again is success; other content is refused, loudly, and nothing is overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_stored_once() {
    let world = with_wal().await;
    let name = segments(&world).pop().unwrap();
    let file = copied(&world, &name);
    let push = |path: &Path| in_data(&world, &["archive-push", path.to_str().unwrap()]);
    assert_eq!(push(&file).code, 0);
    let before =
        world.objects("clusters/shop/wal").iter().map(|k| std::fs::read(world.repository().join(k)).unwrap()).collect::<Vec<_>>();
    tamper(&file, |bytes| bytes[9000] ^= 1);
    let refused = push(&file);
    assert_eq!(refused.code, 5, "{}", refused.all());
    assert!(refused.err.contains("with other content") && refused.err.contains(&name), "{}", refused.err);
    let after =
        world.objects("clusters/shop/wal").iter().map(|k| std::fs::read(world.repository().join(k)).unwrap()).collect::<Vec<_>>();
    assert_eq!(before, after);
}

/// A stored segment that was damaged is not called the same: the server must keep its good copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_never_the_same() {
    let world = with_wal().await;
    let name = segments(&world).pop().unwrap();
    let file = copied(&world, &name);
    let object = world.objects("clusters/shop/wal").into_iter().find(|k| k.ends_with(&name)).unwrap();
    tamper(&world.repository().join(object), |bytes| bytes[200] ^= 1);
    let said = in_data(&world, &["archive-push", file.to_str().unwrap()]);
    assert_eq!(said.code, 7, "{}", said.all());
}

/// Rule 21: another system, another place, another length: refused and never stored.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_wal_is_refused() {
    let world = with_wal().await;
    let name = segments(&world).pop().unwrap();
    let file = copied(&world, &name);
    let stored = segments(&world);
    let refuse = |change: &dyn Fn(&mut Vec<u8>), new_name: &str, words: &str| {
        let to = world.path("copies").join(new_name);
        let mut bytes = std::fs::read(&file).unwrap();
        change(&mut bytes);
        std::fs::write(&to, bytes).unwrap();
        let said = in_data(&world, &["archive-push", to.to_str().unwrap()]);
        assert_eq!(said.code, 5, "{words}: {}", said.all());
        assert!(said.err.contains(words), "{words}: {}", said.err);
        if to != file {
            std::fs::remove_file(to).unwrap();
        }
    };
    refuse(&|bytes| bytes[24] ^= 1, "000000010000000000000063", "belongs at");
    refuse(&|_| {}, "000000010000000000000063", "belongs at");
    refuse(&|bytes| bytes.truncate(1 << 20), "00000001000000000000000A", "long, but its header says");
    refuse(&|bytes| bytes[0] = 0, "00000001000000000000000B", "does not begin like WAL");
    refuse(&|bytes| bytes[4] = 9, "00000001000000000000000C", "belongs at");
    let own_place: u64 = u64::from_str_radix(&name[16..], 16).unwrap();
    let other = format!("0000000100000000{own_place:08X}");
    refuse(&|bytes| bytes[24] ^= 1, &other, "which the repository does not know");
    assert_eq!(segments(&world), stored);
}

/// Rule 27: `%p` relative, absolute, through a symlink, `%f` alone; and a clear word where there is no such file.
#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_name_the_file_works_or_says_why() {
    let world = with_wal().await;
    let name = segments(&world).pop().unwrap();
    let local = world.server.data().join("pg_wal").join(&name);
    if !local.exists() {
        std::fs::copy(copied(&world, &name), &local).unwrap();
        std::os::unix::fs::chown(&local, world.user().map(|u| u.uid), None).unwrap();
    }
    let link = world.path("link");
    std::os::unix::fs::symlink(world.server.data(), &link).unwrap();
    let through_link = link.join("pg_wal").join(&name);
    for path in [format!("pg_wal/{name}"), local.display().to_string(), name.clone(), through_link.display().to_string()] {
        let said = in_data(&world, &["archive-push", &path]);
        assert_eq!(said.code, 0, "{path}: {}", said.all());
    }
    let said = world.run(&["archive-push", "pg_wal/0000000100000000000000FF"]);
    assert_eq!(said.code, 10);
    assert!(said.err.contains("archive_command should pass %p"), "{}", said.err);
    std::fs::write(world.path("nonsense"), "x").unwrap();
    let said = world.run(&["archive-push", "nonsense"]);
    assert!(said.code == 10 && said.err.contains("is not the name of a WAL"), "{}", said.all());
}

/// Rules 23, 26, 28: when the repository is gone the push fails with a code below 126, and the WAL stays with the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_gone_fails_the_push() {
    let world = with_wal().await;
    let name = segments(&world).pop().unwrap();
    let file = copied(&world, &name);
    std::fs::rename(world.repository(), world.path("moved")).unwrap();
    let said = in_data(&world, &["archive-push", file.to_str().unwrap()]);
    assert_eq!(said.code, 4, "{}", said.all());
    assert!(said.err.contains("does not exist") && said.err.contains("not mounted"), "{}", said.err);
    // What was not archived meanwhile is archived as soon as the repository is back.
    world.sql("INSERT INTO t VALUES (2)").await;
    let waiting = world.session().switch_segment("gone").await.unwrap();
    let began = lastgood::clock::monotonic();
    while world.session().archiver().await.unwrap().failed == 0 {
        assert!(began.elapsed() < crate::support::world::PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(world.server.data().join("pg_wal").join(&waiting).exists());
    // An unmounted disk leaves its empty mount point: nothing is stored there.
    std::fs::create_dir(world.repository()).unwrap();
    std::fs::set_permissions(world.repository(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let said = in_data(&world, &["archive-push", file.to_str().unwrap()]);
    assert!(said.code == 4 && said.err.contains("holds no lastgood repository"), "{}", said.all());
    assert!(world.objects("clusters").is_empty());
    std::fs::remove_dir(world.repository()).unwrap();
    std::fs::rename(world.path("moved"), world.repository()).unwrap();
    world.archive().await;
    assert!(segments(&world).contains(&waiting));
}

/// Rules 30, 32, 33, 34: absent is said only when it is proven; everything else stops recovery.
#[tokio::test(flavor = "multi_thread")]
async fn absent_is_proven_or_not_said() {
    let world = with_wal().await;
    let name = segments(&world).pop().unwrap();
    let get = |name: &str| in_data(&world, &["archive-get", name, world.path("got").to_str().unwrap()]);
    std::fs::set_permissions(world.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(get(&name).code, 0);
    let local = std::fs::read(world.path("got")).unwrap();
    assert_eq!(local, std::fs::read(copied(&world, &name)).unwrap());
    for absent in
        ["0000000100000000000000FF", "00000009.history", "000000010000000000000001.partial", &format!("{name}.00000028.backup")]
    {
        assert_eq!(get(absent).code, 1, "{absent}");
    }
    for wrong in ["nonsense", &name[..23], &format!("{name}0")] {
        assert_eq!(get(wrong).code, 126, "{wrong}");
    }
    // Wrong usage and an unknown system prove nothing either.
    let run = |args: &[&str]| in_data(&world, args).code;
    assert_eq!(run(&["archive-get", &name]), 126);
    assert_eq!(run(&["archive-get", "0000000100000000000000FF", "x", "--no-such-flag"]), 126);
    assert_eq!(run(&["archive-get", "0000000100000000000000FF", "x", "--system-identifier", "42"]), 126);
    // A flipped byte, a cut object, an unreadable one, and a repository that is gone: none of them is "absent".
    let object =
        world.objects("clusters/shop/wal").into_iter().find(|k| k.ends_with(&name)).map(|k| world.repository().join(k)).unwrap();
    let good = std::fs::read(&object).unwrap();
    std::fs::remove_file(world.path("got")).unwrap();
    for change in [|b: &mut Vec<u8>| b[100] ^= 1, |b: &mut Vec<u8>| b.truncate(500), |b: &mut Vec<u8>| b.clear()] {
        tamper(&object, change);
        let said = get(&name);
        assert_eq!(said.code, 126, "{}", said.all());
        assert!(said.err.contains("damaged"), "{}", said.err);
        assert!(!world.path("got").exists(), "nothing half written stays");
        std::fs::write(&object, &good).unwrap();
    }
    std::fs::rename(world.repository().join("lastgood.json"), world.path("record")).unwrap();
    assert_eq!(get("0000000100000000000000FF").code, 126, "a place without its record proves nothing");
    std::fs::rename(world.path("record"), world.repository().join("lastgood.json")).unwrap();
    std::fs::rename(world.repository(), world.path("moved")).unwrap();
    assert_eq!(get(&name).code, 126);
}

/// Rule 29: a server that was restored from this repository does not poison the archive of its original.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_cannot_archive() {
    let world = with_wal().await;
    let name = segments(&world).pop().unwrap();
    let file = copied(&world, &name);
    std::fs::write(world.server.data().join("lastgood.restored"), "{}").unwrap();
    let said = in_data(&world, &["archive-push", file.to_str().unwrap()]);
    assert_eq!(said.code, 5);
    assert!(said.err.contains("was restored by lastgood"), "{}", said.err);
}

/// Rule 25: one push takes further ready segments along; each acknowledgement counts for the very file only.
#[tokio::test(flavor = "multi_thread")]
async fn one_push_takes_others_along() {
    let world = with_wal().await;
    // The archiver finds nothing to do while the command only says no.
    world.session().alter_system("archive_command", "false").await.unwrap();
    world.session().reload().await.unwrap();
    let mut names = vec![refused_by_the_archiver(&world).await];
    for _ in 0..3 {
        world.sql("INSERT INTO t VALUES (3)").await;
        names.push(world.session().switch_segment("ahead").await.unwrap());
    }
    let before = segments(&world).len();
    let push = |name: &str| in_data(&world, &["archive-push", &format!("pg_wal/{name}")]);
    assert_eq!(push(&names[0]).code, 0);
    assert_eq!(segments(&world).len(), before + 4, "all that was ready went along");
    let spool = || walk(&world.path("spool")).into_iter().filter(|p| p.contains("/pushed/")).count();
    assert_eq!(spool(), 3);
    assert_eq!(push(&names[1]).code, 0);
    assert_eq!(spool(), 2, "an acknowledgement is used once");
    // Another file under an acknowledged name is not believed.
    let third = world.server.data().join("pg_wal").join(&names[2]);
    tamper(&third, |bytes| bytes[9000] ^= 1);
    assert_eq!(push(&names[2]).code, 5);
}

/// A new segment that the archiver has tried with the command that was just set, which fails. Until it has read that setting, it may
/// still be pushing with the one before, and take others along.
async fn refused_by_the_archiver(world: &World) -> String {
    let began = lastgood::clock::monotonic();
    loop {
        world.sql("INSERT INTO t VALUES (3)").await;
        let name = world.session().switch_segment("refused").await.unwrap();
        let tried = "SELECT concat(last_failed_wal, ' ', last_archived_wal) FROM pg_stat_archiver";
        while !world.value(tried).await.contains(&name) {
            assert!(began.elapsed() < crate::support::world::PATIENCE, "{name} is not tried");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        if world.value(tried).await.starts_with(&name) {
            return name;
        }
    }
}

fn walk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() { found.extend(walk(&entry.path())) } else { found.push(entry.path().display().to_string()) }
    }
    found
}

/// Recovery finds the next segments fetched already; a spool file of another name or place is not used.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_segments_are_fetched_ahead() {
    let world = with_wal().await;
    for _ in 0..3 {
        world.sql("INSERT INTO t VALUES (3)").await;
        world.archive().await;
    }
    let names = segments(&world);
    std::fs::set_permissions(world.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let get = |name: &str| in_data(&world, &["archive-get", name, world.path("got").to_str().unwrap()]);
    assert_eq!(get(&names[0]).code, 0);
    let fetched =
        || walk(&world.path("spool")).into_iter().filter(|p| p.contains("/fetched/") && !p.ends_with(".coming")).count();
    let began = lastgood::clock::monotonic();
    while fetched() < names.len() - 1 {
        assert!(began.elapsed() < crate::support::world::PATIENCE, "{:?}", walk(&world.path("spool")));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // Proof that it is used: the repository does not have it any more.
    for key in world.objects("clusters/shop/wal").iter().filter(|k| k.ends_with(&names[1])) {
        std::fs::remove_file(world.repository().join(key)).unwrap();
    }
    assert_eq!(get(&names[1]).code, 0);
    assert_eq!(get(&names[1]).code, 1, "used once; then the truth is asked again");
    // A length that no segment has: nothing is fetched, and nothing breaks.
    for bytes in ["0", "12345", "8589934592"] {
        let said = in_data(&world, &["archive-get", &names[0], "--prefetch", bytes]);
        assert!(said.code == 0 && said.err.is_empty(), "{}", said.all());
    }
}

/// Segment sizes from 1 MB to 1 GB; history, `.partial` and `.backup` files.
async fn size(megabytes: &str, rows: &str) {
    let world = World::with(15, &["--wal-segsize", megabytes], "max_wal_size = '4GB'\nmin_wal_size = '2GB'", None).await;
    world.sql("CREATE TABLE t (x int, y text)").await;
    world.backup(&[]);
    world.sql(&format!("INSERT INTO t SELECT i, repeat('y', 500) FROM generate_series(1, {rows}) i")).await;
    world.archive().await;
    world.ok(&["verify"]);
    let (_server, session) = world.restore("restored", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_1_megabyte() {
    size("1", "10000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_64_megabytes() {
    size("64", "10000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_1_gigabyte() {
    size("1024", "1000").await;
}

/// A promotion archives a history file and a `.partial` one; a restore follows the new timeline, or the old one when told so.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_followed() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (2)").await;
    world.archive().await;
    // Recovery in place: the server itself becomes timeline 2, as after a failover.
    world.server.stop(lastgood::postgres::scratch::Stop::Fast);
    std::fs::write(world.server.data().join("recovery.signal"), "").unwrap();
    let get = format!("{} --config {} archive-get %f \"%p\"", world.program().display(), world.config().display());
    world.server.configure(&format!("restore_command = '{get}'")).unwrap();
    world.start().await;
    let began = lastgood::clock::monotonic();
    while world.session().in_recovery().await.unwrap() {
        assert!(began.elapsed() < crate::support::world::PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.sql("INSERT INTO t VALUES (3)").await;
    world.archive().await;
    let keys = world.objects("clusters/shop/wal");
    assert!(keys.iter().any(|k| k.ends_with("/history/00000002.history")), "{keys:?}");
    let (_latest, session) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "3");
    let (_first, session) = world.restore("first", &["--to", "latest", "--timeline", "1"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "2");
    world.refused(
        &["restore", "--to", "latest", "--timeline", "7", "--into", world.path("x").to_str().unwrap()],
        6,
        &["timeline 00000007 is not in the archive"],
    );
    let second = world.backup(&[]);
    assert!(second["parent"].is_string(), "the snapshot on timeline 2 builds on the one of timeline 1: {second}");
    world.ok(&["verify"]);
}

/// A push to an S3 store needs two requests at most once the repository is known, and never lists.
#[tokio::test(flavor = "multi_thread")]
async fn archiving_to_garage_survives_a_conflict() {
    let garage = Garage::start().await;
    let url = format!("s3://{}", garage::BUCKET);
    let world = World::with(15, &[], "", Some((&url, garage.config()))).await;
    world.sql("CREATE TABLE t AS SELECT 1").await;
    let name = world.session().switch_segment("conflict").await.unwrap();
    world.archive().await;
    let got = world.path("spool").join(&name);
    assert_eq!(in_data(&world, &["archive-get", &name, got.to_str().unwrap()]).code, 0);
    assert_eq!(in_data(&world, &["archive-push", got.to_str().unwrap()]).code, 0, "the same again");
    tamper(&got, |bytes| bytes[9000] ^= 1);
    assert_eq!(in_data(&world, &["archive-push", got.to_str().unwrap()]).code, 5);
    assert_eq!(in_data(&world, &["archive-get", "0000000100000000000000FF", got.to_str().unwrap()]).code, 1);
}

fn warns_of_the_index(world: &World) -> Option<String> {
    let said = world.run(&["check", "--no-switch"]).all();
    said.lines().find(|line| line.contains("WAL index")).map(str::to_string)
}

/// The index of a segment never decides whether the segment is archived; `check` and `timeline` say what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_without_an_index_is_archived_all_the_same() {
    use std::os::unix::fs::PermissionsExt;
    let world = with_wal().await;
    let spool = std::fs::read_dir(world.path("spool/shop")).unwrap().next().unwrap().unwrap().path();
    let permit = |mode| std::fs::set_permissions(spool.join("index"), std::fs::Permissions::from_mode(mode)).unwrap();
    permit(0o500);
    world.sql("DROP TABLE t; CREATE TABLE t AS SELECT i, repeat('x', 100) FROM generate_series(1, 3000) i").await;
    world.archive().await;
    let warned = warns_of_the_index(&world).unwrap_or_default();
    assert!(warned.contains("cannot be kept"), "{warned}");
    assert!(world.ok(&["timeline", "--kind", "drop"]).out.contains("DROP"), "read from the segment itself");
    permit(0o700);
    let whole = segments(&world).pop().unwrap();
    world.sql("CREATE TABLE u AS SELECT 1").await;
    world.archive().await;
    assert_eq!(warns_of_the_index(&world), None);
    // One that is broken in its middle is stored as well: what comes before may be all that is left.
    let file = copied(&world, &whole);
    tamper(&file, |bytes| bytes[100_000] ^= 1);
    let object = world.objects("clusters/shop/wal").into_iter().find(|key| key.ends_with(&whole)).unwrap();
    std::fs::remove_file(world.repository().join(object)).unwrap();
    let said = in_data(&world, &["archive-push", file.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{}", said.all());
    assert!(segments(&world).contains(&whole));
    let told = world.ok(&["timeline"]).out;
    assert!(told.contains(&format!("{whole} to {whole}: its WAL cannot be read on from")), "{told}");
}
