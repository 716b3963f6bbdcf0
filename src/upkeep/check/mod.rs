//! Proves the chain from the server to the repository before it is needed.
//!
//! Each step gives findings: what is so, and the mend when it should not be. Silence is never green: no snapshot, an old one, or an
//! archive that does not move are failures (rule 60). [`server`] asks the server and its data directory, [`repository`] the store
//! and whether archiving works, [`snapshots`] what can be restored, [`replay`]
//! how far.

pub mod command;
pub mod replay;
pub mod repository;
pub mod server;
pub mod snapshots;
pub mod windows;

use serde::Serialize;

pub use replay::replay;
pub use repository::{archiving, encryption, registration, repository};
pub use server::{Server, server};
pub use snapshots::{presence, reading, snapshots};
pub use windows::windows;

/// A host clock further from the server's or the store's makes times in messages misleading.
const CLOCK_SKEW_MAX_S: f64 = 5.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Warning,
    Failure,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub subject: &'static str,
    pub what: String,
    /// What to do; empty when all is well.
    pub mend: String,
}

/// Collects findings.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    pub fn ok(&mut self, subject: &'static str, what: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, subject, what: what.into(), mend: String::new() });
    }

    pub fn warn(&mut self, subject: &'static str, what: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Finding { level: Level::Warning, subject, what: what.into(), mend: mend.into() });
    }

    pub fn fail(&mut self, subject: &'static str, what: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Finding { level: Level::Failure, subject, what: what.into(), mend: mend.into() });
    }

    pub fn worst(&self) -> Level {
        self.0.iter().map(|f| f.level).max().unwrap_or(Level::Failure)
    }
}

fn clock_skew(findings: &mut Findings, subject: &'static str, whose: &str, skew_s: f64) {
    if skew_s.abs() > CLOCK_SKEW_MAX_S {
        findings.warn(subject, format!("this host's clock is {skew_s:.0} s from {whose}"), "run a time service on both");
    } else {
        findings.ok(subject, format!("this host's clock agrees with {whose}"));
    }
}
