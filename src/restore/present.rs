//! The history that a directory's cluster lives, from the archive and from what only it has.

use std::fs;
use std::io;
use std::path::Path;

use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::name::WalFile;
use crate::timeline::archive::Archive;
use crate::timeline::tail::{self, Found};

use super::salvage::Unarchived;

/// A cluster's path through its WAL, as far as it is known.
#[derive(Debug, Clone)]
pub struct Present {
    /// The archive, with the directory's own WAL over it.
    pub archive: Archive,
    pub path: History,
    /// From here on the archive's WAL of the same timelines is not its own, and whether that is exact.
    pub parted: Option<(Lsn, bool)>,
}

impl Present {
    /// `found` is what the directory's `pg_wal` continues the archive with; `Err` says why its path is not known.
    pub fn of(
        archive: &Archive,
        directory: &Path,
        in_control: Timeline,
        found: &Found,
        unarchived: &Unarchived,
    ) -> Result<Present, String> {
        let timeline = timeline_of(directory, in_control).map_err(|error| format!("its pg_wal cannot be read: {error}"))?;
        let mut archive = archive.clone();
        archive.add_tails(found.clone());
        let path = own_history(directory, timeline)?.or_else(|| archive.path(timeline));
        let path = path.ok_or_else(|| format!("the history file of its timeline {timeline} is missing"))?;
        let parted = unarchived.parted.as_ref().map(|parted| {
            let start = parted.from.start(archive.segment_bytes).unwrap_or(Lsn(0));
            (parted.at.unwrap_or(start), parted.at.is_some())
        });
        if let Some(parted) = &unarchived.parted {
            archive.put_own(parted.from, unarchived.own.clone());
        }
        Ok(Present { archive, path, parted })
    }

    /// Where its last complete record begins, as far as its directory tells.
    pub async fn end(&self, directory: &Path) -> Option<Lsn> {
        let found = tail::in_directory(&directory.join("pg_wal"), self.archive.system).ok()?;
        let timeline = self.path.timeline();
        for (name, tail) in found.segments.into_iter().rev().filter(|(name, _)| name.timeline == timeline) {
            let tail::Tail::File(path) = tail else { continue };
            let summary = tail::summary(path, name, self.archive.segment_bytes).await;
            if let Some(last) = summary.and_then(|summary| summary.last_record) {
                return Some(last);
            }
        }
        None
    }
}

/// The timeline that a cluster is on: pg_control lags behind until the first checkpoint after a promotion.
pub fn timeline_of(directory: &Path, in_control: Timeline) -> io::Result<Timeline> {
    let mut newest = in_control;
    for entry in fs::read_dir(directory.join("pg_wal"))? {
        let name = entry?.file_name();
        if let Some(Ok(WalFile::History(timeline))) = name.to_str().map(str::parse) {
            newest = newest.max(timeline);
        }
    }
    Ok(newest)
}

/// The path that its own history file tells; the first timeline has none.
pub fn own_history(directory: &Path, timeline: Timeline) -> Result<Option<History>, String> {
    let file = directory.join(format!("pg_wal/{timeline}.history"));
    match fs::read_to_string(&file) {
        Ok(text) => History::parse(timeline, &text).map(Some).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((timeline.0 == 1).then(|| History::first(timeline))),
        Err(error) => Err(format!("{} cannot be read: {error}", file.display())),
    }
}
