//! Writes files, batch after batch and several at a time: of each batch, frames are fetched in the order of the packs and scattered to
//! where they belong. All batches share the threads that decompress, those that write, and the room for what is in flight, so that
//! files of the next are made, and its frames are on their way, while the last of this one are written.
//!
//! Large files are written past the page cache where the file system can: that takes no memory from other programs, no copying,
//! and what is read back comes from the disk. Their space is reserved first, so that writes side by side do not wait for each other.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags};
use tokio::sync::Semaphore;

use super::RestoreError;
use super::assembly::Assembly;
use super::lanes::{Lanes, OpenFile, Running};
use crate::aligned::ALIGN_BYTES;
use crate::config::ReadBack;
use crate::monitor::Monitor;
use crate::owner::Ids;
use crate::repo::RepoError;
use crate::repo::fetch::{self, Bounds, Fetched};
use crate::repo::frame::{Decompressor, FRAME_BYTES, FrameRef};
use crate::repo::map::{FileMap, Run};
use crate::repo::repository::Cluster;

/// Shorter files are not worth a disk's attention one by one; they go through the page cache.
const DIRECT_MIN_BYTES: u64 = 256 << 10;
/// Writing threads for each that decompresses: they wait for the disk most of the time.
const LANES_PER_THREAD: usize = 2;
/// More would take the threads that tokio has for everything else (512), and no disk wants more.
const MOST_LANES: usize = 64;

/// A file to be made.
#[derive(Debug)]
pub struct Target {
    pub path: PathBuf,
    pub bytes: u64,
    pub mode: u32,
    pub map: FileMap,
}

/// Some bytes of a frame that belong into a file.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub file: u32,
    pub offset: u64,
    /// In the frame.
    pub position: u32,
    pub bytes: u32,
}

/// How to write.
pub struct Terms {
    pub owner: Option<Ids>,
    /// For decompressing and proving.
    pub threads: usize,
    pub read_back: ReadBack,
    pub monitor: Arc<dyn Monitor>,
}

/// What all batches of a restore share.
pub struct Writer<'a> {
    cluster: &'a Cluster,
    terms: &'a Terms,
    bounds: Bounds,
    lanes: Arc<Lanes>,
    running: Running,
    /// Files are made by one thread at a time: the kernel lets one into a directory, and others would burn their time in its queue.
    making: Arc<Semaphore>,
}

/// Why a batch was not handed to the lanes as a whole.
pub enum Stopped {
    /// [`Writer::finish`] says why.
    Lane,
    Other(RestoreError),
}

impl From<RepoError> for Stopped {
    fn from(error: RepoError) -> Self {
        Stopped::Other(error.into())
    }
}

impl<'a> Writer<'a> {
    pub fn start(cluster: &'a Cluster, terms: &'a Terms) -> Writer<'a> {
        let lanes = LANES_PER_THREAD.saturating_mul(terms.threads).min(MOST_LANES);
        let (lanes, running) = Lanes::start(lanes, terms.read_back, terms.monitor.clone());
        let making = Arc::new(Semaphore::new(1));
        Writer { cluster, terms, bounds: Bounds::new(terms.threads), lanes: Arc::new(lanes), running, making }
    }

    /// Makes all files of a batch, verified; they are whole after [`Writer::finish`]. Each must not exist yet.
    pub async fn batch(&self, targets: Vec<Target>) -> Result<(), Stopped> {
        let making = self.making.clone().acquire_owned().await;
        let (owner, lanes) = (self.terms.owner, self.lanes.clone());
        let begin = move || {
            let _making = making;
            Scattering::begin(targets, owner, lanes)
        };
        let begun = tokio::task::spawn_blocking(begin).await;
        let (frames, scattering) = match begun {
            Ok(begun) => begun.map_err(Stopped::Other)?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let visit = Arc::new(move |fetched: Fetched| scattering.visit(&fetched));
        fetch::reads(self.cluster, Arc::new(frames), &self.bounds, visit).await
    }

    /// Waits until all is written that was handed over, also behind an error: no thread goes on after this.
    pub async fn finish(self, handed_over: Result<(), Stopped>) -> Result<(), RestoreError> {
        // Whoever still makes files or decompresses holds the lanes as well, and they end when the last is gone.
        drop(self.lanes);
        let written = self.running.finish().await;
        match handed_over {
            // What stopped a lane is the reason why nothing more could be handed to it.
            Ok(()) | Err(Stopped::Lane) => written,
            Err(Stopped::Other(error)) => Err(error),
        }
    }
}

