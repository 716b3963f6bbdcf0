//! The order of things: check, prove archiving, start, copy, pg_control, stop, wait for WAL, commit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::choose::{Chooser, Job, WINDOW_JOBS, WalkError};
use super::pack::{self, Packer};
use super::parent::{self, Conditions, ParentLines};
use super::read::{Item, Outcome, ReadError, Reader, Terms};
use super::{SnapshotError, wait};
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory;
use crate::postgres::history::History;
use crate::postgres::lsn::Lsn;
use crate::postgres::owner;
use crate::postgres::page::PAGE_BYTES;
use crate::postgres::session::{Facts, Session, Stopped};
use crate::postgres::wal::name::SegmentName;
use crate::repo::frame::{Compressor, FRAME_BYTES};
use crate::repo::lease::Lease;
use crate::repo::manifest::{
    self, DamagedPage, FileLine, ListWriter, Manifest, MapPlace, PackLine, Part, SegmentLine, TablespaceLink, Totals, What,
};
use crate::repo::map::MapBuilder;
use crate::repo::object::Sha;
use crate::repo::record::ClusterRecord;
use crate::repo::repository::Cluster;
use crate::repo::{FORMAT_VERSION, fetch};
use crate::upkeep::sweep;

/// Copied last, and listed last (rule 11).
pub const CONTROL_PATH: &str = "global/pg_control";
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
}

/// Takes a snapshot and commits it.
pub async fn take(
    cluster: &Cluster,
    record: &ClusterRecord,
    session: &Session,
    request: &Request,
    monitor: Arc<dyn Monitor>,
) -> Result<Manifest, SnapshotError> {
    let facts = session.facts().await?;
    let directory = request.data_directory.clone().unwrap_or_else(|| facts.data_directory.clone());
    let control = check(record, session, &facts, &directory)?;
    let id = new_id(cluster, facts.now).await?;
    let lease = Lease::take(cluster, "backup", &id).await?;
    let taken = Snapshot { cluster, session, request, monitor, facts, directory, control, id }.take().await;
    lease.release().await;
    taken
}

/// Server, data directory and repository speak of the same cluster (rules 3 and 15).
fn check(
    record: &ClusterRecord,
    session: &Session,
    facts: &Facts,
    directory: &std::path::Path,
) -> Result<ControlFile, SnapshotError> {
    let (control, _) = ControlFile::read_bytes_stable(directory)?;
    if control.system_identifier != facts.system_identifier {
        return Err(SnapshotError::OtherDirectory {
            dir: directory.into(),
            found: control.system_identifier,
            target: session.target().into(),
            expected: facts.system_identifier,
        });
    }
    if record.current().is_none_or(|h| h.system_identifier != facts.system_identifier) {
        return Err(SnapshotError::Unregistered {
            name: record.name.clone(),
            known: record.histories.iter().map(|h| h.system_identifier).collect(),
            found: facts.system_identifier,
        });
    }
    if control.block_bytes as usize != PAGE_BYTES {
        return Err(SnapshotError::BlockSize { bytes: control.block_bytes });
    }
    if facts.archive_mode == "off" {
        let reason = "archive_mode is off; `lastgood init` prints the settings, and this one needs a restart".into();
        return Err(SnapshotError::Archiving { reason });
    }
    data_directory::tablespaces(directory)?;
    Ok(control)
}

/// An id from the database's clock that sorts after every id that ever was (rules 7 and 18).
async fn new_id(cluster: &Cluster, now: jiff::Timestamp) -> Result<String, SnapshotError> {
    let id = format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), clock::random_hex(2));
    let newest = cluster.snapshot_ids().await?.pop();
    match newest {
        // Within one second the random part decides; only the time must not go backwards.
        Some(newest) if newest.split('-').next() > id.split('-').next() => Err(SnapshotError::Clock { id, newest }),
        _ => Ok(id),
    }
}

struct Snapshot<'a> {
    cluster: &'a Cluster,
    session: &'a Session,
    request: &'a Request,
    monitor: Arc<dyn Monitor>,
    facts: Facts,
    directory: PathBuf,
    control: ControlFile,
    id: String,
}

/// What the copy brought together.
struct Copied {
    lists: Vec<Part>,
    root: Sha,
    packs: Vec<PackLine>,
    totals: Totals,
    damaged: Vec<DamagedPage>,
}

