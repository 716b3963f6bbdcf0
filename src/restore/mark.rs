//! `lastgood.restored`: what a restored copy is, until it is adopted. Written into it by a restore, read by whoever asks where it stands
//! and by its adoption.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::durable;
use crate::postgres::data_directory::RESTORED_MARK;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::settings::{TargetAction, UntilAdopted};

/// What is read of it; everything else in it is for people.
#[derive(Debug, Clone, Deserialize)]
pub struct Mark {
    pub major: u32,
    /// The target, as it was asked for.
    pub target: String,
    pub timeline: Timeline,
    /// Where recovery stops; absent where it goes to the end of the WAL, or to where the snapshot is consistent.
    #[serde(default)]
    pub stop_lsn: Option<Lsn>,
    #[serde(default)]
    pub inclusive: bool,
    pub action: TargetAction,
    /// Where the original was; absent in marks of earlier versions.
    #[serde(default)]
    pub original: Option<String>,
    /// Settings that hold until adoption; empty in marks of earlier versions.
    #[serde(default)]
    pub until_adopted: Vec<UntilAdopted>,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    original: &'a str,
    until_adopted: &'a [UntilAdopted],
}

/// Writes it into the copy at `root`.
pub fn write(root: &Path, plan: &Plan, until_adopted: &[UntilAdopted]) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&Written { plan, original: &plan.manifest().data_directory, until_adopted })
        .map_err(io::Error::other)?;
    durable::replace(&root.join(RESTORED_MARK), &text, 0o600)
}

/// The mark in a data directory; `None` where there is none.
pub fn read(directory: &Path) -> io::Result<Option<Mark>> {
    let text = match fs::read(directory.join(RESTORED_MARK)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| io::Error::other(format!("{RESTORED_MARK}: {error}")))
}
