//! Writes one batch of files: frames are fetched in the order of the packs and scattered to where they belong.
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

use super::RestoreError;
use super::assembly::Assembly;
use super::lanes::{Lanes, OpenFile};
use crate::aligned::ALIGN_BYTES;
use crate::config::ReadBack;
use crate::monitor::Monitor;
use crate::postgres::owner::Ids;
use crate::repo::RepoError;
use crate::repo::fetch::{self, Fetched};
use crate::repo::frame::{Decompressor, FRAME_BYTES, FrameRef};
use crate::repo::map::{FileMap, Run};
use crate::repo::repository::Cluster;

/// Shorter files are not worth a disk's attention one by one; they go through the page cache.
const DIRECT_MIN_BYTES: u64 = 256 << 10;
/// Writing threads for each that decompresses: they wait for the disk most of the time.
const LANES_PER_THREAD: usize = 2;

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

/// Makes all files of the batch, whole and verified. Each must not exist yet.
pub async fn batch(cluster: &Cluster, targets: Vec<Target>, terms: &Terms) -> Result<(), RestoreError> {
    let (frames, pieces) = scatter(&targets);
    let files = targets.into_iter().map(|target| create(target, terms.owner)).collect::<Result<Vec<_>, _>>()?;
    let (lanes, running) = Lanes::start(files, LANES_PER_THREAD * terms.threads, terms.read_back, terms.monitor.clone());
    let frames = Arc::new(frames);
    let scattering = Scattering { pieces, lanes };
    let visit = Arc::new(move |fetched: Fetched| scattering.visit(&fetched));
    let visited = fetch::reads(cluster, frames, terms.threads, visit).await;
    let written = running.finish().await;
    match visited {
        // What stopped a lane is the reason why nothing more could be handed to it.
        Ok(()) | Err(Stopped::Lane) => written,
        Err(Stopped::Repo(error)) => Err(error.into()),
    }
}

/// Why a stretch of frames was not handed on.
pub enum Stopped {
    Lane,
    Repo(RepoError),
}

impl From<RepoError> for Stopped {
    fn from(error: RepoError) -> Self {
        Stopped::Repo(error)
    }
}

/// Makes the file in its whole length. Runs of zeros are never written: they are holes.
fn create(target: Target, owner: Option<Ids>) -> Result<OpenFile, RestoreError> {
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
        Ok((file, is_direct)) => Ok(OpenFile { file, path: target.path, is_direct }),
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
    lanes: Lanes,
}

thread_local! {
    static OPENING: RefCell<(Decompressor, Vec<u8>)> = RefCell::default();
}

impl Scattering {
    fn visit(&self, fetched: &Fetched) -> Result<(), Stopped> {
        OPENING.with_borrow_mut(|(decompressor, raw)| {
            let mut assembly = Assembly::new(fetched, decompressor, &self.lanes);
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
