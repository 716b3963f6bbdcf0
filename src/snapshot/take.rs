//! The order of things: check, prove archiving, start, copy, pg_control, stop, wait for WAL, commit.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::begin::{self, Begun};
use super::changes::Changes;
use super::choose::TRUST_AFTER_NS;
use super::commit;
use super::copy::{Copied, Copy, listed_ns};
use super::parent::{self, Conditions, Parent};
use super::retire::{self, Retire};
use super::survey::{self, Sample};
use super::{SnapshotError, gather, wait};
use crate::clock;
use crate::monitor::Monitor;
use crate::owner;
use crate::postgres::apart::Apart;
use crate::postgres::catalogue;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::{self, Scope};
use crate::postgres::history::History;
use crate::postgres::lsn::Lsn;
use crate::postgres::mapped;
use crate::postgres::session::{Facts, Session, Stopped};
use crate::postgres::wal::name::SegmentName;
use crate::repo::audit;
use crate::repo::lease::Exclusive;
use crate::repo::manifest::{self, Manifest, SegmentLine};
use crate::repo::object::Sha;
use crate::repo::presence;
use crate::repo::record::ClusterRecord;
use crate::repo::repository::Cluster;
use crate::repo::{FORMAT_VERSION, RepoError, rollup};
use crate::timeline::archive::Archive;
use crate::timeline::indexes::Kept;
use crate::upkeep::locks;
use crate::upkeep::reindex::{self, Bounds};
use crate::upkeep::sweep;

/// Copied last, and listed last (rule 11).
pub use crate::repo::validate::CONTROL_PATH;
/// Between two pings of the session.
const PING: Duration = Duration::from_secs(2);

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// Store everything anew.
    pub full: bool,
    /// Read every file, whatever its times say.
    pub paranoid: bool,
    /// Wait for the server's next regular checkpoint instead of asking for one now.
    pub spread_checkpoint: bool,
    /// Where this host sees the data directory; the server's own answer when absent.
    pub data_directory: Option<PathBuf>,
    pub threads: usize,
    pub compression_level: i32,
    pub archive_timeout: Duration,
    /// Which packs of snapshots that are gone to do without.
    pub retire: retire::Terms,
    /// The newest snapshot, as far as the caller knows: there may be newer ones.
    pub newest: Option<String>,
    /// WAL indexes that this host kept when it archived.
    pub kept: Kept,
    /// Directories of ours, which are no part of a cluster.
    pub apart: Vec<Apart>,
}

/// Takes a snapshot and commits it. One whose parent turns out to be damaged is given up, and stores everything anew.
pub async fn take(
    cluster: &Cluster,
    record: &ClusterRecord,
    session: &Session,
    request: &Request,
    monitor: Arc<dyn Monitor>,
) -> Result<Manifest, SnapshotError> {
    match take_once(cluster, record, session, request, monitor.clone()).await {
        Err(SnapshotError::Repo(error)) if !request.full && is_of_file_list(&error) => {
            monitor.warn(&format!("{error}; nothing is built on that snapshot, and this one stores everything anew"));
            // The server holds one backup in a session; where this one had not begun yet, there is nothing to stop.
            let _ = session.stop_backup().await;
            let request = Request { full: true, ..request.clone() };
            take_once(cluster, record, session, &request, monitor).await
        }
        taken => taken,
    }
}

/// Damage of a list that an older snapshot has: this one reads none of its own.
fn is_of_file_list(error: &RepoError) -> bool {
    matches!(error, RepoError::Damaged { key, .. } if key.as_str().contains("/files/"))
}

