//! Which files of a data directory belong to a base backup, and which kind each is.
//!
//! Sources: `src/backend/backup/basebackup.c` (`excludeDirContents`, `excludeFiles`), `src/common/relpath.c` and
//! `src/backend/storage/file/reinit.c` (names of relation files). Rules 13, 14 and 15.
//!
//! # Order
//! The walk is depth first in byte order of the paths, a directory counting with its slash. Two walks, or a walk and an
//! older file list, can therefore be merged without holding either in memory. One directory's names are held at a time.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::apart::{self, Apart};
use super::control::ControlFile;
use super::wal::reference::RelFileLocator;

mod links;
mod walk;

pub use links::{tablespaces, wal_place};
pub use walk::{has_own, may_vanish, walk};

/// OIDs of `pg_default` and `pg_global`.
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// Directories that must exist after a restore, and whose content must not.
const EMPTY_DIRECTORIES: [&str; 8] =
    ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_wal"];

/// Files of the data directory itself that never belong to a snapshot. `backup_label` and `tablespace_map` come from the
/// server's answer instead (rule 6).
const EXCLUDED_FILES: [&str; 21] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "tablespace_map",
    "backup_label.old",
    "tablespace_map.old",
    "backup_manifest",
    "recovery.signal",
    "standby.signal",
    "recovery.conf",
    "recovery.done",
    "current_logfiles",
    "current_logfiles.tmp",
    "postgresql.auto.conf.tmp",
    RESTORED_MARK,
    RESTORING_MARK,
    SWITCHED_MARK,
    REPLACED_NOTE,
    UNDOING_MARK,
    EXTERNAL_PID,
    START_LOG,
];

/// Lies in every data directory that lastgood restored and that was not declared the successor (rules 29, 41).
pub const RESTORED_MARK: &str = "lastgood.restored";

/// Lies in a directory while it is being restored; holds the lock of the restore.
pub const RESTORING_MARK: &str = "lastgood.restoring";

/// Lies in a cluster that took the place of another: what it replaced, and where that is now.
pub const SWITCHED_MARK: &str = "lastgood.switched";

/// Lies in a cluster while an undo moves it aside: the names that everything gets.
pub const UNDOING_MARK: &str = "lastgood.undoing";

/// Where a copy writes the pid that its original writes elsewhere (`external_pid_file`).
pub const EXTERNAL_PID: &str = "lastgood.pid";

/// What a copy says that lastgood starts.
pub const START_LOG: &str = "lastgood.log";

/// Lies in a cluster that was moved aside, and says so.
pub const REPLACED_NOTE: &str = "lastgood.replaced";

#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    #[error("read {path}: {source}{}", crate::owner::kept_out(path, source))]
    Io { path: PathBuf, source: io::Error },
    #[error("{dir} is not a PostgreSQL data directory: it has no PG_VERSION")]
    NoVersion { dir: PathBuf },
    #[error("tablespace {link}: {problem}; lastgood cannot tell what such a link would overwrite at restore")]
    Tablespace { link: PathBuf, problem: String },
    #[error(
        "tablespace {link}: {target} holds no {own}, so this cluster's files are not there; is its file system mounted? Mount it, or drop the tablespace, and run again"
    )]
    Unmounted { link: PathBuf, target: PathBuf, own: String },
    #[error(
        "{what} {path} lies in {dir}, so it would be stored in every backup and lost together with the cluster; move it out of the data directory, to another disk"
    )]
    Holds { dir: PathBuf, what: String, path: PathBuf },
    #[error("{path} vanished while it was read, and PostgreSQL never removes it; look at the file system, and run again")]
    Vanished { path: PathBuf },
    #[error("{dir}: PG_VERSION or pg_control cannot be read, so which directories of its tablespaces belong to it is unknown")]
    Unknown { dir: PathBuf },
}

/// What kind of file, which decides how changes are found and whether pages are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Main fork of a relation: its pages carry LSNs that prove whether they changed. `file` is the number of its 1 GiB file.
    Main { file: u32 },
    /// Another fork (free space, visibility, init): pages with checksums, but changes are found by content.
    Fork { file: u32 },
    /// Anything else.
    Plain,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File {
        class: Class,
    },
    Directory,
    /// A link in `pg_tblspc`, with its target.
    Tablespace {
        target: PathBuf,
    },
}

