//! Snapshots: rules 1 to 20, as far as the program shows them.

mod walk;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use lastgood::monitor::Silent;
use lastgood::postgres::scratch::Stop;
use lastgood::postgres::session::Session;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::snapshot::take::{self, Request};
use lastgood::storage::fs::DirectoryStorage;

use crate::support::world::{PATIENCE, World, tamper};

/// Rule 12: a page damaged on disk is reported with its place, makes the exit code 7, and older snapshots keep the good one.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_is_reported_and_older_copies_stay() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, repeat('x', 100) AS y FROM generate_series(1, 5000) i").await;
    world.sql("VACUUM (FREEZE) t").await;
    let good = world.backup(&[]);
    let path = world.value("SELECT pg_relation_filepath('t')").await;
    world.server.stop(Stop::Fast);
    crate::support::world::tamper(&world.server.data().join(&path), |bytes| bytes[3 * 8192 + 5000] ^= 1);
    world.start().await;
    // WAL does not know of it.
    let said = world.refused(&["--json", "backup", "--paranoid"], 7, &["page 3 of", &path]);
    let snapshot = &said.json()["snapshot"];
    assert_eq!(snapshot["damaged_pages"][0]["block"], 3);
    assert!(world.ok(&["list"]).out.contains("1 page "));
    // What is known stays known although the file is not read again.
    let third = world.refused(&["--json", "backup"], 7, &[]);
    assert_eq!(third.json()["snapshot"]["damaged_pages"].as_array().unwrap().len(), 1);
    let (_server, session) = world.restore("good", &["--to", good["id"].as_str().unwrap()]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "5000");
}

/// Unchanged files are not read when length, times and inode prove it; `--paranoid` reads them, `--full` stores them.
#[tokio::test(flavor = "multi_thread")]
async fn unchanged_files_are_not_read() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, repeat('x', 100) AS y FROM generate_series(1, 20000) i").await;
    world.sql("VACUUM (FREEZE) t").await;
    world.sql("CHECKPOINT").await;
    // File times are trusted two seconds after the last change: make the files that old.
    let old = std::process::Command::new("find")
        .arg(world.server.data().join("base"))
        .args(["-type", "f", "-exec", "touch", "-d", "1 hour ago", "{}", "+"])
        .status()
        .unwrap();
    assert!(old.success());
    let first = world.backup(&[]);
    let total = |snapshot: &serde_json::Value, what: &str| snapshot["totals"][what].as_u64().unwrap();
    let second = world.backup(&[]);
    assert!(total(&second, "read_bytes") * 10 < total(&first, "read_bytes"), "{second}");
    let paranoid = world.backup(&["--paranoid"]);
    assert!(total(&paranoid, "read_bytes") * 10 > total(&first, "read_bytes") * 9);
    assert!(total(&paranoid, "new_bytes") * 10 < total(&first, "new_bytes"));
    let full = world.backup(&["--full"]);
    assert!(full["parent"].is_null() && total(&full, "new_bytes") * 10 > total(&first, "new_bytes") * 9);
    world.ok(&["verify"]);
}

/// The parent that a backup reads beforehand is a guess: what others committed meanwhile is built on, and what never was is not missed.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_foreseen_is_only_a_guess() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x FROM generate_series(1, 20000) i").await;
    let id = |snapshot: serde_json::Value| snapshot["id"].as_str().unwrap().to_string();
    let first = id(world.backup(&[]));
    let mut last = id(world.backup(&[]));
    let session = Session::open(&world.server.connection()).await.unwrap();
    for newest in [first.as_str(), "20200101T000000Z-0000"] {
        let store = Arc::new(DirectoryStorage::new(world.repository()));
        let (cluster, record) = Repository::open(store, &Keys::default()).await.unwrap().registered("shop").await.unwrap();
        let request = Request { full: false, newest: Some(newest.into()), ..crate::crash::request() };
        let taken = take::take(&cluster, &record, &session, &request, Arc::new(Silent)).await.unwrap();
        assert_eq!(taken.parent, Some(last), "foreseen: {newest}");
        last = taken.id;
    }
    world.ok(&["verify"]);
}

