//! Looking at the places a restore writes to, before it does and again when it begins.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::RestoreError;
use super::standing::{self, Occupant};
use super::switch::{Switched, WITHHELD_CONTROL};
use crate::durable;
use crate::postgres::data_directory::{RESTORING_MARK, SWITCHED_MARK};

/// What stands where the restore shall go.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum Standing {
    /// Nothing; the directory will be made.
    Absent,
    Empty,
    /// The remains of a restore that was interrupted; they were never a cluster.
    Interrupted,
    /// A cluster, which will be moved aside.
    Cluster(Box<Occupant>),
    /// A tablespace of the cluster that will be moved aside.
    Tablespace,
}

impl Standing {
    pub fn occupant(&self) -> Option<&Occupant> {
        match self {
            Standing::Cluster(occupant) => Some(occupant),
            _ => None,
        }
    }

    pub fn words(&self) -> &'static str {
        match self {
            Standing::Absent => "nothing, it will be made",
            Standing::Empty => "an empty directory",
            Standing::Interrupted => "the remains of an interrupted restore, which will be replaced",
            Standing::Cluster(_) => "a cluster, which will be moved aside",
            Standing::Tablespace => "a tablespace of that cluster, which will be moved aside",
        }
    }
}

/// Refuses every place that a restore must not touch.
pub fn look(path: &Path) -> Result<Standing, RestoreError> {
    let refuse = |problem: &str, mend| Err(RestoreError::Place { path: path.into(), problem: problem.into(), mend });
    // With a slash at its end, a link would be followed before it is looked at.
    let path = &path.components().collect::<PathBuf>();
    if !path.is_absolute() || path.file_name().is_none() || path.components().any(|part| part == Component::ParentDir) {
        return refuse("this is not an absolute path to a directory", "name the whole path, without `..`");
    }
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return look_above(path),
        Err(source) => return Err(RestoreError::Io { doing: "look at", path: path.into(), source }),
    };
    if metadata.is_symlink() {
        return refuse("this is a symbolic link", "name the directory itself, so that nothing else is meant by accident");
    }
    if !metadata.is_dir() {
        return refuse("this is no directory", "choose a directory that is empty or does not exist yet");
    }
    let me = rustix::process::geteuid();
    if !me.is_root() && metadata.uid() != me.as_raw() {
        return refuse("the directory belongs to another user", "run as its owner, or choose another directory");
    }
    let failed = |source| RestoreError::Io { doing: "look into", path: path.into(), source };
    let names: io::Result<Vec<_>> =
        fs::read_dir(path).map_err(failed)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    let Some(found) = names.map_err(failed)?.into_iter().find(|name| name != "lost+found") else {
        return if is_writable(path) {
            Ok(Standing::Empty)
        } else {
            refuse("the directory cannot be written", "change its permissions")
        };
    };
    let has_control = path.join("global/pg_control").try_exists().map_err(failed)?;
    // A cluster that was restored long ago and lost its pg_control since has the mark too, and nothing withheld.
    if path.join(SWITCHED_MARK).exists() && !has_control && path.join(WITHHELD_CONTROL).exists() {
        // Interrupted just before: the old cluster still stands in its place, and what is here can be built anew.
        if Switched::read(path).is_ok_and(|switched| switched.data.stands_in_place()) && path.join(RESTORING_MARK).exists() {
            return Ok(Standing::Interrupted);
        }
        return refuse(
            "a restore was interrupted here while it exchanged the old cluster for the new one",
            "put the old one back with `lastgood undo --into` this directory, then restore again",
        );
    }
    if path.join(RESTORING_MARK).exists() && !has_control {
        return Ok(Standing::Interrupted);
    }
    if standing::is_cluster(path) {
        check_movable(path)?;
        return Ok(Standing::Cluster(Box::new(standing::look(path)?)));
    }
    refuse(
        &format!("the directory is not empty (it holds {:?}), and no cluster", found.to_string_lossy()),
        "choose an empty directory, or move this one aside: nothing that stands there is ever overwritten",
    )
}