async fn take_once(
    cluster: &Cluster,
    record: &ClusterRecord,
    session: &Session,
    request: &Request,
    monitor: Arc<dyn Monitor>,
) -> Result<Manifest, SnapshotError> {
    let facts = session.facts().await?;
    let directory = request.data_directory.clone().unwrap_or_else(|| facts.data_directory.clone());
    let mut control = begin::check(record, session, &facts, &directory, &request.apart)?;
    control.timeline = begin::timeline(session, &facts, control.timeline).await?;
    // A segment takes its time to arrive; meanwhile the lease is taken, and what to build on is looked for.
    let pg_wal = directory.join("pg_wal");
    let server = wait::Server { system: facts.system_identifier, session, pg_wal: &pg_wal, kept: &request.kept };
    let proven = begin::prove_archiving(cluster, server, &facts, request.archive_timeout, &*monitor);
    let prepared = async {
        let foreseen = async {
            let newest = request.newest.as_ref().filter(|_| !request.full)?;
            parent::foresee(cluster, newest).await
        };
        let begun = begin::begin(cluster, session, facts.now, request.newest.clone());
        let (begun, foreseen) = tokio::join!(begun, foreseen);
        let Begun { id, lease, ids } = begun?;
        if let Some(text) = begin::ahead(&id, facts.now) {
            monitor.warn(&text);
        }
        // From here on, everything is written through the lease's fence.
        let (cluster, facts, monitor) = (lease.cluster(), facts.clone(), monitor.clone());
        let parent_start = OnceLock::new();
        let snapshot = Snapshot { cluster, session, request, monitor, facts, directory, control, id, ids, parent_start };
        let base = snapshot.base(foreseen).await;
        Ok::<_, SnapshotError>((lease, snapshot, base))
    };
    let ((lease, snapshot, base), proven) = tokio::try_join!(prepared, async { Ok(proven.await) })?;
    if let Err(error) = proven {
        lease.release().await;
        return Err(error);
    }
    let taken = snapshot.take_and_commit(cluster, &lease, base).await;
    if let Ok(manifest) = &taken {
        snapshot.roll_up(manifest).await;
    }
    let kept = async {
        match &taken {
            Ok(manifest) => manifest.prove_committed(cluster).await,
            Err(_) => Ok(()),
        }
    };
    let (kept, ()) = tokio::join!(kept, lease.release());
    kept?;
    taken
}

/// What a snapshot is built on: the server's path, and an older snapshot with what is not taken over from it.
struct Base {
    history: History,
    parent: Option<(Parent, Retire)>,
}

struct Snapshot<'a> {
    cluster: Cluster,
    session: &'a Session,
    request: &'a Request,
    monitor: Arc<dyn Monitor>,
    facts: Facts,
    directory: PathBuf,
    control: ControlFile,
    id: String,
    /// Of all snapshots before this one.
    ids: Vec<String>,
    parent_start: OnceLock<Lsn>,
}

