//! Carries a plan out.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream::{StreamExt, TryStreamExt, poll_fn};
use tokio::sync::mpsc;

use super::RestoreError;
use super::batches::{BATCHES, Listed, Site};
use super::beside;
use super::guard::Approval;
use super::mark;
use super::pinned::Pinned;
use super::place::{self, Standing};
use super::plan::{self, Plan};
use super::replaced::Replaced;
use super::salvage::{self, Saved};
use super::standby::Standby;
use super::switch::{self, Hold, Pair, Switched};
use super::undo;
use super::wal_place;
use super::write::{Stopped, Target, Terms, Writer};
use crate::config::ReadBack;
use crate::durable;
use crate::monitor::Monitor;
use crate::owner::{self, Ids};
use crate::postgres::control::{ControlFile, Limits};
use crate::postgres::data_directory::{self, RESTORED_MARK, RESTORING_MARK};
use crate::postgres::postmaster;
use crate::postgres::quiet;
use crate::postgres::settings::{self, Recovery};
use crate::postgres::settings_files::{self, Copy, Made};
use crate::postgres::standby::{self, Following};
use crate::repo::layout;
use crate::repo::lease::Lease;
use crate::repo::manifest::{FileLine, Manifest, MapPlace, What};
use crate::repo::repository::Cluster;
use crate::snapshot::take::CONTROL_PATH;

/// What a plan does not hold, because it does not change what is restored.
pub struct Options {
    /// What the restored server shall call for WAL, with `%f` and `%p`.
    pub restore_command: String,
    /// Of its own, for a copy beside its original.
    pub port: Option<u16>,
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
    /// Absent where they are kept elsewhere (Debian).
    pub has_settings: bool,
    /// What became of the copy's settings.
    pub made: Made,
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
    plan.wal_directory().map(wal_place::look).transpose()?;
    plan::check_shared(&plan.into, &plan.tablespaces, plan.manifest(), &plan.elsewhere)?;
    let places = roots(plan);
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
    let work = Work { site: Site { cluster, plan, owner, root: plan.root() }, terms };
    match work.run(first, options, &*monitor).await {
        Ok(restored) => Ok(Restored { saved, ..restored }),
        Err(error) => Err(work.explain(error).await),
    }
}

/// Everywhere that is written to: the data directory first.
fn roots(plan: &Plan) -> Vec<PathBuf> {
    let tablespaces = plan.tablespaces.iter().map(|tablespace| tablespace.root());
    [plan.root()].into_iter().chain(tablespaces).chain(plan.wal_directory().map(PathBuf::from)).collect()
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
    site: Site<'a>,
    terms: Terms,
}

