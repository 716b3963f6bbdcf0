//! Drills: a restore is done, for nobody, to see whether it can be.
//!
//! # The way
//! [`prepare`] chooses the snapshot and the moment, makes the plan of an ordinary restore into a directory of the drill's own
//! ([`place`]), and checks room, memory and programs. [`run`] restores as planned, starts the real PostgreSQL in quarantine
//! ([`server`]), and proves that replay reached the target ([`target`]). Then the server is asked: [`questions`], the [`catalogue`] of the snapshot, [`pages`], a dump
//! ([`dump`]), and, after it was promoted, [`amcheck`]. Everything that was looked at stands in the report ([`crate::repo::report`]).
//!
//! # Invariants
//! - A drill passes only when all of this was really done ([`verdict`]): a target that was proven from the server's own state, pages,
//!   databases, relations, and every question that is configured. What was not looked at is told, never taken for good.
//! - What is wrong with the backup is a finding in a report. What is wrong with this host (no room, no programs) is an error, and says
//!   nothing about the backup.
//! - The server cannot act: see [`crate::postgres::quarantine`].
//! - Nothing outlives an interrupted drill: the kernel ends the server with us, and the next drill on this host removes what is left.
//! - Two drills never meet: each has a directory with a random name, and holds a lock in it.

pub mod amcheck;
pub mod catalogue;
pub mod dump;
mod own_settings;
pub mod pages;
pub mod place;
pub mod prepare;
pub mod questions;
pub mod run;
pub mod server;
pub mod target;
pub mod verdict;

use std::path::PathBuf;

use crate::postgres::programs::NoPrograms;
use crate::postgres::scratch::ScratchError;
use crate::repo::RepoError;
use crate::restore::RestoreError;
use crate::timeline::find::FindError;

#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Programs(#[from] NoPrograms),
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error("{path}: {problem}; {mend}")]
    Place { path: PathBuf, problem: String, mend: &'static str },
    #[error(
        "a drill of this cluster needs {needed} bytes of memory, and {available} are available; run it on another host, or set [drill] shared_buffers_mib lower"
    )]
    NoMemory { needed: u64, available: u64 },
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "no superuser of the restored server is known (tried {}); name one under [drill] role", tried.join(", ")
    )]
    NoRole { tried: Vec<String> },
    #[error("interrupted; nothing of the drill is left, and no report was written")]
    Interrupted,
}

/// Whether an error says that the backup is bad, and not that this host, the store or the question is.
fn is_about_the_backup(error: &RestoreError) -> bool {
    match error {
        RestoreError::Repo(error) | RestoreError::Find(FindError::Repo(error)) => is_damage(error),
        RestoreError::Find(error) => matches!(
            error,
            FindError::NoSnapshot | FindError::Gap { .. } | FindError::Incomplete { .. } | FindError::NoCandidate { .. }
        ),
        RestoreError::Missing { .. } | RestoreError::Frozen { .. } | RestoreError::NoControl | RestoreError::ReadBack { .. } => {
            true
        }
        _ => false,
    }
}

/// Without a key, or with an old program, nothing can be said.
fn is_damage(error: &RepoError) -> bool {
    error.is_damage() && !matches!(error, RepoError::Sealed { .. } | RepoError::Newer { .. })
}
