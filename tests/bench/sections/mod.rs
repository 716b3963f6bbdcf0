//! What is measured, by topic; each plays on a [`Scene`]: one round on one kind of repository.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::measure::{Measured, Meter, Step, have_memory};
use crate::place::Store;
use crate::results::Sample;
use crate::settings::Settings;
use crate::stage::{Stage, empty};
use crate::tools::{self, Ahead, Ground, Tool};

mod files;
mod index;
pub use index::{run as index, walk};
mod large;
mod recovery;
pub use recovery::{run as recover, start_stop};
mod segments;
mod snapshots;
mod synthetic;
mod timeline;

/// What all rounds share.
pub struct Bench {
    pub settings: Settings,
    pub meter: Meter,
    pub base: PathBuf,
    pub home: PathBuf,
    pub began: std::time::Instant,
    pub samples: RefCell<Vec<Sample>>,
}

/// A tool, and which files its archive has.
pub struct Player {
    pub tool: Box<dyn Tool>,
    pub part: String,
    fed: HashSet<String>,
}

/// One round on one kind of repository.
pub struct Scene<'a> {
    pub bench: &'a Bench,
    pub kind: &'a str,
    pub round: usize,
    // Before the store, so that the server's archiver ends first.
    pub stage: Stage,
    pub store: Store,
}

impl Bench {
    /// Everything that is wanted on one kind of repository, once.
    pub async fn all(&self, kind: &str, round: usize) -> Result<()> {
        if self.settings.wants_database() {
            self.round(kind, round).await?;
        }
        if kind == "directory" && self.settings.wants("list") {
            synthetic::play(self, round).await?;
        }
        if kind == "directory" && self.settings.wants("files") {
            files::play(self, round).await.context("small files")?;
        }
        if kind == "directory" && self.settings.wants("large") {
            large::play(self, round).await.context("a large database")?;
        }
        // Once: a hundred queries would tell the same.
        if kind == "garage" && round == 0 && self.settings.wants("timeline") {
            timeline::play(self).await.context("a long timeline")?;
        }
        Ok(())
    }

    async fn round(&self, kind: &str, round: usize) -> Result<()> {
        let home = self.home.join(format!("{kind}-{round}"));
        lastgood::postgres::scratch::make_directory(&home, self.meter.user)?;
        let store = Store::open(kind, &home.join("store"), &self.settings.harness, self.meter.user).await?;
        let stage = Stage::start(&self.base, &home.join("stage"), &self.meter).await?;
        let mut scene = Scene { bench: self, kind, round, stage, store };
        let mut players = scene.players().await?;
        if self.settings.wants("snapshot") {
            snapshots::play(&scene, &mut players).await?;
        }
        if ["push", "fetch", "recovery"].iter().any(|topic| self.settings.wants(topic)) {
            let names = scene.stage.write_segments(segments::COUNT).await.context("write WAL")?;
            if self.settings.wants("push") || self.settings.wants("fetch") {
                segments::play(&scene, &names).await?;
            }
            if self.settings.wants("recovery") {
                recovery::play(&mut scene, &mut players).await?;
            }
        }
        scene.stage.stop();
        drop(scene);
        empty(&home)
    }

    /// Keeps a sample and shows it.
    pub fn keep(&self, sample: Sample) {
        let what = format!(
            "{:>6.0} s  {:<10} {:<12} {:<14}",
            self.began.elapsed().as_secs_f64(),
            sample.place,
            sample.work,
            sample.tool
        );
        match (&sample.measured, &sample.error) {
            (Some(m), _) => println!(
                "{what} {:>9.3} s {:>8.2} CPU s {:>6.0} MiB, {:>8.1} MiB stored, {} requests",
                m.wall_s,
                m.cpu_s(),
                m.most_bytes() as f64 / f64::from(1 << 20),
                sample.stored_bytes as f64 / f64::from(1 << 20),
                sample.counts.requests.values().sum::<u64>()
            ),
            (None, Some(error)) => println!("{what} FAILED: {error}"),
            (None, None) => {}
        }
        self.samples.borrow_mut().push(sample);
    }
}

