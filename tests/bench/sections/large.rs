//! A large pgbench database of which a hundredth of the pages changed: by the WAL index, reading everything, and the others.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lastgood::postgres::scratch::{self, Scratch, Stop};

use super::{Bench, Scene, snapshots};
use crate::database::{self, PROGRAMS};
use crate::place::Store;
use crate::stage::{Stage, empty};
use crate::tools;

/// What is changed, and whose pages are most of the database.
const TABLES: [&str; 1] = ["public.pgbench_accounts"];
const VERSION: u32 = 1;

/// Measures once.
pub async fn play(bench: &Bench, round: usize) -> Result<()> {
    let base = base(bench).await?;
    let home = bench.home.join(format!("large-{round}"));
    scratch::make_directory(&home, bench.meter.user)?;
    let store = Store::open("directory", &home.join("store"), &bench.settings.harness, bench.meter.user).await?;
    let stage = Stage::start(&base, &home.join("stage"), &bench.meter).await?;
    let mut scene = Scene { bench, kind: "directory", round, stage, store };
    let mut players = scene.prepared("").await?;
    let part = "reads-all";
    players.extend(scene.prepare(vec![(tools::reads_all(scene.ground(part).await?), part.into())]).await);
    snapshots::backups(&scene, &mut players, "large-full", true).await?;
    database::scatter(&scene.stage.session, &TABLES).await.context("change pages")?;
    snapshots::backups(&scene, &mut players, "large-second-1%", false).await?;
    scene.stage.stop();
    drop(scene);
    empty(&home)
}

/// The data directory of a stopped server, built when it is not there yet.
async fn base(bench: &Bench) -> Result<PathBuf> {
    let size = &bench.settings.large_text;
    let home = bench.settings.work.join(format!("base-large-{size}-v{VERSION}"));
    let (data, ready) = (home.join("data"), home.join("ready"));
    if ready.exists() {
        return Ok(data);
    }
    if home.exists() {
        std::fs::remove_dir_all(&home)?;
    }
    println!("building a pgbench database of {size} in {} (once)", home.display());
    scratch::make_directory(&home, bench.meter.user)?;
    let mut server = Scratch::new(Path::new(PROGRAMS), &data, &home.join("sockets"), bench.meter.user)?;
    server.initdb(&["--data-checksums"])?;
    server.configure(database::WHILE_BUILDING)?;
    let session = database::start(&mut server).await?;
    database::accounts(&server, bench.settings.large_bytes)?;
    session.run("VACUUM (FREEZE, ANALYZE) pgbench_accounts").await?;
    session.run("ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)").await?;
    session.run("CHECKPOINT").await?;
    drop(session);
    server.stop(Stop::Fast);
    std::fs::remove_dir_all(home.join("sockets"))?;
    std::fs::write(&ready, "")?;
    Ok(data)
}