impl Snapshot<'_> {
    async fn take(&self) -> Result<Manifest, SnapshotError> {
        let swept = sweep::sweep(self.cluster, &self.id).await?;
        if let Some(text) = swept.describe() {
            self.monitor.note(&text);
        }
        let history = self.history()?;
        if !self.facts.in_recovery {
            self.monitor.phase("check archiving", 0);
            wait::prove_archiving(self.cluster, self.facts.system_identifier, self.session, self.request.archive_timeout).await?;
        }
        self.monitor.phase("checkpoint", 0);
        let (start_lsn, start_time) =
            self.session.start_backup(&format!("lastgood {}", self.id), !self.request.spread_checkpoint).await?;
        self.check_disk(start_lsn)?;
        let parent = self.parent(&history, start_lsn).await?;
        let listed_ns = clock::now().as_nanosecond() as i64;
        let watched = self.copy(parent.as_ref());
        let copied = tokio::select! {
            copied = watched => copied?,
            broken = self.watch() => return Err(broken),
        };
        let stopped = self.session.stop_backup().await?;
        self.check_still_the_same().await?;
        let segments = self.wait_for_wal(&history, start_lsn, &stopped).await?;
        self.commit(parent, copied, start_lsn, start_time, listed_ns, stopped, segments).await
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

    async fn parent(&self, history: &History, start: Lsn) -> Result<Option<Manifest>, SnapshotError> {
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
            before: start,
        };
        Ok(parent::find(self.cluster, &conditions).await?)
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

    /// Copies everything, pg_control last.
    async fn copy(&self, parent: Option<&Manifest>) -> Result<Copied, SnapshotError> {
        self.monitor.phase("copy", self.session.database_bytes().await.unwrap_or(0));
        let terms = Arc::new(Terms {
            root: self.directory.clone(),
            checksums: self.control.data_checksum_version != 0,
            blocks_per_file: self.control.blocks_per_file,
            parent_start: parent.map_or(Lsn(0), |p| p.start_lsn),
            compression_level: self.request.compression_level,
        });
        let (finished, packs) = pack::channel();
        let data = Arc::new(Packer::new(&self.id, 'd', finished.clone()));
        let maps = Arc::new(Packer::new(&self.id, 'm', finished));
        let storing = tokio::spawn(pack::store_all(self.cluster.clone(), packs));
        let collected = self.collect(parent, terms, &data, &maps).await;
        if collected.is_ok() {
            let (data, maps) = (data.clone(), maps.clone());
            // Fails only when the store did, whose own error counts.
            let _ = tokio::task::spawn_blocking(move || data.finish().and_then(|()| maps.finish())).await;
        }
        drop((data, maps));
        let stored = match storing.await {
            Ok(stored) => stored,
            Err(error) => return Err(SnapshotError::Thread { detail: error.to_string() }),
        };
        // When the store failed, the readers only saw that nobody takes their packs.
        let stored = stored?;
        let mut collected = collected?;
        collected.copied.totals.stored_bytes = stored.values().sum();
        let mut lengths: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        let before = match parent {
            Some(parent) => parent.packs(self.cluster).await?,
            None => Vec::new(),
        };
        for PackLine(name, bytes) in before {
            let name: Arc<str> = name.into();
            if collected.packs.contains(&name) {
                lengths.insert(name, bytes);
            }
        }
        lengths.extend(stored);
        collected.copied.packs = pack::table(lengths);
        Ok(collected.copied)
    }

    /// Runs the walk and the readers, and writes their lines in order.
    async fn collect(
        &self,
        parent: Option<&Manifest>,
        terms: Arc<Terms>,
        data: &Arc<Packer>,
        maps: &Arc<Packer>,
    ) -> Result<Collected, SnapshotError> {
        let (jobs, work) = sync_channel::<Job>(2 * self.request.threads);
        let window = Arc::new(Semaphore::new(WINDOW_JOBS));
        let _closed_when_dropped = CloseOnDrop(window.clone());
        let runtime = tokio::runtime::Handle::current();
        let chooser = Chooser {
            root: self.directory.clone(),
            parent: parent.map(|p| ParentLines::new(self.cluster.clone(), p.clone(), runtime.clone())),
            parent_listed_ns: parent.map_or(i64::MIN / 2, |p| p.listed_ns),
            paranoid: self.request.paranoid,
            jobs,
            window: window.clone(),
            runtime: runtime.clone(),
            monitor: self.monitor.clone(),
            number: 0,
            items: Vec::new(),
            parents: Vec::new(),
            bytes: 0,
        };
        let walking = tokio::task::spawn_blocking(move || chooser.run());
        let (done, mut results) = mpsc::channel(2 * self.request.threads);
        let work = Arc::new(Mutex::new(work));
        let mut reading = Vec::new();
        for _ in 0..self.request.threads {
            let worker = Worker {
                cluster: self.cluster.clone(),
                runtime: runtime.clone(),
                monitor: self.monitor.clone(),
                window: window.clone(),
            };
            let reader = Reader::new(terms.clone(), data.clone(), maps.clone());
            let (work, done) = (work.clone(), done.clone());
            reading.push(tokio::task::spawn_blocking(move || worker.run_all(reader, &work, &done)));
        }
        drop((done, work));
        let mut lists = Lists::new(self.cluster, &self.id, parent);
        let mut waiting: BTreeMap<u64, (Outcome, tokio::sync::OwnedSemaphorePermit)> = BTreeMap::new();
        let mut next = 0;
        while let Some((number, outcome, permit)) = results.recv().await {
            waiting.insert(number, (outcome, permit));
            while let Some((outcome, _permit)) = waiting.remove(&next) {
                lists.add(outcome).await?;
                next += 1;
            }
        }
        for thread in reading {
            match thread.await {
                Ok(Ok(())) | Ok(Err(ReadError::Cancelled)) => {}
                Ok(Err(ReadError::Failed(error))) => return Err(error),
                Err(error) => return Err(SnapshotError::Thread { detail: error.to_string() }),
            }
        }
        match walking.await {
            Ok(Ok(())) => {}
            Ok(Err(WalkError::Failed(error))) => return Err(error),
            // Only after a reader failed or the store did, and both have errors of their own.
            Ok(Err(WalkError::Cancelled)) => return Err(SnapshotError::Thread { detail: "the walk was cancelled".into() }),
            Err(error) => return Err(SnapshotError::Thread { detail: error.to_string() }),
        }
        let control = self.control_line(data.clone()).await?;
        lists.add(Outcome { lines: vec![control], kept: vec![false], ..Outcome::default() }).await?;
        lists.finish().await
    }

    /// pg_control, read until its checksum holds, stored in a frame of its own.
    async fn control_line(&self, data: Arc<Packer>) -> Result<FileLine, SnapshotError> {
        let (_, bytes) = ControlFile::read_bytes_stable(&self.directory)?;
        let level = self.request.compression_level;
        let stored = tokio::task::spawn_blocking(move || {
            let stored = Compressor::new(level).compress(&bytes);
            data.add(stored, bytes.len() as u32, Sha::of(&bytes)).map(|frame| (frame, bytes.len() as u64))
        });
        let Ok(Ok((frame, bytes))) = stored.await else {
            return Err(SnapshotError::Thread { detail: "pg_control could not be stored".into() });
        };
        let mut map = MapBuilder::default();
        map.frame(&frame, 0, bytes);
        let map = map.finish();
        let what = What::File { bytes, modified_ns: 0, inode: 0, digest: map.digest(), content: None, map: MapPlace::Map(map) };
        Ok(FileLine { path: CONTROL_PATH.into(), what, mode: 0o600 })
    }

    async fn wait_for_wal(&self, history: &History, start: Lsn, stopped: &Stopped) -> Result<Vec<SegmentLine>, SnapshotError> {
        let bytes = u64::from(self.control.wal_segment_bytes);
        let numbers = start.segment(bytes)..=stopped.lsn.last_segment_before(bytes).max(start.segment(bytes));
        let names: Vec<SegmentName> = numbers.map(|number| history.segment(number, bytes)).collect();
        let (system, timeout) = (self.facts.system_identifier, self.request.archive_timeout);
        wait::for_snapshot(self.cluster, system, names.into_iter(), self.session, timeout, &*self.monitor).await
    }

    #[expect(clippy::too_many_arguments, reason = "each is a stage of the snapshot, named where it is used")]
    async fn commit(
        &self,
        parent: Option<Manifest>,
        copied: Copied,
        start_lsn: Lsn,
        start_time: jiff::Timestamp,
        listed_ns: i64,
        stopped: Stopped,
        segments: Vec<SegmentLine>,
    ) -> Result<Manifest, SnapshotError> {
        use std::os::unix::fs::MetadataExt;
        self.monitor.phase("commit", 0);
        let layout = self.cluster.layout();
        let pack_table = manifest::put_table(self.cluster, &layout.pack_table(&self.id), &copied.packs).await?;
        let wal_table = manifest::put_table(self.cluster, &layout.wal_table(&self.id), &segments).await?;
        let directory =
            std::fs::metadata(&self.directory).map_err(|source| SnapshotError::Read { path: self.directory.clone(), source })?;
        let links = data_directory::tablespaces(&self.directory)?;
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let manifest = Manifest {
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
            parent: parent.map(|p| p.id),
            from_standby: self.facts.in_recovery,
            backup_label: stopped.backup_label,
            tablespaces: links.into_iter().map(|(oid, target)| TablespaceLink { oid, target: text(target) }).collect(),
            data_directory: text(self.directory.clone()),
            owner: owner::user_name(directory.uid()),
            group: owner::group_name(directory.gid()),
            mode: directory.mode() & 0o7777,
            file_lists: copied.lists,
            pack_table,
            wal_table,
            first_segment: segments[0].0,
            last_segment: segments[segments.len() - 1].0,
            totals: copied.totals,
            damaged_pages: copied.damaged,
            root: copied.root,
            written_by: concat!("lastgood ", env!("CARGO_PKG_VERSION")).into(),
        };
        manifest.commit(self.cluster).await?;
        Ok(manifest)
    }
}

