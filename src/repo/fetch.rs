//! Many frames from few requests.
//!
//! Frames that lie near each other in a pack are read together, several reads at a time; each read's frames are then
//! decompressed and proven on a thread for CPU work and handed to the caller there. Memory: at most
//! `(threads + AHEAD) × READ_MAX_BYTES`, whatever the number of frames, and of lists of frames that are read side by side. What is in
//! flight is counted in bytes, not in requests, so that short reads from a distant store do not wait for each other one round trip
//! after the other.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::frame::{Decompressor, FRAME_BYTES, FRAME_MAX_BYTES, FrameRef};
use super::repository::Cluster;
use super::seal::crypto::GcmKey;
use super::vault::Vault;
use super::{RepoError, hash, object};
use crate::storage::{ObjectKey, Part};

/// One read takes at most this much.
const READ_MAX_BYTES: u64 = 8 << 20;
/// Unwanted bytes between two frames that cost less to read than another request.
const GAP_BYTES: u64 = 128 << 10;

/// A stretch of a pack to be read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRead {
    pub start: u64,
    pub bytes: u64,
    /// Which of the frames, by their place in the sorted list.
    pub frames: Range<usize>,
}

/// The reads for `frames`, which are sorted by pack and offset.
pub fn plan(frames: &[FrameRef]) -> Vec<PackRead> {
    let mut reads: Vec<PackRead> = Vec::new();
    for (index, frame) in frames.iter().enumerate() {
        let end = frame.offset + u64::from(frame.stored_bytes);
        if let Some(last) = reads.last_mut() {
            let last_end = last.start + last.bytes;
            let same_pack = frames[last.frames.start].pack == frame.pack;
            if same_pack && frame.offset <= last_end + GAP_BYTES && end - last.start <= READ_MAX_BYTES {
                last.bytes = last.bytes.max(end - last.start);
                last.frames.end = index + 1;
                continue;
            }
        }
        reads.push(PackRead { start: frame.offset, bytes: u64::from(frame.stored_bytes), frames: index..index + 1 });
    }
    reads
}

/// Sorts and removes doubles, as [`plan`] wants it.
pub fn sort(frames: &mut Vec<FrameRef>) {
    frames.sort_by(|a, b| (&a.pack, a.offset).cmp(&(&b.pack, b.offset)));
    frames.dedup();
}

/// Longest reads in flight before their frames are opened, on top of those that are being opened.
pub const AHEAD: usize = 4;
/// Reads in flight, however short; fewer where `max_requests` of the store says so.
const IN_FLIGHT: usize = 64;
/// What [`Semaphore`]s count bytes in.
const UNIT_BYTES: u64 = 1 << 10;

/// A stretch of a pack that was read, and the frames in it, which are not opened yet.
#[derive(Debug)]
pub struct Fetched {
    key: ObjectKey,
    frames: Arc<Vec<FrameRef>>,
    read: PackRead,
    /// The bytes, and what opens them where they are sealed; or the damage that all frames of the read share.
    bytes: Result<(Bytes, Option<GcmKey>), String>,
    /// Where else the pack may be.
    copies: Arc<Vec<Vault>>,
    runtime: tokio::runtime::Handle,
}

/// Number of a frame that was unpacked and not proven.
#[derive(Debug, Clone, Copy)]
#[must_use = "what is not proven must not be used"]
pub struct Unproven(usize);

impl Unproven {
    pub fn index(self) -> usize {
        self.0
    }
}

impl Fetched {
    /// Numbers of its frames in the sorted list.
    pub fn frames(&self) -> Range<usize> {
        self.read.frames.clone()
    }

    /// Length of a frame's raw bytes, as far as it can be believed.
    pub fn raw_bytes(&self, index: usize) -> Result<usize, RepoError> {
        match self.frames[index].raw_bytes {
            bytes if bytes > FRAME_MAX_BYTES => Err(RepoError::damaged(&self.key, "a frame announces an impossible length")),
            bytes => Ok(bytes as usize),
        }
    }

    /// Opens frame `index` into `out`, which is as long as the frame's raw bytes. It is to be believed when [`Fetched::holds`] says so;
    /// else [`Fetched::open`] may still find it elsewhere. Not for async code.
    pub fn unpack(&self, index: usize, decompressor: &mut Decompressor, out: &mut [u8]) -> Result<Unproven, RepoError> {
        if let Ok((bytes, pack)) = &self.bytes
            && decompressor.unpack(&self.frames[index], self.stored(index, bytes), pack.as_ref(), out).is_ok()
        {
            return Ok(Unproven(index));
        }
        self.open(index, decompressor, out)?;
        Ok(Unproven(index))
    }

