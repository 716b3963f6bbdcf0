//! Random workloads with random restore targets, against a model of what the tables held.
//!
//! `LASTGOOD_SEED` repeats a run, `LASTGOOD_PROPERTY_RUNS` is the number of targets tried after each workload.

pub mod dice;
mod model;
mod workload;

use std::time::Duration;

use lastgood::postgres::scratch::Stop;
use lastgood::postgres::session::Session;

use crate::support::world::{PATIENCE, World};
use dice::Dice;
use model::{Model, Wanted};

/// Every restore costs more than a second.
const RUNS: usize = 12;
const TARGET: i32 = 6;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

async fn contents(session: &Session) -> (String, String) {
    end_what_is_open(session).await;
    let noise = "SELECT coalesce(string_agg(xid::text, ' ' ORDER BY xid), '') FROM noise";
    (session.value("SELECT content()").await.unwrap(), session.value(noise).await.unwrap())
}

/// A transaction that is open at the target keeps its locks while recovery is paused, and a prepared one for ever.
async fn end_what_is_open(session: &Session) {
    session.run("SET lock_timeout = '100s'").await.unwrap();
    let locked = "SELECT pg_is_in_recovery() AND EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock')";
    if session.value(locked).await.unwrap() == "t" {
        session.run("SELECT pg_wal_replay_resume()").await.unwrap();
        let began = lastgood::clock::monotonic();
        while session.in_recovery().await.unwrap() {
            assert!(began.elapsed() < PATIENCE, "recovery does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    if !session.in_recovery().await.unwrap() {
        let open = session.value("SELECT string_agg(gid, ',') FROM pg_prepared_xacts").await.unwrap();
        for gid in open.split_terminator(',') {
            session.run(&format!("ROLLBACK PREPARED '{gid}'")).await.unwrap();
        }
    }
}

/// One workload, then restores to random targets, each compared with the model.
async fn play(segment_megabytes: u32) {
    let seed = number("LASTGOOD_SEED").unwrap_or_else(|| u64::from_str_radix(&lastgood::clock::random_hex(6), 16).unwrap());
    eprintln!("repeat with LASTGOOD_SEED={seed}");
    let mut dice = Dice::new(seed);
    let runs = number("LASTGOOD_PROPERTY_RUNS").map_or(RUNS, |runs| runs as usize);
    let segments = format!("--wal-segsize={segment_megabytes}");
    let initdb = [segments.as_str(), "--data-checksums"];
    let initdb = if dice.chance(50) { &initdb[..1] } else { &initdb };
    let settings = "max_prepared_transactions = 20\nwal_keep_size = '4GB'\nautovacuum = off\nwal_log_hints = on";
    let mut world = World::with(15, initdb, settings, None).await;
    let model = workload::run(&world, &mut dice).await;
    // Nothing is archived from here on, so that the model stays true.
    world.server.stop(Stop::Immediate);
    let mut refused = 0;
    for run in 0..runs {
        let target = model.target(&mut dice);
        eprintln!("run {run}: {target:?}");
        match &target.wanted {
            Wanted::Refusal => {
                refused += 1;
                let into = world.path("refused");
                let args = [&["restore", "--into", into.to_str().unwrap()], &*target.args()].concat();
                world.refused(&args, TARGET, &[]);
                assert!(!into.exists(), "a refused restore writes nothing");
            }
            Wanted::Everything { before } => {
                let (mut server, session) = world.restore("restored", &target.args()).await;
                let found = contents(&session).await;
                assert_eq!(found, model.contents(*before), "seed {seed}, {target:?}\n{}", server.log());
                drop(session);
                server.stop(Stop::Immediate);
                std::fs::remove_dir_all(world.path("restored")).unwrap();
                std::fs::remove_dir_all(world.path("restored.sockets")).unwrap();
            }
        }
    }
    eprintln!("{} restores equal, {refused} refused, {}", runs - refused, Model::summary(&model));
}

/// Whatever was committed before the target is there, and nothing else; what cannot be reached is refused before the first
/// byte (rules 39 and 43). Segments of 1 MB, so that many records cross from one into the next.
#[tokio::test(flavor = "multi_thread")]
async fn any_target_in_small_segments() {
    play(1).await;
}

/// The same in segments as everybody has them.
#[tokio::test(flavor = "multi_thread")]
async fn any_target_in_usual_segments() {
    play(16).await;
}

/// The same in larger ones: nearly everything lies in one segment.
#[tokio::test(flavor = "multi_thread")]
async fn any_target_in_large_segments() {
    play(64).await;
}
