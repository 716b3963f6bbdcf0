//! Ends of WAL: what a server wrote last and did not archive.
//!
//! The last segment of a server that broke is torn: its beginning is WAL, the rest is not. It must not be archived under the
//! segment's name, because the server, when it comes back, fills it and archives it whole. It is kept as `NAME.torn-CRC`; PostgreSQL
//! keeps the last segment of a timeline that was left in the same way, as `NAME.partial`. A restore puts it into the new `pg_wal`,
//! where recovery looks after it has asked the archive.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use crate::postgres::wal::index::MappedFiles;
use crate::postgres::wal::index::fold::Fold;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::postgres::wal::transaction::SegmentSummary;
use crate::repo::RepoError;
use crate::repo::repository::Cluster;
use crate::repo::segment;
use crate::storage::{Depth, list_all};

/// Where a segment lies that is not archived whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    /// In a data directory's `pg_wal`.
    File(PathBuf),
    /// In the archive, under a name that says so.
    Stored(WalFile),
}

/// What a `pg_wal` holds.
#[derive(Debug, Clone, Default)]
pub struct Found {
    pub segments: BTreeMap<SegmentName, Tail>,
    pub histories: BTreeMap<Timeline, History>,
}

/// The torn ends in the archive; of several of one segment, the one that reaches furthest.
pub async fn stored(cluster: &Cluster, system: SystemId) -> Result<BTreeMap<SegmentName, Tail>, RepoError> {
    let mut best: BTreeMap<SegmentName, (Option<Lsn>, Tail)> = BTreeMap::new();
    let (partials, torn) = (cluster.layout().partials(system), cluster.layout().torn(system));
    let list = |prefix| list_all(cluster.storage(), prefix, Depth::All);
    for page in <[_; 2]>::from(tokio::try_join!(list(&partials), list(&torn))?) {
        for object in page.objects {
            let (file, name) = match object.key.name().parse() {
                Ok(file @ (WalFile::Partial(name) | WalFile::Torn(name, _))) => (file, name),
                _ => continue,
            };
            let reach = match segment::read_trailer(cluster, system, &file).await {
                // A record that began in the segment before may be all that one of them has more.
                Ok(trailer) => trailer.summary.and_then(|s| {
                    let summary = serde_json::from_value::<SegmentSummary>(s).ok()?;
                    summary.last_record.max(summary.ends_at)
                }),
                Err(error) if error.is_damage() || error.is_newer_epoch() => None,
                Err(error) => return Err(error),
            };
            if best.get(&name).is_none_or(|(before, _)| *before < reach) {
                best.insert(name, (reach, Tail::Stored(file)));
            }
        }
    }
    Ok(best.into_iter().map(|(name, (_, tail))| (name, tail)).collect())
}

/// Everything in a `pg_wal` that carries the right system, its own name, and its own timeline. Recycled files do not: their pages have
/// another address, or, recycled under the same number at a promotion, the timeline that was left.
pub fn in_directory(pg_wal: &Path, system: SystemId) -> io::Result<Found> {
    let mut found = Found::default();
    let mut headers = Vec::new();
    for entry in fs::read_dir(pg_wal)? {
        let entry = entry?;
        let Some(file) = entry.file_name().to_str().and_then(|name| name.parse::<WalFile>().ok()) else { continue };
        match file {
            WalFile::Segment(name) => headers.extend(header(&entry.path(), name, system).map(|h| (name, h, entry.path()))),
            WalFile::History(timeline) => {
                let text = fs::read_to_string(entry.path())?;
                // One that cannot be read leads nowhere; the segments beside it are found all the same.
                if let Ok(history) = History::parse(timeline, &text) {
                    found.histories.insert(timeline, history);
                }
            }
            _ => {}
        }
    }
    for (name, header, path) in headers {
        let begins = found.histories.get(&name.timeline).and_then(|history| Some(history.stretches().last()?.begin));
        // The first segment of a timeline begins as a copy of the one that was left.
        let is_first = begins.is_some_and(|begin| Some(begin.segment(header.segment_bytes)) == name.number(header.segment_bytes));
        if header.timeline == name.timeline || is_first {
            found.segments.insert(name, Tail::File(path));
        }
    }
    Ok(found)
}

fn header(path: &Path, name: SegmentName, system: SystemId) -> Option<SegmentHeader> {
    let mut head = Vec::with_capacity(LONG_HEADER_BYTES);
    let file = fs::File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    file.take(LONG_HEADER_BYTES as u64).read_to_end(&mut head).ok()?;
    SegmentHeader::parse(&head).ok().filter(|h| h.system_identifier == system && h.check(name, bytes).is_ok())
}

/// What a file in `pg_wal` means; `None` when it cannot be read.
pub async fn summary(path: PathBuf, name: SegmentName, segment_bytes: u64) -> Option<SegmentSummary> {
    let start = name.start(segment_bytes)?;
    let summarize = move || {
        let mut file = fs::File::open(path).ok()?;
        let mut fold = Fold::new(start, segment_bytes, MappedFiles::new());
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            match file.read(&mut buffer).ok()? {
                0 => return Some(fold.finish().summary),
                count => fold.feed(&buffer[..count]),
            }
        }
    };
    tokio::task::spawn_blocking(summarize).await.ok().flatten()
}

/// Hands a file in `pg_wal` to `sink`.
pub fn read(path: &Path, sink: &mut (dyn Write + Send)) -> Result<(), RepoError> {
    let failed = |source| RepoError::File { path: path.into(), source };
    let mut file = fs::File::open(path).map_err(failed)?;
    io::copy(&mut file, &mut &mut *sink).map_err(failed)?;
    Ok(())
}
