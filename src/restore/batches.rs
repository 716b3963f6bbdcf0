//! From the lists of files to batches of them: makes directories and links on the way, and fetches the maps that lie in packs.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

use super::RestoreError;
use super::plan::{self, Plan};
use super::write::Target;
use crate::owner::Ids;
use crate::postgres::data_directory;
use crate::repo::RepoError;
use crate::repo::fetch;
use crate::repo::frame::FrameRef;
use crate::repo::manifest::{FileLine, MapPlace, What, decode_path};
use crate::repo::map::FileMap;
use crate::repo::repository::Cluster;
use crate::repo::validate::Lists;
use crate::snapshot::take::CONTROL_PATH;

/// Frames of one batch, which are remembered at a time: two gigabytes, or one file.
const BATCH_FRAMES: usize = 16_384;
/// Files of one batch, which are open at a time; fewer where not so many may be open.
const BATCH_FILES: usize = 700;
/// The first batch has so much less, so that its frames are soon on their way.
const FIRST: usize = 8;
/// Batches that are written at a time: while files of one are made, frames of another are on their way.
pub const BATCHES: usize = 3;
/// Whatever else this process has open: connections, locks, a terminal.
const OTHER_FILES: u64 = 256;

/// Where the new cluster is built, and whose it will be.
pub struct Site<'a> {
    pub cluster: &'a Cluster,
    pub plan: &'a Plan,
    pub owner: Option<Ids>,
    /// The data directory.
    pub root: PathBuf,
}

/// What the file lists hold besides files, directories and links.
#[derive(Default)]
pub struct Listed {
    pub control: Option<FileLine>,
    pub has_settings: bool,
}

/// Files collected until there are enough for a batch.
#[derive(Default)]
struct Pending {
    files: Vec<(FileLine, PathBuf)>,
    frames: usize,
}

/// Files of one batch. More may be open at a time than usual, if this process may allow itself so many.
fn batch_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Of the last, writes may be left when the next is made.
    let batches = BATCHES as u64 + 1;
    let wanted = OTHER_FILES + batches * BATCH_FILES as u64;
    let mut most = limit.current.unwrap_or(u64::MAX);
    if most < wanted {
        let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..limit }).is_ok() {
            most = raised;
        }
    }
    (most.saturating_sub(OTHER_FILES) / batches).clamp(1, BATCH_FILES as u64) as usize
}

/// Whether a line is of another version's directory in a shared tablespace, which earlier versions of this program stored too.
fn is_foreign(path: &str, own: &str) -> bool {
    let in_tablespace = path.strip_prefix("pg_tblspc/").and_then(|rest| rest.split('/').nth(1));
    in_tablespace.is_some_and(|name| name != own)
}

