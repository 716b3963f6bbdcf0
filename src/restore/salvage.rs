//! Saving the WAL that a broken server did not archive, before its directory is moved aside.
//!
//! Whole segments are archived under their names, the torn last one as `.torn-CRC` (see `timeline::tail`). What cannot be archived
//! stays with the directory, and the segments that the restore needs are copied into the new `pg_wal`, where recovery looks after
//! it has asked the archive: so the last committed transaction can be reached without the repository too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::RestoreError;
use super::own_wal::{self, Parted};
use crate::monitor::Monitor;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::header::LONG_HEADER_BYTES;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::postgres::wal::transaction::SegmentSummary;
use crate::repo::RepoError;
use crate::repo::repository::Cluster;
use crate::repo::segment::{self, Stored};
use crate::timeline::archive::Archive;
use crate::timeline::tail::{self, Found, Tail};

/// zstd level for the few segments that are saved.
const COMPRESSION_LEVEL: i32 = 1;

/// What a directory holds that the archive does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Unarchived {
    /// Whole segments, oldest first.
    pub segments: Vec<SegmentName>,
    /// The last one, of which only the beginning is WAL.
    pub torn: Option<SegmentName>,
    pub histories: Vec<String>,
    /// Where the directory's WAL is another history than the archive's: nothing from there on is archived or laid over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parted: Option<Parted>,
    /// The segments from there on.
    #[serde(skip)]
    pub own: BTreeMap<SegmentName, Tail>,
}

impl Unarchived {
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.torn.is_none() && self.histories.is_empty()
    }

    pub fn count(&self) -> usize {
        self.segments.len() + usize::from(self.torn.is_some())
    }
}

/// Finds what is not archived, reading the segments; `archive` is of the same system. What turns out to be no WAL (made in advance, or
/// behind the torn end of its timeline) is taken out of `found`, and so is what is not of the archive's history.
pub async fn find(archive: &Archive, found: &mut Found) -> Result<Unarchived, RepoError> {
    let mut unarchived = Unarchived::default();
    take_parted(archive, found, &mut unarchived).await?;
    let mut ended = None;
    for (name, place) in std::mem::take(&mut found.segments) {
        let Tail::File(path) = &place else { continue };
        if ended == Some(name.timeline) {
            continue;
        }
        if !archive.is_archived(name) {
            let summary = tail::summary(path.clone(), name, archive.segment_bytes).await;
            let torn = summary.as_ref().is_none_or(|summary| summary.ends_at.is_some());
            if torn {
                ended = Some(name.timeline);
            }
            match summary {
                Some(summary) if torn && holds_wal(&summary, name, archive.segment_bytes) => unarchived.torn = Some(name),
                Some(_) if !torn => unarchived.segments.push(name),
                _ => continue,
            }
        }
        found.segments.insert(name, place);
    }
    let known = |timeline| archive.has_history(timeline);
    unarchived.histories = found.histories.keys().filter(|t| !known(**t)).map(|t| WalFile::History(*t).to_string()).collect();
    Ok(unarchived)
}

/// Whether a record ends in a torn segment. It may have begun before: the last commit often crosses the border.
fn holds_wal(summary: &SegmentSummary, name: SegmentName, segment_bytes: u64) -> bool {
    let begin = name.start(segment_bytes).map_or(u64::MAX, |start| start.0 + LONG_HEADER_BYTES as u64);
    summary.last_record.is_some() || summary.ends_at.is_some_and(|end| end.0 > begin)
}

/// Takes out what follows where the directory's history left the archive's, on that timeline and on those that came from it later.
async fn take_parted(archive: &Archive, found: &mut Found, unarchived: &mut Unarchived) -> Result<(), RepoError> {
    let timelines: BTreeSet<Timeline> = found.segments.keys().map(|name| name.timeline).collect();
    for timeline in timelines {
        let Some(parted) = own_wal::parted(archive, found, timeline).await? else { continue };
        let start = parted.from.start(archive.segment_bytes).unwrap_or(Lsn(0));
        let came_later = |history: &History| history.left(timeline).flatten().is_some_and(|fork| fork > start);
        let later: BTreeSet<Timeline> = found.histories.values().filter(|h| came_later(h)).map(History::timeline).collect();
        let is_apart = |name: &SegmentName| (name.timeline == timeline && *name >= parted.from) || later.contains(&name.timeline);
        let all = std::mem::take(&mut found.segments);
        (unarchived.own, found.segments) = all.into_iter().partition(|(name, _)| is_apart(name));
        found.histories.retain(|timeline, _| !later.contains(timeline));
        unarchived.parted = Some(parted);
        return Ok(());
    }
    Ok(())
}

