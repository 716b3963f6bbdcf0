//! Carries a plan out.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::RestoreError;
use super::guard::Approval;
use super::pinned::Pinned;
use super::place::{self, Standing};
use super::plan::Plan;
use super::replaced::Replaced;
use super::salvage::{self, Saved};
use super::switch::{self, Hold, Pair, Switched};
use super::undo;
use super::write::{self, Target, Terms};
use crate::config::ReadBack;
use crate::durable;
use crate::monitor::Monitor;
use crate::postgres::data_directory::{RESTORED_MARK, RESTORING_MARK};
use crate::postgres::owner::{self, Ids};
use crate::postgres::postmaster;
use crate::postgres::settings::{self, Recovery};
use crate::repo::RepoError;
use crate::repo::fetch;
use crate::repo::frame::FrameRef;
use crate::repo::layout;
use crate::repo::lease::Lease;
use crate::repo::manifest::{FileLine, Manifest, MapPlace, What, decode_path};
use crate::repo::map::FileMap;
use crate::repo::repository::Cluster;
use crate::snapshot::take::CONTROL_PATH;

/// Frames and files of one batch: what is open and remembered at a time.
const BATCH_FRAMES: usize = 16_384;
const BATCH_FILES: usize = 700;

/// What a plan does not hold, because it does not change what is restored.
pub struct Options {
    /// What the restored server shall call for WAL, with `%f` and `%p`.
    pub restore_command: String,
    pub threads: usize,
    pub read_back: ReadBack,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Restored {
    /// On what was read, where the repository may be written: for the caller to let go or to leave standing.
    pub pin: Option<Lease>,
    /// Where the cluster that stood there is now.
    pub aside: Option<PathBuf>,
    /// What became of its unarchived WAL.
    pub saved: Saved,
    /// Where the settings are kept elsewhere (Debian), the server needs some before it can start.
    pub has_settings: bool,
}

/// Restores as planned. The server can be started when this returns.
pub async fn execute(
    cluster: &Cluster,
    plan: &Plan,
    _approval: &Approval,
    pinned: Pinned,
    options: &Options,
    monitor: Arc<dyn Monitor>,
) -> Result<Restored, RestoreError> {
    let Pinned { lease, first } = pinned;
    match begin(cluster, plan, first, options, monitor).await {
        Ok(restored) => Ok(Restored { pin: lease, ..restored }),
        Err(error) => {
            Pinned { lease, first: Vec::new() }.release().await;
            Err(error)
        }
    }
}

async fn begin(
    cluster: &Cluster,
    plan: &Plan,
    first: Vec<FileLine>,
    options: &Options,
    monitor: Arc<dyn Monitor>,
) -> Result<Restored, RestoreError> {
    // Looked at again, all of them before any is touched: time has passed since the plan.
    check_unchanged(plan)?;
    for tablespace in &plan.tablespaces {
        place::look_tablespace(&tablespace.into, plan.standing.occupant())?;
    }
    let places: Vec<PathBuf> = [plan.root()].into_iter().chain(plan.tablespaces.iter().map(|t| t.root())).collect();
    let manifest = plan.manifest();
    let _locks = places.iter().map(|place| place::occupy(place)).collect::<Result<Vec<_>, _>>()?;
    let saved = match &plan.replaced {
        Some(Replaced { archive: Some(archive), unarchived, .. }) if !unarchived.is_empty() => {
            monitor.phase("save unarchived WAL", 0);
            salvage::save(archive.cluster(), archive, &plan.into.join("pg_wal"), unarchived, &*monitor).await
        }
        _ => Saved::default(),
    };
    let owner = new_owner(manifest);
    monitor.phase("restore", manifest.totals.raw_bytes);
    let terms = Terms { owner, threads: options.threads, read_back: options.read_back, monitor: monitor.clone() };
    let work = Work { cluster, plan, terms, owner, root: plan.root() };
    match work.run(first, options, &*monitor).await {
        Ok(restored) => Ok(Restored { saved, ..restored }),
        Err(error) => Err(work.explain(error).await),
    }
}

/// What stands in the place is what the plan saw, and no server lives there.
fn check_unchanged(plan: &Plan) -> Result<(), RestoreError> {
    let now = place::look(&plan.into)?;
    if let Some(living) = now.occupant().and_then(|occupant| occupant.living.clone()) {
        return Err(RestoreError::Living { path: plan.into.clone(), living });
    }
    // An empty place may have become an absent one, or the remains of an earlier try; a cluster must be the very same.
    if (plan.standing.occupant().is_some() || now.occupant().is_some()) && now != plan.standing {
        return Err(RestoreError::Changed { path: plan.into.clone() });
    }
    Ok(())
}

/// Only root changes owners; an unknown one becomes the owner of the place (rule 45).
fn new_owner(manifest: &Manifest) -> Option<Ids> {
    rustix::process::geteuid().is_root().then(|| owner::user(&manifest.owner)).flatten()
}

struct Work<'a> {
    cluster: &'a Cluster,
    plan: &'a Plan,
    terms: Terms,
    owner: Option<Ids>,
    /// Where the data directory is built.
    root: PathBuf,
}