/// Rules 5, 26: without working archiving no snapshot begins, and the reason is said.
#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_without_archiving() {
    let world = World::new(15).await;
    world.write_config(None, "\n[snapshot]\narchive_timeout_s = 1\n");
    world.session().alter_system("archive_command", "false").await.unwrap();
    world.session().reload().await.unwrap();
    world.refused(&["backup"], 8, &["archiving does not work", "archive_command fails"]);
    world.session().alter_system("archive_command", "true").await.unwrap();
    world.session().reload().await.unwrap();
    world.refused(&["backup"], 8, &["archiving does not work", "does archive_command write into this repository"]);
    assert!(world.objects("clusters/shop/packs").is_empty() && world.objects("clusters/shop/snapshots").is_empty());
    world.refused(&["check", "--timeout", "1"], 9, &["FAILED", "archive_command does not call lastgood"]);
}

/// Rule 8: a server that dies under the copy ends the snapshot; the next run cleans up and succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_leaves_no_snapshot() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 600000) i").await;
    let child = world.command(&["backup"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_for_packs(&world).await;
    world.server.stop(Stop::Immediate);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(world.objects("clusters/shop/snapshots").is_empty());
    world.start().await;
    let next = world.ok(&["backup"]);
    assert!(next.all().contains("never finished"), "{}", next.all());
    world.ok(&["verify"]);
}

/// Until the copy has begun: its lease is taken, and the first frames are on their way.
async fn wait_for_packs(world: &World) {
    let began = lastgood::clock::monotonic();
    while world.objects("clusters/shop/packs").is_empty() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// Kill -9 at many moments: the repository stays sound, and the next snapshot removes what was left.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_snapshot_leaves_only_garbage() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 300000) i").await;
    let first = world.backup(&[]);
    for pause_ms in [20, 60, 100, 140, 180, 240, 300, 400] {
        let mut child = world.command(&["backup", "--full"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(pause_ms)).await;
        let _ = child.kill();
        child.wait().unwrap();
        world.ok(&["list"]);
        // Where all but the manifest was written, only a person can tell it from one that was lost.
        world.forget_orphans();
        world.ok(&["verify", "--quick"]);
    }
    world.backup(&[]);
    let ids: Vec<String> =
        world.objects("clusters/shop/snapshots").iter().map(|k| k.rsplit('/').next().unwrap().to_string()).collect();
    assert!(ids.contains(&first["id"].as_str().unwrap().to_string()));
    for key in world.objects("clusters/shop/packs").iter().chain(&world.objects("clusters/shop/files")) {
        let owner = key.split('/').nth(3).unwrap();
        assert!(ids.iter().any(|id| id == owner), "{key} belongs to no snapshot");
    }
    world.ok(&["verify"]);
}

/// A role without the rights is told the GRANTs that mend it; with them it can take a snapshot (rule 2).
#[tokio::test(flavor = "multi_thread")]
async fn missing_grants_are_named() {
    let world = World::new(15).await;
    world.sql("CREATE ROLE backup LOGIN").await;
    let as_backup = ["--pg-user", "backup"];
    world.refused(&[&as_backup[..], &["backup"]].concat(), 8, &["GRANT pg_read_all_settings TO backup"]);
    world.sql("GRANT pg_read_all_settings TO backup").await;
    let said =
        world.refused(&[&as_backup[..], &["check", "--no-switch"]].concat(), 9, &["GRANT EXECUTE ON FUNCTION pg_backup_start"]);
    let mend = said.out.lines().find(|l| l.contains("GRANT EXECUTE")).unwrap().split("-> ").nth(1).unwrap().to_string();
    world.refused(&[&as_backup[..], &["backup"]].concat(), 8, &["permission denied"]);
    world.sql(&mend).await;
    world.ok(&[&as_backup[..], &["backup"]].concat());
    // What it may not connect to has no names, and the tripwire does not see what happens there.
    world.sql("CREATE DATABASE \"its own\"").await;
    world.sql("REVOKE CONNECT ON DATABASE \"its own\" FROM PUBLIC").await;
    let check = [&as_backup[..], &["check", "--no-switch"]].concat();
    let mend = "GRANT CONNECT ON DATABASE \"its own\" TO backup;";
    world.refused(&check, 9, &["FAILED  role", "may not connect to \"its own\"", mend]);
    world.sql(mend).await;
    let said = world.run(&check);
    assert!(!said.out.contains("may not connect") && !said.out.contains("FAILED"), "{}", said.out);
}

/// Rule 3: server, data directory and repository must speak of one cluster.
#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_directory_is_refused() {
    let world = World::new(15).await;
    let other = World::new(15).await;
    let foreign = other.server.data().to_str().unwrap();
    if let Some(user) = world.user() {
        assert_eq!(Some(user), other.user());
    }
    world.refused(&["--data-directory", foreign, "backup"], 5, &["belongs to system", "data_directory"]);
    // Another server under a name that is taken.
    let text = std::fs::read_to_string(world.config()).unwrap();
    let sockets = |w: &World| w.server.sockets().display().to_string();
    std::fs::write(world.config(), text.replace(&sockets(&world), &sockets(&other))).unwrap();
    world.refused(&["backup"], 5, &["in the repository is system", "lastgood init"]);
    world.refused(&["init"], 5, &["already the name of system", "--new-history"]);
    world.refused(&["init", "--new-history"], 5, &["will stand for system", "nobody has confirmed"]);
    world.confirmed(&["init", "--new-history"]);
    let said = world.ok(&["list"]);
    assert!(said.out.matches("cluster shop").count() == 2, "{}", said.out);
}

/// Two hundred thousand small files would do the same; three thousand show that files share frames and packs.
#[tokio::test(flavor = "multi_thread")]
async fn small_files_share_frames() {
    let world = World::new(15).await;
    let dir = world.server.data().join("many");
    std::fs::create_dir(&dir).unwrap();
    for i in 0..3000 {
        std::fs::write(dir.join(format!("file {i}")), format!("content {i}")).unwrap();
    }
    let mut all = vec![dir.clone()];
    all.extend(std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()));
    for path in all {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(if path == dir { 0o755 } else { 0o644 })).unwrap();
    }
    let snapshot = world.backup(&[]);
    assert!(snapshot["totals"]["files"].as_u64().unwrap() > 3900);
    assert!(world.objects("clusters/shop/packs").len() <= 2);
    let (_server, _session) = world.restore("restored", &["--to", "latest"]).await;
    for i in [0, 77, 2999] {
        let text = std::fs::read_to_string(world.path("restored").join(format!("many/file {i}"))).unwrap();
        assert_eq!(text, format!("content {i}"));
    }
}

