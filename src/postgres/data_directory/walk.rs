//! The walk through a data directory.
//!
//! # An error is not an absence
//! Only what is proven not to be there any more (`ENOENT`) is passed over, and only where PostgreSQL may remove it. A directory that
//! answers with anything else, a tablespace whose file system is not mounted, a damaged inode: each ends the walk with its name.
//!
//! # Links
//! `pg_tblspc` holds links that are PostgreSQL's. Others were made by people: what they lead to is stored in their place, once. One that
//! leads into PostgreSQL's own directories, to a directory above, to the repository, or to what was stored by another link is left out,
//! with a warning: so the walk ends, whatever the links say.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::links;
use super::{Class, DataDirectoryError, EMPTY_DIRECTORIES, Entry, Kind, Scope};
use super::{class_of, entry, holds_relations, is_left_out, is_left_out_relation, is_number, order_key, unlogged_relations};

/// DROP TABLESPACE removes the directory before the link: looks at a link whose directory is missing, and the time between two.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// What every cluster has for as long as it lives.
const LASTING: [&str; 16] = [
    "PG_VERSION",
    "base",
    "global",
    "global/pg_filenode.map",
    "pg_commit_ts",
    "pg_logical",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_replslot",
    "pg_stat",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
];

/// Whether the path may vanish while a server runs.
pub fn may_vanish(path: &[u8]) -> bool {
    !path.is_empty() && !LASTING.iter().any(|lasting| lasting.as_bytes() == path)
}

/// Walks what belongs to a snapshot. What is passed over and a person may want to know goes to `warn`.
pub fn walk<E: From<DataDirectoryError>>(
    dir: &Path,
    scope: &Scope,
    visit: &mut dyn FnMut(Entry) -> Result<(), E>,
    warn: &mut dyn FnMut(String),
) -> Result<(), E> {
    let real = fs::canonicalize(dir).map_err(|source| DataDirectoryError::Io { path: dir.into(), source })?;
    Walk { root: dir, real, scope, followed: Vec::new(), visit, warn }.directory(b"")
}

struct Walk<'a, E> {
    root: &'a Path,
    /// The same without links.
    real: PathBuf,
    scope: &'a Scope,
    /// Where links have led to so far.
    followed: Vec<PathBuf>,
    visit: &'a mut dyn FnMut(Entry) -> Result<(), E>,
    warn: &'a mut dyn FnMut(String),
}

