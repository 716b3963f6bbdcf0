//! The tools, each as the programs that it takes to do a job.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::measure::Step;
use crate::place::Place;
use crate::settings::Settings;

mod basebackup;
mod lastgood;
mod limit;
mod pgbackrest;
mod walrus;

/// Whether a program may work ahead of what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    No,
    Yes,
}

/// What a tool works with, in one round.
#[derive(Debug, Clone)]
pub struct Ground {
    pub settings: Settings,
    /// Where the repository is.
    pub place: Place,
    /// What the tool keeps besides, for itself alone; it exists.
    pub home: PathBuf,
    pub data: PathBuf,
    pub sockets: PathBuf,
    pub system_identifier: String,
}

/// A tool on its ground. `None` means that it has no such thing.
pub trait Tool {
    fn name(&self) -> &'static str;
    /// Writes configuration, and answers what must be run before the first snapshot.
    fn prepare(&self) -> Result<Vec<Step>>;
    fn backup(&self, full: bool) -> Option<Step>;
    /// Of the newest snapshot, into an empty directory.
    fn restore(&self, into: &Path) -> Option<Step>;
    /// Whether what it restores can be started.
    fn restores_whole(&self) -> bool {
        true
    }
    fn verify(&self) -> Option<Step>;
    /// One WAL file; `data` is the data directory that it belongs to.
    fn push(&self, data: &Path, file: &str, ahead: Ahead) -> Option<Step>;
    fn fetch(&self, data: &Path, name: &str, destination: &str, ahead: Ahead) -> Option<Step>;
    /// What happened in the last weeks, or only events of one kind.
    fn timeline(&self, kind: Option<&str>) -> Option<Step> {
        let _ = kind;
        None
    }
    /// What must run beside pushes with look-ahead, and is measured with them.
    fn beside(&self, data: &Path) -> Option<Step> {
        let _ = data;
        None
    }
}

/// Those who keep an archive and snapshots in it, in the order of the table; we come first.
pub const RIVALS: [&str; 3] = ["lastgood", "pgbackrest", "wal-rus"];
/// Those that have snapshots only: PostgreSQL's own, and the limit of the machine.
pub const MEASURES: [&str; 2] = ["pg_basebackup", "limit"];

/// The [`RIVALS`], each on its ground.
pub fn rivals(mut grounds: impl Iterator<Item = Ground>) -> Vec<Box<dyn Tool>> {
    let makers: [fn(Ground) -> Box<dyn Tool>; 3] = [
        |ground| Box::new(lastgood::Lastgood { ground, reads_all: false }),
        |g| Box::new(pgbackrest::Pgbackrest(g)),
        |g| Box::new(walrus::Walrus(g)),
    ];
    makers.into_iter().filter_map(|make| grounds.next().map(make)).collect()
}

/// lastgood once more, as if WAL told nothing of what changed.
pub fn reads_all(ground: Ground) -> Box<dyn Tool> {
    Box::new(lastgood::Lastgood { ground, reads_all: true })
}

/// The [`MEASURES`], each on its ground.
pub fn measures(mut grounds: impl Iterator<Item = Ground>) -> Vec<Box<dyn Tool>> {
    let makers: [fn(Ground) -> Box<dyn Tool>; 2] = [|g| Box::new(basebackup::Basebackup(g)), |g| Box::new(limit::Limit(g))];
    makers.into_iter().filter_map(|make| grounds.next().map(make)).collect()
}

/// What each tool says of its version, and how it is set.
pub fn described(settings: &Settings) -> Vec<(String, String, String)> {
    let said = |program: &Path, argument: &str| {
        let output = std::process::Command::new(program).arg(argument).output();
        output.map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let programs = Path::new(crate::database::PROGRAMS);
    let entry = |name: &str, version: String, how: &str| (name.to_string(), version, how.to_string());
    vec![
        entry("PostgreSQL", said(&programs.join("postgres"), "--version"), "checksums, fsync and full_page_writes on"),
        entry("lastgood", said(&settings.lastgood, "--version"), lastgood::HOW),
        entry("pgbackrest", said(&settings.pgbackrest, "version"), &pgbackrest::how(settings)),
        entry("wal-rus", said(&settings.walrus, "--version"), walrus::HOW),
        entry("pg_basebackup", said(&programs.join("pg_basebackup"), "--version"), basebackup::HOW),
        entry("limit", "this program".into(), limit::HOW),
    ]
}
