//! Histories that stop or part, on real servers: what `list` says, what `restore` refuses, and what it names.

use lastgood::postgres::scratch::{Scratch, Stop};
use lastgood::postgres::session::Session;

use crate::support::world::{PATIENCE, World};

const TARGET: i32 = 6;

async fn restart(world: &mut World, settings: &str) {
    world.server.stop(Stop::Fast);
    world.server.configure(settings).unwrap();
    world.start().await;
}

/// Rows of `t` in a server.
async fn rows(session: &Session) -> String {
    session.value("SELECT coalesce(string_agg(x::text, ' ' ORDER BY x), 'none') FROM t").await.unwrap()
}

/// `wal_level = minimal` for a moment, inside one segment: nothing is missing, and PostgreSQL refuses to replay past it.
async fn minimal_for_a_moment(major: u32) {
    let mut world = World::new(major).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (2)").await;
    restart(&mut world, "wal_level = minimal\narchive_mode = off\nmax_wal_senders = 0").await;
    world.sql("INSERT INTO t VALUES (3)").await;
    let late = world.value("SELECT clock_timestamp()").await;
    restart(&mut world, "wal_level = replica\narchive_mode = on\nmax_wal_senders = 10").await;
    world.sql("INSERT INTO t VALUES (4)").await;
    let xid = world.value("BEGIN; INSERT INTO t VALUES (5); SELECT txid_current()").await;
    world.sql("COMMIT").await;
    world.archive().await;

    let window = world.ok(&["--json", "list"]).json()["histories"][0]["windows"][0].clone();
    assert_eq!(window["stop"]["why"], "minimal_wal", "{major}: {window:#}");
    let words = ["wal_level was minimal", "snapshot"];
    let said = world.ok(&["list"]);
    assert!(words.iter().all(|word| said.out.contains(word)), "{major}: {}", said.out);
    world.refused(&["verify"], 7, &words);
    world.refused(&["check", "--no-switch"], 9, &words);
    let into = world.path("refused");
    for target in ["latest", &late, &xid] {
        let said = world.refused(&["restore", "--to", target, "--into", into.to_str().unwrap()], TARGET, &words);
        assert!(!into.exists(), "{major}: {}", said.all());
    }
    // All that was before it can be had, by the way out that was named.
    let last = window["to_lsn"].as_str().unwrap().to_string();
    let (_before, session) = world.restore("before", &["--to", &last, "--target-action", "promote"]).await;
    assert_eq!(rows(&session).await, "1 2", "{major}");
    // A snapshot leads past it.
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (6)").await;
    world.archive().await;
    let (_latest, session) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(rows(&session).await, "1 2 3 4 5 6", "{major}");
    let windows = world.ok(&["--json", "list"]).json()["histories"][0]["windows"].as_array().unwrap().len();
    assert_eq!(windows, 2, "{major}");
    let said = world.ok(&["verify"]);
    assert!(said.all().contains("wal_level was minimal"), "{}", said.all());
    assert!(!world.run(&["check", "--no-switch"]).all().contains("wal_level was minimal"));
    world.refused(&["restore", "--to", &late, "--into", into.to_str().unwrap()], TARGET, &words);
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            minimal_for_a_moment($major).await;
        }
    )*};
}

versions!(minimal_on_13 13, minimal_on_15 15, minimal_on_18 18);

/// Three rows in one segment, and a copy from after the first that took over.
async fn taken_over() -> (World, Scratch, Vec<String>) {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t (x int)").await;
    world.backup(&[]);
    let mut times = Vec::new();
    for row in 1..=3 {
        world.sql(&format!("INSERT INTO t VALUES ({row})")).await;
        times.push(world.value("SELECT clock_timestamp()").await);
    }
    world.archive().await;
    world.server.stop(Stop::Fast);
    let (mut copy, session) = world.restore("copy", &["--to", &times[0], "--target-action", "promote"]).await;
    let said = world.release("copy");
    assert!(said.out.contains("overtakes  timeline 00000001"), "the living one, in the fork's own segment too: {}", said.out);
    drop(session);
    copy.stop(Stop::Fast);
    copy.start().await.unwrap();
    let session = Session::open(&copy.connection()).await.unwrap();
    session.run("SET search_path = public; INSERT INTO t VALUES (100)").await.unwrap();
    let last = session.switch_segment("archived").await.unwrap();
    let began = lastgood::clock::monotonic();
    while session.archiver().await.unwrap().last_archived.as_deref() < Some(&last) {
        assert!(began.elapsed() < PATIENCE, "{}", copy.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    (world, copy, times)
}

/// What the timeline that was left did in the fork's own segment is a window of its own, and a time that lies on both names it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_behind_is_listed_and_named() {
    let (world, _copy, times) = taken_over().await;
    let said = world.ok(&["list"]);
    assert!(said.out.contains("timeline 00000001, 0/"), "{}", said.out);
    assert!(said.out.contains("latest follows timeline 00000002"), "{}", said.out);
    let (_newer, session) = world.restore("newer", &["--to", &times[1], "--target-action", "promote"]).await;
    assert_eq!(rows(&session).await, "1");
    let into = world.path("shown");
    let into = into.to_str().unwrap();
    let said = world.ok(&["restore", "--to", &times[1], "--into", into, "--dry-run"]);
    assert!(said.out.contains("timeline 00000001 held this time too") && said.out.contains("--timeline 1"), "{}", said.out);
    let (_older, session) = world.restore("older", &["--to", &times[1], "--timeline", "1", "--target-action", "promote"]).await;
    assert_eq!(rows(&session).await, "1 2");
    // Before they parted there is nothing to say.
    let said = world.ok(&["restore", "--to", &times[0], "--into", into, "--dry-run", "--timeline", "1"]);
    assert!(!said.out.contains("held this time too"), "{}", said.out);
}

/// A time after the last transaction and before the end of the WAL is a position: as a time, recovery would end with FATAL.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_after_the_last_transaction_is_reached() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (2)").await;
    // Checkpoints tell whole seconds.
    world.sql("SELECT pg_sleep(1.1)").await;
    let quiet = world.value("SELECT date_trunc('second', clock_timestamp())").await;
    world.sql("SELECT pg_sleep(1.1); CHECKPOINT").await;
    world.archive().await;
    let said = world.ok(&["list"]);
    assert!(said.out.contains("no transaction after"), "{}", said.out);
    let (_server, session) = world.restore("quiet", &["--to", &quiet, "--target-action", "promote"]).await;
    assert_eq!(rows(&session).await, "1 2");
    let said = world.ok(&["restore", "--to", &quiet, "--into", world.path("shown").to_str().unwrap(), "--dry-run"]);
    assert!(said.out.contains("no transaction after"), "{}", said.out);
    let now = world.value("SELECT clock_timestamp() - interval '1 microsecond'").await;
    world.refused(&["restore", "--to", &now, "--into", world.path("shown").to_str().unwrap()], TARGET, &["after the last"]);
}
