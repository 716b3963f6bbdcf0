//! Recovery of archived WAL, end to end, against PostgreSQL with `cp` from a local directory.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lastgood::clock;
use lastgood::postgres::scratch::{Scratch, Stop};
use lastgood::postgres::session::Session;
use serde::{Deserialize, Serialize};

use super::{Player, Scene};
use crate::database::PROGRAMS;
use crate::measure::{Measured, Step, have_memory};
use crate::stage::empty;
use crate::tools::{self, Ahead};

/// What tells that recovery came to the end; found by an index, so that asking costs nothing.
const LAST_ROW: &str = "SELECT max(id)::text FROM bench.documents";
const LIMIT: Duration = Duration::from_secs(1200);

pub async fn play(scene: &mut Scene<'_>, players: &mut [Player]) -> Result<()> {
    let expected = scene.stage.session.value(LAST_ROW).await?;
    let scene = &*scene;
    // `cp` takes its turn like the tools; beside our own it would always find what ours had left in memory.
    let mut turns: Vec<(usize, bool)> = Vec::new();
    for (index, player) in players.iter().enumerate() {
        let name = player.tool.name();
        turns.extend(tools::RIVALS.contains(&name).then_some((index, false)));
        turns.extend((name == tools::RIVALS[0]).then_some((index, true)));
    }
    let count = turns.len().max(1);
    turns.rotate_left(scene.round % count);
    for (index, copies) in turns {
        if !scene.bench.settings.wants("snapshot") {
            bail!("recovery needs snapshots: add snapshot to ONLY");
        }
        let player = &mut players[index];
        scene.turn_to(player).await?;
        let fetch = |into: &Path| player.tool.fetch(into, "%f", "%p", Ahead::Yes).map(|step| step.shell()).unwrap_or_default();
        if copies {
            one(scene, player, "cp", &|_: &Path| copy_command(scene), &expected).await?;
        } else {
            one(scene, player, player.tool.name(), &fetch, &expected).await?;
        }
    }
    scene.stage.archive_with(None)
}

fn copy_command(scene: &Scene<'_>) -> String {
    format!("cp '{}/%f' '%p'", scene.stage.inbox().display())
}

/// Restores with a player, and recovers with the command for that directory.
async fn one(scene: &Scene<'_>, player: &Player, name: &str, command: &dyn Fn(&Path) -> String, expected: &str) -> Result<()> {
    let into = scene.stage.directory("recovered")?;
    let Some(restore) = player.tool.restore(&into) else { return Ok(()) };
    let recovered = async {
        scene.bench.meter.run(vec![restore]).await?;
        scene.store.warm()?;
        have_memory()?;
        // The restore has a row of its own: its requests do not count here.
        let counts = scene.store.counts().await?;
        let (measured, recovered) = recover(scene, &into, &command(&into), "measure").await?;
        if recovered.last_row != expected {
            bail!("recovery ended at row {}, the server is at {expected}", recovered.last_row);
        }
        let counts = scene.store.counts().await?.since(&counts);
        // The largest process is PostgreSQL's.
        Ok((Measured { wall_s: recovered.seconds, peak_process_bytes: 0, ..measured }, counts))
    }
    .await;
    let (measured, counts) = match recovered {
        Ok((measured, counts)) => (Ok(measured), counts),
        Err(error) => (Err(error), Default::default()),
    };
    scene.keep("recovery", name, 1, measured, 0, counts);
    empty(&into)
}

/// Proves that what was restored is a whole database: it recovers, and every page's checksum holds.
pub async fn check(scene: &Scene<'_>, player: &Player, into: &Path) {
    if let Err(error) = recover(scene, into, &copy_command(scene), "check").await {
        let error = error.context("what was restored is no whole database");
        scene.keep("soundness", player.tool.name(), 1, Err(error), 0, Default::default());
    }
}

async fn recover(scene: &Scene<'_>, data: &Path, command: &str, how: &str) -> Result<(Measured, Recovered)> {
    let settings = data.join("postgresql.auto.conf");
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&settings)?;
    writeln!(file, "\nrestore_command = '{}'\narchive_mode = off", command.replace('\'', "''"))?;
    std::fs::write(data.join("recovery.signal"), "")?;
    if let Some(user) = scene.stage.user {
        for path in [settings, data.join("recovery.signal")] {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
        }
    }
    let sockets = scene.stage.directory("s")?;
    let args = ["recover".to_string(), data.display().to_string(), sockets.display().to_string(), how.to_string()];
    let mut measured = scene.bench.meter.run(vec![Step::new(&scene.bench.settings.harness, args)]).await?;
    let line = std::mem::take(&mut measured.output);
    let recovered =
        serde_json::from_str(line.lines().last().unwrap_or_default()).with_context(|| format!("recover said {line:?}"))?;
    Ok((measured, recovered))
}

#[derive(Debug, Serialize, Deserialize)]
struct Recovered {
    /// From the server's start to its being writable.
    seconds: f64,
    last_row: String,
}

/// `recover DATA SOCKETS measure|check`, as the server's user: starts a server, waits until it is recovered, ends it.
pub fn run(arguments: &[String]) -> Result<()> {
    let [data, sockets, how] = arguments else { bail!("recover DATA SOCKETS measure|check") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut server = Scratch::new(Path::new(PROGRAMS), Path::new(data), Path::new(sockets), None)?;
    let recovered =
        runtime.block_on(until_recovered(&mut server, how == "measure")).with_context(|| last_lines(&server.log()))?;
    if how == "check" {
        server.stop(Stop::Fast);
        crate::measure::quietly(server.command("pg_checksums").arg("--check").arg("-D").arg(data), None)?;
    }
    println!("{}", serde_json::to_string(&recovered)?);
    Ok(())
}

async fn until_recovered(server: &mut Scratch, wants_row: bool) -> Result<Recovered> {
    let began = clock::monotonic();
    server.spawn()?;
    // Looking must cost the server next to nothing: each connection is a process.
    let mut session = None;
    loop {
        if server.has_exited() {
            bail!("the server ended");
        }
        if began.elapsed() > LIMIT {
            bail!("not recovered after {} s", LIMIT.as_secs());
        }
        if session.is_none() && takes_connections(server.data()) {
            session = Session::open(&server.connection()).await.ok();
        }
        if let Some(session) = &session
            && session.value("SELECT pg_is_in_recovery()::text").await? == "false"
        {
            let seconds = began.elapsed().as_secs_f64();
            let last_row = if wants_row { session.value(LAST_ROW).await? } else { String::new() };
            return Ok(Recovered { seconds, last_row });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the postmaster writes into the eighth line of its pid file.
fn takes_connections(data: &Path) -> bool {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    text.lines().nth(7).is_some_and(|status| ["ready", "standby"].contains(&status.trim()))
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// `start-stop SOCKETS`: what PostgreSQL itself takes for the start and the end of a backup.
pub fn start_stop(arguments: &[String]) -> Result<()> {
    let [sockets] = arguments else { bail!("start-stop SOCKETS") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connection = lastgood::postgres::session::Connection {
        host: Some(sockets.clone()),
        user: Some("postgres".into()),
        dbname: Some("postgres".into()),
        ..Default::default()
    };
    runtime.block_on(async {
        let session = Session::open(&connection).await?;
        session.run("SELECT pg_catalog.pg_backup_start('bench', true)").await?;
        session.run("SELECT pg_catalog.pg_backup_stop(false)").await?;
        Ok(())
    })
}