    /// Which of at most [`hash::AT_ONCE`] unpacked frames are what they should be, in their order.
    pub fn holds(&self, unproven: &[(Unproven, &[u8])]) -> [bool; hash::AT_ONCE] {
        let mut parts: [&[u8]; hash::AT_ONCE] = [&[]; hash::AT_ONCE];
        unproven.iter().zip(&mut parts).for_each(|((_, bytes), part)| *part = bytes);
        let found = hash::many(&parts[..unproven.len()]);
        let mut holds = [false; hash::AT_ONCE];
        let expected = unproven.iter().map(|(Unproven(index), _)| self.frames[*index].sha256);
        expected.zip(found).zip(&mut holds).for_each(|((expected, found), holds)| *holds = expected == found);
        holds
    }

    fn stored<'a>(&self, index: usize, bytes: &'a Bytes) -> &'a [u8] {
        let frame = &self.frames[index];
        let begin = (frame.offset - self.read.start) as usize;
        &bytes[begin..begin + frame.stored_bytes as usize]
    }

    /// Opens frame `index` into `out`, which is as long as the frame's raw bytes, and proves it. What is damaged in one place is read
    /// from another. Not for async code.
    pub fn open(&self, index: usize, decompressor: &mut Decompressor, out: &mut [u8]) -> Result<(), RepoError> {
        let frame = &self.frames[index];
        let (bytes, pack) = self.bytes.as_ref().map_err(|what| RepoError::damaged(&self.key, what.clone()))?;
        let Err(what) = decompressor.open(frame, self.stored(index, bytes), pack.as_ref(), out) else { return Ok(()) };
        let part = Part::Range { start: frame.offset, bytes: frame.stored_bytes.into() };
        for copy in self.copies.iter() {
            let Ok(read) = self.runtime.block_on(copy.storage().read(&self.key, part)) else { continue };
            if decompressor.open(frame, &read.bytes, pack.as_ref(), out).is_ok() {
                return Ok(());
            }
        }
        Err(RepoError::damaged(&self.key, format!("{what} (at byte {})", frame.offset)))
    }
}

/// How much is read and opened at a time. Reads that share it keep within it together, and are served in the order they came.
#[derive(Debug, Clone)]
pub struct Bounds {
    working: Arc<Semaphore>,
    room: Arc<Semaphore>,
    most_units: u32,
}

impl Bounds {
    /// For `threads` threads for CPU work, while [`AHEAD`] further long reads, or many short ones, are on their way.
    pub fn new(threads: usize) -> Bounds {
        let threads = threads.max(1);
        let most_units = (threads + AHEAD) * (READ_MAX_BYTES / UNIT_BYTES) as usize;
        let (working, room) = (Arc::new(Semaphore::new(threads)), Arc::new(Semaphore::new(most_units)));
        Bounds { working, room, most_units: most_units as u32 }
    }

    /// Room for one read; it is kept until its frames are opened.
    async fn room(&self, read: &PackRead) -> Option<OwnedSemaphorePermit> {
        let units = read.bytes.div_ceil(UNIT_BYTES).min(self.most_units.into()) as u32;
        // Nobody closes it.
        self.room.clone().acquire_many_owned(units).await.ok()
    }
}

