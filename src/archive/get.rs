//! `archive-get`: one file out of the repository, for recovery.
//!
//! # Invariants
//! - "Absent" is answered only when it is proven: the repository was reached, is the right one, and says so (rules 30, 32).
//!   PostgreSQL ends recovery there and may promote; everything else must stop recovery instead.
//! - A file gets its name when it is complete and its SHA-256 holds (rules 31, 33).
//! - Names are exact (rule 34).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::spool::Spool;
use crate::clock;
use crate::durable;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::copies;
use crate::repo::gone::Gone;
use crate::repo::record::ClusterRecord;
use crate::repo::repository::{Cluster, Repository};
use crate::repo::segment;
use crate::storage::Depth;

/// Between two looks for a segment that is on its way into the spool.
const LOOK: Duration = Duration::from_millis(2);
/// One that has not grown for so long is fetched once more: whoever was fetching it may be stopped.
const STALLED: Duration = Duration::from_secs(10);

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
    /// Proven: the repository does not have it.
    Absent,
}

/// Takes a segment out of the spool, and tells whoever fetches ahead where recovery is. `false` when [`get`] must fetch it.
pub async fn from_spool(spool: &Spool, segment: SegmentName, destination: &Path) -> Result<bool, GetError> {
    spool.ask(segment);
    spool.forget_fetched(|name| name < segment);
    take(spool, segment, destination).await.map_err(|source| write_error(destination, source))
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
    let is_needed = match file {
        WalFile::Segment(segment) => until.is_none_or(|until| segment.position() <= until.position()),
        _ => true,
    };
    // What proves an absence takes as many round trips as the question, so it goes out beside it where the answer is foreseen.
    let is_foreseen = match file {
        WalFile::Segment(segment) => spool.is_some_and(|spool| spool.end() == Some(segment)),
        WalFile::History(_) => true,
        _ => false,
    };
    let foreseen = async { if is_foreseen { Known::read(cluster, system).await.ok() } else { None } };
    let asking = async {
        match fetch_to(cluster, system, file, destination, durable::temporary_beside(destination)).await {
            Ok(()) => Ok(Asked::Fetched),
            // Nor may what recovery does not need stop it, whatever keeps us from having it.
            Err(GetError::Repo(_)) if !is_needed => Ok(Asked::NotNeeded),
            Err(GetError::Repo(error)) if error.is_not_found() => {
                let known = async { if is_foreseen { Ok(None) } else { Known::read(cluster, system).await.map(Some) } };
                Ok(Asked::Nowhere(Box::new(tokio::try_join!(prove_place(cluster), known)?)))
            }
            Err(error) => Err(error),
        }
    };
    let (asked, foreseen) = tokio::join!(asking, foreseen);
    match asked? {
        Asked::Fetched => Ok(Got::Fetched),
        Asked::NotNeeded => Ok(Got::Absent),
        Asked::Nowhere(proven) => {
            let (repository, known) = *proven;
            let known = match known.or(foreseen) {
                Some(known) => known,
                None => Known::read(cluster, system).await?,
            };
            prove_absence(cluster, system, file, &repository, known).await?;
            if let (WalFile::Segment(segment), Some(spool)) = (file, spool) {
                spool.set_end(Some(segment));
            }
            Ok(Got::Absent)
        }
    }
}

/// What the store said.
enum Asked {
    Fetched,
    NotNeeded,
    /// It is not there, and this is the repository, which was there afterwards.
    Nowhere(Box<(Repository, Option<Known>)>),
}

/// Proves that this is the right place. An empty or wrong one says "not found" to everything; the right one has its record, and each of
/// several places must. Asked after what it proves: a disk may go at any moment.
async fn prove_place(cluster: &Cluster) -> Result<Repository, RepoError> {
    let (repository, ()) = tokio::try_join!(Repository::again(cluster.vault().clone()), copies::prove_places(cluster.storage()))?;
    Ok(repository)
}

