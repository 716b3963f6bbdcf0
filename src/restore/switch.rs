//! Exchanging the old for the new by renaming.
//!
//! # Invariants
//! - Nothing is deleted. What stood there lies beside it afterwards, whole, under a name with the time.
//! - While directories are being exchanged, neither cluster can be started by accident: the one that stands in the place has no
//!   `pg_control` until all is done.
//! - Every step can be seen from the inodes: `undo` takes it from wherever it was interrupted.
//!
//! Of a tablespace only PostgreSQL's own directory (`PG_15_202209061`) is exchanged: the tablespace itself may be a mount point,
//! and what else lies in it belongs to somebody else.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::RestoreError;
use crate::durable;
use crate::postgres::data_directory::{REPLACED_NOTE, SWITCHED_MARK};

/// Where `pg_control` waits while its cluster must not be started.
pub const WITHHELD_CONTROL: &str = "global/pg_control.lastgood";
pub const CONTROL: &str = "global/pg_control";

/// A directory that was replaced: where it stood, where it lies now, and how to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    #[serde(with = "super::path_text")]
    pub place: PathBuf,
    #[serde(with = "super::path_text")]
    pub aside: PathBuf,
    /// Where it lies between the exchange and the last renaming.
    #[serde(with = "super::path_text")]
    pub staging: PathBuf,
    pub device: u64,
    pub inode: u64,
}

impl Pair {
    /// `place` must exist.
    pub fn new(place: PathBuf, staging: PathBuf, aside: PathBuf) -> io::Result<Pair> {
        let metadata = fs::symlink_metadata(&place)?;
        Ok(Pair { place, aside, staging, device: metadata.dev(), inode: metadata.ino() })
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (self.device, self.inode))
    }

    /// Nothing was exchanged yet.
    pub fn stands_in_place(&self) -> bool {
        self.is_at(&self.place)
    }

    /// Where the replaced directory is.
    pub fn now_at(&self) -> Option<&Path> {
        [&self.place, &self.aside, &self.staging].into_iter().find(|path| self.is_at(path)).map(PathBuf::as_path)
    }
}

/// What took the place of what; the content of [`SWITCHED_MARK`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    pub at: Timestamp,
    /// In words: `restore to latest of snapshot …`.
    pub what: String,
    pub data: Pair,
    pub tablespaces: Vec<Pair>,
}

impl Switched {
    pub fn read(cluster: &Path) -> Result<Switched, RestoreError> {
        let path = cluster.join(SWITCHED_MARK);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RestoreError::NothingToUndo { path: cluster.into() });
            }
            Err(source) => return Err(RestoreError::Io { doing: "read", path, source }),
        };
        serde_json::from_slice(&text).map_err(|error| RestoreError::Io { doing: "read", path, source: error.into() })
    }

    pub fn write(&self, cluster: &Path) -> io::Result<()> {
        self.write_as(cluster, SWITCHED_MARK)
    }

    pub fn write_as(&self, cluster: &Path, name: &str) -> io::Result<()> {
        put(cluster, name, &serde_json::to_vec_pretty(self)?)
    }

    /// Says in the cluster that was moved aside what it is.
    pub fn leave_note(&self, aside: &Path) -> io::Result<()> {
        let note = Note {
            what: "This cluster was moved aside by lastgood. It is whole: nothing of it was changed or deleted.",
            replaced_at: self.at,
            by: &self.what,
            stood_in: &self.data.place,
            put_it_back_with: format!("lastgood undo --into {}", self.data.place.display()),
        };
        put(aside, REPLACED_NOTE, &serde_json::to_vec_pretty(&note)?)
    }
}

/// Writes a file of ours into a cluster; root gives it to the cluster's owner, who must be able to read his own directory.
fn put(cluster: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let path = cluster.join(name);
    durable::replace(&path, bytes, 0o600)?;
    give_to_owner(cluster, &path)
}

fn give_to_owner(cluster: &Path, path: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let owner = fs::metadata(cluster)?;
        std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Note<'a> {
    what: &'static str,
    replaced_at: Timestamp,
    by: &'a str,
    stood_in: &'a Path,
    put_it_back_with: String,
}

/// `DIRECTORY.lastgood-new`: where the new cluster is built.
pub fn staging(place: &Path) -> PathBuf {
    with_ending(place, ".lastgood-new")
}

/// `DIRECTORY.replaced-20261121T041500Z`; with a number behind it when that is taken.
pub fn aside(place: &Path, word: &str, at: Timestamp) -> PathBuf {
    let first = with_ending(place, &format!(".{word}-{}", at.strftime("%Y%m%dT%H%M%SZ")));
    let others = (2..).map(|number| with_ending(&first, &format!("-{number}")));
    [first.clone()].into_iter().chain(others).find(|path| fs::symlink_metadata(path).is_err()).unwrap_or(first)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(ending);
    path.with_file_name(name)
}

/// Exchanges two directories, at once where the file system can.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        // Older NFS, FUSE and overlays know no exchange. In between, `one` does not exist.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            let between = durable::temporary_beside(one);
            fs::rename(one, &between)?;
            fs::rename(other, one)?;
            fs::rename(&between, other)?;
        }
        Err(error) => return Err(error.into()),
    }
    durable::sync_directory(durable::parent(one))?;
    durable::sync_directory(durable::parent(other))
}

/// Renames, never onto something.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if !to.exists() => fs::rename(from, to)?,
        Err(error) => return Err(error.into()),
    }
    durable::sync_directory(durable::parent(to))?;
    durable::sync_directory(durable::parent(from))
}

/// Keeps a server from starting in a directory for a moment, as PostgreSQL itself does: by a `postmaster.pid` of a living process. A
/// stale one, which a crash leaves, steps aside for as long.
#[derive(Debug)]
pub struct Hold {
    path: PathBuf,
    stale: bool,
}

const PID_FILE: &str = "postmaster.pid";
const STALE_PID_FILE: &str = "postmaster.pid.lastgood";

impl Hold {
    /// Only where nobody lives: that was looked at.
    pub fn take(cluster: &Path) -> io::Result<Hold> {
        let path = cluster.join(PID_FILE);
        let stale = match fs::rename(&path, cluster.join(STALE_PID_FILE)) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let hold = Hold { path, stale };
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&hold.path)?;
        writeln!(file, "{}\n{}", std::process::id(), cluster.display())?;
        give_to_owner(cluster, &hold.path)?;
        Ok(hold)
    }

    /// Ends it where the directory is now.
    pub fn release(mut self, cluster: &Path) {
        self.path = cluster.join(PID_FILE);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = match self.stale {
            true => fs::rename(self.path.with_file_name(STALE_PID_FILE), &self.path),
            false => fs::remove_file(&self.path),
        };
    }
}