impl Snapshot<'_> {
    /// The lease is asked for once more just before the manifest (see [`Snapshot::take`]), which nobody may write whose packs another
    /// backup may have swept; the fence looks at how long ago that was, and [`commit`] afterwards.
    async fn take_and_commit(
        &self,
        cluster: &Cluster,
        lease: &Exclusive,
        base: Result<Base, SnapshotError>,
    ) -> Result<Manifest, SnapshotError> {
        let taken = tokio::select! {
            taken = self.take(lease, base) => taken,
            lost = lease.lost() => Err(lost.into()),
        };
        let manifest = match taken {
            Ok(manifest) => manifest,
            // What failed because of the lost lease (packs that another backup swept) is reported as that.
            Err(error) => return Err(lease.explain().await.map_or(error, SnapshotError::from)),
        };
        self.lock_what_is_carried(&manifest).await?;
        commit::commit(&manifest, &self.cluster, cluster, lease).await?;
        Ok(manifest)
    }

    /// In a bucket with locks. A snapshot whose packs are locked for less than it should be is still one that can be restored.
    async fn lock_what_is_carried(&self, manifest: &Manifest) -> Result<(), SnapshotError> {
        if let Some(failure) = locks::carried(&self.cluster, manifest).await?.and_then(|extended| extended.first_failure) {
            self.monitor
                .warn(&format!("what this snapshot takes over from older ones is not locked as long as it is: {failure}"));
        }
        Ok(())
    }

    /// Makes roll-ups of the WAL index that pushes left out, when a group of them was filled since the parent. The snapshot is
    /// complete without.
    async fn roll_up(&self, manifest: &Manifest) {
        let bytes = u64::from(self.control.wal_segment_bytes);
        let group = |lsn: Lsn| lsn.segment(bytes) / rollup::FAN;
        let before = manifest.parent.as_ref().and(self.parent_start.get());
        if before.is_none_or(|before| group(*before) == group(manifest.start_lsn)) {
            return;
        }
        let made = async {
            let mut archive = Archive::load(&self.cluster, self.facts.system_identifier, bytes).await?;
            let mapped = Arc::new(mapped::moved(&self.directory));
            let local = |name| self.request.kept.index(name);
            reindex::reindex(&mut archive, &local, mapped, Bounds::SNAPSHOT, &*self.monitor).await
        };
        match made.await {
            Ok(_) | Err(RepoError::WriterKey { .. }) => {}
            Err(error) => self.monitor.note(&format!("the WAL index was not rolled up: {error}")),
        }
    }

    fn scope(&self) -> Scope {
        Scope { apart: self.request.apart.clone(), ..Scope::new(self.facts.major(), self.control.catalog_version) }
    }

    /// What the snapshot is built on.
    async fn base(&self, foreseen: Option<Parent>) -> Result<Base, SnapshotError> {
        let history = self.history()?;
        let parent = self.parent(&history, Lsn(u64::MAX), foreseen).await?;
        Ok(Base { history, parent })
    }

    /// Removes what others left unfinished. Nothing of this snapshot waits for it.
    async fn sweep(&self) -> Result<(), SnapshotError> {
        if let Some(text) = sweep::sweep(&self.cluster, &self.id).await?.describe() {
            self.monitor.note(&text);
        }
        Ok(())
    }

    /// Everything up to the manifest, which is not written yet.
    async fn take(&self, lease: &Exclusive, base: Result<Base, SnapshotError>) -> Result<Manifest, SnapshotError> {
        let Base { history, parent } = base?;
        self.monitor.phase("checkpoint", 0);
        let (start_lsn, start_time) =
            self.session.start_backup(&format!("lastgood {}", self.id), !self.request.spread_checkpoint).await?;
        self.check_disk(start_lsn)?;
        let parent = match parent {
            // A standby may begin before the newest snapshot ended.
            Some((parent, _)) if parent.manifest.stop_lsn > start_lsn => self.parent(&history, start_lsn, None).await?,
            parent => parent,
        };
        let (parent, retire) = parent.unzip();
        if let Some(parent) = &parent {
            self.parent_start.get_or_init(|| parent.manifest.start_lsn);
        }
        let listed_ns = clock::now().as_nanosecond() as i64;
        let copy = async {
            let manifest = parent.as_ref().map(|parent| &parent.manifest);
            let changes = self.changes(&history, manifest, start_lsn).await;
            let copy = Copy {
                cluster: &self.cluster,
                request: self.request,
                monitor: self.monitor.clone(),
                directory: self.directory.clone(),
                scope: self.scope(),
                control: &self.control,
                id: &self.id,
                changes,
                retire: Arc::new(retire.unwrap_or_default()),
            };
            copy.run(parent.as_ref()).await
        };
        // None is broken off: threads of the copy must not go on behind an error.
        let watched = async { tokio::join!(copy, self.catalogue(), self.sweep()) };
        let (copied, catalogue) = tokio::select! {
            (copied, catalogue, swept) = watched => {
                let done = (copied?, catalogue?);
                swept?;
                done
            }
            broken = self.watch() => return Err(broken),
        };
        let stopped = self.session.stop_backup().await?;
        self.check_still_the_same().await?;
        // What is written is looked at while WAL is on its way.
        let settled = async { self.settle(&copied).await.map_err(SnapshotError::from) };
        let (segments, audit) = tokio::try_join!(self.wait_for_wal(&history, start_lsn, &stopped), settled)?;
        let parent = parent.map(|parent| parent.manifest.id);
        let manifest = self.manifest(parent, copied, catalogue, start_lsn, start_time, listed_ns, stopped, segments, audit);
        let confirmed = async { lease.confirm().await.map_err(SnapshotError::from) };
        let (manifest, ()) = tokio::try_join!(manifest, confirmed)?;
        Ok(manifest)
    }

    /// Names for the numbers in the WAL that follows. A snapshot without them is a snapshot all the same.
    async fn catalogue(&self) -> Result<Option<manifest::Part>, SnapshotError> {
        let (mut catalogue, problems) = match catalogue::take(self.session).await {
            Ok(taken) => taken,
            Err(error) => {
                self.monitor.warn(&format!("what happens from now on will be told in numbers, without names: {error}"));
                return Ok(None);
            }
        };
        problems.iter().for_each(|problem| self.monitor.warn(problem));
        let (directory, major) = (self.directory.clone(), self.facts.major());
        let measured = tokio::task::spawn_blocking(move || {
            catalogue.measure(&directory, major);
            catalogue
        });
        let catalogue = measured.await.unwrap_or_default();
        let key = self.cluster.layout().catalogue(&self.id);
        Ok(Some(manifest::put_table(&self.cluster, &key, &catalogue.lines()).await?))
    }

    /// The path to the server's timeline, from its own history file.
    fn history(&self) -> Result<History, SnapshotError> {
        let timeline = self.control.timeline;
        let path = self.directory.join(format!("pg_wal/{timeline}.history"));
        match std::fs::read_to_string(&path) {
            Ok(text) => History::parse(timeline, &text)
                .map_err(|error| SnapshotError::Read { path, source: std::io::Error::other(error.to_string()) }),
            // The first timeline has none; a later one without its file has no parents that we could prove.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(History::first(timeline)),
            Err(source) => Err(SnapshotError::Read { path, source }),
        }
    }

    /// Rule 4: what we read is the disk that the server writes to.
    fn check_disk(&self, start: Lsn) -> Result<(), SnapshotError> {
        let (now, _) = ControlFile::read_bytes_stable(&self.directory)?;
        if now.redo < start {
            return Err(SnapshotError::OtherDisk { dir: self.directory.clone(), start, checkpoint: now.redo });
        }
        if now.timeline != self.control.timeline {
            return Err(SnapshotError::TimelineChanged { from: self.control.timeline, to: now.timeline });
        }
        Ok(())
    }

    /// The snapshot to build on, of which everything is there, and the packs of older ones that this one does without.
    async fn parent(
        &self,
        history: &History,
        before: Lsn,
        foreseen: Option<Parent>,
    ) -> Result<Option<(Parent, Retire)>, SnapshotError> {
        if self.request.full {
            return Ok(None);
        }
        let conditions = Conditions {
            system_identifier: self.facts.system_identifier,
            history,
            data_checksums: self.control.data_checksum_version != 0,
            block_bytes: self.control.block_bytes,
            blocks_per_file: self.control.blocks_per_file,
            catalog_version: self.control.catalog_version,
            before,
        };
        let choice = parent::find(&self.cluster, &self.ids, &conditions, foreseen).await?;
        choice.warnings().for_each(|warning| self.monitor.warn(&warning));
        let Some(parent) = choice.parent else { return Ok(None) };
        let retire = Retire::plan(&self.cluster, &self.ids, &parent, self.request.retire).await?;
        Ok(Some((parent, retire)))
    }

    /// Which pages changed since the parent, where WAL tells it and a sample agrees; begins the copy's phase.
    async fn changes(&self, history: &History, parent: Option<&Manifest>, start: Lsn) -> Option<Arc<Changes>> {
        let parent = parent.filter(|_| !self.request.paranoid);
        let changes = match parent {
            Some(parent) => self.gather(history, parent, start).await,
            None => None,
        };
        let sample = parent.zip(changes.clone()).map(|(parent, changes)| {
            let since_ns = listed_ns(parent) - TRUST_AFTER_NS;
            Sample { changes, from: parent.start_lsn, to: start, since_ns }
        });
        let directory = self.directory.clone();
        let scope = self.scope();
        let surveyed = tokio::task::spawn_blocking(move || survey::survey(directory, &scope, sample)).await.unwrap_or_default();
        self.monitor.phase("copy", surveyed.bytes);
        let Some(wrong) = surveyed.contradiction else { return changes };
        self.monitor.warn(&format!(
            "page {} of {} changed at {}, which the WAL index does not say; it is not believed, and every changed file is read",
            wrong.page, wrong.path, wrong.lsn
        ));
        None
    }

    async fn gather(&self, history: &History, parent: &Manifest, start: Lsn) -> Option<Arc<Changes>> {
        self.monitor.phase("read the WAL index", 0);
        let stretch = gather::Stretch {
            system: self.facts.system_identifier,
            segment_bytes: u64::from(self.control.wal_segment_bytes),
            blocks_per_file: self.control.blocks_per_file,
            path: history.clone(),
            from: parent.start_lsn,
            to: start,
            pg_wal: self.directory.join("pg_wal"),
            kept: self.request.kept.clone(),
        };
        match gather::changes(&self.cluster, stretch).await {
            Ok(changes) => Some(Arc::new(changes)),
            Err(why) => {
                self.monitor.note(&format!("every changed file is read, because WAL does not tell which pages changed: {why}"));
                None
            }
        }
    }

    /// Ends when the session dies or the server is promoted (rule 8).
    async fn watch(&self) -> SnapshotError {
        loop {
            tokio::time::sleep(PING).await;
            match self.session.in_recovery().await {
                Ok(in_recovery) if in_recovery == self.facts.in_recovery => {}
                Ok(_) => return SnapshotError::Promoted,
                Err(error) => return error.into(),
            }
        }
    }

    async fn check_still_the_same(&self) -> Result<(), SnapshotError> {
        if self.session.in_recovery().await? != self.facts.in_recovery {
            return Err(SnapshotError::Promoted);
        }
        let (now, _) = ControlFile::read_bytes_stable(&self.directory)?;
        if now.timeline != self.control.timeline {
            return Err(SnapshotError::TimelineChanged { from: self.control.timeline, to: now.timeline });
        }
        Ok(())
    }

    /// An old key does not open an entry that was written after a rotation; the snapshot is worth more than remembering it.
    async fn audit_head(&self) -> Result<Option<audit::Head>, RepoError> {
        match audit::head(&self.cluster).await {
            Ok(head) => Ok(Some(head).filter(|head| head.number > 0 && head.sha256 != Sha([0; 32]))),
            Err(error) if error.is_newer_epoch() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn wait_for_wal(&self, history: &History, start: Lsn, stopped: &Stopped) -> Result<Vec<SegmentLine>, SnapshotError> {
        let bytes = u64::from(self.control.wal_segment_bytes);
        let numbers = start.segment(bytes)..=stopped.lsn.last_segment_before(bytes).max(start.segment(bytes));
        let names: Vec<SegmentName> = numbers.map(|number| history.segment(number, bytes)).collect();
        let pg_wal = self.directory.join("pg_wal");
        let server = wait::Server {
            system: self.facts.system_identifier,
            session: self.session,
            pg_wal: &pg_wal,
            kept: &self.request.kept,
        };
        wait::for_snapshot(&self.cluster, server, names.into_iter(), self.request.archive_timeout, &*self.monitor).await
    }

    /// Whether all packs that the snapshot needs are there; the end of the audit.
    async fn settle(&self, copied: &Copied) -> Result<Option<audit::Head>, RepoError> {
        let (missing, audit) = tokio::try_join!(presence::missing_anywhere(&self.cluster, &copied.packs), self.audit_head())?;
        // Whoever swept away what this snapshot wrote or needs (a paused process, a wrong clock): it must not be committed.
        match missing.into_iter().next() {
            Some((key, what)) => {
                Err(RepoError::Damaged { key, what: format!("{what}, although this snapshot needs it; run it again") })
            }
            None => Ok(audit),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is a stage of the snapshot, named where it is used")]
    async fn manifest(
        &self,
        parent: Option<String>,
        copied: Copied,
        catalogue: Option<manifest::Part>,
        start_lsn: Lsn,
        start_time: jiff::Timestamp,
        listed_ns: i64,
        stopped: Stopped,
        segments: Vec<SegmentLine>,
        audit: Option<audit::Head>,
    ) -> Result<Manifest, SnapshotError> {
        use std::os::unix::fs::MetadataExt;
        self.monitor.phase("commit", 0);
        // Last of all but the manifest: an id with a table was a snapshot, which no sweep takes apart (`upkeep::sweep`).
        let (packs, wal) = (self.cluster.layout().pack_table(&self.id), self.cluster.layout().wal_table(&self.id));
        let (pack_table, wal_table) = tokio::try_join!(
            manifest::put_table(&self.cluster, &packs, &copied.packs),
            manifest::put_table(&self.cluster, &wal, &segments),
        )?;
        let directory =
            std::fs::metadata(&self.directory).map_err(|source| SnapshotError::Read { path: self.directory.clone(), source })?;
        let wal_place = data_directory::wal_place(&self.directory)
            .map_err(|source| SnapshotError::Read { path: self.directory.join("pg_wal"), source })?;
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        Ok(Manifest {
            format: FORMAT_VERSION,
            id: self.id.clone(),
            cluster: self.cluster.name().into(),
            system_identifier: self.facts.system_identifier,
            major: self.facts.major(),
            version: self.facts.version.clone(),
            control_version: self.control.control_version,
            catalog_version: self.control.catalog_version,
            block_bytes: self.control.block_bytes,
            blocks_per_file: self.control.blocks_per_file,
            wal_segment_bytes: self.control.wal_segment_bytes,
            data_checksums: self.control.data_checksum_version != 0,
            timeline: self.control.timeline,
            start_lsn,
            stop_lsn: stopped.lsn,
            start_time,
            stop_time: stopped.time,
            listed_ns,
            parent,
            from_standby: self.facts.in_recovery,
            backup_label: stopped.backup_label,
            tablespaces: copied.tablespaces,
            data_directory: text(self.directory.clone()),
            config_file: Some(&self.facts.config_file)
                .filter(|file| !file.starts_with(&self.facts.data_directory) && !file.as_os_str().is_empty())
                .map(|file| text(file.clone())),
            wal_directory: wal_place.map(|place| manifest::encode_place(&place)),
            owner: owner::user_name(directory.uid()),
            group: owner::group_name(directory.gid()),
            mode: directory.mode() & 0o7777,
            file_lists: copied.lists,
            pack_table,
            wal_table,
            catalogue,
            first_segment: segments[0].0,
            last_segment: segments[segments.len() - 1].0,
            totals: copied.totals,
            retired: copied.retired,
            damaged_pages: copied.damaged,
            audit,
            root: copied.root,
            written_by: concat!("lastgood ", env!("CARGO_PKG_VERSION")).into(),
        })
    }
}
