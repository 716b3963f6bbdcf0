//! File maps: how a file is put together from frames.
//!
//! A map is a list of runs in the order of the file. Each run takes some bytes from a place in a frame, or stands for zeros.
//! A map may point into packs of any older snapshot; nothing needs merging to restore.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::document::{Document, first_defect};
use super::frame::{FRAME_BYTES, FrameRef};
use super::object::Sha;

/// One piece of a file: `[frame or null, position in the frame, bytes]` in JSON. Without a frame: zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(pub Option<u32>, pub u32, pub u64);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMap {
    pub frames: Vec<FrameRef>,
    pub runs: Vec<Run>,
}

impl Document for FileMap {
    /// A run outside of its frame, a frame that is none of data, a length with which nobody can count.
    fn defect(&self) -> Option<String> {
        let is_data = |frame: &FrameRef| frame.raw_bytes as usize <= FRAME_BYTES;
        let length = self.runs.iter().try_fold(0u64, |sum, run| sum.checked_add(run.2));
        first_defect([
            (self.runs.iter().all(|run| self.fits(run)), "a run lies outside of its frame"),
            (self.frames.iter().all(is_data), "a frame of a file is longer than frames are"),
            (length.is_some_and(|bytes| bytes <= i64::MAX as u64), "its length is impossible"),
        ])
    }
}

impl FileMap {
    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().fold(0, |sum, run| sum.saturating_add(run.2))
    }

    /// SHA-256 over the runs, each by its frame's content, position and length: independent of packs, compression and
    /// encryption, so that copies in two repositories have the same.
    pub fn digest(&self) -> Sha {
        let mut hasher = Sha256::new();
        for Run(frame, position, bytes) in &self.runs {
            match frame.and_then(|index| self.frames.get(index as usize)) {
                Some(frame) => hasher.update(frame.sha256.0),
                None => hasher.update([0u8; 32]),
            }
            hasher.update(position.to_le_bytes());
            hasher.update(bytes.to_le_bytes());
        }
        Sha(hasher.finalize().into())
    }

    /// Whether a run lies in its frame.
    fn fits(&self, Run(frame, position, bytes): &Run) -> bool {
        let Some(index) = frame else { return true };
        let within = |end: u64| self.frames.get(*index as usize).is_some_and(|frame| end <= u64::from(frame.raw_bytes));
        u64::from(*position).checked_add(*bytes).is_some_and(within)
    }

    /// Raw bytes that the file takes from each pack.
    pub fn live_bytes(&self) -> BTreeMap<Arc<str>, u64> {
        let mut live: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for Run(frame, _, bytes) in self.runs.iter().filter(|run| self.fits(run)) {
            let Some(frame) = frame.and_then(|index| self.frames.get(index as usize)) else { continue };
            match live.get_mut(&frame.pack) {
                Some(known) => *known += bytes,
                None => {
                    live.insert(frame.pack.clone(), *bytes);
                }
            }
        }
        live
    }

    /// Raw bytes of all frames that this map needs: how much a restore of the file reads.
    pub fn frame_bytes(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.raw_bytes)).sum()
    }
}

/// Builds a map from the front of the file to its end.
#[derive(Debug, Default)]
pub struct MapBuilder {
    map: FileMap,
    by_sha: std::collections::HashMap<(Sha, u64), u32>,
}

impl MapBuilder {
    pub fn zeros(&mut self, bytes: u64) {
        self.push(Run(None, 0, bytes));
    }

    /// Takes `bytes` from `position` of a frame.
    pub fn frame(&mut self, frame: &FrameRef, position: u32, bytes: u64) {
        let map = &mut self.map;
        let index = *self.by_sha.entry((frame.sha256, frame.offset)).or_insert_with(|| {
            map.frames.push(frame.clone());
            map.frames.len() as u32 - 1
        });
        self.push(Run(Some(index), position, bytes));
    }

    fn push(&mut self, run: Run) {
        if run.2 == 0 {
            return;
        }
        if let Some(last) = self.map.runs.last_mut() {
            let continues = last.0 == run.0 && (run.0.is_none() || u64::from(last.1) + last.2 == u64::from(run.1));
            if continues {
                last.2 += run.2;
                return;
            }
        }
        self.map.runs.push(run);
    }