/// Ends the walk's waiting when the copy is given up.
struct CloseOnDrop(Arc<Semaphore>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Everything that [`Snapshot::collect`] brings, before the packs are known.
struct Collected {
    copied: Copied,
    packs: BTreeSet<Arc<str>>,
}

/// Lines in order, on their way into the file lists, and what is counted on the way.
struct Lists<'a> {
    writer: ListWriter<'a>,
    totals: Totals,
    damaged: Vec<DamagedPage>,
    damaged_before: &'a [DamagedPage],
    packs: BTreeSet<Arc<str>>,
}

impl<'a> Lists<'a> {
    fn new(cluster: &'a Cluster, id: &str, parent: Option<&'a Manifest>) -> Self {
        Lists {
            writer: ListWriter::new(cluster, id),
            totals: Totals::default(),
            damaged: Vec::new(),
            damaged_before: parent.map_or(&[], |p| &p.damaged_pages),
            packs: BTreeSet::new(),
        }
    }

    async fn add(&mut self, outcome: Outcome) -> Result<(), SnapshotError> {
        self.totals.read_bytes += outcome.read_bytes;
        self.totals.new_bytes += outcome.new_bytes;
        self.damaged.extend(outcome.damaged);
        for (line, kept) in outcome.lines.iter().zip(&outcome.kept) {
            if let What::File { bytes, map, .. } = &line.what {
                self.totals.files += 1;
                self.totals.raw_bytes += bytes;
                self.packs.extend(map.packs());
            }
            // A file that was not read again keeps the damage that the parent found in it.
            if *kept {
                let known = self.damaged_before.iter().filter(|page| page.path == line.path);
                self.damaged.extend(known.cloned());
            }
            self.writer.add(line).await?;
        }
        Ok(())
    }

