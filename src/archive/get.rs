//! `archive-get`: one file out of the repository, for recovery.
//!
//! # Invariants
//! - "Absent" is answered only when it is proven: the repository was reached, is the right one, and says so (rules 30, 32).
//!   PostgreSQL ends recovery there and may promote; everything else must stop recovery instead.
//! - A file gets its name when it is complete and its SHA-256 holds (rules 31, 33).
//! - Names are exact (rule 34).

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::spool::Spool;
use crate::durable;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::copies;
use crate::repo::gone::Gone;
use crate::repo::repository::{Cluster, Repository};
use crate::repo::segment;

#[derive(Debug, thiserror::Error)]
pub enum GetError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error("the repository knows no system {system} under the name {cluster:?}, so it proves nothing about its WAL")]
    UnknownSystem { system: SystemId, cluster: String },
    #[error("{segment} was expired: the retention let it go, so this is not where the WAL ends; restore from a newer snapshot")]
    Expired { segment: SegmentName },
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    Fetched,
    /// It lay in the spool already.
    Prefetched,
    /// Proven: the repository does not have it.
    Absent,
}

/// Puts `file` at `destination`. Recovery needs nothing behind `until`, although it reads ahead.
pub async fn get(
    cluster: &Cluster,
    system: SystemId,
    file: WalFile,
    destination: &Path,
    until: Option<SegmentName>,
    spool: Option<&Spool>,
) -> Result<Got, GetError> {
    if let (WalFile::Segment(segment), Some(spool)) = (file, spool) {
        spool.forget_fetched(|name| name < segment);
        if move_file(&spool.fetched(segment), destination).map_err(|source| write_error(destination, source))? {
            return Ok(Got::Prefetched);
        }
    }
    let is_needed = match file {
        WalFile::Segment(segment) => until.is_none_or(|until| segment.position() <= until.position()),
        _ => true,
    };
    match fetch_to(cluster, system, file, destination, false).await {
        Ok(()) => Ok(Got::Fetched),
        // Nor may what recovery does not need stop it, whatever keeps us from having it.
        Err(GetError::Repo(_)) if !is_needed => Ok(Got::Absent),
        Err(GetError::Repo(error)) if error.is_not_found() => {
            // An empty or wrong place says "not found" to everything; the right one has its record, and each of several places must.
            copies::prove_places(cluster.storage()).await?;
            let (_, record) = Repository::again(cluster.vault().clone()).await?.registered(cluster.name()).await?;
            if record.history(system).is_none() {
                return Err(GetError::UnknownSystem { system, cluster: cluster.name().into() });
            }
            // A hole is no end: recovery would promote in the middle.
            if let WalFile::Segment(segment) = file
                && Gone::read(cluster, system).await?.has(segment)
            {
                return Err(GetError::Expired { segment });
            }
            Ok(Got::Absent)
        }
        Err(error) => Err(error),
    }
}

fn write_error(path: &Path, source: io::Error) -> GetError {
    GetError::Write { path: path.into(), source }
}

/// Fetches into a temporary file beside `destination`, which appears only when everything holds.
///
/// `durable` for the spool, whose files are believed by their name after a crash too; recovery syncs its own.
async fn fetch_to(cluster: &Cluster, system: SystemId, file: WalFile, destination: &Path, durable: bool) -> Result<(), GetError> {
    let temporary = durable::temporary_beside(destination);
    let failed = |source| write_error(destination, source);
    let created = durable::create_private(&temporary).map_err(failed)?;
    let unfinished = Unfinished(&temporary);
    let mut writer = BufWriter::with_capacity(256 << 10, created);
    segment::fetch(cluster, system, &file, &mut writer).await?;
    writer.flush().map_err(failed)?;
    if durable {
        writer.get_ref().sync_all().map_err(failed)?;
    }
    fs::rename(&temporary, destination).map_err(failed)?;
    std::mem::forget(unfinished);
    Ok(())
}

/// A temporary file that goes when its work fails or is broken off.
struct Unfinished<'a>(&'a Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

/// Moves a file, across file systems when needed; `false` when it is not there.
fn move_file(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => return Ok(true),
        // Not whether it is there: whoever fetches ahead may put it there at this very moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound && durable::parent(to).is_dir() => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        Err(error) => return Err(error),
    }
    let temporary = durable::temporary_beside(to);
    let copied = fs::copy(from, &temporary).and_then(|_| fs::rename(&temporary, to));
    if copied.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    copied?;
    let _ = fs::remove_file(from);
    Ok(true)
}

/// Fetches up to `count` segments after `segment` into the spool, several at a time; ends quietly at the first that is absent or
/// fails, because recovery asks for that one itself and then hears why.
pub async fn prefetch(
    cluster: &Cluster,
    system: SystemId,
    segment: SegmentName,
    segment_bytes: u64,
    count: usize,
    spool: &Spool,
) -> usize {
    use futures::StreamExt;
    let Some(_lock) = spool.lock_fetching() else { return 0 };
    let Some(number) = segment.number(segment_bytes) else { return 0 };
    let names = (1..=count as u64).map(|step| SegmentName::new(segment.timeline, number + step, segment_bytes));
    let wanted: Vec<SegmentName> = names.filter(|name| !spool.fetched(*name).exists()).collect();
    let fetch = |name: SegmentName| {
        let destination = spool.fetched(name);
        async move { fetch_to(cluster, system, WalFile::Segment(name), &destination, true).await.is_ok() }
    };
    let mut running = futures::stream::iter(wanted).map(fetch).buffered(4);
    let mut done = 0;
    while let Some(true) = running.next().await {
        done += 1;
    }
    done
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::repo::vault::Vault;
    use crate::storage::fault::{FaultInjection, Script, Trouble, When};
    use crate::storage::memory::MemoryStorage;

    /// Whoever fetches ahead breaks off what is under way when the archive ends.
    #[tokio::test]
    async fn what_is_broken_off_leaves_nothing() {
        use futures::FutureExt;

        let dir = tempfile::tempdir().unwrap();
        let script = Script::new();
        script.add(When::From(1), Trouble::Freeze);
        let store = Arc::new(FaultInjection::new(MemoryStorage::new(), &script));
        let cluster = Cluster::unchecked(Vault::new(store, None), "shop");
        let file = "000000010000000000000001".parse().unwrap();
        let fetched = fetch_to(&cluster, SystemId(7), file, &dir.path().join("segment"), true).now_or_never();
        assert!(fetched.is_none() && script.calls() == 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// A segment that comes into the spool while recovery asks for it is there or not, and no error.
    #[test]
    fn what_appears_at_that_moment_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to, beside) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("beside"));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::fs::write(&beside, "a segment").unwrap();
                    std::fs::rename(&beside, &from).unwrap();
                }
            });
            let found: io::Result<Vec<bool>> = (0..20_000).map(|_| move_file(&from, &to)).collect();
            over.store(true, Ordering::Relaxed);
            assert!(found.unwrap().contains(&true) && std::fs::read(&to).unwrap() == b"a segment");
        });
        assert!(move_file(&from, &dir.path().join("no directory/to")).is_err());
    }
}
