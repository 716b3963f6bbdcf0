//! 9 January 2023: a data centre loses power. The primary and its repository are gone in the middle of traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lastgood::postgres::scratch::Stop;
use lastgood::postgres::session::Session;

use crate::mirror::copy::{configure, keys, there};
use crate::support::world::{PATIENCE, World, said};

/// Commits under load; writes down outside of the database what was acknowledged, and at which LSN it was committed at the latest.
async fn work(world: &World, client: usize, until: Arc<AtomicBool>) -> Vec<(String, String)> {
    let session = Session::open(&world.server.connection()).await.unwrap();
    session.run("SET search_path = public, pg_catalog").await.unwrap();
    let mut ledger = Vec::new();
    while !until.load(Ordering::Relaxed) {
        let order = format!("{client}-{}", ledger.len());
        if session.run(&format!("INSERT INTO orders VALUES ('{order}')")).await.is_err() {
            break;
        }
        // A segment's name and an LSN compare by number, as text of fixed width.
        let Ok(at) = session.value("SELECT lpad(pg_walfile_name(pg_current_wal_lsn()), 24)").await else { break };
        ledger.push((order, at));
    }
    ledger
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_data_centre_loses_nothing_that_was_archived() {
    let mut world = World::new(15).await;
    configure(&world, "required = true");
    world.ok(&["mirror"]);
    world.sql("CREATE TABLE orders (id text PRIMARY KEY)").await;
    world.backup(&[]);

    // Traffic, and segments that are archived meanwhile. In the middle of it the lights go out.
    let until = Arc::new(AtomicBool::new(false));
    let outage = async {
        for _ in 0..3 {
            let before = world.value("SELECT count(*) FROM orders").await.parse::<u64>().unwrap();
            while world.value("SELECT count(*) FROM orders").await.parse::<u64>().unwrap() < before + 100 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            world.archive().await;
        }
        let archived = world.session().archiver().await.unwrap().last_archived.unwrap();
        // Under load until the very end.
        let data = world.server.data().join("postmaster.pid");
        let pid: i32 = std::fs::read_to_string(data).unwrap().lines().next().unwrap().parse().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::QUIT).unwrap();
        std::fs::rename(world.repository(), world.path("drowned")).unwrap();
        until.store(true, Ordering::Relaxed);
        archived
    };
    let (archived, one, two) = tokio::join!(outage, work(&world, 1, until.clone()), work(&world, 2, until.clone()));
    world.server.stop(Stop::Immediate);
    let ledger = [one, two].concat();
    assert!(ledger.len() >= 300, "there was load: {}", ledger.len());
    let safe: Vec<&String> = ledger.iter().filter(|(_, at)| *at <= archived).map(|(order, _)| order).collect();
    assert!(safe.len() >= 300, "{} of {}", safe.len(), ledger.len());

    // From the mirror alone: nothing that was committed and archived is missing.
    let new = world.path("new").display().to_string();
    world.ok(&["--repo", "offsite", "verify"]);
    world.ok(&["--repo", "offsite", "restore", "--to", "latest", "--target-action", "promote", "--into", &new]);
    let (mut server, session) = world.recovered("new").await;
    let listed = safe.iter().map(|order| format!("('{order}')")).collect::<Vec<_>>().join(",");
    let lost = format!("SELECT count(*) FROM (VALUES {listed}) l(id) LEFT JOIN orders USING (id) WHERE orders.id IS NULL");
    assert_eq!(session.value(&lost).await.unwrap(), "0", "of {} acknowledged and archived", safe.len());

    // It takes over, with the mirror as its repository.
    let began = lastgood::clock::monotonic();
    while session.in_recovery().await.unwrap() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let said_release = world.confirmed(&["--repo", "offsite", "release", "--data-directory", &new]);
    assert!(said_release.out.contains("is the cluster \"shop\" from now on"), "{}", said_release.all());
    let (program, config) = (world.program().display(), world.config());
    let command = format!("{program} --config {} --repo offsite archive-push %p", config.display());
    session.alter_system("archive_command", &command).await.unwrap();
    drop(session);
    server.stop(Stop::Fast);
    server.start().await.unwrap();
    let session = Session::open(&server.connection()).await.unwrap();
    session.run("SET search_path = public, pg_catalog; INSERT INTO orders VALUES ('after the outage')").await.unwrap();
    let last = session.switch_segment("after the outage").await.unwrap();
    let began = lastgood::clock::monotonic();
    while session.archiver().await.unwrap().last_archived.as_deref() < Some(&last) {
        assert!(began.elapsed() < PATIENCE, "{}", server.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    // Power is back, and with it the old primary and its repository, which know nothing of all this.
    std::fs::rename(world.path("drowned"), world.repository()).unwrap();
    world.start().await;
    // The segment in which the histories part may be stored; no other.
    world.session().switch_segment("from the past").await.unwrap();
    world.sql("INSERT INTO orders VALUES ('from the past')").await;
    let name = world.session().switch_segment("from the past").await.unwrap();
    let push = said(world.command(&["archive-push", &format!("pg_wal/{name}")]).current_dir(world.server.data()));
    assert_eq!(push.code, 5, "{}", push.all());
    assert!(push.err.contains("two servers write the history of \"shop\""), "{}", push.all());
    for place in [world.repository(), there(&world)] {
        assert!(!keys(&place).iter().any(|key| key.ends_with(&name)), "{name} was stored in {}", place.display());
    }
    let began = lastgood::clock::monotonic();
    while world.session().archiver().await.unwrap().failed == 0 {
        assert!(began.elapsed() < PATIENCE, "{}", world.server.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let refused = world.run(&["check", "--no-switch"]);
    assert_eq!(refused.code, 9, "{}", refused.all());
    drop(session);
    server.stop(Stop::Fast);
    world.server.stop(Stop::Fast);
}
