//! Large files, read in stretches by several threads and put together again.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::pack::{Cancelled, Packer};
use crate::repo::frame::{Compressor, FrameRef};
use crate::repo::manifest::{FileLine, INLINE_FRAMES, MapPlace, What, encode_path};
use crate::repo::map::{FileMap, MapBuilder, Run};
use crate::repo::object::{self, Sha};

/// Length of a stretch: long enough to cost nothing, short enough that no thread is left with a gigabyte when the others are done.
pub const STRETCH_BYTES: u64 = 32 << 20;

/// The stretches of a file of `bytes`; one for a file that is not worth dividing.
pub fn divide(bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let count = (bytes / STRETCH_BYTES).max(1);
    (0..count).map(move |index| index * STRETCH_BYTES..if index + 1 == count { bytes } else { (index + 1) * STRETCH_BYTES })
}

/// One line of a file list, or a part of one.
#[derive(Debug)]
pub enum Line {
    Whole(Box<FileLine>),
    Stretch(Box<Stretch>),
}

/// What is known of a file before it is read.
#[derive(Debug, Clone)]
pub struct FileFacts {
    pub path: Vec<u8>,
    /// Length at listing.
    pub bytes: u64,
    pub mode: u32,
    pub modified_ns: i64,
    pub inode: u64,
}

impl FileFacts {
    /// The line of this file, of the length that was really read.
    pub fn line(&self, bytes: u64, content: Option<Sha>, digest: Sha, map: MapPlace) -> FileLine {
        let what = What::File { bytes, modified_ns: self.modified_ns, inode: self.inode, digest, content, map };
        FileLine { path: encode_path(&self.path), what, mode: self.mode }
    }
}

/// A part of a large file that was read.
#[derive(Debug)]
pub struct Stretch {
    pub facts: FileFacts,
    pub range: Range<u64>,
    /// Of what was there: shorter than the range where the file was truncated meanwhile, `None` where it was removed.
    pub map: Option<FileMap>,
}

/// Puts a file's stretches together, which come in order.
#[derive(Debug, Default)]
pub struct Assembly {
    builder: MapBuilder,
    bytes: u64,
    was_removed: bool,
}

/// What a file's last stretch completes.
#[derive(Debug)]
pub enum Assembled {
    File {
        bytes: u64,
        map: FileMap,
    },
    /// Removed while it was read: left out (rule 10).
    Removed,
}

impl Assembly {
    /// Adds the next stretch; answers after the last one.
    pub fn add(&mut self, stretch: &Stretch) -> Option<Assembled> {
        match &stretch.map {
            None => self.was_removed = true,
            Some(map) if self.bytes == stretch.range.start => {
                append(&mut self.builder, map);
                self.bytes += map.bytes();
            }
            // After a stretch that ended early there is nothing: the file was truncated, and what it may have grown to since, replay
            // makes.
            Some(_) => {}
        }
        if stretch.range.end < stretch.facts.bytes {
            return None;
        }
        let Assembly { builder, bytes, was_removed } = std::mem::take(self);
        Some(if was_removed { Assembled::Removed } else { Assembled::File { bytes, map: builder.finish() } })
    }
}

fn append(builder: &mut MapBuilder, map: &FileMap) {
    for Run(frame, position, bytes) in &map.runs {
        match frame.and_then(|index| map.frames.get(index as usize)) {
            Some(frame) => builder.frame(frame, *position, *bytes),
            None => builder.zeros(*bytes),
        }
    }
}

/// Where a map goes: small ones into the file list, others into a pack for maps. Not for async code.
pub fn place(map: FileMap, maps: &Packer, compressor: &mut Compressor) -> Result<MapPlace, Cancelled> {
    if map.frames.len() <= INLINE_FRAMES {
        return Ok(MapPlace::Map(map));
    }
    let (packs, live_bytes) = map.live_bytes().into_iter().unzip();
    let raw = object::to_json(&map);
    let frame = maps.add(&compressor.compress(&raw), raw.len() as u32, Sha::of(&raw))?;
    Ok(MapPlace::MapFrame { frame, packs, live_bytes })
}

/// The parent's map of a file, shared by the stretches of it. Fetched by the first that needs it.
#[derive(Debug)]
pub struct ParentMap(Mutex<ParentState>);

#[derive(Debug)]
enum ParentState {
    Stored(FrameRef),
    Known(Option<Arc<FileMap>>),
}

impl ParentMap {
    pub fn inline(map: FileMap) -> ParentMap {
        ParentMap(Mutex::new(ParentState::Known(Some(Arc::new(map)))))
    }

    pub fn stored(frame: FrameRef) -> ParentMap {
        ParentMap(Mutex::new(ParentState::Stored(frame)))
    }

    /// Fetches the map where it is not known yet; `None` from `fetch` means that it cannot serve. Others wait meanwhile.
    pub fn load<E>(&self, fetch: impl FnOnce(&FrameRef) -> Result<Option<FileMap>, E>) -> Result<(), E> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let ParentState::Stored(frame) = &*state {
            let map = fetch(frame)?;
            *state = ParentState::Known(map.map(Arc::new));
        }
        Ok(())
    }

    /// The map, where it was loaded and can serve.
    pub fn get(&self) -> Option<Arc<FileMap>> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            ParentState::Known(map) => map.clone(),
            ParentState::Stored(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(range: Range<u64>, bytes: u64, zeros: u64) -> Stretch {
        let facts = FileFacts { path: b"base/1/2".to_vec(), bytes, mode: 0o600, modified_ns: 0, inode: 1 };
        Stretch { facts, range, map: Some(FileMap { frames: Vec::new(), runs: vec![Run(None, 0, zeros)] }) }
    }

    fn bytes(assembled: Option<Assembled>) -> Option<u64> {
        match assembled? {
            Assembled::File { bytes, map } => Some(bytes).filter(|bytes| *bytes == map.bytes()),
            Assembled::Removed => None,
        }
    }

    #[test]
    fn a_file_is_divided_without_gap_or_rest() {
        for bytes in [0, 1, STRETCH_BYTES, 2 * STRETCH_BYTES - 1, 2 * STRETCH_BYTES, 7 * STRETCH_BYTES + 5] {
            let parts: Vec<_> = divide(bytes).collect();
            assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, bytes));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(parts.iter().all(|part| part.end - part.start < 2 * STRETCH_BYTES));
        }
    }

    #[test]
    fn what_follows_a_truncation_is_left_out() {
        let mut assembly = Assembly::default();
        assert!(assembly.add(&stretch(0..100, 300, 100)).is_none());
        assert!(assembly.add(&stretch(100..200, 300, 40)).is_none());
        assert_eq!(bytes(assembly.add(&stretch(200..300, 300, 100))), Some(140));
        assert_eq!(bytes(assembly.add(&stretch(0..50, 50, 50))), Some(50), "the next file begins anew");
    }

    #[test]
    fn a_file_of_which_a_stretch_is_gone_is_left_out() {
        let mut assembly = Assembly::default();
        assert!(assembly.add(&stretch(0..100, 200, 100)).is_none());
        let gone = Stretch { map: None, ..stretch(100..200, 200, 0) };
        assert!(matches!(assembly.add(&gone), Some(Assembled::Removed)));
        assert_eq!(bytes(assembly.add(&stretch(0..50, 50, 50))), Some(50), "the next file begins anew");
    }
}
