//! Whether another cluster has its files in the tablespaces of one: a copy's links lead to the directories of its original.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::data_directory::own_in;
use super::postmaster::{self, Living};

/// Another data directory that uses a tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// The tablespace's directory.
    pub location: PathBuf,
    pub dir: PathBuf,
    pub living: Option<Living>,
}

/// Looks for another cluster than that in `dirs` whose links lead to one of `locations`, with `own` in it (`PG_15_202209061`): among the
/// servers that run here, `known` directories, what lies beside `dirs`, and what their pid files name. A running one before all others.
pub fn find(dirs: &[&Path], locations: &[PathBuf], own: &str, known: &[PathBuf]) -> io::Result<Option<Sharing>> {
    let place = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let wanted: Vec<(&PathBuf, (u64, u64))> = locations.iter().filter_map(|at| Some((at, place(&at.join(own))?))).collect();
    if wanted.is_empty() {
        return Ok(None);
    }
    let own_places: Vec<_> = dirs.iter().filter_map(|dir| place(dir)).collect();
    let is_other = |dir: &Path| place(dir).is_some_and(|place| !own_places.contains(&place));
    let uses = |dir: &Path, root: &Path| -> Option<PathBuf> {
        // Of another version is another directory in the same place.
        if own_in(dir).is_some_and(|other| other != own) {
            return None;
        }
        let links = dir.join("pg_tblspc");
        let targets = fs::read_dir(&links).ok()?.flatten().filter_map(|link| fs::read_link(link.path()).ok());
        // Seen from that process's root, and a relative one from where the link is.
        let seen = |target: PathBuf| target.strip_prefix("/").map_or_else(|_| links.join(&target), |below| root.join(below));
        let places: Vec<_> = targets.filter_map(|target| place(&seen(target).join(own))).collect();
        wanted.iter().find(|(_, wanted)| places.contains(wanted)).map(|(location, _)| location.to_path_buf())
    };
    for (dir, root) in postmaster::working() {
        if is_other(&dir)
            && let Some(location) = uses(&dir, &root)
        {
            let dir = fs::read_link(&dir).unwrap_or(dir);
            let living = postmaster::living(&dir).ok().flatten();
            let unseen = Living { pid: None, elsewhere: None, sign: postmaster::Sign::Process };
            return Ok(Some(Sharing { location, dir, living: living.or(Some(unseen)) }));
        }
    }
    let mut others: Vec<PathBuf> = known.to_vec();
    for dir in dirs {
        others.extend(postmaster::named_directory(dir));
        if let Some(above) = dir.parent() {
            others.extend(fs::read_dir(above)?.flatten().map(|entry| entry.path()));
        }
    }
    let mut stopped = None;
    for dir in others {
        // Without a control file it cannot be started.
        if !is_other(&dir) || !dir.join("global/pg_control").exists() {
            continue;
        }
        let Some(location) = uses(&dir, Path::new("/")) else { continue };
        let living = postmaster::living(&dir)?;
        let is_living = living.is_some();
        let found = Sharing { location, dir, living };
        if is_living {
            return Ok(Some(found));
        }
        stopped = stopped.or(Some(found));
    }
    Ok(stopped)
}