/// One thing in the data directory.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Relative to the data directory, `/` between components, no slash at the end.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub bytes: u64,
    pub mode: u32,
    /// Nanoseconds since 1970, host's file system.
    pub modified_ns: i128,
    /// Which file this is: the inode number mixed with the time of birth, because numbers are soon used again.
    pub inode: u64,
}

impl Entry {
    /// The key of the walk's order.
    pub fn order_key(&self) -> Vec<u8> {
        order_key(&self.path, matches!(self.kind, Kind::Directory))
    }
}

/// A directory sorts with its slash, so that it stands right before what is in it.
pub fn order_key(path: &[u8], is_directory: bool) -> Vec<u8> {
    let mut key = path.to_vec();
    if is_directory {
        key.push(b'/');
    }
    key
}

/// The major version in `PG_VERSION`.
pub fn major_version(dir: &Path) -> Result<u32, DataDirectoryError> {
    let text = fs::read_to_string(dir.join("PG_VERSION")).map_err(|_| DataDirectoryError::NoVersion { dir: dir.into() })?;
    text.trim().parse().map_err(|_| DataDirectoryError::NoVersion { dir: dir.into() })
}

/// What of a directory belongs to a cluster.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The name of this cluster's own directory in a tablespace (see [`own_directory`]).
    pub own: String,
    /// What lies in no cluster, although a link may lead there.
    pub apart: Vec<Apart>,
}

impl Scope {
    /// Of the cluster in `dir`, as its `PG_VERSION` and its pg_control say.
    pub fn of(dir: &Path) -> Result<Scope, DataDirectoryError> {
        let own = own_in(dir).ok_or_else(|| DataDirectoryError::Unknown { dir: dir.into() })?;
        Ok(Scope { own, apart: Vec::new() })
    }

    pub fn new(major: u32, catalog_version: u32) -> Scope {
        Scope { own: own_directory(major, catalog_version), apart: Vec::new() }
    }
}

/// `PG_15_202209061`: several versions may have their tablespaces in one place, each in a directory of its own.
pub fn own_directory(major: u32, catalog_version: u32) -> String {
    format!("PG_{major}_{catalog_version}")
}

/// The same of the cluster in `dir`; `None` when it cannot be told.
pub fn own_in(dir: &Path) -> Option<String> {
    let (control, _) = ControlFile::read_bytes_stable(dir).ok()?;
    Some(own_directory(major_version(dir).ok()?, control.catalog_version))
}

/// Whether this is the name of a directory that some version keeps in a tablespace.
pub fn is_version_directory(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"PG_") else { return false };
    rest.splitn(2, |b| *b == b'_').filter(|part| is_number(part)).count() == 2
}

/// Whether none of `apart` lies in `dir`: a backup there would store itself, and be lost with what it protects.
pub fn check_apart(dir: &Path, apart: &[Apart]) -> Result<(), DataDirectoryError> {
    let here = apart::real(dir);
    match apart.iter().find(|apart| apart.is_in(&here)) {
        Some(inside) => Err(DataDirectoryError::Holds { dir: dir.into(), what: inside.what.clone(), path: inside.path.clone() }),
        None => Ok(()),
    }
}

/// Whether `path` is `dir` or below it; by components, so `/ts/10` is not inside `/ts/1`.
pub fn is_inside(path: &Path, dir: &Path) -> bool {
    path.starts_with(dir)
}

fn entry(path: Vec<u8>, kind: Kind, metadata: &Metadata) -> Entry {
    Entry {
        path,
        kind,
        bytes: metadata.len(),
        mode: metadata.mode() & 0o7777,
        modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        inode: metadata.ino() ^ born_ns(metadata).rotate_left(24),
    }
}

/// When the file was made; 0 where the file system does not tell.
fn born_ns(metadata: &Metadata) -> u64 {
    let born = metadata.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    born.map_or(0, |since| since.as_nanos() as u64)
}

