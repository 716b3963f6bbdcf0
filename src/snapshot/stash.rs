//! Compressed frames of one thread on their way into a pack.

use crate::repo::frame::{COMPRESSED_MAX_BYTES, Compressor};
use crate::repo::object::Sha;

/// Compressed bytes that a thread hands over at once: so much of a file lies side by side in a pack, and is restored with few writes.
const STASH_BYTES: usize = 1 << 20;

/// Compressed frames that wait to be handed over together.
pub struct Stash {
    /// The frames one behind the other, in a buffer with room for one more.
    stored: Vec<u8>,
    bytes: usize,
    /// Stored and raw length.
    frames: Vec<(usize, u32, Sha)>,
}

impl Default for Stash {
    fn default() -> Self {
        Stash { stored: vec![0; STASH_BYTES + COMPRESSED_MAX_BYTES], bytes: 0, frames: Vec::new() }
    }
}

impl Stash {
    pub fn add(&mut self, raw: &[u8], sha256: Sha, compressor: &mut Compressor) {
        let stored = compressor.compress_to(raw, &mut self.stored[self.bytes..]);
        self.bytes += stored;
        self.frames.push((stored, raw.len() as u32, sha256));
    }

    pub fn count(&self) -> usize {
        self.frames.len()
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= STASH_BYTES
    }

    pub fn frames(&self) -> impl Iterator<Item = (&[u8], u32, Sha)> {
        let mut rest = self.stored.as_slice();
        self.frames.iter().map(move |(stored, raw, sha256)| {
            let (frame, behind) = rest.split_at(*stored);
            rest = behind;
            (frame, *raw, *sha256)
        })
    }

    pub fn clear(&mut self) {
        self.bytes = 0;
        self.frames.clear();
    }
}