/// What the file lists hold besides files, directories and links.
#[derive(Default)]
struct Listed {
    control: Option<FileLine>,
    has_settings: bool,
}

/// Files collected until there are enough for a batch.
#[derive(Default)]
struct Pending {
    files: Vec<(FileLine, PathBuf)>,
    frames: usize,
}

impl Work<'_> {
    async fn run(&self, first: Vec<FileLine>, options: &Options, monitor: &dyn Monitor) -> Result<Restored, RestoreError> {
        self.own(&self.root)?;
        for tablespace in &self.plan.tablespaces {
            self.own(&tablespace.root())?;
        }
        let (batches, mut prepared) = mpsc::channel(1);
        let prepare = self.prepare_all(first, batches);
        let write = async move {
            while let Some(targets) = prepared.recv().await {
                write::batch(self.cluster, targets, &self.terms).await?;
            }
            Ok::<_, RestoreError>(())
        };
        // Neither is broken off: threads that write must not go on behind an error.
        let (listed, written) = tokio::join!(prepare, write);
        written?;
        let listed = listed?;
        let control = listed.control.ok_or(RestoreError::NoControl)?;
        for path in salvage::provide(&self.plan.archive, &self.plan.provided, &self.root.join("pg_wal")).await? {
            self.own(&path)?;
        }
        monitor.phase("sync", 0);
        self.finish(control, options).await?;
        Ok(Restored { has_settings: listed.has_settings, aside: self.take_place()?, ..Restored::default() })
    }

    /// Makes directories and links, and gets the next batch of files ready while one is written.
    async fn prepare_all(&self, first: Vec<FileLine>, batches: mpsc::Sender<Vec<Target>>) -> Result<Listed, RestoreError> {
        let manifest = self.plan.manifest();
        let mut listed = Listed::default();
        let mut pending = Pending::default();
        let mut first = Some(first);
        for index in 0..manifest.file_lists.len() {
            let lines = match first.take() {
                Some(lines) => lines,
                None => manifest.files(self.cluster, index).await?,
            };
            for line in lines {
                listed.has_settings |= line.path == "postgresql.conf";
                if line.path == CONTROL_PATH {
                    listed.control = Some(line);
                    continue;
                }
                let path = self.path(&line)?;
                match &line.what {
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
                if pending.frames >= BATCH_FRAMES || pending.files.len() >= BATCH_FILES {
                    let targets = self.prepare(std::mem::take(&mut pending)).await?;
                    // Nobody takes it only when writing failed, whose error counts.
                    if batches.send(targets).await.is_err() {
                        return Ok(listed);
                    }
                }
            }
        }
        let _ = batches.send(self.prepare(pending).await?).await;
        Ok(listed)
    }

    /// What is missing may be one object, or all of them.
    async fn explain(&self, error: RestoreError) -> RestoreError {
        let is_missing = matches!(&error, RestoreError::Repo(error) if error.is_damage());
        if !is_missing || !matches!(self.cluster.storage().stat(&layout::repository()).await, Ok(None)) {
            return error;
        }
        RestoreError::Gone { place: self.cluster.storage().place().into(), path: self.root.clone() }
    }

    fn damaged(&self, what: String) -> RestoreError {
        RepoError::damaged(&self.cluster.layout().manifest(&self.plan.snapshot), what).into()
    }

    fn path(&self, line: &FileLine) -> Result<PathBuf, RestoreError> {
        use std::os::unix::ffi::OsStringExt;
        let bytes = decode_path(&line.path).ok_or_else(|| self.damaged(format!("a file list names the path {:?}", line.path)))?;
        Ok(self.root.join(std::ffi::OsString::from_vec(bytes)))
    }

    fn own(&self, path: &Path) -> Result<(), RestoreError> {
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
            let What::File { bytes, map, digest, .. } = line.what else { continue };
            let map = match map {
                MapPlace::Map(map) => map,
                MapPlace::MapFrame { frame, .. } => {
                    let at =
                        frames.iter().position(|f| *f == frame).ok_or_else(|| self.damaged("a map was not fetched".into()))?;
                    maps[at].clone()
                }
            };
            if map.bytes() != bytes || map.digest() != digest || map.defect().is_some() {
                return Err(self.damaged(format!("the map of {} does not fit the file", line.path)));
            }
            targets.push(Target { path, bytes, mode: line.mode, map });
        }
        Ok(targets)
    }

    /// Settings, marks, everything durable, and last of all pg_control (rule 37), under a name that no server knows.
    async fn finish(&self, control: FileLine, options: &Options) -> Result<(), RestoreError> {
        let into = &self.root;
        let io = |doing: &'static str| move |source| RestoreError::Io { doing, path: into.clone(), source };
        let manifest = self.plan.manifest();
        let label = into.join("backup_label");
        durable::replace(&label, manifest.backup_label.as_bytes(), 0o600).map_err(io("write backup_label in"))?;
        let recovery = Recovery {
            restore_command: options.restore_command.clone(),
            timeline: self.plan.timeline,
            target: self.plan.found.recovery,
            action: self.plan.action,
        };
        settings::configure_recovery(into, &recovery).map_err(io("write recovery settings in"))?;
        let mark = serde_json::to_vec_pretty(self.plan).unwrap_or_default();
        durable::replace(&into.join(RESTORED_MARK), &mark, 0o600).map_err(io("write into"))?;
        for name in ["backup_label", "postgresql.auto.conf", "recovery.signal", RESTORED_MARK] {
            self.own(&into.join(name))?;
        }
        let mut places = vec![into.clone()];
        places.extend(self.plan.tablespaces.iter().map(|t| t.root()));
        let sync = tokio::task::spawn_blocking(move || places.iter().try_for_each(|place| durable::sync_file_system(place)));
        let temporary = into.join(switch::WITHHELD_CONTROL);
        let What::File { bytes, map: MapPlace::Map(map), .. } = control.what else { return Err(RestoreError::NoControl) };
        let target = Target { path: temporary, bytes, mode: control.mode, map };
        // Flushed by itself when it gets its name.
        let (synced, written) = tokio::join!(sync, write::batch(self.cluster, vec![target], &self.terms));
        match synced {
            Ok(synced) => synced.map_err(io("sync"))?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        written?;
        let mode = fs::Permissions::from_mode(if manifest.mode & 0o050 == 0o050 { 0o750 } else { 0o700 });
        fs::set_permissions(into, mode).map_err(io("set the mode of"))?;
        durable::sync_directory(into).map_err(io("sync"))
    }

    /// Exchanges the new cluster for the one that stands in its place, if one does, and lets it be started. Answers where the old one
    /// is now.
    fn take_place(&self) -> Result<Option<PathBuf>, RestoreError> {
        let into = &self.plan.into;
        let io = |doing: &'static str| move |source| RestoreError::Io { doing, path: into.clone(), source };
        let switched = match &self.plan.standing {
            Standing::Cluster(_) => Some(self.exchange()?),
            _ => None,
        };
        for tablespace in &self.plan.tablespaces {
            fs::remove_file(tablespace.root().join(RESTORING_MARK)).map_err(io("finish"))?;
        }
        durable::publish(&into.join(switch::WITHHELD_CONTROL), &into.join(CONTROL_PATH)).map_err(io("write pg_control in"))?;
        fs::remove_file(into.join(RESTORING_MARK)).map_err(io("finish"))?;
        durable::sync_directory(into).map_err(io("sync"))?;
        let Some(switched) = switched else { return Ok(None) };
        let data = &switched.data;
        switch::rename(&data.staging, &data.aside).map_err(io("move aside what stood in"))?;
        for tablespace in &switched.tablespaces {
            let (from, to) = (durable::parent(&tablespace.staging), durable::parent(&tablespace.aside));
            switch::rename(from, to).map_err(io("move aside a tablespace of"))?;
        }
        switched.leave_note(&data.aside).map_err(io("write a note about"))?;
        Ok(Some(data.aside.clone()))
    }

    fn exchange(&self) -> Result<Switched, RestoreError> {
        let (into, root) = (&self.plan.into, &self.root);
        let io = |doing: &'static str| move |source| RestoreError::Io { doing, path: into.clone(), source };
        let switched = self.pairs().map_err(io("look at"))?;
        for tablespace in self.plan.tablespaces.iter().filter(|t| t.standing == Standing::Tablespace) {
            let link = root.join("pg_tblspc").join(&tablespace.oid);
            fs::remove_file(&link).and_then(|()| symlink(&tablespace.into, &link)).map_err(io("link the tablespaces of"))?;
        }
        durable::sync_directory(&root.join("pg_tblspc")).map_err(io("sync"))?;
        // The last look, and then nobody can start a server between it and the exchange.
        check_unchanged(self.plan)?;
        let hold = Hold::take(into).map_err(io("lock"))?;
        let ours = std::process::id() as i32;
        let living = postmaster::living(into).map_err(io("look at"))?;
        if let Some(living) = living.filter(|living| living.pid != Some(ours)) {
            return Err(RestoreError::Living { path: into.clone(), living });
        }
        // Only now: a mark without an exchange would be a trap for whoever comes next.
        switched.write(root).map_err(io("write beside"))?;
        switch::exchange(into, root).map_err(io("exchange"))?;
        hold.release(root);
        for pair in &switched.tablespaces {
            // The old cluster's links follow its files: started where it lies now, it must not write into the new one's.
            let (tablespace, aside) = (durable::parent(&pair.place), durable::parent(&pair.aside));
            undo::point_links(root, tablespace, aside).map_err(io("point the tablespaces of"))?;
            switch::exchange(&pair.place, &pair.staging).map_err(io("exchange a tablespace of"))?;
        }
        Ok(switched)
    }

    fn pairs(&self) -> std::io::Result<Switched> {
        let plan = self.plan;
        let at = crate::clock::now();
        let data = Pair::new(plan.into.clone(), self.root.clone(), switch::aside(&plan.into, "replaced", at))?;
        let mut tablespaces = Vec::new();
        for tablespace in plan.tablespaces.iter().filter(|t| t.standing == Standing::Tablespace) {
            let aside = switch::aside(&tablespace.into.join("lastgood"), "replaced", at);
            for name in fs::read_dir(tablespace.root())?.collect::<std::io::Result<Vec<_>>>()? {
                let name = name.file_name();
                let place = tablespace.into.join(&name);
                // Of another major version nothing stands there yet; an empty directory is exchanged, so that all goes one way.
                if !place.exists() && name.to_string_lossy().starts_with("PG_") {
                    fs::create_dir(&place)?;
                    self.own(&place).map_err(std::io::Error::other)?;
                }
                if name.to_string_lossy().starts_with("PG_") {
                    tablespaces.push(Pair::new(place, tablespace.root().join(&name), aside.join(&name))?);
                }
            }
        }
        let what = format!("restore of snapshot {} to {}", plan.snapshot, plan.target);
        Ok(Switched { at, what, data, tablespaces })
    }
}