/// Makes the file in its whole length. Runs of zeros are never written: they are holes.
fn create(target: Target, number: usize, owner: Option<Ids>) -> Result<OpenFile, RestoreError> {
    let make = || -> io::Result<(File, bool)> {
        let file = File::options().read(true).write(true).create_new(true).mode(target.mode & 0o777).open(&target.path)?;
        file.set_len(target.bytes)?;
        if let Some(owner) = owner {
            fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        // Refused where the file system has no such way: then it goes through the page cache.
        let is_direct = is_for_direct(&target) && rustix::fs::fcntl_setfl(&file, OFlags::DIRECT).is_ok();
        if is_direct {
            reserve(&file, &target.map)?;
        }
        Ok((file, is_direct))
    };
    match make() {
        Ok((file, is_direct)) => Ok(OpenFile { file, path: target.path, number, is_direct }),
        Err(source) => Err(RestoreError::Io { doing: "write", path: target.path, source }),
    }
}

/// Whether all that is written into the file begins and ends where direct I/O can.
fn is_for_direct(target: &Target) -> bool {
    let is_aligned = |run: &Run| run.2.is_multiple_of(ALIGN_BYTES as u64);
    target.bytes >= DIRECT_MIN_BYTES && target.map.runs.iter().all(is_aligned)
}

/// Takes the space of all stretches that will be written. On ext4 and XFS several writers may then be at one file at once.
fn reserve(file: &File, map: &FileMap) -> io::Result<()> {
    let take = |begin: u64, end: u64| match rustix::fs::fallocate(file, FallocateFlags::empty(), begin, end - begin) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        taken => taken,
    };
    let (mut begin, mut end) = (0, 0);
    for Run(frame, _, bytes) in &map.runs {
        if frame.is_none() {
            if begin < end {
                take(begin, end)?;
            }
            begin = end + bytes;
        }
        end += bytes;
    }
    if begin < end { Ok(take(begin, end)?) } else { Ok(()) }
}

/// The frames of all maps, sorted for fetching, and the pieces of each.
fn scatter(targets: &[Target]) -> (Vec<FrameRef>, Vec<Vec<Piece>>) {
    let mut places: BTreeMap<(&str, u64), (&FrameRef, Vec<Piece>)> = BTreeMap::new();
    for (index, target) in targets.iter().enumerate() {
        let mut offset = 0;
        for Run(frame, position, bytes) in &target.map.runs {
            if let Some(frame) = frame.and_then(|f| target.map.frames.get(f as usize)) {
                let piece = Piece { file: index as u32, offset, position: *position, bytes: *bytes as u32 };
                places.entry((&frame.pack, frame.offset)).or_insert_with(|| (frame, Vec::new())).1.push(piece);
            }
            offset += bytes;
        }
    }
    places.into_values().map(|(frame, pieces)| (frame.clone(), pieces)).unzip()
}

/// From frames to writes, on the threads that decompress.
struct Scattering {
    /// Of each frame.
    pieces: Vec<Vec<Piece>>,
    files: Vec<Arc<OpenFile>>,
    lanes: Arc<Lanes>,
}

thread_local! {
    static OPENING: RefCell<(Decompressor, Vec<u8>)> = RefCell::default();
}

impl Scattering {
    /// Makes the files. Answers with the frames that belong into them.
    fn begin(targets: Vec<Target>, owner: Option<Ids>, lanes: Arc<Lanes>) -> Result<(Vec<FrameRef>, Scattering), RestoreError> {
        let (frames, pieces) = scatter(&targets);
        let make = |(number, target)| create(target, number, owner).map(Arc::new);
        let files = targets.into_iter().enumerate().map(make).collect::<Result<_, _>>()?;
        Ok((frames, Scattering { pieces, files, lanes }))
    }

