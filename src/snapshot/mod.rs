//! Taking a snapshot: one consistent copy of a data directory that costs what changed.
//!
//! # The way
//! [`take`] holds the session and the order of things, which [`begin`] opens; [`copy`] runs what works together. [`parent`] finds the snapshot to build on and walks its file lists.
//! [`gather`] reads from the WAL index what [`changes`] there were since, and [`survey`] looks at a sample of them.
//! [`choose`] walks the data directory beside them and decides what has to be read, [`unread`] which pages of a file. [`read`] reads files (what no WAL describes until it stands still: [`steady`]), checks pages and
//! cuts frames, on threads of its own. [`retire`] names older packs that are not built on. [`stash`] keeps compressed frames together, [`pack`] collects them into packs and stores those. Results come back in the order
//! of the walk and go to the file lists (rules: `repo::validate`).
//!
//! # What is unchanged
//! A file whose length, modification time and inode are the parent's, and which was modified well before the parent listed it,
//! is not read (unless `paranoid`). Of other files of a relation's main fork, pages that the WAL from the parent's start to this
//! start does not name are the parent's and are not read; so is, of those that are read, a page whose LSN is below the parent's
//! start LSN. Everything else is compared by content. Without an unbroken index of that WAL, or when `paranoid`, all pages of these
//! files are read.
//!
//! # Crash consistency
//! Until the manifest is written ([`commit`]) there is no snapshot. Whatever ends the work early (a lost session, a promotion, a failing
//! store, a full disk, kill -9) leaves packs and lists that nothing refers to; `upkeep::sweep` collects them before the next one.
//!
//! # Memory
//! One open pack and two on their way to the store, one megabyte for each reading thread, the names of one directory, and a
//! window of [`choose::WINDOW_JOBS`] jobs between the walk and the lists.

pub mod begin;
pub mod changes;
pub mod choose;
mod commit;
pub mod copy;
pub mod gather;
pub mod pack;
pub mod parent;
pub mod read;
pub mod retire;
mod stash;
mod steady;
pub mod stretch;
pub mod survey;
pub mod take;
pub mod unread;
pub mod wait;

use std::path::PathBuf;

use crate::postgres::control::ControlError;
use crate::postgres::data_directory::DataDirectoryError;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::session::SessionError;
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;
use crate::repo::object::Sha;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    DataDirectory(#[from] DataDirectoryError),
    #[error("read {path}: {source}{}", crate::owner::kept_out(path, source))]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "the data directory {dir} belongs to system {found}, but the server at {target} is system {expected}; set [postgres] data_directory to where this host sees the server's data directory"
    )]
    OtherDirectory { dir: PathBuf, found: SystemId, target: String, expected: SystemId },
    #[error("the cluster {name:?} in the repository is system {}, but this server is system {found}; run `lastgood init` to register it as the successor under that name, or choose another name", known.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "))]
    Unregistered { name: String, known: Vec<SystemId>, found: SystemId },
    #[error(
        "{dir} was restored by lastgood and is not released, so it does not archive; when it takes over, promote it and run `lastgood release --data-directory {dir}`"
    )]
    NotReleased { dir: PathBuf },
    #[error(
        "this server's WAL segments have {} MiB, and those that the archive has of {name:?} {} MiB: pg_resetwal --wal-segsize changed them, which also ended the history of its WAL. Give it a [cluster] name of its own, and run `lastgood init` and `lastgood backup`; what was before stays under {name:?}", here >> 20, archived >> 20
    )]
    SegmentSize { name: String, here: u32, archived: u32 },
    #[error("this server has blocks of {bytes} bytes; lastgood reads clusters with the usual 8192")]
    BlockSize { bytes: u32 },
    #[error("archiving does not work: {reason}")]
    Archiving { reason: String },
    #[error(
        "after the start at {start}, pg_control in {dir} still shows an older checkpoint ({checkpoint}): this is not the disk the server writes to"
    )]
    OtherDisk { dir: PathBuf, start: Lsn, checkpoint: Lsn },
    #[error("the server was promoted from a standby during the snapshot, which therefore cannot be consistent; run it again")]
    Promoted,
    #[error("the timeline changed from {from} to {to} during the snapshot, which therefore cannot be consistent; run it again")]
    TimelineChanged { from: Timeline, to: Timeline },
    #[error(
        "there is a snapshot {newest}, after which no id is left: the database's clock was far ahead when it was taken; expire it, and run again"
    )]
    Clock { newest: String },
    #[error("waited {waited_s} s for WAL segment {segment} to reach the repository; {reason}")]
    WalMissing { segment: String, waited_s: u64, reason: String },
    #[error(
        "archiving does not work: the archive of {cluster:?} holds segment {segment} with other content ({}…) than this server ({}…), so a backup would mix two histories. Either this server's volume was set back to an older state, or another server archives under this name. Either restore this server from the archive, or, when it shall go on as it is, give it a [cluster] name of its own and run `lastgood init` and `lastgood backup`", &there.to_string()[..16], &here.to_string()[..16]
    )]
    OtherWal { cluster: String, segment: SegmentName, here: Sha, there: Sha },
    #[error("pg_control vanished from {dir} during the snapshot")]
    ControlVanished { dir: PathBuf },
    #[error("a file in {dir} cannot be stored: {problem}")]
    Unstorable { dir: PathBuf, problem: String },
    #[error("a thread of the snapshot died: {detail}")]
    Thread { detail: String },
}
