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

/// Waits until a segment is archived; a refusal of the archive ends it.
async fn archived(server: &Scratch, session: &Session, last: &str) {
    archiver(session, |state| {
        assert!(!server.log().contains("is refused"), "{}", server.log());
        state.last_archived.as_deref() >= Some(last)
    })
    .await;
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
    for words in ["two servers write the history of \"shop\"", "timeline 00000002 left timeline 00000001 at", "goes on beyond"] {
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

/// Turns a stopped server into one that recovers and is promoted, as after a failover; it gets the next timeline.
async fn fail_over(world: &World, server: &mut Scratch) -> Session {
    recover(&restore_command(world), server).await
}

fn restore_command(world: &World) -> String {
    format!("{} --config {} archive-get %f \"%p\"", world.program().display(), world.config().display())
}

async fn recover(get: &str, server: &mut Scratch) -> Session {
    server.stop(Stop::Fast);
    std::fs::write(server.data().join("recovery.signal"), "").unwrap();
    server.configure(&format!("restore_command = '{get}'")).unwrap();
    server.start().await.unwrap();
    let session = Session::open(&server.connection()).await.unwrap();
    let began = lastgood::clock::monotonic();
    while session.in_recovery().await.unwrap() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    session.run("SET search_path = public").await.unwrap();
    session
}

/// A released cluster fails over in good health, twice: nobody has to say anything, although its first timeline left one that went on.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_after_a_release_is_no_rival() {
    let (world, mut copy, session) = forked().await;
    world.release("copy");
    drop(session);
    copy.stop(Stop::Fast);
    copy.start().await.unwrap();
    for timeline in 3..=4 {
        let session = fail_over(&world, &mut copy).await;
        session.run(&format!("INSERT INTO t VALUES ({timeline}00)")).await.unwrap();
        let last = session.switch_segment("after the failover").await.unwrap();
        archived(&copy, &session, &last).await;
        assert!(last.starts_with(&format!("{timeline:08X}")), "{last}");
    }
    let (_latest, rows) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(rows.value("SELECT string_agg(x::text, ' ' ORDER BY x) FROM t").await.unwrap(), "1 2 300 400");
    // A stray copy of the released one is a rival all the same.
    world.ok(&["check", "--no-switch", "--pg-host", copy.sockets().to_str().unwrap()]);
}

/// Look-ahead takes nothing along that lies behind a fork; and what got in before does not shut out the new primary.
#[tokio::test(flavor = "multi_thread")]
async fn look_ahead_ends_at_the_fork() {
    let (world, copy, _session) = forked().await;
    // The history of the other server is there, as after a failover; the old primary has a backlog.
    world.session().alter_system("archive_command", "false").await.unwrap();
    world.session().reload().await.unwrap();
    let mut names = Vec::new();
    for _ in 0..4 {
        world.sql("INSERT INTO t VALUES (9)").await;
        names.push(world.session().switch_segment("backlog").await.unwrap());
    }
    let fork = world.value("SELECT pg_current_wal_lsn()").await;
    let last: u64 = u64::from_str_radix(&names[1][16..], 16).unwrap();
    let history = format!("1\t0/{:X}\tno recovery target specified\n", (last << 24) + 0x100);
    std::fs::write(world.server.data().join("pg_wal/00000002.history"), &history).unwrap();
    let said = push(&world, &world.server, "00000002.history");
    assert_eq!(said.code, 0, "{fork}: {}", said.all());
    assert_eq!(push(&world, &world.server, &names[0]).code, 0);
    let stored = |name: &str| world.objects("clusters/shop/wal").iter().any(|key| key.ends_with(name));
    let there: Vec<bool> = names.iter().map(|name| stored(name)).collect();
    assert_eq!(there, [true, true, false, false], "{names:?}");
    let said = push(&world, &world.server, &names[2]);
    assert!(said.code == 5 && said.err.contains("two servers"), "{}", said.all());
    // The archive knows this very history file, so its timeline was judged.
    assert_eq!(push(&world, &world.server, "00000002.history").code, 0);
    drop(copy);
}

/// The first segment of the new timeline is not archived yet: the old timeline's one holds the mistake, and must not be replayed.
#[tokio::test(flavor = "multi_thread")]
async fn latest_after_a_release_does_not_replay_the_mistake() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (2)").await;
    world.sql("BEGIN; DROP TABLE t").await;
    let xid = world.value("SELECT txid_current()").await;
    world.sql("COMMIT; CREATE TABLE after_it (x int)").await;
    world.archive().await;
    let (mut copy, session) = world.restore("copy", &["--to", &xid, "--exclusive", "--target-action", "promote"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "2");
    world.release("copy");
    assert!(world.objects("clusters/shop/wal").iter().any(|key| key.ends_with("00000002.history")));
    drop(session);
    copy.stop(Stop::Immediate);
    let (_latest, rows) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(rows.value("SELECT coalesce(to_regclass('t')::text, 'gone')").await.unwrap(), "t");
    assert_eq!(rows.value("SELECT coalesce(to_regclass('after_it')::text, 'gone')").await.unwrap(), "gone");
}

/// A copy promoted itself to a timeline whose number another server has taken since: it is not mixed into that one.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_of_the_same_number_is_not_mixed_in() {
    let (world, copy, _session) = forked().await;
    let history = "1\t0/9000000\tno recovery target specified\n";
    let own = world.server.data().join("pg_wal/00000002.history");
    std::fs::write(&own, history).unwrap();
    assert_eq!(push(&world, &world.server, "00000002.history").code, 0);
    std::fs::remove_file(own).unwrap();
    let before = world.objects("clusters/shop/wal");
    let said = world.refused(
        &["release", "--data-directory", copy.data().to_str().unwrap()],
        5,
        &["another timeline of the same number"],
    );
    assert_eq!(world.objects("clusters/shop/wal"), before, "{}", said.all());
}

/// A moment before a failover is on the timeline that was left: a copy that is promoted there begins from that one, and can take over.
#[tokio::test(flavor = "multi_thread")]
async fn a_moment_before_a_failover_can_take_over() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let xid = world.value("BEGIN; INSERT INTO t VALUES (2); SELECT txid_current()").await;
    world.sql("COMMIT").await;
    world.archive().await;
    world.sql("INSERT INTO t VALUES (3)").await;
    world.archive().await;
    let get = restore_command(&world);
    let session = recover(&get, &mut world.server).await;
    session.run("INSERT INTO t VALUES (4)").await.unwrap();
    let last = session.switch_segment("after the failover").await.unwrap();
    archived(&world.server, &session, &last).await;
    drop(session);
    world.server.stop(Stop::Fast);
    let (mut copy, session) = world.restore("copy", &["--to", &xid, "--target-action", "promote"]).await;
    let history = std::fs::read_to_string(copy.data().join("pg_wal/00000003.history")).unwrap();
    assert!(history.starts_with("1\t") && !history.contains("\n2\t"), "{history}");
    world.release("copy");
    drop(session);
    copy.stop(Stop::Fast);
    copy.start().await.unwrap();
    let session = Session::open(&copy.connection()).await.unwrap();
    session.run("SET search_path = public; INSERT INTO t VALUES (30)").await.unwrap();
    let last = session.switch_segment("archived").await.unwrap();
    archived(&copy, &session, &last).await;
    let (_latest, rows) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(rows.value("SELECT string_agg(x::text, ' ' ORDER BY x) FROM t").await.unwrap(), "1 2 30");
}