    fn visit(&self, fetched: &Fetched) -> Result<(), Stopped> {
        OPENING.with_borrow_mut(|(decompressor, raw)| {
            let mut assembly = Assembly::new(fetched, decompressor, &self.files, &self.lanes);
            for index in fetched.frames() {
                let bytes = fetched.raw_bytes(index)?;
                match self.pieces[index][..] {
                    [piece] if piece.bytes as usize == bytes && bytes <= FRAME_BYTES => assembly.whole(index, piece)?,
                    ref pieces => {
                        raw.resize(bytes, 0);
                        assembly.scattered(index, raw, pieces)?;
                    }
                }
            }
            assembly.finish()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::aligned::Pool;
    use crate::monitor::Silent;
    use crate::repo::frame::Compressor;
    use crate::repo::map::MapBuilder;
    use crate::repo::object::Sha;
    use crate::repo::pack::PackBuilder;
    use crate::repo::vault::Vault;
    use crate::storage::Storage;
    use crate::storage::memory::MemoryStorage;

    /// Holds whoever says that something was written, until it is let go.
    struct Holding {
        held: mpsc::Sender<()>,
        go: std::sync::Mutex<mpsc::Receiver<()>>,
    }

    impl Monitor for Holding {
        fn phase(&self, _: &str, _: u64) {}

        fn advance(&self, _: u64) {
            let _ = self.held.send(());
            let _ = self.go.lock().unwrap().recv();
        }

        fn note(&self, _: &str) {}

        fn warn(&self, _: &str) {}
    }

    /// A pack of one frame of `raw`, and the file of it.
    async fn stored(cluster: &Cluster, name: &str, raw: &[u8], path: PathBuf) -> Target {
        let pool = Pool::new(1 << 20);
        let mut builder = PackBuilder::new(name, None, &pool);
        let frame = builder.add(&Compressor::new(1).compress(raw), raw.len() as u32, Sha::of(raw));
        cluster.storage().create(&cluster.layout().pack(name), builder.finish().body).await.unwrap();
        let mut map = MapBuilder::default();
        map.frame(&frame, 0, raw.len() as u64);
        let map = map.finish();
        Target { path, bytes: map.bytes(), mode: 0o600, map }
    }

    fn cluster() -> Cluster {
        let store: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        Cluster::unchecked(Vault::plain(store), "shop")
    }

    fn terms(monitor: Arc<dyn Monitor>) -> Terms {
        Terms { owner: None, threads: 2, read_back: ReadBack::Sample, monitor }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn several_batches_at_a_time_are_whole() {
        let (cluster, dir) = (cluster(), tempfile::tempdir().unwrap());
        let terms = terms(Arc::new(Silent));
        let raw = |number: usize| vec![number as u8; 5000 * number];
        let mut targets = Vec::new();
        for number in 1..=12 {
            let name = format!("20261121T010000Z-ab12/d{number:06}");
            targets.push(stored(&cluster, &name, &raw(number), dir.path().join(number.to_string())).await);
        }
        let writer = Writer::start(&cluster, &terms);
        let mut batches = Vec::new();
        while !targets.is_empty() {
            batches.push(writer.batch(targets.split_off(targets.len().saturating_sub(4))));
        }
        let handed_over = futures::future::try_join_all(batches).await.map(drop);
        writer.finish(handed_over).await.unwrap();
        for number in 1..=12 {
            assert!(std::fs::read(dir.path().join(number.to_string())).unwrap() == raw(number), "{number}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_thread_goes_on_behind_an_error() {
        let (cluster, dir) = (cluster(), tempfile::tempdir().unwrap());
        let (held, is_held) = mpsc::channel();
        let (let_go, go) = mpsc::channel();
        let terms = terms(Arc::new(Holding { held, go: go.into() }));
        let sound = stored(&cluster, "20261121T010000Z-ab12/d000001", &[1; 5000], dir.path().join("1")).await;
        let mut lost = stored(&cluster, "20261121T010000Z-ab12/d000002", &[2; 5000], dir.path().join("2")).await;
        lost.map.frames[0].pack = "20261121T010000Z-ab12/d000009".into();
        let writer = Writer::start(&cluster, &terms);
        writer.batch(vec![sound]).await.map_err(drop).unwrap();
        let failed = writer.batch(vec![lost]).await;
        assert!(matches!(failed, Err(Stopped::Other(_))));
        tokio::task::spawn_blocking(move || is_held.recv()).await.unwrap().unwrap();
        let mut finish = std::pin::pin!(writer.finish(failed));
        assert!(futures::poll!(&mut finish).is_pending(), "a lane is still at work");
        let_go.send(()).unwrap();
        assert!(matches!(finish.await, Err(RestoreError::Repo(error)) if error.is_damage()));
    }
}
