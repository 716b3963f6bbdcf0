//! Where the new cluster's `pg_wal` goes.
//!
//! Many keep it on a disk of its own, by a link in the data directory. A restore makes a directory of it, which belongs to the data
//! directory, and the plan says so; or it makes a link to a place that somebody names. That place is empty: no WAL of anybody is ever
//! deleted, moved or written over. The `pg_wal` of a cluster that is moved aside stays where it is, and so does the link to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::RestoreError;
use super::ground;
use super::place::{self, Standing};
use super::standing::Occupant;
use crate::postgres::apart::{self, Apart};
use crate::postgres::data_directory::RESTORING_MARK;
use crate::repo::manifest::Manifest;

/// Where it was, and where it goes. One of the two is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalPlace {
    /// A place of its own when the snapshot was taken.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::path_text::option")]
    pub was: Option<PathBuf>,
    /// A place of its own now; absent: a directory in the data directory.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::path_text::option")]
    pub into: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
}

/// Decides, and refuses a place that is not free; `others` are all the other places of the restore.
pub fn plan(
    wanted: Option<&Path>,
    manifest: &Manifest,
    replaced: Option<&Occupant>,
    others: &[&Path],
    apart: &[Apart],
) -> Result<Option<WalPlace>, RestoreError> {
    let was = manifest.wal_place();
    let Some(into) = wanted else {
        return Ok(was.map(|was| WalPlace { was: Some(was), into: None, standing: None }));
    };
    let refuse = |problem: String, mend| Err(RestoreError::Place { path: into.into(), problem, mend });
    let real = apart::real(into);
    if replaced.and_then(|occupant| occupant.wal_directory.as_ref()).is_some_and(|old| *old == real) {
        return refuse(
            "this is the pg_wal of the cluster that will be moved aside, which keeps it".into(),
            "name another directory on the same disk; it will be made",
        );
    }
    if let Some(other) = others.iter().map(|other| apart::real(other)).find(|o| real.starts_with(o) || o.starts_with(&real)) {
        return refuse(format!("it overlaps with {}", other.display()), "choose a place for pg_wal apart from all others");
    }
    ground::check(into, apart)?;
    let standing = look(into)?;
    Ok(Some(WalPlace { was, into: Some(into.into()), standing: Some(standing) }))
}

/// Refuses a place that holds anything, what an interrupted restore left too: nothing tells our remains from WAL that somebody put there.
pub fn look(path: &Path) -> Result<Standing, RestoreError> {
    let standing = place::look(path).map_err(|error| match error {
        RestoreError::Place { path, problem, mend } => RestoreError::Place { path, problem: format!("pg_wal: {problem}"), mend },
        other => other,
    })?;
    let refuse = |problem: &str, mend| Err(RestoreError::Place { path: path.into(), problem: problem.into(), mend });
    let is_mark = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() == RESTORING_MARK);
    match standing {
        Standing::Cluster(_) | Standing::Tablespace => refuse("pg_wal: a cluster stands here", "choose an empty directory"),
        Standing::Interrupted if !fs::read_dir(path).is_ok_and(|mut entries| entries.all(is_mark)) => refuse(
            "pg_wal: the directory is not empty: an interrupted restore left files here",
            "look at them, empty it by hand, and run again",
        ),
        standing => Ok(standing),
    }
}