    pub fn finish(self) -> FileMap {
        self.map
    }
}

/// Goes through an older map in step with the file.
#[derive(Debug)]
pub struct Cursor<'a> {
    map: &'a FileMap,
    run: usize,
    /// Where the current run begins in the file.
    begin: u64,
}

/// Where some bytes of a file are.
#[derive(Debug, Clone, Copy)]
pub struct Location<'a> {
    pub frame: Option<&'a FrameRef>,
    pub position: u32,
}

impl<'a> Cursor<'a> {
    pub fn new(map: &'a FileMap) -> Self {
        Cursor { map, run: 0, begin: 0 }
    }

    /// Where `bytes` at `offset` are, when they lie in one run. Offsets must not go backwards.
    pub fn find(&mut self, offset: u64, bytes: u64) -> Option<Location<'a>> {
        self.stretch(offset).filter(|(_, there)| bytes <= *there).map(|(location, _)| location)
    }

    /// Where the bytes from `offset` on are, and how many of them lie in one run. Offsets must not go backwards.
    pub fn stretch(&mut self, offset: u64) -> Option<(Location<'a>, u64)> {
        loop {
            let run = self.map.runs.get(self.run)?;
            if offset >= self.begin + run.2 {
                self.begin += run.2;
                self.run += 1;
                continue;
            }
            let within = offset - self.begin;
            let frame = run.0.and_then(|index| self.map.frames.get(index as usize));
            let position = run.1 + if frame.is_some() { within as u32 } else { 0 };
            return Some((Location { frame, position }, run.2 - within));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(name: u8) -> FrameRef {
        FrameRef { pack: "s/d000001".into(), offset: u64::from(name), stored_bytes: 10, raw_bytes: 100, sha256: Sha([name; 32]) }
    }

    #[test]
    fn neighbours_become_one_run_and_can_be_found_again() {
        let mut builder = MapBuilder::default();
        builder.frame(&frame(1), 0, 40);
        builder.frame(&frame(1), 40, 60);
        builder.zeros(8);
        builder.zeros(8);
        builder.frame(&frame(2), 20, 30);
        builder.frame(&frame(1), 0, 10);
        let map = builder.finish();
        assert_eq!(map.runs, [Run(Some(0), 0, 100), Run(None, 0, 16), Run(Some(1), 20, 30), Run(Some(0), 0, 10)]);
        assert_eq!((map.bytes(), map.frames.len()), (156, 2));
        assert_eq!(
            map.live_bytes().into_iter().collect::<Vec<_>>(),
            [("s/d000001".into(), 140)],
            "what is used, not what is there"
        );
        let mut cursor = Cursor::new(&map);
        assert_eq!(cursor.find(90, 10).unwrap().position, 90);
        assert!(cursor.find(95, 10).is_none(), "crosses a border");
        assert!(cursor.find(100, 16).unwrap().frame.is_none());
        assert_eq!(cursor.find(120, 5).unwrap().position, 24);
        assert!(cursor.find(156, 1).is_none());
        let mut cursor = Cursor::new(&map);
        assert_eq!(cursor.stretch(40).map(|(location, bytes)| (location.position, bytes)), Some((40, 60)));
        assert_eq!(cursor.stretch(104).map(|(location, bytes)| (location.frame.is_none(), bytes)), Some((true, 12)));
    }

    #[test]
    fn a_run_outside_of_its_frame_is_a_defect() {
        let mut map = FileMap { frames: vec![frame(1)], runs: vec![Run(Some(0), 50, 50)] };
        assert_eq!(map.defect(), None);
        map.runs[0].1 = 51;
        assert!(map.defect().is_some());
        map.runs[0] = Run(Some(1), 0, 1);
        assert!(map.defect().is_some());
    }

    #[test]
    fn the_digest_does_not_depend_on_packs() {
        let map = FileMap { frames: vec![frame(1)], runs: vec![Run(Some(0), 0, 100)] };
        let mut moved = map.clone();
        moved.frames[0].offset = 77;
        moved.frames[0].pack = "t/d000009".into();
        assert_eq!(map.digest(), moved.digest());
        moved.frames[0].sha256 = Sha([9; 32]);
        assert_ne!(map.digest(), moved.digest());
    }
}