/// A cluster is moved aside by renaming its directory, which needs rights on the directory above, and the same file system.
pub fn check_movable(path: &Path) -> Result<(), RestoreError> {
    let refuse = |problem: String, mend| Err(RestoreError::Place { path: path.into(), problem, mend });
    if is_mount_point(path) {
        return refuse(
            "the cluster's directory is a mount point, so it cannot be renamed".into(),
            "restore to another directory with --into and let the server use that one, or move the content of this one to a \
             directory below it, stop here, and restore into the empty place",
        );
    }
    let above = durable::parent(path);
    if !is_writable(above) {
        return refuse(
            format!("the cluster must be renamed, and {} cannot be written by this user", above.display()),
            "run as the owner of the directory above, or restore to another directory with --into",
        );
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    // Sees bind mounts too, which share their device with the directory above.
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The same for a tablespace. What an interrupted restore left in one is never removed by us: nothing in it tells our remains from
/// a tablespace that somebody made there since.
///
/// A tablespace of the cluster that is replaced may be full: its directory is exchanged together with it.
pub fn look_tablespace(path: &Path, replaced: Option<&Occupant>) -> Result<Standing, RestoreError> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    if replaced.is_some_and(|occupant| occupant.tablespaces.contains(&real)) && real == path {
        if !is_writable(path) {
            let problem = "the tablespace's directory cannot be written by this user".to_string();
            return Err(RestoreError::Place { path: path.into(), problem, mend: "change its permissions" });
        }
        return Ok(Standing::Tablespace);
    }
    let standing = look(path)?;
    if let Standing::Cluster(_) = standing {
        let problem = "a cluster stands here".to_string();
        return Err(RestoreError::Place { path: path.into(), problem, mend: "choose another directory" });
    }
    let is_mark = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() == RESTORING_MARK);
    let only_mark = || fs::read_dir(path).is_ok_and(|mut entries| entries.all(is_mark));
    if standing == Standing::Interrupted && !only_mark() {
        let problem = "the directory is not empty: an interrupted restore left files here".to_string();
        return Err(RestoreError::Place { path: path.into(), problem, mend: "look at them, empty it by hand, and run again" });
    }
    Ok(standing)
}

/// A directory that does not exist needs one above it that does and may be written.
fn look_above(path: &Path) -> Result<Standing, RestoreError> {
    let above = durable::parent(path);
    let problem = match fs::metadata(above) {
        Ok(metadata) if metadata.is_dir() && is_writable(above) => return Ok(Standing::Absent),
        Ok(metadata) if metadata.is_dir() => format!("{} cannot be written by this user", above.display()),
        Ok(_) => format!("{} is no directory", above.display()),
        Err(_) => format!("{} does not exist", above.display()),
    };
    Err(RestoreError::Place { path: path.into(), problem, mend: "make it, or choose another directory" })
}

fn is_writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// Checks that the file systems hold what will be written to them. `needs` may name several places on one file system.
pub fn check_room(needs: &[(PathBuf, u64)]) -> Result<(), RestoreError> {
    let mut sums: Vec<(u64, PathBuf, u64)> = Vec::new();
    for (path, bytes) in needs {
        let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let device =
            fs::metadata(existing).map_err(|source| RestoreError::Io { doing: "look at", path: existing.into(), source })?.dev();
        match sums.iter_mut().find(|(known, _, _)| *known == device) {
            Some(sum) => sum.2 += bytes,
            None => sums.push((device, existing.into(), *bytes)),
        }
    }
    for (_, place, needed) in sums {
        let space = rustix::fs::statvfs(&place).map_err(|e| RestoreError::Io {
            doing: "look at",
            path: place.clone(),
            source: e.into(),
        })?;
        let free = space.f_bavail * space.f_frsize;
        if free < needed {
            return Err(RestoreError::NoRoom { place, free, needed });
        }
    }
    Ok(())
}

/// Takes hold of a data directory or a tablespace: makes it, marks it, locks the mark, and removes what an interrupted restore
/// left. The lock ends with the value.
pub fn occupy(path: &Path) -> Result<fs::File, RestoreError> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let io = |doing: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| RestoreError::Io { doing, path, source }
    };
    let standing = look(path)?;
    if let Standing::Cluster(_) = standing {
        let problem = "a cluster appeared here meanwhile".to_string();
        return Err(RestoreError::Place { path: path.into(), problem, mend: "look at it, and make a new plan" });
    }
    if standing == Standing::Absent {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(io("make", path)(source)),
        }
    }
    let mark = path.join(RESTORING_MARK);
    let file =
        fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&mark).map_err(io("write", &mark))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let problem = "another restore is writing into this directory".to_string();
        return Err(RestoreError::Place { path: path.into(), problem, mend: "wait for it, or choose another directory" });
    }
    clear_remains(path)?;
    Ok(file)
}

/// Removes what an interrupted restore left: only ever called with the lock, on a directory that carries our mark and no pg_control.
fn clear_remains(path: &Path) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::Io { doing: "clear", path: path.into(), source };
    if path.join("global/pg_control").try_exists().map_err(failed)? {
        let problem = "a cluster appeared here meanwhile".to_string();
        return Err(RestoreError::Place { path: path.into(), problem, mend: "choose another directory" });
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name == RESTORING_MARK || name == "lost+found" {
            continue;
        }
        let is_directory = entry.file_type().map_err(failed)?.is_dir();
        let removed = if is_directory { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.map_err(failed)?;
    }
    Ok(())
}