impl Site<'_> {
    /// Makes directories and links, and gets the next batch of files ready while one is written.
    pub async fn prepare_all(&self, first: Vec<FileLine>, batches: mpsc::Sender<Vec<Target>>) -> Result<Listed, RestoreError> {
        let manifest = self.plan.manifest();
        let own = plan::own_directory(manifest);
        let all_files = batch_files();
        let (mut most_frames, mut most_files) = (BATCH_FRAMES / FIRST, all_files.div_ceil(FIRST));
        let mut listed = Listed::default();
        let mut pending = Pending::default();
        let (mut first, mut seen) = (Some(first), Lists::default());
        for index in 0..manifest.file_lists.len() {
            let lines = match first.take() {
                Some(lines) => lines,
                None => manifest.files(self.cluster, index).await?,
            };
            for line in lines {
                if let Some(what) = seen.line(&line) {
                    return Err(self.damaged(what));
                }
                let path = self.path(&line)?;
                listed.has_settings |= line.path == "postgresql.conf";
                if line.path == CONTROL_PATH {
                    listed.control = Some(line);
                    continue;
                }
                if is_foreign(&line.path, &own) || data_directory::is_socket_lock(line.path.as_bytes()) {
                    continue;
                }
                match &line.what {
                    What::Directory if line.path == "pg_wal" && self.plan.wal_directory().is_some() => self.link_wal(&path)?,
                    What::Directory => self.make_directory(&path, line.mode)?,
                    What::Tablespace { .. } => self.link_tablespace(&path)?,
                    What::File { map, .. } => {
                        pending.frames += match map {
                            MapPlace::Map(map) => map.frames.len(),
                            // One gigabyte at most.
                            MapPlace::MapFrame { .. } => 8192,
                        };
                        pending.files.push((line, path));
                    }
                }
                if pending.frames >= most_frames || pending.files.len() >= most_files {
                    let targets = self.prepare(std::mem::take(&mut pending)).await?;
                    // Nobody takes it only when writing failed, whose error counts.
                    if batches.send(targets).await.is_err() {
                        return Ok(listed);
                    }
                    (most_frames, most_files) = (BATCH_FRAMES, all_files);
                }
            }
        }
        if let Some(what) = seen.end(manifest) {
            return Err(self.damaged(what));
        }
        let _ = batches.send(self.prepare(pending).await?).await;
        Ok(listed)
    }

    fn damaged(&self, what: String) -> RestoreError {
        RepoError::damaged(&self.cluster.layout().manifest(&self.plan.snapshot), what).into()
    }

    fn path(&self, line: &FileLine) -> Result<PathBuf, RestoreError> {
        use std::os::unix::ffi::OsStringExt;
        let bytes = decode_path(&line.path).ok_or_else(|| self.damaged(format!("a file list names the path {:?}", line.path)))?;
        Ok(self.root.join(std::ffi::OsString::from_vec(bytes)))
    }

    pub fn own(&self, path: &Path) -> Result<(), RestoreError> {
        let Some(owner) = self.owner else { return Ok(()) };
        chown(path, Some(owner.uid), Some(owner.gid)).map_err(|source| RestoreError::Io {
            doing: "change the owner of",
            path: path.into(),
            source,
        })
    }

    fn make_directory(&self, path: &Path, mode: u32) -> Result<(), RestoreError> {
        let failed = |source| RestoreError::Io { doing: "make", path: path.into(), source };
        fs::DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o777)).map_err(failed)?;
        self.own(path)
    }

    /// Links are made from the mapping (rule 44).
    fn link_tablespace(&self, path: &Path) -> Result<(), RestoreError> {
        let oid = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let known = self.plan.tablespaces.iter().find(|t| t.oid == oid);
        let tablespace = known.ok_or_else(|| self.damaged(format!("tablespace {oid} is not in the manifest")))?;
        symlink(tablespace.root(), path).map_err(|source| RestoreError::Io { doing: "link", path: path.into(), source })?;
        Ok(())
    }

    fn link_wal(&self, path: &Path) -> Result<(), RestoreError> {
        let Some(place) = self.plan.wal_directory() else { return Ok(()) };
        symlink(place, path).map_err(|source| RestoreError::Io { doing: "link", path: path.into(), source })
    }

    /// The files of one batch with their maps, of which some lie in packs.
    async fn prepare(&self, pending: Pending) -> Result<Vec<Target>, RestoreError> {
        let mut frames: Vec<FrameRef> = Vec::new();
        for (line, _) in &pending.files {
            if let What::File { map: MapPlace::MapFrame { frame, .. }, .. } = &line.what {
                frames.push(frame.clone());
            }
        }
        fetch::sort(&mut frames);
        let frames = Arc::new(frames);
        let maps: Vec<FileMap> = fetch::maps(self.cluster, frames.clone()).await?.into_iter().collect::<Result<_, _>>()?;
        let mut targets = Vec::with_capacity(pending.files.len());
        for (line, path) in pending.files {
            let What::File { bytes, map, .. } = &line.what else { continue };
            let map = match map {
                MapPlace::Map(map) => map.clone(),
                MapPlace::MapFrame { frame, .. } => {
                    let at =
                        frames.iter().position(|f| f == frame).ok_or_else(|| self.damaged("a map was not fetched".into()))?;
                    maps[at].clone()
                }
            };
            if let Some(what) = line.map_defect(&map) {
                return Err(self.damaged(format!("{:?}: {what}", line.path)));
            }
            targets.push(Target { path, bytes: *bytes, mode: line.mode, map });
        }
        Ok(targets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directory_of_the_snapshots_version_is_its_own() {
        let own = "PG_15_202209061";
        assert!(is_foreign("pg_tblspc/16400/PG_14_202107181/5/16385", own) && is_foreign("pg_tblspc/16400/PG_14_202107181", own));
        for line in ["pg_tblspc", "pg_tblspc/16400", "pg_tblspc/16400/PG_15_202209061/5/1", "base/5/1", "PG_VERSION"] {
            assert!(!is_foreign(line, own), "{line}");
        }
    }

    #[test]
    fn the_limit_of_open_files_is_raised_where_it_may_be() {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(300), ..before }).unwrap();
        assert_eq!(batch_files(), BATCH_FILES);
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, Some(OTHER_FILES + (BATCHES as u64 + 1) * BATCH_FILES as u64));
        assert_eq!(raised.maximum, before.maximum);
        setrlimit(Resource::Nofile, before).unwrap();
    }
}
