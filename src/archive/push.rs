//! `archive-push`: one file into the repository.
//!
//! # Invariants
//! - Success means durable at the destination (rule 23).
//! - Foreign WAL is refused, never stored (rule 21); so is WAL of a server that lastgood restored and nobody declared the
//!   successor (rule 29).
//! - A name is stored once. The same content again is success; other content is refused and both checksums are named (rule 22).
//! - Look-ahead never decides the result of the call: what it could not do, the next call does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::job::{Beside, Job, checked_header};
use super::look_ahead::Ahead;
use super::predecessor::Before;
use super::rival::{self, Admitted, Candidate};
use super::spool::{Acknowledgement, Last, Note, Spool};
use crate::lineage::fork::Fork;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::RESTORED_MARK;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::mapped;
use crate::postgres::wal::header::HeaderError;
use crate::postgres::wal::index::MappedFiles;
use crate::postgres::wal::name::{NameError, SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::audit::{self, Event, Who};
use crate::repo::copies;
use crate::repo::repository::{Cluster, Repository};
use crate::repo::seal::keys::Keys;
use crate::repo::segment::Stored;
use crate::repo::vault::Vault;

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is no WAL file {path} (looked from {from}); archive_command should pass %p, like: lastgood archive-push %p")]
    NoFile { path: PathBuf, from: PathBuf },
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} is refused: it has {} MiB, and the segments that the archive has of {cluster:?} {} MiB: the same name would mean another position (pg_resetwal --wal-segsize). Give this server a [cluster] name of its own, and run `lastgood init` and `lastgood backup`", here >> 20, archived >> 20
    )]
    SegmentSize { path: PathBuf, cluster: String, here: u64, archived: u64 },
    #[error("{path} is refused: {source}")]
    Header { path: PathBuf, source: HeaderError },
    #[error(
        "{path} is refused: it was written by system {found}, which the repository does not know as {cluster:?} (it knows {known}). Is archive_command pointing at another cluster's name? After initdb or pg_upgrade run `lastgood init`"
    )]
    Foreign { path: PathBuf, found: SystemId, cluster: String, known: String },
    #[error(
        "{name} is refused: the repository holds it with other content. Stored is {there}; here is {here}. Two servers archive under the name {cluster:?}, or this one was restored without lastgood: the stored one stays, and this one stays in pg_wal"
    )]
    Conflict { name: String, cluster: String, there: String, here: String },
    #[error(
        "two servers write the history of {cluster:?}, and this one's WAL is refused (it stays in pg_wal): {here}; {there}. Stop the wrong one; when this is the right one, say so with `lastgood release`"
    )]
    Rival { cluster: String, here: String, there: String },
    #[error(
        "timeline {timeline} of {cluster:?} was taken twice, and this server's WAL is refused (it stays in pg_wal): here it begins at {here}, and the archive has another one of this number, which begins at {there} (this server was promoted while it could not ask the archive which numbers are taken, or two were promoted at once). When the archive's is the right one, restore this server from it, or build it again as a standby. When this server shall go on, give it a [cluster] name of its own and run `lastgood init` and `lastgood backup`"
    )]
    NumberTaken { cluster: String, timeline: Timeline, here: Lsn, there: String },
    #[error(
        "{name} is refused: before it, this server has another segment {before} ({here}) than the archive of {cluster:?} ({there}), so it is of another history (a volume that was set back to an older state, or a copy): it stays in pg_wal. Either restore this server from the archive, or, when it shall go on as it is, give it a [cluster] name of its own and run `lastgood init` and `lastgood backup`"
    )]
    Parted { name: SegmentName, before: SegmentName, cluster: String, there: String, here: String },
    #[error(
        "timeline {timeline} of {cluster:?} was given up for timeline {by} at {at}, so its WAL is refused (it stays in pg_wal); when it shall go on after all, say so with `lastgood release`"
    )]
    Abandoned { cluster: String, timeline: Timeline, by: Timeline, at: jiff::Timestamp },
    #[error(
        "{dir} was restored by lastgood and must not write into the archive of its original; when it is meant to take over, promote it and run `lastgood release --data-directory {dir}`"
    )]
    Restored { dir: PathBuf },
    #[error(
        "this is a standby (standby.signal is there), so archive_mode must be `always`; two servers archiving the same WAL is refused unless [archive] allow_archive_mode_always is set"
    )]
    Standby,
    #[error("which system {path} belongs to cannot be told: {detail}")]
    NoSystem { path: PathBuf, detail: String },
}