/// Left out wherever it stands, or because of where it stands.
fn is_left_out(parent: &[u8], name: &[u8], own: &str) -> bool {
    if name.starts_with(b"pgsql_tmp") || name.starts_with(b"pg_internal.init") || name == b"lost+found" {
        return true;
    }
    if is_tablespace_root(parent) {
        return name != own.as_bytes();
    }
    parent.is_empty() && (EXCLUDED_FILES.iter().any(|f| f.as_bytes() == name) || is_socket_lock(name))
}

/// The lock of a socket in the data directory: in a copy it would name the original's process.
pub fn is_socket_lock(path: &[u8]) -> bool {
    path.starts_with(b".s.PGSQL.") && path.ends_with(b".lock")
}

/// `pg_tblspc/<oid>`.
fn is_tablespace_root(path: &[u8]) -> bool {
    path.strip_prefix(b"pg_tblspc/").is_some_and(|rest| !rest.contains(&b'/'))
}

/// `global`, `base/<database>`, `pg_tblspc/<oid>/PG_*/<database>`.
fn holds_relations(path: &[u8]) -> bool {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    match parts.as_slice() {
        [b"global"] => true,
        [b"base", database] => is_number(database),
        [b"pg_tblspc", _, version, database] => version.starts_with(b"PG_") && is_number(database),
        _ => false,
    }
}

/// The relation of which a path is a file of the main fork, as WAL names it.
pub fn main_fork(path: &[u8]) -> Option<RelFileLocator> {
    let slash = path.iter().rposition(|b| *b == b'/')?;
    let (directory, name) = (&path[..slash], &path[slash + 1..]);
    let (number, None, _) = relation_parts(name)? else { return None };
    let parse = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u32>().ok();
    let parts: Vec<&[u8]> = directory.split(|b| *b == b'/').collect();
    let (tablespace, database) = match parts.as_slice() {
        [b"global"] => (GLOBAL_TABLESPACE, 0),
        [b"base", database] => (DEFAULT_TABLESPACE, parse(database)?),
        [b"pg_tblspc", tablespace, version, database] if version.starts_with(b"PG_") => (parse(tablespace)?, parse(database)?),
        _ => return None,
    };
    Some(RelFileLocator { tablespace, database, number: parse(number)? })
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// Relation, fork, number of the file.
type RelationParts<'a> = (&'a [u8], Option<&'a [u8]>, u32);

/// `<relfilenode>[_<fork>][.<file>]`, split.
fn relation_parts(name: &[u8]) -> Option<RelationParts<'_>> {
    let (stem, file) = match name.iter().position(|b| *b == b'.') {
        Some(dot) => {
            let number = &name[dot + 1..];
            let number = is_number(number).then(|| std::str::from_utf8(number).ok()?.parse().ok())??;
            (&name[..dot], number)
        }
        None => (name, 0),
    };
    let (node, fork) = match stem.iter().position(|b| *b == b'_') {
        Some(at) => (&stem[..at], Some(&stem[at + 1..])),
        None => (stem, None),
    };
    let known = fork.is_none_or(|fork| matches!(fork, b"fsm" | b"vm" | b"init"));
    (is_number(node) && known).then_some((node, fork, file))
}

fn class_of(name: &[u8]) -> Class {
    match relation_parts(name) {
        Some((_, None, file)) => Class::Main { file },
        Some((_, Some(_), file)) => Class::Fork { file },
        None => Class::Plain,
    }
}

fn unlogged_relations(names: &[(Vec<u8>, bool)]) -> HashSet<Vec<u8>> {
    let init = |name: &[u8]| match relation_parts(name) {
        Some((node, Some(b"init"), _)) => Some(node.to_vec()),
        _ => None,
    };
    names.iter().filter_map(|(name, _)| init(name)).collect()
}

/// Temporary relations, and all forks but `_init` of unlogged ones.
fn is_left_out_relation(name: &[u8], unlogged: &HashSet<Vec<u8>>) -> bool {
    if is_temporary_relation(name) {
        return true;
    }
    match relation_parts(name) {
        Some((_, Some(b"init"), _)) | None => false,
        Some((node, _, _)) => unlogged.contains(node),
    }
}