impl<E: From<DataDirectoryError>> Walk<'_, E> {
    /// Visits what is in `path`, which is empty for the data directory itself.
    fn directory(&mut self, path: &[u8]) -> Result<(), E> {
        let names = match self.names(path) {
            Ok(names) => names,
            // Dropped with its database while we walked (rule 10).
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.vanished(path),
            Err(source) => return Err(DataDirectoryError::Io { path: self.full(path), source }.into()),
        };
        let holds_relations = holds_relations(path);
        let unlogged = if holds_relations { unlogged_relations(&names) } else { HashSet::new() };
        for (name, _) in &names {
            if holds_relations && is_left_out_relation(name, &unlogged) {
                continue;
            }
            let child = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
            self.child(child, path, name)?;
        }
        Ok(())
    }

    fn names(&self, path: &[u8]) -> io::Result<Vec<(Vec<u8>, bool)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.full(path))? {
            let entry = entry?;
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let is_tablespace = path == b"pg_tblspc" && kind.is_symlink();
            // What a link leads to is looked at when it is visited.
            let is_directory = kind.is_dir() || (kind.is_symlink() && !is_tablespace && entry.path().is_dir());
            names.push((entry.file_name().into_vec(), is_directory));
        }
        names.sort_by_cached_key(|(name, is_directory)| order_key(name, *is_directory));
        Ok(names)
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsString::from_vec(path.to_vec()))
    }

    fn vanished(&self, path: &[u8]) -> Result<(), E> {
        if may_vanish(path) { Ok(()) } else { Err(DataDirectoryError::Vanished { path: self.full(path) }.into()) }
    }

    fn child(&mut self, child: Vec<u8>, parent: &[u8], name: &[u8]) -> Result<(), E> {
        if is_left_out(parent, name, &self.scope.own) {
            return Ok(());
        }
        let full = self.full(&child);
        let found = match fs::symlink_metadata(&full) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.vanished(&child),
            Err(source) => return Err(DataDirectoryError::Io { path: full, source }.into()),
        };
        if parent == b"pg_tblspc" {
            return self.tablespace(child, &full, &found);
        }
        let is_kept_empty = parent.is_empty() && EMPTY_DIRECTORIES.iter().any(|d| d.as_bytes() == name);
        let metadata = match found.is_symlink() {
            true => match self.follow(&child, &full, is_kept_empty)? {
                Some(metadata) => metadata,
                None => return Ok(()),
            },
            false => found,
        };
        if metadata.is_dir() {
            (self.visit)(entry(child.clone(), Kind::Directory, &metadata))?;
            return if is_kept_empty { Ok(()) } else { self.directory(&child) };
        }
        if !metadata.is_file() {
            (self.warn)(format!("{} is a socket, pipe or device and is left out", full.display()));
            return Ok(());
        }
        let class = if holds_relations(parent) { class_of(name) } else { Class::Plain };
        (self.visit)(entry(child, Kind::File { class }, &metadata))
    }

    /// What a link leads to, when that is stored in its place.
    fn follow(&mut self, child: &[u8], full: &Path, is_kept_empty: bool) -> Result<Option<Metadata>, E> {
        let target = fs::canonicalize(full).and_then(|real| fs::metadata(&real).map(|metadata| (real, metadata)));
        let (real, metadata) = match target {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (self.warn)(format!("{} is a link to nowhere and is left out", full.display()));
                return Ok(None);
            }
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                (self.warn)(format!("{} is a link that leads in a circle and is left out", full.display()));
                return Ok(None);
            }
            Err(source) => return Err(DataDirectoryError::Io { path: full.into(), source }.into()),
        };
        let (shown, leads) = (full.display(), real.display());
        // The snapshot says where it is, and a restore what becomes of it.
        if child == b"pg_wal" {
            return Ok(Some(metadata));
        }
        if is_kept_empty {
            (self.warn)(format!("{shown} is a link to {leads}: a restore makes a directory in its place"));
            return Ok(Some(metadata));
        }
        let is_outside = !real.starts_with(&self.real);
        if metadata.is_dir() {
            if let Some(why) = self.objection(child, &real)? {
                (self.warn)(format!("{shown} is a link to {leads}, {why}: it is left out"));
                return Ok(None);
            }
            self.followed.push(real.clone());
        }
        if is_outside && (metadata.is_dir() || metadata.is_file()) {
            (self.warn)(format!(
                "{shown} is a link to {leads}: what is there is stored, and a restore puts it in the link's place"
            ));
        }
        Ok(Some(metadata))
    }

    /// Why the directory that a link leads to is not stored in the link's place.
    fn objection(&self, child: &[u8], real: &Path) -> Result<Option<String>, E> {
        let above = child.iter().rposition(|b| *b == b'/').map_or(&b""[..], |slash| &child[..slash]);
        let here = self.canonical(above)?;
        if self.real.starts_with(real) {
            return Ok(Some("which holds the data directory itself".into()));
        }
        if here.starts_with(real) {
            return Ok(Some("which holds the link".into()));
        }
        if let Some(apart) = self.scope.apart.iter().find(|apart| apart.overlaps(real)) {
            return Ok(Some(format!("which leads to {} ({})", apart.what, apart.path.display())));
        }
        if self.followed.iter().any(|other| other.starts_with(real) || real.starts_with(other)) {
            return Ok(Some("which is stored already in the place of another link".into()));
        }
        let own = LASTING.iter().map(|name| name.as_bytes()).chain(EMPTY_DIRECTORIES.iter().map(|name| name.as_bytes()));
        let mut own: Vec<Vec<u8>> = own.map(<[u8]>::to_vec).collect();
        own.extend(self.tablespace_links()?);
        // A directory of PostgreSQL's may be a link itself.
        let is_its = |name: &Vec<u8>| name.strip_prefix(child).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        for name in own.into_iter().filter(|name| !is_its(name)) {
            let Ok(place) = fs::canonicalize(self.full(&name)) else { continue };
            if place.is_dir() && (real.starts_with(&place) || place.starts_with(real)) {
                return Ok(Some(format!("which is PostgreSQL's own ({})", String::from_utf8_lossy(&name))));
            }
        }
        Ok(None)
    }

    fn tablespace_links(&self) -> Result<Vec<Vec<u8>>, E> {
        let links = self.full(b"pg_tblspc");
        match self.names(b"pg_tblspc") {
            Ok(names) => Ok(names.into_iter().map(|(name, _)| [&b"pg_tblspc/"[..], &name].concat()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(DataDirectoryError::Io { path: links, source }.into()),
        }
    }

    fn canonical(&self, path: &[u8]) -> Result<PathBuf, E> {
        let full = self.full(path);
        fs::canonicalize(&full).map_err(|source| DataDirectoryError::Io { path: full, source }.into())
    }

    /// Only the `PG_<major>_<catalog version>` directory of a tablespace belongs to this cluster: other versions may have theirs beside it.
    fn tablespace(&mut self, child: Vec<u8>, full: &Path, found: &Metadata) -> Result<(), E> {
        let oid = child.strip_prefix(b"pg_tblspc/").unwrap_or_default();
        if !is_number(oid) || !(found.is_symlink() || found.is_dir()) {
            (self.warn)(format!("{} is no tablespace and is left out", full.display()));
            return Ok(());
        }
        if !has_own(full, &self.scope.own)? {
            return Ok(());
        }
        if found.is_dir() {
            // Made in place, without a link (`allow_in_place_tablespaces`).
            (self.visit)(entry(child.clone(), Kind::Directory, found))?;
        } else {
            let target = match links::target(full) {
                Ok(target) => target,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(source) => return Err(DataDirectoryError::Io { path: full.into(), source }.into()),
            };
            (self.visit)(entry(child.clone(), Kind::Tablespace { target }, found))?;
        }
        self.directory(&child)
    }
}

/// Whether a tablespace (its link in `pg_tblspc`) holds the directory `own`; `false` when it was dropped. One that is there without is
/// a file system that is not mounted: an error.
pub fn has_own(link: &Path, own: &str) -> Result<bool, DataDirectoryError> {
    let directory = link.join(own);
    for look in 1.. {
        match fs::metadata(&directory) {
            Ok(_) => return Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => return Err(DataDirectoryError::Io { path: directory, source }),
        }
        match fs::symlink_metadata(link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(DataDirectoryError::Io { path: link.into(), source }),
            Ok(_) if look < LOOKS => std::thread::sleep(BETWEEN_LOOKS),
            Ok(_) => break,
        }
    }
    let target = fs::read_link(link).unwrap_or_else(|_| link.into());
    Err(DataDirectoryError::Unmounted { link: link.into(), target, own: own.into() })
}
