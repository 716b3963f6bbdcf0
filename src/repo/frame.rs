//! Frames: up to 128 KiB of raw bytes, one zstd frame, known by the SHA-256 of the raw bytes.

use serde::{Deserialize, Serialize};

use super::document;
use super::object::Sha;
use super::seal::crypto::GcmKey;

/// Raw bytes in a frame of data: 16 pages. Small enough to be fetched for one page, to be hashed and compressed in cache.
pub const FRAME_BYTES: usize = 128 << 10;
/// No frame of data is longer when stored: `ZSTD_COMPRESSBOUND(FRAME_BYTES)`, which is 1/256 more.
pub const COMPRESSED_MAX_BYTES: usize = FRAME_BYTES + (FRAME_BYTES >> 8);
/// Frames that hold file maps may be longer; nothing longer than this is believed.
pub const FRAME_MAX_BYTES: u32 = 64 << 20;

/// Where a frame is and what it holds: `[pack, offset, stored bytes, raw bytes, SHA-256]` in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Tuple", into = "Tuple")]
pub struct FrameRef {
    /// `<snapshot>/<pack>`; shared, because many frames of a map lie in one pack.
    pub pack: std::sync::Arc<str>,
    pub offset: u64,
    pub stored_bytes: u32,
    pub raw_bytes: u32,
    pub sha256: Sha,
}

type Tuple = (std::sync::Arc<str>, u64, u32, u32, Sha);

/// A frame that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("a frame at byte {offset} of {pack:?} cannot be: {what}")]
pub struct FrameError {
    pack: std::sync::Arc<str>,
    offset: u64,
    what: &'static str,
}

impl TryFrom<Tuple> for FrameRef {
    type Error = FrameError;

    /// What stands in a document decides what is read and how much memory that takes, so it is looked at first.
    fn try_from((pack, offset, stored_bytes, raw_bytes, sha256): Tuple) -> Result<Self, FrameError> {
        let fail = |what| Err(FrameError { pack: pack.clone(), offset, what });
        if !document::is_pack_name(&pack) {
            return fail("that is no pack");
        }
        if raw_bytes == 0 || raw_bytes > FRAME_MAX_BYTES {
            return fail("its raw length is impossible");
        }
        // zstd makes nothing longer by more than a part in 256, and a seal adds its tag.
        let longest = u64::from(raw_bytes) + u64::from(raw_bytes >> 8) + 512;
        if stored_bytes == 0 || u64::from(stored_bytes) > longest || offset > document::BYTES_MAX {
            return fail("its place is impossible");
        }
        Ok(FrameRef { pack, offset, stored_bytes, raw_bytes, sha256 })
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

    /// Compresses to the beginning of `out`, which has room for [`COMPRESSED_MAX_BYTES`], and answers how long that is.
    pub fn compress_to(&mut self, raw: &[u8], out: &mut [u8]) -> usize {
        self.inner.compress_to_buffer(raw, out).expect("a frame's worth of bytes fits into its bound")
    }
}

/// Decompresses frames and proves that they are what they should be. One per thread: it keeps its zstd context and buffers.
pub struct Decompressor {
    inner: zstd::bulk::Decompressor<'static>,
    opened: Vec<u8>,
}

impl Default for Decompressor {
    fn default() -> Self {
        Decompressor { inner: zstd::bulk::Decompressor::new().expect("memory for a zstd context"), opened: Vec::new() }
    }
}

impl Decompressor {
    /// Puts the raw bytes of `stored` into `out`, which is as long as the frame says, and proves them; or says what is wrong with them.
    /// `key` is the pack's, where it is sealed.
    pub fn open(&mut self, frame: &FrameRef, stored: &[u8], key: Option<&GcmKey>, out: &mut [u8]) -> Result<(), &'static str> {
        self.unpack(frame, stored, key, out)?;
        if Sha::of(out) == frame.sha256 { Ok(()) } else { Err("the SHA-256 of a frame does not hold") }
    }

    /// Like [`Decompressor::open`], but whether it is what the frame should be is not known yet.
    pub fn unpack(&mut self, frame: &FrameRef, stored: &[u8], key: Option<&GcmKey>, out: &mut [u8]) -> Result<(), &'static str> {
        let mut stored = stored;
        if let Some(key) = key {
            if !key.open(frame.offset, 0, b"", stored, &mut self.opened) {
                return Err("a frame does not open: it was changed or moved");
            }
            stored = &self.opened;
        }
        let length = self.inner.decompress_to_buffer(stored, out).map_err(|_| "a frame cannot be decompressed")?;
        if length != out.len() || length != frame.raw_bytes as usize {
            return Err("a frame has another length than its map says");
        }
        Ok(())
    }
}
