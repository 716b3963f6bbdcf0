//! The copy itself: the walk, the reading threads, the packs, and the lists, running together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc};

use super::SnapshotError;
use super::changes::Changes;
use super::choose::{Chooser, Job, WINDOW_JOBS, WalkError};
use super::pack::{self, Cancelled, Packer};
use super::parent::{Parent, ParentLines};
use super::read::{Item, Outcome, ReadError, Reader, Task, Terms};
use super::retire::{Live, Retire};
use super::stretch::{self, Assembled, Assembly, FileFacts, Line};
use super::take::{CONTROL_PATH, Request};
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::Scope;
use crate::postgres::lsn::Lsn;
use crate::repo::fetch;
use crate::repo::frame::{Compressor, FRAME_BYTES};
use crate::repo::manifest::{
    self, DamagedPage, FileLine, ListWriter, Manifest, MapPlace, Part, Retired, TablespaceLink, Totals, What,
};
use crate::repo::map::{FileMap, MapBuilder};
use crate::repo::object::Sha;
use crate::repo::pack_table::PackLine;
use crate::repo::repository::Cluster;

/// What a copy works on.
pub struct Copy<'a> {
    pub cluster: &'a Cluster,
    pub request: &'a Request,
    pub monitor: Arc<dyn Monitor>,
    pub directory: PathBuf,
    /// What of it belongs to the cluster.
    pub scope: Scope,
    pub control: &'a ControlFile,
    pub id: &'a str,
    /// What changed since the parent, where WAL tells it.
    pub changes: Option<Arc<Changes>>,
    pub retire: Arc<Retire>,
}

/// What the copy brought together.
pub struct Copied {
    pub lists: Vec<Part>,
    pub root: Sha,
    pub packs: Vec<PackLine>,
    pub retired: Option<Retired>,
    pub totals: Totals,
    pub damaged: Vec<DamagedPage>,
    /// The links that were walked, whatever became of them meanwhile.
    pub tablespaces: Vec<TablespaceLink>,
}

impl Copy<'_> {
    /// Copies everything, pg_control last.
    pub async fn run(&self, parent: Option<&Parent>) -> Result<Copied, SnapshotError> {
        let (parent, before) = (parent.map(|p| &p.manifest), parent.map_or(&[][..], |p| &p.packs));
        let terms = Arc::new(Terms {
            root: self.directory.clone(),
            checksums: self.control.data_checksum_version != 0,
            blocks_per_file: self.control.blocks_per_file,
            parent_start: parent.map_or(Lsn(0), |p| p.start_lsn),
            compression_level: self.request.compression_level,
            retire: self.retire.clone(),
        });
        let (finished, packs) = pack::channel();
        let data = Arc::new(Packer::new(self.cluster, self.id, 'd', finished.clone()));
        let maps = Arc::new(Packer::new(self.cluster, self.id, 'm', finished));
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
        collected.copied.totals.stored_bytes = stored.values().map(|pack| pack.bytes).sum();
        let mut packs: BTreeMap<Arc<str>, PackLine> = BTreeMap::new();
        for pack in before {
            let name: Arc<str> = pack.name.as_str().into();
            if collected.live.has(&name) {
                packs.insert(name, pack.clone());
            }
        }
        packs.extend(stored);
        packs.values_mut().for_each(|line| collected.live.fill(line));
        collected.copied.retired = self.retire.outcome(&collected.live);
        collected.copied.packs = packs.into_values().collect();
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
            scope: self.scope.clone(),
            parent: parent.map(|p| ParentLines::new(self.cluster.clone(), p.clone(), runtime.clone())),
            parent_damaged: parent.iter().flat_map(|p| &p.damaged_pages).map(|page| page.path.clone()).collect(),
            parent_listed_ns: parent.map_or(NEVER_NS, listed_ns),
            paranoid: self.request.paranoid,
            changes: self.changes.clone(),
            checksums: terms.checksums,
            is_copy: false,
            retire: self.retire.clone(),
            jobs,
            window: window.clone(),
            runtime: runtime.clone(),
            monitor: self.monitor.clone(),
            number: 0,
            items: Vec::new(),
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
        let mut lists = Lists::new(self.cluster, self.id, maps.clone(), self.request.compression_level);
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
        lists.add(Outcome { lines: vec![Line::Whole(Box::new(control))], ..Outcome::default() }).await?;
        lists.finish().await
    }

    /// pg_control, read until its checksum holds, stored in a frame of its own.
    async fn control_line(&self, data: Arc<Packer>) -> Result<FileLine, SnapshotError> {
        let (_, bytes) = ControlFile::read_bytes_stable(&self.directory)?;
        let level = self.request.compression_level;
        let stored = tokio::task::spawn_blocking(move || {
            let stored = Compressor::new(level).compress(&bytes);
            data.add(&stored, bytes.len() as u32, Sha::of(&bytes)).map(|frame| (frame, bytes.len() as u64))
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
}

/// When the parent looked at the files. One that looked in the future had another clock than the files have now: its times prove nothing.
pub fn listed_ns(parent: &Manifest) -> i64 {
    if parent.listed_ns > clock::now().as_nanosecond() as i64 { NEVER_NS } else { parent.listed_ns }
}

/// Before every file.
const NEVER_NS: i64 = i64::MIN / 2;

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
    live: Live,
}

/// Lines in order, on their way into the file lists, and what is counted on the way.
struct Lists<'a> {
    writer: ListWriter<'a>,
    totals: Totals,
    damaged: Vec<DamagedPage>,
    tablespaces: Vec<TablespaceLink>,
    live: Live,
    /// The large file whose stretches are coming in.
    assembly: Assembly,
    maps: Arc<Packer>,
    level: i32,
}