impl PushError {
    /// Turned away by decision, not by a failure.
    fn is_refusal(&self) -> bool {
        use PushError::*;
        matches!(
            self,
            Header { .. }
                | SegmentSize { .. }
                | Foreign { .. }
                | Conflict { .. }
                | Rival { .. }
                | NumberTaken { .. }
                | Parted { .. }
                | Abandoned { .. }
                | Restored { .. }
        )
    }
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// As PostgreSQL passed it: `%p`, relative to the data directory.
    pub path: PathBuf,
    /// The working directory; PostgreSQL runs `archive_command` in the data directory.
    pub from: PathBuf,
    pub spool: PathBuf,
    pub push_ahead: usize,
    pub compression_level: i32,
    pub allow_standby: bool,
    /// For the audit, should the file be refused.
    pub who: Who,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    Stored {
        ahead: usize,
    },
    /// The same content was there.
    Already,
    /// An earlier call took it along.
    Acknowledged,
}

/// What became of it, and whether something that was archived wants a look (see `watch::tripwire`), from this data directory.
#[derive(Debug)]
pub struct Outcome {
    pub pushed: Pushed,
    pub look_from: Option<PathBuf>,
    /// A timeline and its parent may both go on: a look is due whether or not the tripwire is on.
    pub forked: bool,
}

/// Stores one file, and then takes along further segments that are ready. A refusal enters the audit, once.
pub async fn push(repository: &Source, request: &Request) -> Result<Outcome, PushError> {
    let mut spool = None;
    let pushed = store(repository, request, &mut spool).await;
    if let (Err(error), Some((spool, _))) = (&pushed, &spool)
        && error.is_refusal()
        && spool.is_new_refusal(&error.to_string())
    {
        // The refusal stands without the audit; the server's log has its words.
        if let Ok(opened) = Repository::open(repository.storage.clone(), &repository.keys).await {
            let event = Event::refusal("archive-push", &repository.cluster_name, error.to_string());
            let _ = audit::append(&opened.cluster(&repository.cluster_name), &request.who, event).await;
        }
    }
    let noted = |note| spool.as_ref().is_some_and(|(spool, _)| spool.noted(note).is_some());
    let forked = noted(Note::Fork);
    let look_from = if forked || noted(Note::Suspicion) { spool.map(|(_, directory)| directory) } else { None };
    Ok(Outcome { pushed: pushed?, look_from, forked })
}