impl Scene<'_> {
    /// The ground of a tool, whose repository is in its own part of the store.
    pub async fn ground(&self, part: &str) -> Result<Ground> {
        self.store.make(part, self.stage.user)?;
        let system_identifier = self.stage.session.value("SELECT system_identifier::text FROM pg_control_system()").await?;
        Ok(Ground {
            settings: self.bench.settings.clone(),
            place: self.store.place(part),
            home: self.stage.directory(part)?,
            data: self.stage.server.data().into(),
            sockets: self.stage.server.sockets().into(),
            system_identifier,
        })
    }

    /// The tools that this round is about, prepared; one that cannot be prepared is shown as failed and left out.
    async fn players(&self) -> Result<Vec<Player>> {
        let mut players = self.prepared("").await?;
        if self.kind == "directory" {
            let mut grounds = Vec::new();
            for name in tools::MEASURES {
                grounds.push(self.ground(name).await?);
            }
            let made = tools::measures(grounds.into_iter());
            players.extend(self.prepare(made.into_iter().zip(tools::MEASURES.map(str::to_string)).collect()).await);
        }
        Ok(players)
    }

    /// Those who keep an archive, each with an empty repository whose name begins with `prefix`.
    pub async fn prepared(&self, prefix: &str) -> Result<Vec<Player>> {
        let (mut grounds, mut parts) = (Vec::new(), Vec::new());
        for name in tools::RIVALS {
            parts.push(format!("{prefix}{name}"));
            grounds.push(self.ground(&format!("{prefix}{name}")).await?);
        }
        Ok(self.prepare(tools::rivals(grounds.into_iter()).into_iter().zip(parts).collect()).await)
    }

    pub async fn prepare(&self, tools: Vec<(Box<dyn Tool>, String)>) -> Vec<Player> {
        let mut players = Vec::new();
        for (tool, part) in tools {
            let prepared = match tool.prepare() {
                Ok(steps) if steps.is_empty() => Ok(()),
                Ok(steps) => self.bench.meter.run(steps).await.map(drop),
                Err(error) => Err(error),
            };
            match prepared {
                Ok(()) => players.push(Player { tool, part, fed: HashSet::new() }),
                Err(error) => self.keep("prepare", tool.name(), 1, Err(error), 0, Default::default()),
            }
        }
        players
    }

    /// The players in the order of this round: each round another one begins.
    pub fn order<'p>(&self, players: &'p mut [Player]) -> impl Iterator<Item = &'p mut Player> {
        let count = players.len().max(1);
        players.rotate_left(self.round % count);
        players.iter_mut()
    }

    /// Brings a player's archive up to date, and has the server archive with it.
    pub async fn turn_to(&self, player: &mut Player) -> Result<()> {
        let data = self.stage.server.data();
        self.stage.archive_with(None)?;
        // What the turn before left on its way arrives in the inbox before this segment does.
        self.stage.switch().await?;
        let Some(push) = player.tool.push(data, "%1", Ahead::No) else { return Ok(()) };
        let as_step = |path: &Path| player.tool.push(data, &path.display().to_string(), Ahead::No);
        self.stage.feed(&mut player.fed, |path| as_step(path).unwrap_or_else(|| push.clone())).await?;
        self.stage.archive_with(Some(&push.dir(data)))
    }

    /// Runs what a player does for `work`, and keeps what it took.
    pub async fn measure(&self, work: &str, player: &Player, steps: Vec<Step>, beside: Option<Step>, times: usize) -> bool {
        let ran = self.try_measure(player, steps, beside).await;
        let is_good = ran.is_ok();
        let (measured, stored, counts) = match ran {
            Ok((measured, stored, counts)) => (Ok(measured), stored, counts),
            Err(error) => (Err(error), 0, Default::default()),
        };
        self.keep(work, player.tool.name(), times, measured, stored, counts);
        is_good
    }

    async fn try_measure(
        &self,
        player: &Player,
        steps: Vec<Step>,
        beside: Option<Step>,
    ) -> Result<(Measured, u64, crate::proxy::Counts)> {
        let stored = self.store.stored(&player.part).await?;
        have_memory()?;
        let counts = self.store.counts().await?;
        let mut measured = self.bench.meter.run_beside(beside, steps).await?;
        let counts = self.store.counts().await?.since(&counts);
        let stored = self.store.stored(&player.part).await?.saturating_sub(stored);
        measured.output.clear();
        Ok((measured, stored, counts))
    }

    pub fn keep(
        &self,
        work: &str,
        tool: &str,
        times: usize,
        measured: Result<Measured>,
        stored_bytes: u64,
        counts: crate::proxy::Counts,
    ) {
        let (measured, error) = match measured {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let (place, work, tool) = (self.kind.into(), work.into(), tool.into());
        self.bench.keep(Sample { place, work, tool, round: self.round, times, measured, error, stored_bytes, counts });
    }
}
