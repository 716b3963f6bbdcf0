//! A restore that becomes a standby: it follows its primary, is promoted, archives, and is the cluster from then on.

use lastgood::postgres::scratch::{Scratch, Stop};
use lastgood::postgres::session::Session;

use crate::support::world::{PATIENCE, World};

/// Waits until a query answers so.
pub async fn until(session: &Session, sql: &str, wanted: &str, log: impl Fn() -> String) {
    let began = lastgood::clock::monotonic();
    loop {
        let found = session.value(sql).await.unwrap();
        if found == wanted {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{sql}: {found}\n{}", log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The standby of a world, started; it streams from the world's server.
pub async fn standby(world: &World, name: &str, more: &[&str]) -> (Scratch, Session) {
    let conninfo = format!("host={} port=5432 user=postgres", world.server.sockets().display());
    let into = world.path(name).display().to_string();
    let args = ["restore", "--to", "latest", "--into", &into, "--standby", "--primary-conninfo", &conninfo];
    world.ok(&[&args, more].concat());
    let mut server = world.restored(name);
    server.start().await.unwrap_or_else(|e| panic!("{e}"));
    let session = Session::open(&server.connection()).await.unwrap();
    session.run("SET search_path = public, pg_catalog").await.unwrap();
    until(&session, "SELECT coalesce(max(status), '') FROM pg_stat_wal_receiver", "streaming", || server.log()).await;
    (server, session)
}

/// Promotes, and waits until the server archives on its new timeline.
async fn promoted(server: &Scratch, session: &Session) {
    session.run("SELECT pg_promote()").await.unwrap();
    session.run("INSERT INTO t VALUES (4)").await.unwrap();
    let last = session.switch_segment("promoted").await.unwrap();
    assert!(last.starts_with("00000002"), "{last}");
    let archived = format!("SELECT coalesce(max(last_archived_wal), '') >= '{last}' FROM pg_stat_archiver");
    until(session, &archived, "t", || server.log()).await;
}

async fn follows_and_takes_over(major: u32) {
    let mut world = World::new(major).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    // What a point-in-time restore has left in the original.
    world.session().alter_system("recovery_target_timeline", "3").await.unwrap();
    world.session().alter_system("recovery_target_name", "long ago").await.unwrap();
    world.session().alter_system("archive_mode", "on").await.unwrap();
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (2)").await;
    world.archive().await;
    world.sql("INSERT INTO t VALUES (3); SELECT pg_create_physical_replication_slot('two')").await;
    let (server, session) = standby(&world, "standby", &["--slot", "two"]).await;
    until(&session, "SELECT count(*) FROM t", "3", || server.log()).await;
    assert_eq!(session.value("SELECT pg_is_in_recovery()").await.unwrap(), "t");
    assert_eq!(world.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'two'").await, "t");
    assert_eq!(session.value("SHOW recovery_target_timeline").await.unwrap(), "latest");
    assert!(!world.path("standby/lastgood.restored").exists() && !world.path("standby/recovery.signal").exists());
    world.server.stop(Stop::Fast);
    promoted(&server, &session).await;
    // The first backup after a promotion, and the moment after it.
    let host = server.sockets().display().to_string();
    let said = world.ok(&["--pg-host", &host, "--json", "backup"]).json();
    assert_eq!(said["snapshot"]["timeline"], 2, "{said}");
    session.run("INSERT INTO t VALUES (5)").await.unwrap();
    let last = session.switch_segment("after the backup").await.unwrap();
    let archived = format!("SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver");
    until(&session, &archived, "t", || server.log()).await;
    world.ok(&["--pg-host", &host, "check", "--no-switch"]);
    let (_copy, rows) = world.restore("copy", &["--to", "latest"]).await;
    assert_eq!(rows.value("SELECT count(*) FROM t").await.unwrap(), "5");
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            follows_and_takes_over($major).await;
        }
    )*};
}

versions!(standby_13 13, standby_14 14, standby_15 15, standby_16 16, standby_17 17, standby_18 18);

/// The old primary becomes a standby of the new one, over what stood there; and what makes no standby is refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_becomes_a_standby() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let (server, session) = standby(&world, "new", &[]).await;
    world.server.stop(Stop::Fast);
    promoted(&server, &session).await;
    let data = world.server.data().display().to_string();
    let conninfo = format!("host={} user=postgres", server.sockets().display());
    let restore = ["restore", "--to", "latest", "--into", &data, "--standby"];
    world.refused(&[&restore[..], &["--primary-conninfo", "host=x password=y"]].concat(), 6, &["holds a password", ".pgpass"]);
    world.refused(&["restore", "--to", "0/5000028", "--into", &data, "--standby"], 6, &["use --to latest"]);
    for wrong in [["--target-action", "promote"], ["--timeline", "1"], ["--before", "drop of x"]] {
        assert_eq!(world.run(&[&restore[..], &wrong].concat()).code, 2, "{wrong:?}");
    }
    let said = world.confirmed(&[&restore[..], &["--primary-conninfo", &conninfo]].concat());
    assert!(said.out.contains("it is a standby") && !said.out.contains("lastgood release"), "{}", said.out);
    let (mut old, rows) = {
        let mut old = world.restored("data");
        old.start().await.unwrap();
        let rows = Session::open(&old.connection()).await.unwrap();
        (old, rows)
    };
    session.run("INSERT INTO t VALUES (6)").await.unwrap();
    until(&rows, "SELECT count(*) FROM public.t", "3", || old.log()).await;
    let sent = "SELECT status || ' ' || received_tli FROM pg_stat_wal_receiver";
    until(&rows, sent, "streaming 2", || old.log()).await;
    drop(rows);
    old.stop(Stop::Fast);
}

/// A snapshot of a standby ends where a segment does, and nothing was written since: it is restored to itself all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_quiet_standby_is_restored_to_itself() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let (server, session) = standby(&world, "standby", &[]).await;
    world.sql("INSERT INTO t VALUES (2)").await;
    world.sql("CHECKPOINT").await;
    world.archive().await;
    let end = world.value("SELECT pg_current_wal_flush_lsn()").await;
    until(&session, &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t", || server.log()).await;
    let host = server.sockets().display().to_string();
    let snapshot = world.ok(&["--pg-host", &host, "--json", "backup"]).json()["snapshot"].clone();
    let stop = snapshot["stop_lsn"].as_str().unwrap();
    assert!(stop.ends_with("000000"), "this is not the situation: {stop}");
    let id = snapshot["id"].as_str().unwrap();
    for action in ["pause", "promote"] {
        for to in [id, "latest"] {
            let (_copy, rows) = world.restore(&format!("{action} {to}"), &["--to", to, "--target-action", action]).await;
            assert_eq!(rows.value("SELECT count(*) FROM t").await.unwrap(), "2", "{action} {to}");
        }
    }
    world.ok(&["drill", "--to", id]);
}

/// A backup on a standby whose primary is quiet says what it waits for.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_on_a_quiet_standby_says_what_it_waits_for() {
    let world = World::new(15).await;
    world.write_config(None, "\n[snapshot]\narchive_timeout_s = 1\n");
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let (server, session) = standby(&world, "standby", &[]).await;
    world.sql("INSERT INTO t VALUES (2); CHECKPOINT; INSERT INTO t VALUES (3)").await;
    let end = world.value("SELECT pg_current_wal_flush_lsn()").await;
    until(&session, &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t", || server.log()).await;
    let host = server.sockets().display().to_string();
    world.refused(&["--pg-host", &host, "backup"], 8, &["this is a standby", "archive_timeout", "pg_switch_wal"]);
}
