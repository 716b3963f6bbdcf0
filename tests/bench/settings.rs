//! What a run is asked to do, from the environment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// No single measurement takes longer.
const LIMIT: Duration = Duration::from_secs(1800);

/// The kinds of repository, and what is measured on them; `ONLY` chooses from both.
pub const PLACES: [&str; 3] = ["directory", "garage", "distant"];
pub const TOPICS: [&str; 8] = ["snapshot", "push", "fetch", "recovery", "list", "files", "large", "timeline"];
/// Those of [`TOPICS`] that need the database.
const OF_DATABASE: [&str; 4] = ["snapshot", "push", "fetch", "recovery"];

#[derive(Debug, Clone)]
pub struct Settings {
    pub size_text: String,
    pub size_bytes: u64,
    /// Of the database of the topic `large`.
    pub large_text: String,
    pub large_bytes: u64,
    pub rounds: usize,
    only: Vec<String>,
    pub lastgood: PathBuf,
    pub pgbackrest: PathBuf,
    pub walrus: PathBuf,
    /// This program.
    pub harness: PathBuf,
    /// Where results are written.
    pub out: PathBuf,
    /// Databases that were built, for the next run, and the directory of this run.
    pub work: PathBuf,
    pub cores: usize,
    pub limit: Duration,
}

impl Settings {
    pub fn from_environment() -> Result<Settings> {
        let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str, default: PathBuf| get(name).map_or(default, PathBuf::from);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let size_text = get("SIZE").unwrap_or_else(|| "3G".into());
        let large_text = get("LARGE").unwrap_or_else(|| "10G".into());
        let only: Vec<String> = get("ONLY").unwrap_or_default().split(',').filter(|w| !w.is_empty()).map(Into::into).collect();
        if let Some(word) = only.iter().find(|word| !PLACES.contains(&word.as_str()) && !TOPICS.contains(&word.as_str())) {
            bail!("ONLY has {word:?}; it may have {} and {}", PLACES.join(", "), TOPICS.join(", "));
        }
        let walrus = crate::support::garage::tools().join("wal-rus-0.4.1/bin/walrus");
        let settings = Settings {
            size_bytes: bytes(&size_text)?,
            size_text,
            large_bytes: bytes(&large_text)?,
            large_text,
            rounds: get("ROUNDS").map_or(Ok(3), |text| text.parse()).context("ROUNDS is no number")?,
            only,
            lastgood: path("LASTGOOD", root.join("target/release/lastgood")),
            pgbackrest: path("PGBACKREST", "/usr/bin/pgbackrest".into()),
            walrus: path("WALRUS", walrus),
            harness: std::env::current_exe()?,
            out: path("OUT", root.join("docs/benchmarks")),
            work: path("BENCH_WORK", "/var/tmp/lastgood-bench".into()),
            cores: std::thread::available_parallelism()?.get(),
            limit: LIMIT,
        };
        if !settings.lastgood.is_file() {
            bail!(
                "there is no {}; build it with cargo build --release, or name another with LASTGOOD",
                settings.lastgood.display()
            );
        }
        Ok(settings)
    }

    /// Copies the programs that were built here into `dir`, so that the server's user can read them, and a build meanwhile does not
    /// change what is measured.
    pub fn keep_programs(&mut self, dir: &Path) -> Result<()> {
        for (program, name) in [(&mut self.lastgood, "lastgood"), (&mut self.walrus, "walrus"), (&mut self.harness, "harness")] {
            let kept = dir.join(name);
            // A tool that is missing is shown as missing.
            if program.exists() {
                std::fs::copy(&*program, &kept).with_context(|| format!("copy {}", program.display()))?;
                *program = kept;
            }
        }
        Ok(())
    }

    /// Whether a kind of repository is wanted.
    pub fn wants_place(&self, place: &str) -> bool {
        !self.only.iter().any(|word| PLACES.contains(&word.as_str())) || self.only.iter().any(|word| word == place)
    }

    /// Whether anything is wanted that needs the database.
    pub fn wants_database(&self) -> bool {
        OF_DATABASE.iter().any(|topic| self.wants(topic))
    }

    /// Whether a topic is wanted.
    pub fn wants(&self, topic: &str) -> bool {
        !self.only.iter().any(|word| TOPICS.contains(&word.as_str())) || self.only.iter().any(|word| word == topic)
    }
}

fn bytes(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "M" => 1 << 20,
        "G" => 1 << 30,
        other => bail!("SIZE is {text:?}; the unit {other:?} is not known, write it like 200M or 3G"),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("SIZE is {text:?}"))? * unit)
}