/// Rule 19: a snapshot from a standby; and one that ends when the standby is promoted is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_can_be_the_source() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) x").await;
    world.backup(&[]);
    world.archive().await;
    // A copy that follows the archive.
    let into = world.path("standby");
    world.ok(&["restore", "--to", "latest", "--into", into.to_str().unwrap()]);
    std::fs::remove_file(into.join("recovery.signal")).unwrap();
    std::fs::write(into.join("standby.signal"), "").unwrap();
    let mut standby = world.restored("standby");
    standby.configure("hot_standby = on").unwrap();
    standby.start().await.unwrap();
    world.sql("INSERT INTO t VALUES (1001)").await;
    world.archive().await;
    let config = std::fs::read_to_string(world.config()).unwrap();
    let own = world.server.sockets().display().to_string();
    let of_standby = config.replace(&own, &standby.sockets().display().to_string());
    std::fs::write(world.config(), &of_standby).unwrap();
    let said = world.run(&["--json", "backup"]);
    // Archiving is off in the restored copy, which is what the program must say first.
    assert!(said.code == 8 && said.all().contains("archive_mode is off"), "{}", said.all());
    standby.stop(Stop::Fast);
    let auto = into.join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap().replace("archive_mode = 'off'", "archive_mode = 'on'");
    std::fs::write(&auto, text).unwrap();
    standby.start().await.unwrap();
    let said = world.ok(&["--json", "backup"]);
    assert_eq!(said.json()["snapshot"]["from_standby"], true);
    // The primary's snapshot is ahead of a standby that lags: what the standby has is older than that, and not built on it.
    let session = Session::open(&standby.connection()).await.unwrap();
    session.run("SELECT pg_wal_replay_pause()").await.unwrap();
    while session.value("SELECT pg_get_wal_replay_pause_state()").await.unwrap() != "paused" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    std::fs::write(world.config(), &config).unwrap();
    let ahead = world.backup(&[])["id"].clone();
    std::fs::write(world.config(), &of_standby).unwrap();
    let said = world.ok(&["--json", "backup"]).json();
    let parent = &said["snapshot"]["parent"];
    assert!(*parent != ahead, "{parent}");
    world.ok(&["verify"]);
    let (_server, session) = world.restore("again", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "1001");
}