/// Reads all of `frames` (sorted, see [`sort`]) from their packs and hands each stretch to `visit` on a thread for CPU work, within
/// `bounds`. An error of `visit` ends it.
pub async fn reads<E, F>(cluster: &Cluster, frames: Arc<Vec<FrameRef>>, bounds: &Bounds, visit: Arc<F>) -> Result<(), E>
where
    E: From<RepoError> + Send + 'static,
    F: Fn(Fetched) -> Result<(), E> + Send + Sync + 'static,
{
    let (copies, runtime) = (Arc::new(cluster.vault().copies()), tokio::runtime::Handle::current());
    let run = |read: PackRead| {
        let (frames, visit) = (frames.clone(), visit.clone());
        let (copies, runtime) = (copies.clone(), runtime.clone());
        async move {
            let _room = bounds.room(&read).await;
            let key = cluster.layout().pack(&frames[read.frames.start].pack);
            let bytes = match fetch(cluster, &key, Part::Range { start: read.start, bytes: read.bytes }).await {
                Ok(bytes) => Ok(bytes),
                // Each frame of the read is lost; the caller may want to know each.
                Err(error) if error.is_damage() || error.is_frozen() => Err(error.to_string()),
                Err(error) => return Err(error.into()),
            };
            let fetched = Fetched { key, frames, read, bytes, copies, runtime };
            let permit = bounds.working.clone().acquire_owned().await;
            let work = move || {
                let _permit = permit;
                visit(fetched)
            };
            match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    };
    let reads = plan(&frames);
    let mut running = futures::stream::iter(reads).map(run).buffer_unordered(IN_FLIGHT);
    while let Some(done) = running.next().await {
        done?;
    }
    Ok(())
}

thread_local! {
    static OPENING: RefCell<(Decompressor, Vec<u8>)> = RefCell::default();
}

/// Fetches all of `frames` (sorted, see [`sort`]) and calls `visit` with each frame's index and its raw bytes, or with what is
/// wrong with it, from several threads at once. An error of `visit` ends it.
pub async fn each<E, F>(cluster: &Cluster, frames: Arc<Vec<FrameRef>>, threads: usize, visit: Arc<F>) -> Result<(), E>
where
    E: From<RepoError> + Send + 'static,
    F: Fn(usize, Result<&[u8], RepoError>) -> Result<(), E> + Send + Sync + 'static,
{
    let open_all = move |fetched: Fetched| {
        OPENING.with_borrow_mut(|(decompressor, raw)| {
            let mut frames = fetched.frames();
            while !frames.is_empty() {
                let together = fetched.together(frames.clone());
                fetched.open_together(together.clone(), decompressor, raw, &*visit)?;
                frames.start = together.end;
            }
            Ok(())
        })
    };
    reads(cluster, frames, &Bounds::new(threads), Arc::new(open_all)).await
}

impl Fetched {
    /// The first of `frames`, as many as are opened and proven together.
    fn together(&self, frames: Range<usize>) -> Range<usize> {
        let most = hash::AT_ONCE * FRAME_BYTES;
        let mut bytes = 0;
        let fits = |index: &usize| {
            bytes += self.frames[*index].raw_bytes.min(FRAME_MAX_BYTES) as usize;
            bytes <= most
        };
        let count = frames.clone().take(hash::AT_ONCE).take_while(fits).count();
        frames.start..frames.start + count.max(1)
    }

    fn open_together<E>(
        &self,
        indexes: Range<usize>,
        decompressor: &mut Decompressor,
        raw: &mut Vec<u8>,
        visit: &impl Fn(usize, Result<&[u8], RepoError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut opened, mut end) = (Vec::with_capacity(indexes.len()), 0);
        for index in indexes.clone() {
            let begin = end;
            let unpacked = self.raw_bytes(index).and_then(|bytes| {
                end = begin + bytes;
                raw.resize(raw.len().max(end), 0);
                self.unpack(index, decompressor, &mut raw[begin..end])
            });
            opened.push((begin..end, unpacked));
        }
        let unproven: Vec<_> = opened.iter().filter_map(|(at, found)| Some((*found.as_ref().ok()?, &raw[at.clone()]))).collect();
        let mut holds = self.holds(&unproven).into_iter();
        for (index, (at, unpacked)) in indexes.zip(opened) {
            let proven = unpacked.and_then(|_| match holds.next() {
                Some(true) => Ok(()),
                _ => self.open(index, decompressor, &mut raw[at.clone()]),
            });
            visit(index, proven.map(|()| &raw[at]))?;
        }
        Ok(())
    }
}

/// The bytes, and the key that opens them where they are sealed.
async fn fetch(cluster: &Cluster, key: &ObjectKey, part: Part) -> Result<(Bytes, Option<GcmKey>), RepoError> {
    let pack = cluster.vault().frame_key(key).await?;
    Ok((cluster.storage().read(key, part).await?.bytes, pack))
}

/// Fetches and parses the maps that lie in packs; answers them in the order of `frames` (sorted).
pub async fn maps(
    cluster: &Cluster,
    frames: Arc<Vec<FrameRef>>,
) -> Result<Vec<Result<super::map::FileMap, RepoError>>, RepoError> {
    let found: Arc<std::sync::Mutex<Vec<_>>> = Arc::new(std::sync::Mutex::new((0..frames.len()).map(|_| None).collect()));
    let (slots, layout, all) = (found.clone(), cluster.layout().clone(), frames.clone());
    let visit = Arc::new(move |index: usize, raw: Result<&[u8], RepoError>| -> Result<(), RepoError> {
        let key = layout.pack(&all[index].pack);
        let map = raw.and_then(|raw| object::from_json::<super::map::FileMap>(&key, raw));
        slots.lock().unwrap_or_else(|p| p.into_inner())[index] = Some(map);
        Ok(())
    });
    each(cluster, frames, 8, visit).await?;
    let mut found = found.lock().unwrap_or_else(|p| p.into_inner());
    let missing = || Err(RepoError::damaged(&crate::repo::layout::repository(), "a map was not visited"));
    Ok(found.iter_mut().map(|slot| slot.take().unwrap_or_else(missing)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::object::Sha;
    use super::*;

    fn frame(pack: &str, offset: u64, bytes: u32) -> FrameRef {
        FrameRef { pack: pack.into(), offset, stored_bytes: bytes, raw_bytes: bytes, sha256: Sha([0; 32]) }
    }

    #[test]
    fn neighbours_are_read_together_and_strangers_are_not() {
        let mut frames = vec![
            frame("b", 0, 10),
            frame("a", 100, 50),
            frame("a", 0, 100),
            frame("a", 0, 100),
            frame("a", 10 << 20, 5),
            frame("a", 150 + GAP_BYTES, 5),
        ];
        sort(&mut frames);
        let reads = plan(&frames);
        let found: Vec<_> = reads.iter().map(|r| (&*frames[r.frames.start].pack, r.start, r.bytes, r.frames.len())).collect();
        assert_eq!(found, [("a", 0, 155 + GAP_BYTES, 3), ("a", 10 << 20, 5, 1), ("b", 0, 10, 1)]);
    }
}
