//! WAL is missing in or after the newest window: `check` is red, and what still lies in a server's `pg_wal` closes the gap.

use std::os::unix::process::CommandExt;
use std::process::Command;

use lastgood::postgres::scratch::Stop;
use lastgood::postgres::session::Session;

use super::{lose, object};
use crate::support::world::{PATIENCE, World, programs, said};

/// Sets `archive_command`, and waits until whoever connects sees it.
async fn set_command(world: &World, command: &str) {
    world.session().alter_system("archive_command", command).await.unwrap();
    world.session().reload().await.unwrap();
    let began = lastgood::clock::monotonic();
    while world.connect().await.value("SHOW archive_command").await.unwrap() != command {
        assert!(began.elapsed() < PATIENCE, "{}", world.server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_hides_failures_and_the_hole_that_it_tore_are_red() {
    let world = World::with(15, &["--data-checksums"], "wal_keep_size = '1GB'", None).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.ok(&["check", "--no-switch"]);
    let command = world.value("SHOW archive_command").await;
    for end in ["; true", " || true", " | cat", " &"] {
        set_command(&world, &format!("{command}{end}")).await;
        world.refused(&["check", "--no-switch"], 9, &["archive_command hides failures"]);
    }
    set_command(&world, &command).await;
    // The segment is nowhere, and the server believes that it was archived.
    world.sql("INSERT INTO t VALUES (1)").await;
    world.archive().await;
    let lost = world.session().archiver().await.unwrap().last_archived.unwrap();
    std::fs::remove_file(world.repository().join(object(&world, &["/segments/", &lost]))).unwrap();
    world.refused(&["check", "--no-switch"], 9, &["WAL is missing", &lost, "the server says that it archived", "archive-push"]);
    // Later segments arrive, and what is missing is a hole.
    world.sql("INSERT INTO t VALUES (2)").await;
    world.archive().await;
    let said = world.refused(
        &["check", "--no-switch"],
        9,
        &["WAL is missing", &lost, "the archive goes on at", &format!("pg_wal/{lost}")],
    );
    assert!(said.out.contains("lie whole in"), "{said:?}");
    let push =
        crate::support::world::said(world.command(&["archive-push", &format!("pg_wal/{lost}")]).current_dir(world.server.data()));
    assert_eq!(push.code, 0, "{push:?}");
    world.ok(&["check", "--no-switch"]);
    world.ok(&["verify"]);
}

/// The dead primary never archived whole segments that its standby had received; there they are marked done.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_new_primary_has_what_the_old_one_never_archived() {
    let mut world = World::with(15, &["--data-checksums"], "wal_keep_size = '1GB'\nmax_wal_senders = 4", None).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let into = world.path("standby");
    let mut base = Command::new(programs(15).join("pg_basebackup"));
    base.args(["-R", "-X", "stream", "-c", "fast", "-U", "postgres", "-h"]).arg(world.server.sockets()).arg("-D").arg(&into);
    if let Some(user) = world.user() {
        base.uid(user.uid).gid(user.gid);
    }
    let done = said(&mut base);
    assert_eq!(done.code, 0, "{done:?}");
    let mut standby = world.restored("standby");
    standby.start().await.unwrap();
    let session = Session::open(&standby.connection()).await.unwrap();
    let mut missing = Vec::new();
    for x in 2..4 {
        world.sql(&format!("INSERT INTO t VALUES ({x})")).await;
        world.archive().await;
        missing.push(world.session().archiver().await.unwrap().last_archived.unwrap());
    }
    // As if the primary had died before it archived them.
    for name in &missing {
        std::fs::remove_file(world.repository().join(object(&world, &["/segments/", name]))).unwrap();
    }
    world.sql("INSERT INTO t VALUES (4)").await;
    let end = world.value("SELECT pg_current_wal_flush_lsn()").await;
    let began = lastgood::clock::monotonic();
    while session.value(&format!("SELECT (pg_last_wal_replay_lsn() >= '{end}'::pg_lsn)::text")).await.unwrap() != "true" {
        assert!(began.elapsed() < PATIENCE, "{}", standby.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.server.stop(Stop::Immediate);
    session.run("SELECT pg_promote()").await.unwrap();
    session.run("INSERT INTO public.t VALUES (5)").await.unwrap();
    let last = session.switch_segment("new").await.unwrap();
    let began = lastgood::clock::monotonic();
    while session.archiver().await.unwrap().last_archived.as_deref() < Some(&last) {
        assert!(began.elapsed() < PATIENCE, "{}", standby.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let host = standby.sockets().display().to_string();
    let check = ["--pg-host", &host, "check", "--no-switch"];
    let said = world.refused(&check, 9, &["WAL is missing", &missing[0], "and 1 more", "2 of 2 lie whole in"]);
    for name in &missing {
        assert!(said.out.contains(&format!("pg_wal/{name}")), "{said:?}");
        let push =
            crate::support::world::said(world.command(&["archive-push", &format!("pg_wal/{name}")]).current_dir(standby.data()));
        assert_eq!(push.code, 0, "{push:?}");
    }
    let said = world.run(&check);
    assert!(!said.out.contains("WAL is missing"), "{said:?}");
    let (_server, session) = world.restore("x", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "5");
    drop(standby);
}

/// A restore to the newest moment says what it does not reach.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_to_the_end_says_that_more_follows_a_hole() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let mut names = Vec::new();
    for x in 2..5 {
        world.sql(&format!("INSERT INTO t VALUES ({x})")).await;
        world.archive().await;
        names.push(world.session().archiver().await.unwrap().last_archived.unwrap());
    }
    let key = object(&world, &["/segments/", &names[1]]);
    let _lost = lose(&world, &key);
    let into = world.path("x");
    let said = world.ok(&["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--dry-run"]);
    assert!(said.out.contains(&format!("segment {} is missing, and the archive goes on", names[1])), "{said:?}");
}