/// A page that was damaged when the parent read it, and is good now, is stored anew: damage is never carried over.
#[tokio::test(flavor = "multi_thread")]
async fn a_mended_page_is_mended_in_the_next_snapshot() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, repeat('x', 100) AS y FROM generate_series(1, 5000) i").await;
    world.sql("VACUUM (FREEZE) t").await;
    let path = world.value("SELECT pg_relation_filepath('t')").await;
    let file = world.server.data().join(&path);
    world.server.stop(Stop::Fast);
    crate::support::world::tamper(&file, |bytes| bytes[3 * 8192 + 5000] ^= 1);
    world.start().await;
    world.refused(&["backup"], 7, &["page 3 of"]);
    world.server.stop(Stop::Fast);
    crate::support::world::tamper(&file, |bytes| bytes[3 * 8192 + 5000] ^= 1);
    world.start().await;
    let snapshot = world.backup(&[]);
    assert!(snapshot["parent"].is_string());
    let (_server, session) = world.restore("restored", &["--to", snapshot["id"].as_str().unwrap()]).await;
    assert_eq!(session.value("SELECT count(*) FROM t WHERE y = repeat('x', 100)").await.unwrap(), "5000");
}

/// Numbers come again: a database made with the OID of a dropped one, from a template whose pages are older than the parent, is
/// not taken for the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_an_old_number_is_another() {
    let world = World::new(15).await;
    for (name, rows) in [("template_a", 1000), ("template_b", 2000)] {
        world.sql(&format!("CREATE DATABASE {name}")).await;
        let mut connection = world.server.connection();
        connection.dbname = Some(name.into());
        let session = lastgood::postgres::session::Session::open(&connection).await.unwrap();
        session.run(&format!("CREATE TABLE public.t AS SELECT generate_series(1, {rows}) x")).await.unwrap();
        session.run(&format!("CREATE TABLE public.only_{name} (x int)")).await.unwrap();
    }
    world.sql("CHECKPOINT").await;
    world.sql("CREATE DATABASE d OID 20001 TEMPLATE template_a STRATEGY file_copy").await;
    world.backup(&[]);
    world.sql("DROP DATABASE d").await;
    world.sql("CREATE DATABASE d OID 20001 TEMPLATE template_b STRATEGY file_copy").await;
    let snapshot = world.backup(&[]);
    assert!(snapshot["parent"].is_string());
    let (server, _session) =
        world.restore("restored", &["--to", snapshot["id"].as_str().unwrap(), "--target-action", "promote"]).await;
    let mut connection = server.connection();
    connection.dbname = Some("d".into());
    let session = lastgood::postgres::session::Session::open(&connection).await.unwrap();
    assert_eq!(session.value("SELECT count(*) FROM public.t").await.unwrap(), "2000");
    assert_eq!(session.value("SELECT count(*) FROM public.only_template_b").await.unwrap(), "0");
}

/// A parent that lost a pack is not built on: the loss is said, and the new snapshot is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_with_a_lost_pack_is_not_built_on() {
    let world = World::new(15).await;
    world.backup(&[]);
    let pack = world.objects("clusters/shop/packs").into_iter().find(|k| k.contains("/d0")).unwrap();
    std::fs::remove_file(world.repository().join(pack)).unwrap();
    let said = world.ok(&["--json", "backup"]);
    assert!(said.out.contains("it is missing); this snapshot stores everything anew"), "{}", said.out);
    let snapshot = said.json()["snapshot"].clone();
    assert!(snapshot["parent"].is_null());
    world.ok(&["verify", snapshot["id"].as_str().unwrap()]);
}

/// Rule 18: ids sort in the order in which they were taken, also within one second.
#[tokio::test(flavor = "multi_thread")]
async fn ids_sort_as_they_were_taken() {
    let world = World::new(15).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(world.backup(&[])["id"].as_str().unwrap().to_string());
    }
    assert!(ids.is_sorted(), "{ids:?}");
}

/// A list of the parent that cannot be read costs the snapshots that need it, and no later backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_parent_is_not_built_on() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let first = world.backup(&[])["id"].as_str().unwrap().to_string();
    let list = world.repository().join(format!("clusters/shop/files/{first}/000001"));
    tamper(&list, |bytes| bytes[40] ^= 1);
    let said = world.ok(&["--json", "backup"]);
    let second = said.json()["snapshot"].clone();
    assert!(second["parent"].is_null() && said.all().contains("stores everything anew"), "{}", said.all());
    let (mut server, session) = world.restore("copy", &["--to", second["id"].as_str().unwrap()]).await;
    assert_eq!(session.value("SELECT x::text FROM t").await.unwrap(), "1");
    drop(session);
    server.stop(Stop::Fast);
}