/// `t<backend>_<relfilenode>[_<fork>][.<file>]`.
fn is_temporary_relation(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"t") else { return false };
    let Some(at) = rest.iter().position(|b| *b == b'_') else { return false };
    is_number(&rest[..at]) && relation_parts(&rest[at + 1..]).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_relation_files_are_told_apart() {
        assert_eq!(class_of(b"16384"), Class::Main { file: 0 });
        assert_eq!(class_of(b"16384.12"), Class::Main { file: 12 });
        assert_eq!(class_of(b"16384_vm"), Class::Fork { file: 0 });
        assert_eq!(class_of(b"16384_fsm.1"), Class::Fork { file: 1 });
        for plain in ["pg_filenode.map", "PG_VERSION", "pg_control", "16384_old", "16384.", "16384.x", "t3_16384"] {
            assert_eq!(class_of(plain.as_bytes()), Class::Plain, "{plain}");
        }
        assert!(is_temporary_relation(b"t3_16384") && is_temporary_relation(b"t12_16384_fsm.1"));
        assert!(!is_temporary_relation(b"t3_x") && !is_temporary_relation(b"table_1"));
    }

    #[test]
    fn a_main_fork_is_known_by_its_path() {
        let of = |path: &str| main_fork(path.as_bytes()).map(|l| (l.tablespace, l.database, l.number));
        assert_eq!(of("global/1262"), Some((1664, 0, 1262)));
        assert_eq!(of("base/5/16384.12"), Some((1663, 5, 16384)));
        assert_eq!(of("pg_tblspc/16400/PG_15_202209061/7/16390"), Some((16400, 7, 16390)));
        for other in ["base/5/16384_vm", "base/5/16384_fsm.1", "base/5/PG_VERSION", "16384", "pg_xact/0000", "base/5/t3_16384"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn relations_live_in_four_places() {
        for path in ["global", "base/5", "pg_tblspc/16400/PG_15_202209061/5"] {
            assert!(holds_relations(path.as_bytes()), "{path}");
        }
        for path in ["", "base", "base/pgsql_tmp", "pg_xact", "pg_tblspc/16400/PG_15_202209061"] {
            assert!(!holds_relations(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn one_is_not_inside_ten() {
        assert!(!is_inside(Path::new("/ts/10"), Path::new("/ts/1")));
        assert!(is_inside(Path::new("/ts/1/x"), Path::new("/ts/1")));
    }

    #[test]
    fn the_walk_leaves_out_what_must_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in ["base/5", "global", "pg_wal/archive_status", "pg_replslot/s", "pg_tblspc", "base/pgsql_tmp"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        for path in [
            "PG_VERSION",
            "postmaster.pid",
            "backup_label",
            "recovery.signal",
            "lastgood.restored",
            "base/5/1",
            "base/5/1_fsm",
            "base/5/2",
            "base/5/2_init",
            "base/5/2_vm",
            "base/5/2.1",
            "base/5/t4_9",
            "base/5/pg_internal.init",
            "base/pgsql_tmp/x",
            "pg_wal/000000010000000000000001",
            "pg_replslot/s/state",
            "odd \u{e9} name",
        ] {
            fs::write(root.join(path), "x").unwrap();
        }
        let mut seen = Vec::new();
        walk::<DataDirectoryError>(
            root,
            &Scope::new(15, 202209061),
            &mut |entry| {
                seen.push(String::from_utf8(entry.order_key()).unwrap());
                Ok(())
            },
            &mut |_| {},
        )
        .unwrap();
        let expected = [
            "PG_VERSION",
            "base/",
            "base/5/",
            "base/5/1",
            "base/5/1_fsm",
            "base/5/2_init",
            "global/",
            "odd \u{e9} name",
            "pg_replslot/",
            "pg_tblspc/",
            "pg_wal/",
        ];
        assert_eq!(seen, expected);
        let mut sorted = seen.clone();
        sorted.sort();
        assert_eq!(seen, sorted, "the order is that of the keys");
    }
}
