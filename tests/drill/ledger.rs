//! Drills at random moments under load: what was committed outside of them is there, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::session::Session;

use super::{configure, passes};
use crate::support::world::World;

const DRILLS: usize = 10;

/// A committed row, and a position that is behind its commit.
struct Committed {
    row: String,
    acknowledged: Lsn,
}

async fn work(world: &World, client: usize, over: Arc<AtomicBool>) -> Vec<Committed> {
    let session = world.connect().await;
    let mut ledger = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let row = format!("{client}-{}", ledger.len());
        session.run(&format!("INSERT INTO ledger VALUES ('{row}')")).await.unwrap();
        let at = session.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
        ledger.push(Committed { row, acknowledged: at.parse().unwrap() });
    }
    ledger
}

/// The rows of a drill that was kept, and where it stopped.
async fn look(world: &World) -> (Vec<String>, Lsn) {
    let said = world.ok(&["--json", "drill", "--random", "--keep"]);
    let kept = said.json()["kept"].clone();
    let report = super::report(&said);
    let host = Some(kept["sockets"].as_str().unwrap().to_string());
    let connection = lastgood::postgres::session::Connection { host, ..world.server.connection() };
    let session = Session::open(&connection).await.unwrap();
    let rows = session.column("SELECT row FROM public.ledger").await.unwrap();
    drop(session);
    let pid = rustix::process::Pid::from_raw(kept["pid"].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
    let data = std::path::PathBuf::from(kept["data"].as_str().unwrap());
    while lastgood::postgres::postmaster::living(&data).unwrap().is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // Who fetched ahead for it may still be writing.
    while let Err(error) = std::fs::remove_dir_all(kept["directory"].as_str().unwrap()) {
        assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{error}");
    }
    (rows, report["replayed_to"].as_str().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_drills_at_random_moments_agree_with_a_ledger_outside() {
    let world = World::new(15).await;
    configure(&world, 15, "check_budget_s = 1\n");
    world.sql("CREATE TABLE ledger (row text PRIMARY KEY)").await;
    world.backup(&[]);
    let over = Arc::new(AtomicBool::new(false));
    let drills = async {
        let mut found = Vec::new();
        for drill in 0..DRILLS {
            world.archive().await;
            if drill == DRILLS / 2 {
                world.backup(&[]);
            }
            found.push(look(&world).await);
        }
        over.store(true, Ordering::Relaxed);
        found
    };
    let (found, first, second) = tokio::join!(drills, work(&world, 1, over.clone()), work(&world, 2, over.clone()));
    let mut moments = std::collections::BTreeSet::new();
    for (rows, stop) in found {
        moments.insert(stop);
        for ledger in [&first, &second] {
            // Each client's rows are there up to one, and from there on none.
            let there = ledger.iter().take_while(|entry| rows.contains(&entry.row)).count();
            assert!(ledger[there..].iter().all(|entry| !rows.contains(&entry.row)), "a hole at {stop}");
            let promised = ledger.iter().filter(|entry| entry.acknowledged <= stop).count();
            assert!(there >= promised, "{promised} rows were committed before {stop}, and {there} are there");
            // The one in flight may be there; a later one was not begun before the first was acknowledged.
            assert!(there <= promised + 1, "{there} rows are there at {stop}, and {promised} were committed");
        }
    }
    // Most of the WAL is the rest of segments that were switched, and all moments in it are the same.
    assert!(moments.len() > 2, "{moments:?}");
    passes(&world, &[]);
}