impl Work<'_> {
    async fn run(&self, first: Vec<FileLine>, options: &Options, monitor: &dyn Monitor) -> Result<Restored, RestoreError> {
        roots(self.site.plan).iter().try_for_each(|root| self.site.own(root))?;
        let (batches, mut prepared) = mpsc::channel(1);
        let writer = Writer::start(self.site.cluster, &self.terms);
        let batch = |targets| writer.batch(targets);
        let write = poll_fn(move |context| prepared.poll_recv(context)).map(batch).buffer_unordered(BATCHES).try_collect();
        let prepare = async { self.site.prepare_all(first, batches).await.map_err(Stopped::Other) };
        // The first error ends all that is under way; what threads have begun is waited for.
        let (listed, handed_over) = match tokio::try_join!(prepare, write) {
            Ok((listed, ())) => (listed, Ok(())),
            Err(stopped) => (Listed::default(), Err(stopped)),
        };
        writer.finish(handed_over).await?;
        let control = listed.control.ok_or(RestoreError::NoControl)?;
        for path in salvage::provide(&self.site.plan.archive, &self.site.plan.provided, &self.site.root.join("pg_wal")).await? {
            self.site.own(&path)?;
        }
        monitor.phase("sync", 0);
        let made = self.finish(control, options).await?;
        Ok(Restored { has_settings: listed.has_settings, made, aside: self.take_place()?, ..Restored::default() })
    }

    /// What is missing may be one object, or all of them.
    async fn explain(&self, error: RestoreError) -> RestoreError {
        let is_missing = matches!(&error, RestoreError::Repo(error) if error.is_damage());
        if !is_missing || !matches!(self.site.cluster.storage().stat(&layout::repository()).await, Ok(None)) {
            return error;
        }
        RestoreError::Gone { place: self.site.cluster.storage().place().into(), path: self.site.root.clone() }
    }

    /// Settings, marks, everything durable, and last of all pg_control (rule 37), under a name that no server knows.
    async fn finish(&self, control: FileLine, options: &Options) -> Result<Made, RestoreError> {
        let into = &self.site.root;
        let io = |doing: &'static str| move |source| RestoreError::Io { doing, path: into.clone(), source };
        let manifest = self.site.plan.manifest();
        let label = into.join("backup_label");
        durable::replace(&label, manifest.backup_label.as_bytes(), 0o600).map_err(io("write backup_label in"))?;
        let made = settings_files::make_own(&self.copy()).map_err(io("write the settings of"))?;
        made.files.iter().try_for_each(|path| self.site.own(path))?;
        self.site.own(&label)?;
        let places = roots(self.site.plan);
        let sync = tokio::task::spawn_blocking(move || places.iter().try_for_each(|place| durable::sync_file_system(place)));
        let withheld = into.join(switch::WITHHELD_CONTROL);
        let What::File { bytes, map: MapPlace::Map(map), .. } = control.what else { return Err(RestoreError::NoControl) };
        let target = Target { path: withheld.clone(), bytes, mode: control.mode, map };
        // Flushed by itself when it gets its name.
        let write = async {
            let writer = Writer::start(self.site.cluster, &self.terms);
            let handed_over = writer.batch(vec![target]).await;
            writer.finish(handed_over).await
        };
        let (synced, written) = tokio::join!(sync, write);
        match synced {
            Ok(synced) => synced.map_err(io("sync"))?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        written?;
        self.configure(&withheld, options).map_err(io("write recovery settings in"))?;
        let mode = fs::Permissions::from_mode(if manifest.mode & 0o050 == 0o050 { 0o750 } else { 0o700 });
        fs::set_permissions(into, mode).map_err(io("set the mode of"))?;
        durable::sync_directory(into).map_err(io("sync"))?;
        Ok(made)
    }

    fn copy(&self) -> Copy<'_> {
        let (plan, manifest) = (self.site.plan, self.site.plan.manifest());
        Copy {
            root: &self.site.root,
            into: &plan.into,
            original: Path::new(&manifest.data_directory),
            config_file: manifest.config_file.as_deref().map(Path::new),
        }
    }

    /// Settings of recovery, those that hold until adoption, the mark that tells them; and the server begins at the label, or nowhere.
    fn configure(&self, withheld: &Path, options: &Options) -> std::io::Result<()> {
        let (plan, into) = (self.site.plan, &self.site.root);
        let bytes = fs::read(withheld)?;
        let control = ControlFile::parse(&bytes).map_err(std::io::Error::other)?;
        if let Some(standby) = &plan.standby {
            self.follow(standby, control.limits, options)?;
            return self.lead_nowhere(withheld, &bytes);
        }
        let limits = control.limits.or_higher(plan.limits);
        let mut quiet = quiet::until_adopted(plan.major, limits, beside::is_apart(plan));
        quiet.extend(options.port.map(|port| ("port", port.to_string())));
        let recovery = Recovery {
            restore_command: options.restore_command.clone(),
            timeline: plan.timeline,
            target: plan.recovery_target,
            action: plan.action,
        };
        let until_adopted = settings::configure_recovery(into, &recovery, &quiet)?;
        mark::write(into, plan, &until_adopted)?;
        for name in [settings::AUTO_CONF, "recovery.signal", RESTORED_MARK] {
            self.site.own(&into.join(name)).map_err(std::io::Error::other)?;
            fs::File::open(into.join(name))?.sync_all()?;
        }
        self.lead_nowhere(withheld, &bytes)
    }

    fn lead_nowhere(&self, withheld: &Path, control: &[u8]) -> std::io::Result<()> {
        let nowhere = ControlFile::leading_nowhere(control).map_err(std::io::Error::other)?;
        fs::OpenOptions::new().write(true).open(withheld)?.write_all(&nowhere)
    }

    /// Settings of a standby: those of its primary, but for a limit that was raised since, and a port of its own beside it.
    fn follow(&self, standby: &Standby, own: Limits, options: &Options) -> std::io::Result<()> {
        let (plan, into) = (self.site.plan, &self.site.root);
        let raised = quiet::limit_settings(own.or_higher(plan.limits)).into_iter().zip(quiet::limit_settings(own));
        let mut more: Vec<_> = raised.filter(|(now, before)| now != before).map(|(now, _)| now).collect();
        more.extend(options.port.map(|port| ("port", port.to_string())));
        let following = Following {
            restore_command: options.restore_command.clone(),
            primary_conninfo: standby.primary_conninfo.clone().unwrap_or_default(),
            slot: standby.slot.clone().unwrap_or_default(),
            timeline: standby.timeline,
            major: plan.major,
            more,
        };
        standby::configure(into, &following)?;
        for name in [settings::AUTO_CONF, "standby.signal"] {
            self.site.own(&into.join(name)).map_err(std::io::Error::other)?;
            fs::File::open(into.join(name))?.sync_all()?;
        }
        Ok(())
    }

    /// Exchanges the new cluster for the one that stands in its place, if one does, and lets it be started. Answers where the old one
    /// is now.
    fn take_place(&self) -> Result<Option<PathBuf>, RestoreError> {
        let into = &self.site.plan.into;
        let io = |doing: &'static str| move |source| RestoreError::Io { doing, path: into.clone(), source };
        let switched = match &self.site.plan.standing {
            Standing::Cluster(_) => Some(self.exchange()?),
            _ => None,
        };
        for root in roots(self.site.plan).iter().skip(1) {
            fs::remove_file(root.join(RESTORING_MARK)).map_err(io("finish"))?;
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
        let (into, root) = (&self.site.plan.into, &self.site.root);
        let io = |doing: &'static str| move |source| RestoreError::Io { doing, path: into.clone(), source };
        let switched = self.pairs().map_err(io("look at"))?;
        for tablespace in self.site.plan.tablespaces.iter().filter(|t| t.standing == Standing::Tablespace) {
            let link = root.join("pg_tblspc").join(&tablespace.oid);
            fs::remove_file(&link).and_then(|()| symlink(&tablespace.into, &link)).map_err(io("link the tablespaces of"))?;
        }
        durable::sync_directory(&root.join("pg_tblspc")).map_err(io("sync"))?;
        // The last look, and then nobody can start a server between it and the exchange.
        check_unchanged(self.site.plan)?;
        plan::check_shared(into, &self.site.plan.tablespaces, self.site.plan.manifest(), &self.site.plan.elsewhere)?;
        let own = data_directory::own_in(into);
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
            // Files of another version stay where they are, and so do its links.
            if own.as_ref().is_none_or(|own| pair.place.ends_with(own)) {
                undo::point_links(root, tablespace, aside).map_err(io("point the tablespaces of"))?;
            }
            switch::exchange(&pair.place, &pair.staging).map_err(io("exchange a tablespace of"))?;
        }
        Ok(switched)
    }

    fn pairs(&self) -> std::io::Result<Switched> {
        let plan = self.site.plan;
        let at = crate::clock::now();
        let data = Pair::new(plan.into.clone(), self.site.root.clone(), switch::aside(&plan.into, "replaced", at))?;
        let mut tablespaces = Vec::new();
        for tablespace in plan.tablespaces.iter().filter(|t| t.standing == Standing::Tablespace) {
            let aside = switch::aside(&tablespace.into.join("lastgood"), "replaced", at);
            // Only the directory of the restored version: others may have theirs beside it, and be at work.
            let name = plan::own_directory(plan.manifest());
            let place = tablespace.into.join(&name);
            // Of another major version nothing stands there yet; an empty directory is exchanged, so that all goes one way.
            if !place.try_exists()? {
                fs::create_dir(&place)?;
                self.site.own(&place).map_err(std::io::Error::other)?;
            }
            // A snapshot of an earlier version of this program may hold none.
            let staging = tablespace.root().join(&name);
            if !staging.try_exists()? {
                fs::create_dir(&staging)?;
                self.site.own(&staging).map_err(std::io::Error::other)?;
            }
            tablespaces.push(Pair::new(place, staging, aside.join(&name))?);
        }
        let what = format!("restore of snapshot {} to {}", plan.snapshot, plan.target);
        Ok(Switched { at, what, data, tablespaces })
    }
}
