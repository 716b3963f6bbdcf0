//! The WAL in a directory beside the archive's: whether both are one history, and where they part.
//!
//! A segment in `pg_wal` and an archived one of the same name need not be the same: a volume was set back to an older state, or a copy
//! archived first. Nothing of the one may then be laid over the other, archived behind it, or counted as if it were its continuation.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::lineage::compare::{self, Compared};
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::header::LONG_HEADER_BYTES;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::postgres::wal::pages::Pages;
use crate::postgres::wal::reader::{RECORD_HEADER_BYTES, Walk};
use crate::postgres::wal::transaction::{self, Event};
use crate::repo::RepoError;
use crate::repo::segment;
use crate::timeline::archive::Archive;
use crate::timeline::tail::{self, Found, Tail};

/// Where a directory's history left the archive's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parted {
    /// The first segment in the directory that is of the other history.
    pub from: SegmentName,
    /// The first end of a transaction that the archive does not have; absent when they parted before the oldest segment that is left.
    pub at: Option<Lsn>,
    /// Segments in the directory from there on.
    pub segments: u64,
}

/// Looks whether `found` continues the archive, newest segments first; `None` when nothing contradicts it. What is damaged in the archive,
/// or cannot be opened with the keys at hand, contradicts nothing.
pub async fn parted(archive: &Archive, found: &Found, timeline: Timeline) -> Result<Option<Parted>, RepoError> {
    let files: Vec<(SegmentName, &Path)> = found
        .segments
        .iter()
        .filter(|(name, _)| name.timeline == timeline)
        .filter_map(|(name, tail)| match tail {
            Tail::File(path) => Some((*name, path.as_path())),
            Tail::Stored(_) => None,
        })
        .collect();
    let mut from = None;
    for (index, (name, path)) in files.iter().enumerate().rev().filter(|(_, (name, _))| archive.is_archived(*name)) {
        match same(archive, *name, path).await? {
            Some(true) => break,
            Some(false) => from = Some(index),
            None => {}
        }
    }
    if from.is_none() {
        from = first_that_does_not_join(archive, &files).await?;
    }
    let Some(from) = from else { return Ok(None) };
    let (name, path) = files[from];
    let at = match archive.is_archived(name) && (from > 0 || begins_alike(archive, name, path).await?) {
        true => first_own_event(archive, name, path).await?,
        false => None,
    };
    Ok(Some(Parted { from: name, at, segments: (files.len() - from) as u64 }))
}

/// Whether a file is the beginning, or all, of the archived segment; `None` when that cannot be told.
async fn same(archive: &Archive, name: SegmentName, path: &Path) -> Result<Option<bool>, RepoError> {
    let (cluster, system) = (archive.cluster(), archive.system);
    let told = match tail::summary(path.into(), name, archive.segment_bytes).await.and_then(|summary| summary.ends_at) {
        Some(end) => {
            let bytes = end.0.saturating_sub(name.start(archive.segment_bytes).unwrap_or(end).0);
            compare::first_difference(cluster, system, name, path, bytes).await.map(|apart| Some(apart.is_none()))
        }
        None => compare::whole(cluster, system, name, path.into()).await.map(|compared| match compared {
            Compared::Same(_) => Some(true),
            Compared::Differs { .. } => Some(false),
            Compared::NotArchived(_) => None,
        }),
    };
    unknown(told).map(Option::flatten)
}

/// Whether the first record is the same: it holds where the one before it begins, so everything before is one history.
async fn begins_alike(archive: &Archive, name: SegmentName, path: &Path) -> Result<bool, RepoError> {
    let bytes = (LONG_HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
    let apart = compare::first_difference(archive.cluster(), archive.system, name, path, bytes).await;
    Ok(unknown(apart)?.is_some_and(|apart| apart.is_none()))
}

/// What cannot be read of the archive tells nothing; an error of the store is one.
fn unknown<T>(told: Result<T, RepoError>) -> Result<Option<T>, RepoError> {
    match told {
        Ok(told) => Ok(Some(told)),
        Err(error) if error.is_damage() || error.is_newer_epoch() || matches!(error, RepoError::WriterKey { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the archive ends right before the directory's oldest segment: the record that crosses the border, or the first behind it, must
/// continue the archive's last.
async fn first_that_does_not_join(archive: &Archive, files: &[(SegmentName, &Path)]) -> Result<Option<usize>, RepoError> {
    let Some((name, path)) = files.first().filter(|(name, _)| !archive.is_archived(*name)) else { return Ok(None) };
    let number = name.number(archive.segment_bytes).unwrap_or(0);
    let before = number.checked_sub(1).map(|number| SegmentName::new(name.timeline, number, archive.segment_bytes));
    let Some(before) = before.filter(|before| archive.is_archived(*before)) else { return Ok(None) };
    // A file whose first record is torn holds nothing yet.
    let mut alone = Records::new(archive, *name);
    if unknown(tail::read(path, &mut alone))?.is_none() || alone.records == 0 {
        return Ok(None);
    }
    let mut read = Records::new(archive, before);
    if unknown(archive.fetch(before, &mut read).await)?.is_none() || read.ended || read.records == 0 {
        return Ok(None);
    }
    read.continue_with(archive.segment_start(number));
    unknown(tail::read(path, &mut read))?;
    Ok((read.ended && read.records_here == 0).then_some(0))
}

/// The first end of a transaction in a file that the archived segment of its name does not have.
async fn first_own_event(archive: &Archive, name: SegmentName, path: &Path) -> Result<Option<Lsn>, RepoError> {
    let (mut here, mut there) = (Records::new(archive, name), Records::new(archive, name));
    tail::read(path, &mut here)?;
    let fetched = segment::fetch(archive.cluster(), archive.system, &WalFile::Segment(name), &mut there).await;
    if unknown(fetched)?.is_none() {
        return Ok(None);
    }
    let apart = here.events.iter().find(|event| !there.events.contains(event)).map(|event| event.lsn);
    // Nothing ended here before they parted: what follows in the directory is all its own.
    Ok(apart.or_else(|| name.next(archive.segment_bytes)?.start(archive.segment_bytes)))
}

/// Reads records as a segment goes by.
struct Records {
    walk: Walk,
    pages: Pages,
    ended: bool,
    records: u64,
    records_here: u64,
    events: Vec<Event>,
}

impl Records {
    fn new(archive: &Archive, name: SegmentName) -> Records {
        let start = name.start(archive.segment_bytes).unwrap_or(Lsn(0));
        let walk = Walk::new(archive.segment_bytes);
        Records { walk, pages: Pages::new(start), ended: false, records: 0, records_here: 0, events: Vec::new() }
    }

    fn continue_with(&mut self, start: Lsn) {
        self.pages = Pages::new(start);
        self.records_here = 0;
    }
}

impl Write for Records {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Records { walk, pages, ended, records, records_here, events } = self;
        pages.feed(bytes, &mut |page, address| {
            *ended = *ended || transaction::events(walk, page, address, &mut |event| events.push(event)).is_err();
            *records_here += walk.records() - *records;
            *records = walk.records();
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