    async fn finish(self) -> Result<Collected, SnapshotError> {
        let (lists, root) = self.writer.finish().await?;
        let copied = Copied { lists, root, packs: Vec::new(), totals: self.totals, damaged: self.damaged };
        Ok(Collected { copied, packs: self.packs })
    }
}

/// A reading thread.
struct Worker {
    cluster: Cluster,
    runtime: tokio::runtime::Handle,
    monitor: Arc<dyn Monitor>,
    window: Arc<Semaphore>,
}

type Done = mpsc::Sender<(u64, Outcome, tokio::sync::OwnedSemaphorePermit)>;

impl Worker {
    /// Ends with the work. When it ends early the walk must not wait for a job that nobody finishes.
    fn run_all(&self, reader: Reader, work: &Mutex<Receiver<Job>>, done: &Done) -> Result<(), ReadError> {
        let ran = self.run(reader, work, done);
        if ran.is_err() {
            self.window.close();
        }
        ran
    }

    fn run(&self, mut reader: Reader, work: &Mutex<Receiver<Job>>, done: &Done) -> Result<(), ReadError> {
        loop {
            let job = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(mut job) = job else { return Ok(()) };
            self.fetch_parents(&mut job)?;
            let outcome = reader.job(&job.items)?;
            let read: u64 = job.items.iter().map(|item| if let Item::Read(task) = item { task.bytes } else { 0 }).sum();
            self.monitor.advance(read);
            done.blocking_send((job.number, outcome, job.permit)).map_err(|_| ReadError::Cancelled)?;
        }
    }

    /// Maps of large files lie in packs; those of files that changed are fetched now.
    fn fetch_parents(&self, job: &mut Job) -> Result<(), ReadError> {
        for (index, frame) in std::mem::take(&mut job.parents) {
            let fetched = self.runtime.block_on(fetch::maps(&self.cluster, Arc::new(vec![frame])));
            let map = fetched.and_then(|mut maps| maps.remove(0));
            let Item::Read(task) = &mut job.items[index] else { continue };
            match map {
                Ok(map) if map.frame_bytes() <= 4 * task.bytes + FRAME_BYTES as u64 => task.parent = Some(map),
                Ok(_) => {}
                // A damaged map of the parent must not damage this snapshot: the file is stored anew.
                Err(error) if error.is_damage() => {
                    self.monitor.warn(&format!("{error}; {} is stored anew", manifest::encode_path(&task.path)));
                }
                Err(error) => return Err(ReadError::Failed(error.into())),
            }
        }
        Ok(())
    }
}
