//! What stands in a place where a restore shall go: whose it is, whether it lives, how much of it is nowhere else.
//!
//! The fingerprint covers the metadata of every file (path, length, times of change, inode, mode) of the directory and of its
//! tablespaces. No cluster can be started, written to, moved or exchanged without a change in it: the code of a plan and a typed
//! confirmation are worth nothing after that.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::RestoreError;
use crate::postgres::control::{ControlFile, State};
use crate::postgres::data_directory::{self, RESTORED_MARK};
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::postmaster::{self, Living};
use crate::repo::object::Sha;

/// A cluster in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Occupant {
    /// Absent when pg_control cannot be read; then it is treated with most care.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    pub major: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub living: Option<Living>,
    /// Restored by lastgood, and never released.
    pub unreleased: bool,
    pub files: u64,
    pub bytes: u64,
    /// The newest change of any file.
    pub last_change: Option<Timestamp>,
    /// Where its tablespaces are.
    #[serde(serialize_with = "super::path_text::all")]
    pub tablespaces: Vec<PathBuf>,
    /// Where its `pg_wal` is, when it is a link.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::path_text::option")]
    pub wal_directory: Option<PathBuf>,
    pub fingerprint: Sha,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Control {
    pub system_identifier: SystemId,
    pub state: State,
    pub written: Timestamp,
    pub checkpoint: Lsn,
    pub timeline: Timeline,
}

impl Occupant {
    pub fn system(&self) -> Option<SystemId> {
        self.control.as_ref().map(|c| c.system_identifier)
    }
}

/// Whether a directory that is not empty is a cluster, or what is left of one.
pub fn is_cluster(dir: &Path) -> bool {
    ["PG_VERSION", "global", "base", "pg_wal"].iter().filter(|name| dir.join(name).exists()).count() >= 2
}

/// Looks at the cluster in `dir`. Takes a `stat` for each of its files.
pub fn look(dir: &Path) -> Result<Occupant, RestoreError> {
    let failed = |source| RestoreError::Io { doing: "look at", path: dir.into(), source };
    let control = ControlFile::read_bytes_stable(dir).ok().map(|(control, _)| Control {
        system_identifier: control.system_identifier,
        state: control.state,
        written: control.written,
        checkpoint: control.checkpoint,
        timeline: control.timeline,
    });
    let tablespaces = tablespace_targets(dir).map_err(failed)?;
    let own = data_directory::own_in(dir);
    let wal_directory = data_directory::wal_place(dir).map_err(failed)?;
    let mut survey = Survey::default();
    survey.entry(dir, Path::new("")).map_err(failed)?;
    for target in &tablespaces {
        survey.tablespace(target, own.as_deref()).map_err(failed)?;
    }
    if let Some(place) = &wal_directory {
        survey.entry(place, place).map_err(failed)?;
    }
    let mut living = postmaster::living(dir).map_err(failed)?;
    for inner in survey.clusters.iter().map(|name| dir.join(name)) {
        if living.is_some() {
            break;
        }
        let inside = postmaster::living(&inner).map_err(failed)?;
        living = inside.map(|living| Living { elsewhere: living.elsewhere.clone().or(Some(inner)), ..living });
    }
    Ok(Occupant {
        control,
        major: data_directory::major_version(dir).ok(),
        living,
        unreleased: dir.join(RESTORED_MARK).try_exists().map_err(failed)?,
        files: survey.files,
        bytes: survey.bytes,
        last_change: Timestamp::from_second(survey.newest_s).ok(),
        tablespaces,
        wal_directory,
        fingerprint: Sha(survey.hasher.finalize().into()),
    })
}

/// Targets of the links in `pg_tblspc`, as far as they exist; a broken cluster may have broken links, and none at all.
fn tablespace_targets(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let links = match fs::read_dir(dir.join("pg_tblspc")) {
        Ok(links) => links,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut targets = Vec::new();
    for link in links {
        let link = link?;
        if !link.file_type()?.is_symlink() {
            continue;
        }
        match fs::canonicalize(link.path()) {
            Ok(target) => targets.push(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    targets.sort();
    Ok(targets)
}

/// Adds up and hashes what is there, in the order of names.
#[derive(Default)]
struct Survey {
    hasher: Sha256,
    files: u64,
    bytes: u64,
    newest_s: i64,
    /// Directories of other clusters in this one.
    clusters: Vec<PathBuf>,
}

impl Survey {
    fn entry(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            // Gone between the listing and now: a living server does that, and the next look will differ anyway.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !name.as_os_str().is_empty() => return Ok(()),
            Err(error) => return Err(error),
        };
        self.hasher.update(name.as_os_str().as_bytes());
        self.hasher.update([0]);
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        for number in times.map(|t| t as u64).into_iter().chain([metadata.dev(), metadata.ino(), metadata.mode().into()]) {
            self.hasher.update(number.to_le_bytes());
        }
        self.newest_s = self.newest_s.max(metadata.mtime());
        if metadata.is_dir() {
            return self.directory(path, name);
        }
        if name.file_name().is_some_and(|last| last == "postmaster.pid")
            && let Some(inner) = name.parent().filter(|inner| !inner.as_os_str().is_empty() && name.is_relative())
        {
            self.clusters.push(inner.into());
        }
        self.hasher.update(metadata.len().to_le_bytes());
        self.files += 1;
        self.bytes += metadata.len();
        Ok(())
    }

    fn directory(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let mut names: Vec<_> = fs::read_dir(path)?.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        names.iter().try_for_each(|child| self.entry(&path.join(child), &name.join(child)))
    }

    /// Of a tablespace only the cluster's own directory: what else lies there belongs to somebody else, who may be at work. Where the
    /// cluster cannot be read, all that may be its own.
    fn tablespace(&mut self, target: &Path, own: Option<&str>) -> io::Result<()> {
        let mut names: Vec<_> = fs::read_dir(target)?.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<_>>()?;
        let is_own = |name: &OsString| match own {
            Some(own) => name == own,
            None => data_directory::is_version_directory(name.as_bytes()),
        };
        names.retain(is_own);
        names.sort();
        names.iter().try_for_each(|child| self.entry(&target.join(child), &target.join(child)))
    }
}