/// Proves that what was not found was never there, or is not there yet: the place knows the system.
async fn prove_absence(
    cluster: &Cluster,
    system: SystemId,
    file: WalFile,
    repository: &Repository,
    known: Known,
) -> Result<(), GetError> {
    let record = match known.record {
        Some(record) => record,
        None => repository.registered(cluster.name()).await?.1,
    };
    if record.history(system).is_none() {
        return Err(GetError::UnknownSystem { system, cluster: cluster.name().into() });
    }
    // A hole is no end: recovery would promote in the middle.
    if let WalFile::Segment(segment) = file
        && known.gone.has(segment)
    {
        return Err(GetError::Expired { segment });
    }
    // Which WAL was expired is not known: what has a later segment behind it is a hole, or was expired.
    if let (WalFile::Segment(segment), Some(why)) = (file, &known.gone.unreadable)
        && has_later(cluster, system, segment).await?
    {
        let key = cluster.layout().wal(system, &file);
        return Err(RepoError::damaged(
            &key,
            format!("it is missing, later ones are there, and what was expired is not known: {why}"),
        )
        .into());
    }
    Ok(())
}

/// Whether a later segment of the same timeline is archived.
async fn has_later(cluster: &Cluster, system: SystemId, segment: SegmentName) -> Result<bool, RepoError> {
    let (prefix, key) = (cluster.layout().segments(system), cluster.layout().wal(system, &WalFile::Segment(segment)));
    let page = cluster.storage().list(&prefix, Some(key.as_str()), Depth::All).await?;
    let next = page.objects.first().and_then(|object| object.key.name().parse::<SegmentName>().ok());
    Ok(next.is_some_and(|next| next.timeline == segment.timeline))
}

/// What a cluster knows of itself, for telling why something is not there.
struct Known {
    record: Option<ClusterRecord>,
    gone: Gone,
}

impl Known {
    async fn read(cluster: &Cluster, system: SystemId) -> Result<Known, RepoError> {
        let (record, gone) = tokio::try_join!(cluster.record(), Gone::read(cluster, system))?;
        Ok(Known { record, gone })
    }
}

fn write_error(path: &Path, source: io::Error) -> GetError {
    GetError::Write { path: path.into(), source }
}

/// Fetches into `temporary`, which becomes `destination` only when everything holds. Nothing is flushed: recovery syncs its own, and
/// the spool is not believed after a crash.
pub(super) async fn fetch_to(
    cluster: &Cluster,
    system: SystemId,
    file: WalFile,
    destination: &Path,
    temporary: PathBuf,
) -> Result<(), GetError> {
    let failed = |source| write_error(destination, source);
    let mut created = durable::create_private(&temporary).map_err(failed)?;
    let unfinished = Unfinished(&temporary);
    // Written in zstd's blocks of 128 KiB as they come.
    segment::fetch(cluster, system, &file, &mut created).await?;
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

/// Takes a segment out of the spool, and waits for one that is on its way there, for as long as it comes nearer; `false` when it must
/// be fetched.
async fn take(spool: &Spool, segment: SegmentName, destination: &Path) -> io::Result<bool> {
    let (mut bytes, mut grew) = (None, clock::monotonic());
    loop {
        if move_file(&spool.fetched(segment), destination)? {
            return Ok(true);
        }
        let now = spool.coming_bytes(segment);
        if now.is_none() {
            // It may have got its name between the two looks.
            return move_file(&spool.fetched(segment), destination);
        }
        if now != bytes {
            (bytes, grew) = (now, clock::monotonic());
        } else if grew.elapsed() > STALLED {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Moves a file, across file systems when needed; `false` when it is not there.
pub(super) fn move_file(from: &Path, to: &Path) -> io::Result<bool> {
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
        let (segment, temporary) = (dir.path().join("segment"), dir.path().join("temporary"));
        let fetched = fetch_to(&cluster, SystemId(7), file, &segment, temporary).now_or_never();
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
