//! Walks the data directory beside the parent's file lists and decides what has to be read.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::SnapshotError;
use super::changes::{Changes, FileChanges, Known};
use super::parent::ParentLines;
use super::read::{Item, Task};
use super::retire::Retire;
use super::stretch::{self, FileFacts, ParentMap};
use crate::monitor::Monitor;
use crate::postgres::data_directory::{self, Class, DataDirectoryError, Entry, Kind, Scope};
use crate::postgres::page::PAGE_BYTES;
use crate::repo::frame::FRAME_BYTES;
use crate::repo::manifest::{self, FileLine, MapPlace, What, encode_path};

/// Jobs between the walk and the file lists; bounds what waits for its turn.
pub const WINDOW_JOBS: usize = 512;
/// Lines in one job at most.
const JOB_LINES: usize = 256;
/// File times are trusted when the file was last modified this long before the parent looked: some file systems keep whole
/// seconds, and a clock tick may hold several writes (rule 7).
pub const TRUST_AFTER_NS: i64 = 2_000_000_000;

/// Work for a reading thread.
pub struct Job {
    pub number: u64,
    pub items: Vec<Item>,
    /// Returned when the job's lines stand in their list.
    pub permit: OwnedSemaphorePermit,
}

/// Why the walk ended early.
#[derive(Debug)]
pub enum WalkError {
    /// Nobody takes jobs any more.
    Cancelled,
    Failed(SnapshotError),
}

impl From<DataDirectoryError> for WalkError {
    fn from(error: DataDirectoryError) -> Self {
        WalkError::Failed(error.into())
    }
}

pub struct Chooser {
    pub root: PathBuf,
    pub scope: Scope,
    pub parent: Option<ParentLines>,
    /// Files in which the parent found damaged pages: nothing of them is carried over, or a mended page would stay damaged.
    pub parent_damaged: HashSet<String>,
    /// When the parent looked at the files.
    pub parent_listed_ns: i64,
    /// Read everything, whatever the times say.
    pub paranoid: bool,
    /// What changed since the parent, where WAL tells it.
    pub changes: Option<Arc<Changes>>,
    /// Without them nothing vouches for what a page holds.
    pub checksums: bool,
    /// The data directory is a copy of the parent's.
    pub is_copy: bool,
    pub retire: Arc<Retire>,
    pub jobs: SyncSender<Job>,
    pub window: Arc<Semaphore>,
    pub runtime: tokio::runtime::Handle,
    pub monitor: Arc<dyn Monitor>,
    pub number: u64,
    pub items: Vec<Item>,
    pub bytes: u64,
}

impl Chooser {
    /// Walks it all. For a thread of its own.
    pub fn run(mut self) -> Result<(), WalkError> {
        let (root, scope, monitor) = (self.root.clone(), self.scope.clone(), self.monitor.clone());
        data_directory::walk(&root, &scope, &mut |entry| self.entry(entry), &mut |text| monitor.warn(&text))?;
        self.send()
    }

    fn entry(&mut self, entry: Entry) -> Result<(), WalkError> {
        if entry.path == super::take::CONTROL_PATH.as_bytes() {
            return Ok(());
        }
        let failed = |error| WalkError::Failed(SnapshotError::Repo(error));
        let before = match &mut self.parent {
            Some(parent) => parent.find(&entry.order_key()).map_err(failed)?,
            None => None,
        };
        let what = match &entry.kind {
            Kind::File { class } => return self.file(&entry, *class, before),
            Kind::Directory => What::Directory,
            Kind::Tablespace { target } => What::Tablespace {
                target: target.to_string_lossy().into_owned(),
                encoded: target.to_str().is_none().then(|| manifest::encode_place(target)),
            },
        };
        self.items.push(Item::Keep(Box::new(FileLine { path: encode_path(&entry.path), what, mode: entry.mode }), 0));
        self.send_if_full()
    }

    /// What WAL says of a file that the parent has with this length; `None` when it does not say, or may mean another file.
    fn changes(&self, entry: &Entry, class: Class, bytes: u64) -> Option<FileChanges> {
        let Class::Main { file } = class else { return None };
        let is_pages = |bytes: u64| bytes.is_multiple_of(PAGE_BYTES as u64);
        self.changes.as_ref().filter(|_| is_pages(bytes) && is_pages(entry.bytes))?.of_file(&entry.path, file)
    }