/// What was archived, and what was not and why.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Saved {
    pub archived: Vec<String>,
    pub kept: Vec<(String, String)>,
}

impl Saved {
    fn keep(&mut self, file: String, problem: String, monitor: &dyn Monitor) {
        monitor.warn(&format!("{file} could not be archived and stays in the directory that is moved aside: {problem}"));
        self.kept.push((file, problem));
    }
}

/// Archives what is unarchived. What cannot be is named; the files are left where they are.
pub async fn save(cluster: &Cluster, archive: &Archive, pg_wal: &Path, unarchived: &Unarchived, monitor: &dyn Monitor) -> Saved {
    let mut saved = Saved::default();
    let whole = unarchived.segments.iter().map(|name| (WalFile::Segment(*name), name.to_string()));
    let mut torn = Vec::new();
    if let Some(name) = &unarchived.torn {
        match fs::read(pg_wal.join(name.to_string())) {
            Ok(bytes) => torn.push((WalFile::Torn(*name, crc32c::crc32c(&bytes)), name.to_string())),
            Err(error) => saved.keep(name.to_string(), error.to_string(), monitor),
        }
    }
    let histories = unarchived.histories.iter().filter_map(|name| Some((name.parse().ok()?, name.clone())));
    for (file, name) in histories.chain(whole).chain(torn) {
        match store(cluster, archive, file, pg_wal.join(&name)).await {
            Ok(()) => saved.archived.push(file.to_string()),
            Err(problem) => saved.keep(file.to_string(), problem, monitor),
        }
    }
    saved
}

async fn store(cluster: &Cluster, archive: &Archive, file: WalFile, path: PathBuf) -> Result<(), String> {
    let summary = match file {
        WalFile::Segment(name) | WalFile::Torn(name, _) => tail::summary(path.clone(), name, archive.segment_bytes).await,
        _ => None,
    };
    let scratch = segment::scratch(cluster);
    let sealer = cluster.vault().sealer(&cluster.layout().wal(archive.system, &file));
    let encode = move || segment::encode(fs::File::open(path)?, COMPRESSION_LEVEL, sealer, &scratch, &mut |_| {});
    let encoded = tokio::task::spawn_blocking(encode).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let summary = summary.and_then(|summary| serde_json::to_value(summary).ok());
    match segment::store(cluster, archive.system, &file, encoded, segment::Said { summary, previous: None }).await {
        Ok(Stored::New | Stored::Same) => Ok(()),
        Ok(Stored::Different { there }) => Err(format!("the archive holds it with other content ({there})")),
        Err(error) => Err(error.to_string()),
    }
}

/// Puts segments that recovery needs and the archive does not have whole into a new `pg_wal`.
pub async fn provide(archive: &Archive, names: &[SegmentName], pg_wal: &Path) -> Result<Vec<PathBuf>, RestoreError> {
    let mut made = Vec::new();
    for name in names {
        let path = pg_wal.join(name.to_string());
        let failed = |source| RestoreError::Io { doing: "write", path: path.clone(), source };
        let mut file = {
            use std::os::unix::fs::OpenOptionsExt;
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?
        };
        archive.fetch(*name, &mut file).await?;
        file.sync_all().map_err(failed)?;
        made.push(path);
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last commit may begin in the last whole segment and be all that the torn one holds.
    #[test]
    fn a_record_that_only_ends_in_a_torn_segment_is_wal() {
        const BYTES: u64 = 16 << 20;
        let name = SegmentName::new(Timeline(1), 3, BYTES);
        let holds = |last_record: Option<u64>, ends_at: u64| {
            let at = |offset: u64| Lsn(3 * BYTES + offset);
            let summary =
                SegmentSummary { last_record: last_record.map(at), ends_at: Some(at(ends_at)), ..SegmentSummary::default() };
            holds_wal(&summary, name, BYTES)
        };
        assert!(holds(Some(200), 240));
        assert!(holds(None, 64), "the rest of a record that began before");
        assert!(!holds(None, 40), "a header alone, made in advance");
        let before = SegmentSummary { ends_at: Some(Lsn(3 * BYTES - 16)), ..SegmentSummary::default() };
        assert!(!holds_wal(&before, name, BYTES), "the record is not finished here");
    }
}
