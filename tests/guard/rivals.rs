//! Two servers for one archive: the wrong one is refused with both histories named, and a person decides which is the wrong one.

use lastgood::postgres::scratch::{Scratch, Stop};
use lastgood::postgres::session::Session;

use crate::support::world::{PATIENCE, World, said};

/// A cluster whose table has a row for each transaction, archived; and its copy from after the second, promoted.
async fn forked() -> (World, Scratch, Session) {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (2)").await;
    let xid = world.value("BEGIN; SELECT txid_current()").await;
    world.sql("INSERT INTO t VALUES (3); COMMIT").await;
    world.archive().await;
    world.sql("INSERT INTO t VALUES (4)").await;
    world.archive().await;
    world.sql("INSERT INTO t VALUES (5)").await;
    world.archive().await;
    let args = ["--to", &xid, "--exclusive", "--target-action", "promote"];
    let (copy, session) = world.restore("copy", &args).await;
    (world, copy, session)
}

/// Pushes a file of a server's `pg_wal` by hand, as its archiver would.
fn push(world: &World, server: &Scratch, name: &str) -> crate::support::world::Said {
    said(world.command(&["archive-push", &format!("pg_wal/{name}")]).current_dir(server.data()))
}

/// Waits until a server's archiver says what it says.
async fn archiver(session: &Session, wanted: impl Fn(&lastgood::postgres::session::ArchiverState) -> bool) {
    let began = lastgood::clock::monotonic();
    loop {
        let state = session.archiver().await.unwrap();
        if wanted(&state) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{state:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_cannot_write_into_the_archive_of_its_original() {
    let (world, mut copy, session) = forked().await;
    let before = world.objects("clusters/shop/wal");
    let said = push(&world, &copy, "00000002.history");
    assert!(said.code == 5 && said.err.contains("lastgood release"), "{}", said.all());
    // Whoever looks at the copy is told the same, and not how to turn archiving on.
    let host = copy.sockets().display().to_string();
    for (command, code) in [(&["backup"][..], 5), (&["init"], 5), (&["check", "--no-switch"], 9)] {
        let said = world.refused(&[&["--pg-host", &host], command].concat(), code, &["not released", "lastgood release"]);
        assert!(!said.all().contains("archive_mode = "), "{}", said.all());
    }
    // Somebody takes the mark away and turns archiving on: the fork lies in the past of a cluster that lives on.
    std::fs::remove_file(copy.data().join("lastgood.restored")).unwrap();
    let said = push(&world, &copy, "00000002.history");
    assert_eq!(said.code, 5, "{}", said.all());
    for words in
        ["two servers write the history of \"shop\"", "timeline 00000002 left timeline 00000001 at", "goes on behind that"]
    {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
    let segment = session.switch_segment("x").await.unwrap();
    let said = push(&world, &copy, &segment);
    assert!(said.code == 5 && said.err.contains("two servers"), "{}", said.all());
    assert_eq!(world.objects("clusters/shop/wal"), before, "nothing of it was stored");
    // PostgreSQL asks again and again; the audit says it once.
    push(&world, &copy, &segment);
    let audit = world.ok(&["--json", "audit"]).out;
    assert_eq!(audit.matches("\"operation\":\"archive-push\"").count(), 2, "one for each kind of refusal: {audit}");
    drop(session);
    copy.stop(Stop::Fast);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_copy_takes_over_and_can_be_taken_back() {
    let (mut world, mut copy, session) = forked().await;
    world.ok(&["release", "--data-directory", copy.data().to_str().unwrap(), "--dry-run"]);
    world.refused(&["release", "--data-directory", copy.data().to_str().unwrap()], 5, &["nobody has confirmed", "overtakes"]);
    session.run("INSERT INTO t VALUES (30)").await.unwrap();
    session.switch_segment("unarchived").await.unwrap();
    let said = world.release("copy");
    assert!(said.out.contains("is the cluster \"shop\" from now on") && said.out.contains("archives"), "{}", said.out);
    drop(session);
    copy.stop(Stop::Fast);
    copy.start().await.unwrap();
    let session = Session::open(&copy.connection()).await.unwrap();
    session.run("SET search_path = public; INSERT INTO t VALUES (31)").await.unwrap();
    let last = session.switch_segment("archived").await.unwrap();
    archiver(&session, |state| state.last_archived.as_deref() >= Some(&last)).await;

    // The original goes on all the same, and is refused with both histories named.
    world.sql("INSERT INTO t VALUES (6)").await;
    world.session().switch_segment("rival").await.unwrap();
    archiver(world.session(), |state| state.failed > 0).await;
    let log = world.server.log();
    for words in [
        "two servers write the history of \"shop\"",
        "goes on with timeline 00000001",
        "timeline 00000002 left timeline 00000001",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    world.refused(&["check", "--no-switch"], 9, &["archive_command fails since"]);
    let (mut latest, rows) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(rows.value("SELECT string_agg(x::text, ' ' ORDER BY x) FROM t").await.unwrap(), "1 2 30 31");
    drop(rows);
    latest.stop(Stop::Fast);

    // The decision is taken back: the original is released, the copy is refused, and nothing of either is gone.
    drop(session);
    copy.stop(Stop::Fast);
    let data = world.server.data().to_str().unwrap().to_string();
    let said = world.confirmed(&["release", "--data-directory", &data]);
    assert!(said.out.contains("abandons   timeline 00000002"), "{}", said.out);
    for words in ["WHICH WAS RELEASED AS THE SUCCESSOR", "transactions behind that"] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    world.archive().await;
    copy.start().await.unwrap();
    let session = Session::open(&copy.connection()).await.unwrap();
    session.run("SET search_path = public; INSERT INTO t VALUES (32)").await.unwrap();
    session.switch_segment("given up").await.unwrap();
    archiver(&session, |state| state.failed > 0).await;
    assert!(copy.log().contains("was given up for timeline 00000001"), "{}", copy.log());
    let (_latest, rows) = world.restore("again", &["--to", "latest"]).await;
    assert_eq!(rows.value("SELECT string_agg(x::text, ' ' ORDER BY x) FROM t").await.unwrap(), "1 2 3 4 5 6");
    let (_other, rows) = world.restore("other", &["--to", "latest", "--timeline", "2"]).await;
    assert_eq!(rows.value("SELECT string_agg(x::text, ' ' ORDER BY x) FROM t").await.unwrap(), "1 2 30 31");
    drop(session);
    copy.stop(Stop::Fast);
    world.server.stop(Stop::Fast);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ready_is_not_released() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let data = world.server.data().to_str().unwrap().to_string();
    let said = world.ok(&["release", "--data-directory", &data]);
    assert!(said.out.contains("nothing    to do"), "{}", said.out);
    world.sql("INSERT INTO t VALUES (2)").await;
    let xid = world.value("SELECT txid_current()").await;
    world.archive().await;
    let (_paused, _session) = world.restore("paused", &["--to", &xid]).await;
    let paused = world.path("paused").display().to_string();
    world.refused(&["release", "--data-directory", &paused], 5, &["still in recovery", "pg_promote"]);
    world.refused(&["release", "--data-directory", world.path("spool").to_str().unwrap()], 5, &["holds no cluster"]);
    world.refused(&["release"], 3, &["--data-directory"]);
}