    fn file(&mut self, entry: &Entry, class: Class, before: Option<FileLine>) -> Result<(), WalkError> {
        let modified_ns = i64::try_from(entry.modified_ns).unwrap_or(0);
        let (mut parent, mut parent_content, mut known, mut doubted) = (None, None, None, None);
        let is_another = self.changes.as_ref().is_some_and(|changes| changes.is_another(&entry.path));
        let before = before.filter(|line| !is_another && !self.parent_damaged.contains(&line.path));
        if let Some(FileLine {
            path,
            what: What::File { bytes, modified_ns: modified_before, inode, digest, content, map },
            ..
        }) = before
        {
            let same = (bytes, modified_before, inode) == (entry.bytes, modified_ns, entry.inode);
            let is_same = same && modified_ns < self.parent_listed_ns - TRUST_AFTER_NS && !self.paranoid;
            // Nobody writes this file again, and it comes before every relation: a new one came with a new data directory, as after a
            // restore or on a rebuilt standby.
            self.is_copy |= entry.path == b"PG_VERSION" && inode != entry.inode;
            let (changes, of_copy) = match self.changes(entry, class, bytes) {
                changes if inode == entry.inode => (changes, None),
                // One file that somebody replaced is another one, whatever WAL says.
                changes => (None, changes.filter(|_| self.is_copy && self.checksums)),
            };
            let unchanged = |changes: &FileChanges| bytes == entry.bytes && changes.is_unchanged(bytes / PAGE_BYTES as u64);
            let is_proven = changes.as_ref().is_some_and(unchanged);
            let is_unchanged = is_same || is_proven;
            if is_unchanged && !self.retire.moves(&map) {
                let unread = if is_same { 0 } else { bytes };
                let what = What::File { bytes, modified_ns, inode, digest, content, map };
                self.monitor.advance(bytes);
                self.items.push(Item::Keep(Box::new(FileLine { path, what, mode: entry.mode }), unread));
                return self.send_if_full();
            }
            known = if is_unchanged { Some(Known::Same) } else { changes.map(Known::Pages) };
            parent_content = content.filter(|_| bytes == entry.bytes);
            // Page LSNs say what changed in a file, not whether it is the same file: a database or relation whose number came
            // again may hold older pages than the parent. Where WAL has no gap it tells of both, and then each page is looked at.
            let same_file = inode == entry.inode || of_copy.is_some() || !matches!(class, Class::Main { .. });
            doubted = of_copy;
            match map {
                // A map that drags along far more than the file needs is made anew: fragmentation stays bounded.
                _ if !same_file => {}
                MapPlace::Map(map) if is_unchanged || map.frame_bytes() <= 4 * bytes + FRAME_BYTES as u64 => {
                    parent = Some(ParentMap::inline(map))
                }
                MapPlace::Map(_) => {}
                MapPlace::MapFrame { frame, .. } => parent = Some(ParentMap::stored(frame)),
            }
        }
        // WAL says how long a relation is; of everything else the end of the file is its end (rule 9).
        let to_the_end = class == Class::Plain;
        let facts = FileFacts { path: entry.path.clone(), bytes: entry.bytes, mode: entry.mode, modified_ns, inode: entry.inode };
        let parent = parent.map(Arc::new);
        // Without the parent's map there is nothing to take over; and what may grow until it is read is read whole.
        let known = known.filter(|_| parent.is_some() && !to_the_end);
        self.read(Task { facts, class, range: 0..entry.bytes, to_the_end, parent, parent_content, known, doubted })
    }

    /// Large files go to the readers in stretches.
    fn read(&mut self, task: Task) -> Result<(), WalkError> {
        let ranges = if task.to_the_end { vec![task.range.clone()] } else { stretch::divide(task.facts.bytes).collect() };
        for range in ranges {
            self.bytes += range.end - range.start;
            self.items.push(Item::Read(Task { range, ..task.clone() }));
            self.send_if_full()?;
        }
        Ok(())
    }

    fn send_if_full(&mut self) -> Result<(), WalkError> {
        let full = self.bytes >= FRAME_BYTES as u64 || self.items.len() >= JOB_LINES;
        if full { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), WalkError> {
        if self.items.is_empty() {
            return Ok(());
        }
        // The semaphore is closed when the snapshot is cancelled.
        let permit = self.runtime.block_on(self.window.clone().acquire_owned()).map_err(|_| WalkError::Cancelled)?;
        let job = Job { number: self.number, items: std::mem::take(&mut self.items), permit };
        self.number += 1;
        self.bytes = 0;
        self.jobs.send(job).map_err(|_| WalkError::Cancelled)
    }
}
