//! Frames: up to 128 KiB of raw bytes, one zstd frame, known by the SHA-256 of the raw bytes.

use serde::{Deserialize, Serialize};

use super::object::Sha;
use super::seal::crypto::GcmKey;

/// Raw bytes in a frame of data: 16 pages. Small enough to be fetched for one page, to be hashed and compressed in cache.
pub const FRAME_BYTES: usize = 128 << 10;
/// Frames that hold file maps may be longer; nothing longer than this is believed.
pub const FRAME_MAX_BYTES: u32 = 64 << 20;

/// Where a frame is and what it holds: `[pack, offset, stored bytes, raw bytes, SHA-256]` in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Tuple", into = "Tuple")]
pub struct FrameRef {
    /// `<snapshot>/<pack>`; shared, because many frames of a map lie in one pack.
    pub pack: std::sync::Arc<str>,
    pub offset: u64,
    pub stored_bytes: u32,
    pub raw_bytes: u32,
    pub sha256: Sha,
}

type Tuple = (std::sync::Arc<str>, u64, u32, u32, Sha);

impl From<Tuple> for FrameRef {
    fn from((pack, offset, stored_bytes, raw_bytes, sha256): Tuple) -> Self {
        FrameRef { pack, offset, stored_bytes, raw_bytes, sha256 }
    }
}

impl From<FrameRef> for Tuple {
    fn from(frame: FrameRef) -> Self {
        (frame.pack, frame.offset, frame.stored_bytes, frame.raw_bytes, frame.sha256)
    }
}

/// Compresses frames, with one zstd context for all.
pub struct Compressor {
    inner: zstd::bulk::Compressor<'static>,
}

impl Compressor {
    /// `level` was checked by the configuration.
    pub fn new(level: i32) -> Compressor {
        Compressor { inner: zstd::bulk::Compressor::new(level).expect("zstd knows the levels 1 to 19") }
    }

    pub fn compress(&mut self, raw: &[u8]) -> Vec<u8> {
        self.inner.compress(raw).expect("zstd compresses any bytes in memory")
    }
}

/// Decompresses frames and proves that they are what they should be.
pub struct Decompressor {
    inner: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
    opened: Vec<u8>,
}

impl Default for Decompressor {
    fn default() -> Self {
        Decompressor {
            inner: zstd::bulk::Decompressor::new().expect("memory for a zstd context"),
            raw: Vec::new(),
            opened: Vec::new(),
        }
    }
}

impl Decompressor {
    /// The raw bytes of `stored`, or what is wrong with it. `key` is the pack's, where it is sealed.
    pub fn open(&mut self, frame: &FrameRef, stored: &[u8], key: Option<&GcmKey>) -> Result<&[u8], &'static str> {
        if frame.raw_bytes > FRAME_MAX_BYTES {
            return Err("a frame announces an impossible length");
        }
        let mut stored = stored;
        if let Some(key) = key {
            if !key.open(frame.offset, 0, b"", stored, &mut self.opened) {
                return Err("a frame does not open: it was changed or moved");
            }
            stored = &self.opened;
        }
        self.raw.clear();
        self.raw.reserve(frame.raw_bytes as usize);
        let length = self.inner.decompress_to_buffer(stored, &mut self.raw).map_err(|_| "a frame cannot be decompressed")?;
        if length != frame.raw_bytes as usize {
            return Err("a frame has another length than its map says");
        }
        if Sha::of(&self.raw) != frame.sha256 {
            return Err("the SHA-256 of a frame does not hold");
        }
        Ok(&self.raw)
    }
}