impl<'a> Lists<'a> {
    fn new(cluster: &'a Cluster, id: &str, maps: Arc<Packer>, level: i32) -> Self {
        Lists {
            assembly: Assembly::default(),
            maps,
            level,
            writer: ListWriter::new(cluster, id),
            totals: Totals::default(),
            damaged: Vec::new(),
            tablespaces: Vec::new(),
            live: Live::default(),
        }
    }

    async fn add(&mut self, outcome: Outcome) -> Result<(), SnapshotError> {
        self.totals.read_bytes += outcome.read_bytes;
        self.totals.unread_bytes += outcome.unread_bytes;
        self.totals.new_bytes += outcome.new_bytes;
        self.damaged.extend(outcome.damaged);
        for line in outcome.lines {
            match line {
                Line::Whole(line) => self.line(&line).await?,
                Line::Stretch(stretch) => {
                    if let Some(Assembled::File { bytes, map }) = self.assembly.add(&stretch) {
                        let line = self.assembled(&stretch.facts, bytes, map).await?;
                        self.line(&line).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn line(&mut self, line: &FileLine) -> Result<(), SnapshotError> {
        if let What::File { bytes, map, .. } = &line.what {
            self.totals.files += 1;
            self.totals.raw_bytes += bytes;
            self.live.add(map);
        }
        if let What::Tablespace { target, encoded } = &line.what {
            let oid = line.path.rsplit('/').next().unwrap_or_default().to_string();
            self.tablespaces.push(TablespaceLink { oid, target: target.clone(), encoded: encoded.clone() });
        }
        Ok(self.writer.add(line).await?)
    }

    /// The line of a file whose last stretch has come.
    async fn assembled(&self, facts: &FileFacts, bytes: u64, map: FileMap) -> Result<FileLine, SnapshotError> {
        let digest = map.digest();
        let (maps, level) = (self.maps.clone(), self.level);
        let placed = tokio::task::spawn_blocking(move || stretch::place(map, &maps, &mut Compressor::new(level)));
        match placed.await {
            Ok(Ok(map)) => Ok(facts.line(bytes, None, digest, map)),
            // The store has failed, whose own error counts.
            Ok(Err(Cancelled)) => Err(SnapshotError::Thread { detail: "a map could not be stored".into() }),
            Err(error) => Err(SnapshotError::Thread { detail: error.to_string() }),
        }
    }

    async fn finish(self) -> Result<Collected, SnapshotError> {
        let Lists { writer, totals, damaged, tablespaces, live, .. } = self;
        let (lists, root) = writer.finish().await?;
        let copied = Copied { lists, root, packs: Vec::new(), retired: None, totals, damaged, tablespaces };
        Ok(Collected { copied, live })
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
            let Ok(job) = job else { return Ok(()) };
            job.items.iter().try_for_each(|item| self.fetch_parent(item))?;
            let outcome = reader.job(&job.items)?;
            let read = |item: &Item| if let Item::Read(task) = item { task.range.end - task.range.start } else { 0 };
            let read: u64 = job.items.iter().map(read).sum();
            self.monitor.advance(read);
            done.blocking_send((job.number, outcome, job.permit)).map_err(|_| ReadError::Cancelled)?;
        }
    }

    /// Maps of large files lie in packs; those of files that changed are fetched now.
    fn fetch_parent(&self, item: &Item) -> Result<(), ReadError> {
        let Item::Read(task @ Task { facts, parent: Some(parent), .. }) = item else { return Ok(()) };
        parent.load(|frame| {
            let fetched = self.runtime.block_on(fetch::maps(&self.cluster, Arc::new(vec![frame.clone()])));
            match fetched.and_then(|mut maps| maps.remove(0)) {
                Ok(map) => {
                    let serves = |map: &FileMap| task.is_same() || map.frame_bytes() <= 4 * facts.bytes + FRAME_BYTES as u64;
                    Ok(Some(map).filter(serves))
                }
                // A damaged map of the parent must not damage this snapshot: the file is stored anew.
                Err(error) if error.is_damage() => {
                    self.monitor.warn(&format!("{error}; {} is stored anew", manifest::encode_path(&facts.path)));
                    Ok(None)
                }
                Err(error) => Err(ReadError::Failed(error.into())),
            }
        })
    }
}