/// Also hands out the spool, once it is open, and the data directory.
async fn store(repository: &Source, request: &Request, opened: &mut Option<(Spool, PathBuf)>) -> Result<Pushed, PushError> {
    let path = resolve(request)?;
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let file: WalFile = name.parse()?;
    let data_directory = data_directory(&path, request);
    if !request.allow_standby && data_directory.join("standby.signal").exists() {
        return Err(PushError::Standby);
    }
    let system = system_of(&path, &file, &data_directory)?;
    let spool = Spool::open(&request.spool, &repository.cluster_name, system, &data_directory).ok();
    *opened = spool.clone().map(|spool| (spool, data_directory.clone()));
    refuse_restored(&data_directory)?;
    let mapped = Arc::new(if matches!(file, WalFile::Segment(_)) { mapped::moved(&data_directory) } else { MappedFiles::new() });
    let job = Job { path, file, system, level: request.compression_level, mapped, spool: spool.clone() };
    if let (WalFile::Segment(segment), Some(spool)) = (file, &spool) {
        let now = Acknowledgement::of(&metadata(&job.path)?, &repository.identity()?);
        let waiting = ready(&data_directory);
        spool.forget_acknowledgements(|name| name == segment.to_string() || waiting.iter().any(|s| s.to_string() == name));
        if spool.take_acknowledgement(segment, &now) {
            return Ok(Pushed::Acknowledged);
        }
    }
    let Opened { cluster, limit, fork } = repository.cluster(&job, &data_directory, spool.as_ref()).await?;
    let WalFile::Segment(segment) = file else {
        let left_more = fork.as_ref().is_some_and(|fork| fork.behind.is_some());
        let (stored, _) = job.run(&cluster, Beside { fork, ..Beside::default() }).await?;
        if let Some(spool) = spool.filter(|_| left_more) {
            spool.note(Note::Fork, Some(&file.to_string()));
        }
        return Ok(if stored == Stored::Same { Pushed::Already } else { Pushed::Stored { ahead: 0 } });
    };
    let identity = repository.identity()?;
    let before = Before { cluster: &cluster, spool: spool.as_ref(), identity: &identity, data_directory: &data_directory };
    let previous = before.of(&job, segment).await?;
    let as_it_was = Acknowledgement::of(&metadata(&job.path)?, &identity);
    let (stored, sha256) = job.run(&cluster, Beside { previous, ..Beside::default() }).await?;
    let Some(spool) = spool else {
        return Ok(if stored == Stored::Same { Pushed::Already } else { Pushed::Stored { ahead: 0 } });
    };
    if limit == Some(segment) {
        // The last one of a timeline that another left, in the middle of this segment.
        spool.note(Note::Fork, Some(&segment.to_string()));
    }
    let segment_bytes = checked_header(&job.path, segment)?.segment_bytes;
    let wanted = |name: &SegmentName| {
        *name > segment
            && name.timeline == segment.timeline
            && !spool.is_acknowledged(*name)
            && limit.is_none_or(|limit| *name <= limit)
    };
    let names = ready(&data_directory).into_iter().filter(wanted).take(request.push_ahead).collect();
    let batch = Ahead { cluster, first: job, segment_bytes, spool: spool.clone(), identity };
    let ahead = batch.push(names, Last { segment, sha256, file: as_it_was }, stored == Stored::New).await;
    Ok(if stored == Stored::Same && ahead == 0 { Pushed::Already } else { Pushed::Stored { ahead } })
}

/// The repository, opened only as far as a push needs.
#[derive(Debug, Clone)]
pub struct Source {
    pub storage: std::sync::Arc<dyn crate::storage::Storage>,
    pub cluster_name: String,
    pub keys: Keys,
}

impl Source {
    /// The place, and the keys: what was proven of it with other keys, or without, proves nothing with these.
    fn identity(&self) -> Result<String, PushError> {
        let place = self.storage.place();
        Ok(match self.keys.offline()? {
            Some(seal) => format!("{place} {}", seal.fingerprint()),
            None if self.keys.is_empty() => place.into(),
            None => format!("{place} sealed"),
        })
    }

