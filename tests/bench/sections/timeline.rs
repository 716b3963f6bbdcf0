//! `timeline` over 10,000 real segments of a mebibyte, in Garage, near and 50 ms away.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lastgood::clock;
use lastgood::postgres::scratch::{self, Scratch, Stop};
use lastgood::postgres::session::Session;

use super::Bench;
use crate::database::{self, PROGRAMS};
use crate::measure::Step;
use crate::place::Store;
use crate::results::Sample;
use crate::tools::{self, Ahead, Ground, Tool};

const SEGMENTS: u64 = 10_000;
/// How often each query is asked.
const QUERIES: usize = 3;
/// The load: what changes at once, and small transactions beside it.
const SCALE: u64 = 30;
/// Rows that change at once; a divisor of all.
const MASS_ROWS: u64 = 300_000;
const PATIENCE: Duration = Duration::from_secs(3600);
/// Segments that wait to be archived before the load pauses.
const WAITING_MAX: u64 = 300;
/// Archiving and nothing else of what a production server does: the WAL counts, not how safely it is written here.
const SETTINGS: &str = "fsync = off\narchive_mode = on\nwal_level = replica\nshared_buffers = '512MB'\nmax_wal_size = '1GB'\n\
    checkpoint_timeout = '1h'\nautovacuum = off\nlog_checkpoints = off";

/// Writes and archives the WAL, and asks.
pub async fn play(bench: &Bench) -> Result<()> {
    let home = bench.home.join("timeline");
    scratch::make_directory(&home, bench.meter.user)?;
    let store = Store::open("garage", &home.join("store"), &bench.settings.harness, bench.meter.user).await?;
    let (data, sockets) = (home.join("data"), home.join("sockets"));
    let mut server = Scratch::new(Path::new(PROGRAMS), &data, &sockets, bench.meter.user)?;
    server.initdb(&["--data-checksums", "--wal-segsize=1"])?;
    server.configure(SETTINGS)?;
    let session = database::start(&mut server).await?;
    let ground = |place, name: &str| -> Result<Ground> {
        let home = home.join(name);
        scratch::make_directory(&home, bench.meter.user)?;
        let (data, sockets) = (data.clone(), sockets.clone());
        Ok(Ground { settings: bench.settings.clone(), place, home, data, sockets, system_identifier: String::new() })
    };
    let near = tools::reads_all(ground(store.place("timeline"), "near")?);
    let far = tools::reads_all(ground(store.far_place("timeline"), "far")?);
    bench.meter.run(near.prepare()?).await?;
    far.prepare()?;
    let push = near.push(&data, "%1", Ahead::Yes).context("lastgood cannot push")?;
    let push = push.shell().replace("\"$1\"", "\"%p\"").replace('\'', "''");
    session.run(&format!("ALTER SYSTEM SET archive_command = '{push}'")).await?;
    session.run("SELECT pg_reload_conf()").await?;
    let began = clock::monotonic();
    database::accounts(&server, SCALE * database::SCALE_BYTES)?;
    session.run("ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)").await?;
    let backup = |tool: &dyn Tool| tool.backup(false).context("lastgood cannot take a snapshot");
    bench.meter.run(vec![backup(&*near)?]).await.context("the snapshot before")?;
    fill(&server, &session).await?;
    bench.meter.run(vec![backup(&*near)?]).await.context("the snapshot after")?;
    println!("{SEGMENTS} segments were written and archived in {:.0} s", began.elapsed().as_secs_f64());
    for (place, tool) in [("garage", &near), ("distant", &far)] {
        for (work, kind) in [("timeline", None), ("timeline-drop", Some("drop"))] {
            for round in 0..QUERIES {
                let step = tool.timeline(kind).context("lastgood has no timeline")?;
                ask(bench, &store, place, work, round, step).await?;
            }
        }
    }
    drop(session);
    server.stop(Stop::Fast);
    drop(store);
    Ok(std::fs::remove_dir_all(&home)?)
}

async fn ask(bench: &Bench, store: &Store, place: &str, work: &str, round: usize, step: Step) -> Result<()> {
    let before = store.counts().await?;
    let ran = bench.meter.run(vec![step]).await;
    let counts = store.counts().await?.since(&before);
    let (measured, error) = match ran {
        Ok(mut measured) => {
            measured.output.clear();
            (Some(measured), None)
        }
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let (place, work, tool) = (place.into(), work.into(), tools::RIVALS[0].into());
    bench.keep(Sample { place, work, tool, round, times: 1, measured, error, stored_bytes: 0, counts });
    Ok(())
}

/// Mass changes, small transactions and now and then a table that goes, until so many segments are archived.
async fn fill(server: &Scratch, session: &Session) -> Result<()> {
    let began = clock::monotonic();
    let archived = "SELECT archived_count::text FROM pg_stat_archiver";
    let waiting = "SELECT count(*)::text FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    let rows = SCALE * 100_000;
    for turn in 0.. {
        let count: u64 = session.value(archived).await?.parse()?;
        if count >= SEGMENTS {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("only {count} segments were archived in time:\n{}", server.log());
        }
        // What waits for the archiver takes room.
        while session.value(waiting).await?.parse::<u64>()? > WAITING_MAX && began.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let first = turn * MASS_ROWS % rows;
        let these = format!("aid > {first} AND aid <= {first} + {MASS_ROWS}");
        session.run(&format!("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE {these}")).await?;
        database::pgbench(server, &["-n", "-N", "-c", "4", "-t", "500"])?;
        if turn % 20 == 0 {
            session.run(&format!("CREATE TABLE gone{turn} AS SELECT * FROM pgbench_tellers")).await?;
            session.run(&format!("DROP TABLE gone{turn}")).await?;
        }
        // Dead rows would grow without end.
        if first == 0 {
            session.run("VACUUM pgbench_accounts").await?;
        }
    }
    Ok(())
}
