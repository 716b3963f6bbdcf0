//! What lies around the places of a restore.
//!
//! Nothing is restored into a repository, a spool, a cluster or a tablespace, nor over a directory that holds one of them: what was
//! written there would be swept, copied, or moved aside with it. And of the tablespaces of a cluster that is moved aside, only those are
//! exchanged that no other cluster uses.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::RestoreError;
use super::standing;
use crate::postgres::apart::{self, Apart};
use crate::postgres::data_directory::is_version_directory;
use crate::postgres::sharing::{self, Sharing};
use crate::postgres::wal::name::SegmentName;

/// Refuses a place in, or around, something that is no place for a cluster.
pub fn check(path: &Path, apart: &[Apart]) -> Result<(), RestoreError> {
    let refuse = |problem: String| {
        let mend = "choose a directory of its own, apart from repositories, spools and other clusters";
        Err(RestoreError::Place { path: path.into(), problem, mend })
    };
    let real = apart::real(path);
    if let Some(own) = apart.iter().find(|own| own.overlaps(&real)) {
        let how = if own.is_in(&real) { "holds" } else { "lies in" };
        return refuse(format!("this directory {how} {} ({})", own.what, own.path.display()));
    }
    for above in real.ancestors().skip(1) {
        if standing::is_cluster(above) {
            return refuse(format!("this directory lies in the cluster {}", above.display()));
        }
        if is_tablespace(above).map_err(|source| RestoreError::Io { doing: "look into", path: above.into(), source })? {
            return refuse(format!("this directory lies in the tablespace {}", above.display()));
        }
        if is_wal(above).map_err(|source| RestoreError::Io { doing: "look into", path: above.into(), source })? {
            return refuse(format!("this directory lies in {}, which is the pg_wal of a cluster", above.display()));
        }
    }
    Ok(())
}

/// Whether a server keeps its WAL in this directory, on a disk of its own. What we may not look into is none of this user's.
fn is_wal(dir: &Path) -> io::Result<bool> {
    if !dir.join("archive_status").is_dir() {
        return Ok(false);
    }
    let is_segment = |entry: fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.parse::<SegmentName>().is_ok());
    match fs::read_dir(dir) {
        Ok(mut entries) => entries.try_fold(false, |found, entry| Ok(found || is_segment(entry?))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether some version keeps files in this directory. What we may not look into is no tablespace of this user.
fn is_tablespace(dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if is_version_directory(entry.file_name().as_encoded_bytes()) && entry.path().is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The clusters whose tablespaces are exchanged.
pub struct Exchanged<'a> {
    /// Their data directories.
    pub dirs: &'a [&'a Path],
    /// Where the tablespaces are, and the name of the directory in each.
    pub locations: &'a [PathBuf],
    pub own: &'a str,
    /// Where other clusters may be.
    pub known: &'a [PathBuf],
    /// A snapshot says that it was taken in this very directory: a copy beside it that is not running is not the original.
    pub is_original: bool,
}

/// Refuses to exchange tablespaces that another cluster uses: a copy's links lead to those of its original.
pub fn check_shared(exchanged: &Exchanged<'_>) -> Result<(), RestoreError> {
    let Exchanged { dirs, locations, own, known, is_original } = exchanged;
    let found = sharing::find(dirs, locations, own, known).map_err(|source| RestoreError::Io {
        doing: "look around",
        path: dirs[0].into(),
        source,
    })?;
    match found {
        Some(Sharing { living: None, .. }) if *is_original => Ok(()),
        Some(Sharing { location, dir, living }) => {
            let running = living.map(|living| format!(", where a server runs ({living})")).unwrap_or_default();
            let problem = format!("this tablespace is used by the cluster in {} too{running}", dir.display());
            let mend = "one of them is a copy whose links lead to the other's files: give the restored cluster places of its own with \
                        --tablespace OID=PATH or --tablespaces-below DIR, or restore into an empty directory";
            Err(RestoreError::Place { path: location, problem, mend })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &Path, apart: &[Apart]) -> String {
        check(path, apart).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn places_in_or_around_what_is_no_place_for_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for path in ["repository/clusters", "data/global", "data/pg_wal", "space/PG_15_202209061/5", "wal/archive_status", "free"]
        {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        fs::write(root.join("wal/000000010000000000000001"), "").unwrap();
        std::os::unix::fs::symlink(root.join("repository/clusters"), root.join("way")).unwrap();
        let apart = [Apart { what: "the repository".into(), path: root.join("repository") }];
        for (place, expected) in [
            ("repository", "the repository"),
            ("repository/new", "lies in the repository"),
            ("way/a/b", "lies in the repository"),
            ("", "holds the repository"),
            ("data/new", "lies in the cluster"),
            ("data/pg_wal/x/y", "lies in the cluster"),
            ("wal/new", "which is the pg_wal of a cluster"),
            ("space/new", "lies in the tablespace"),
            ("space/PG_15_202209061/new", "lies in the tablespace"),
        ] {
            assert!(problem(&root.join(place), &apart).contains(expected), "{place}: {}", problem(&root.join(place), &apart));
        }
        for place in ["free", "free/new", "data", "space", "repository-2"] {
            assert_eq!(problem(&root.join(place), &apart), "", "{place}");
        }
    }
}