    /// The cluster, after it was proven that the repository knows this system, now or by an earlier call.
    async fn cluster(&self, job: &Job, data_directory: &Path, spool: Option<&Spool>) -> Result<Opened, PushError> {
        let (system, timeline) = (job.system, job.file.timeline());
        let place = self.storage.place();
        // A directory may be unmounted at any time and then is an empty one: its record is read each time. It costs nothing.
        let may_vanish = place.contains("file://");
        let identity = self.identity()?;
        let known = spool.and_then(|spool| spool.known(&identity, timeline));
        // What lies behind a fork is looked at anew, to be refused with its reason.
        if let (false, Some(limit)) = (may_vanish, known)
            && !matches!((job.file, limit), (WalFile::Segment(segment), Some(limit)) if segment > limit)
        {
            let seal = self.keys.offline()?;
            // A passphrase or an identity opens the keyring, which must be read.
            if seal.is_some() || self.keys.is_empty() {
                let cluster = Cluster::unchecked(Vault::new(self.storage.clone(), seal), &self.cluster_name);
                return Ok(Opened { cluster, limit, fork: None });
            }
        }
        let repository = Repository::open(self.storage.clone(), &self.keys).await?;
        copies::prove_places(&*self.storage).await?;
        let (cluster, record) = repository.registered(&self.cluster_name).await?;
        let Some(history) = record.history(system) else {
            let known: Vec<String> = record.histories.iter().map(|h| h.system_identifier.to_string()).collect();
            let known = known.join(", ");
            return Err(PushError::Foreign { path: job.path.clone(), found: system, cluster: self.cluster_name.clone(), known });
        };
        let segment = match job.file {
            WalFile::Segment(segment) => Some(segment),
            _ => None,
        };
        let segment_bytes = u64::from(history.wal_segment_bytes);
        if let Some(name) = segment {
            let here = checked_header(&job.path, name)?.segment_bytes;
            if here != segment_bytes {
                let (path, cluster) = (job.path.clone(), self.cluster_name.clone());
                return Err(PushError::SegmentSize { path, cluster, here, archived: segment_bytes });
            }
        }
        let candidate = Candidate { system, timeline, segment, segment_bytes, data_directory };
        // Torn ends and labels of backups lead nowhere; everything else must be of the archive's own history.
        let admitted = match job.file {
            WalFile::Segment(_) | WalFile::History(_) => rival::check(&cluster, &record, &candidate).await?,
            _ => Admitted::default(),
        };
        let limit = admitted.limit.map(|number| SegmentName::new(timeline, number, segment_bytes));
        if let Some(spool) = spool {
            spool.set_known(&identity, timeline, limit);
        }
        Ok(Opened { cluster, limit, fork: admitted.fork })
    }
}

/// The cluster that takes a file, and with what.
struct Opened {
    cluster: Cluster,
    /// The last segment that may be pushed.
    limit: Option<SegmentName>,
    /// Of a history file that comes for the first time.
    fork: Option<Fork>,
}

/// Finds the file: `%p` is relative to the data directory; `%f` alone is looked for in `pg_wal` (rule 27).
fn resolve(request: &Request) -> Result<PathBuf, PushError> {
    let given = request.from.join(&request.path);
    if given.is_file() {
        return Ok(given);
    }
    let bare = request.path.components().count() == 1;
    let in_pg_wal = request.from.join("pg_wal").join(&request.path);
    if bare && in_pg_wal.is_file() {
        return Ok(in_pg_wal);
    }
    Err(PushError::NoFile { path: request.path.clone(), from: request.from.clone() })
}

/// The data directory: where the server runs the command, or else the directory above `pg_wal`.
fn data_directory(path: &Path, request: &Request) -> PathBuf {
    if request.from.join("PG_VERSION").is_file() {
        return request.from.clone();
    }
    path.parent().and_then(Path::parent).unwrap_or(&request.from).to_path_buf()
}

fn refuse_restored(data_directory: &Path) -> Result<(), PushError> {
    if data_directory.join(RESTORED_MARK).exists() {
        return Err(PushError::Restored { dir: data_directory.into() });
    }
    Ok(())
}

pub(super) fn metadata(path: &Path) -> Result<fs::Metadata, PushError> {
    fs::metadata(path).map_err(|source| PushError::Read { path: path.into(), source })
}

/// Whose file it is: a segment says so itself; for the small files the data directory's pg_control does.
fn system_of(path: &Path, file: &WalFile, data_directory: &Path) -> Result<SystemId, PushError> {
    match file {
        WalFile::Segment(name) | WalFile::Partial(name) | WalFile::Torn(name, _) => {
            Ok(checked_header(path, *name)?.system_identifier)
        }
        WalFile::History(_) | WalFile::Backup(..) => match ControlFile::read_bytes_stable(data_directory) {
            Ok((control, _)) => Ok(control.system_identifier),
            Err(error) => Err(PushError::NoSystem { path: path.into(), detail: error.to_string() }),
        },
    }
}

/// Segments that PostgreSQL wants archived, in order.
fn ready(data_directory: &Path) -> Vec<SegmentName> {
    let entries = fs::read_dir(data_directory.join("pg_wal/archive_status")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok());
    let mut names: Vec<SegmentName> = names.collect();
    names.sort_unstable();
    names
}
