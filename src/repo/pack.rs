//! Packs: many frames in one object, so that a store sees few and large requests.
//!
//! Content: the frames, one behind the other; `zstd -dc` gives their raw bytes where they are not sealed. Sealed, the nonce of a
//! frame is its offset, so that frames cannot be exchanged. Trailer body: for each frame its raw length and its stored length (4 bytes each, little endian) and its SHA-256 (32 bytes). A frame's offset is the sum of the stored
//! lengths before it.

use bytes::Bytes;

use super::RepoError;
use super::frame::FrameRef;
use super::object::{ObjectKind, Sha, Trailer, trailer};
use super::seal::{Head, Sealer};
use crate::aligned::{Buffer, Pool};
use crate::storage::{Body, ObjectKey};

/// Stored bytes after which a pack is finished.
pub const PACK_BYTES: usize = 32 << 20;
const ENTRY_BYTES: usize = 40;

/// Packs are put together in buffers of so many bytes, so that a disk can take them as they are.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A pack that is being filled.
#[derive(Debug)]
pub struct PackBuilder {
    name: std::sync::Arc<str>,
    chunks: Chunks,
    table: Vec<u8>,
    raw_bytes: u64,
    sealer: Option<Sealer>,
}

impl PackBuilder {
    /// `name` is `<snapshot>/<pack>`; the sealer is for that pack. Buffers of [`CHUNK_BYTES`] come from the pool.
    pub fn new(name: &str, sealer: Option<Sealer>, pool: &Pool) -> PackBuilder {
        PackBuilder { name: name.into(), chunks: Chunks::new(pool), table: Vec::new(), raw_bytes: 0, sealer }
    }

    /// Adds a compressed frame and says where it will be.
    pub fn add(&mut self, stored: &[u8], raw_bytes: u32, sha256: Sha) -> FrameRef {
        let offset = self.chunks.bytes;
        match &self.sealer {
            None => self.chunks.add(stored),
            Some(sealer) => {
                let mut sealed = stored.to_vec();
                sealer.content.seal(offset, 0, b"", &mut sealed);
                self.chunks.add(&sealed);
            }
        }
        let stored_bytes = (self.chunks.bytes - offset) as u32;
        self.raw_bytes += u64::from(raw_bytes);
        self.table.extend_from_slice(&raw_bytes.to_le_bytes());
        self.table.extend_from_slice(&stored_bytes.to_le_bytes());
        self.table.extend_from_slice(&sha256.0);
        FrameRef { pack: self.name.clone(), offset, stored_bytes, raw_bytes, sha256 }
    }

    pub fn is_full(&self) -> bool {
        self.chunks.bytes >= PACK_BYTES as u64
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The finished object.
    pub fn finish(mut self) -> FinishedPack {
        let sealer = self.sealer.as_ref().map(|s| &s.trailer);
        let trailer = trailer(ObjectKind::Pack, &self.table, self.chunks.bytes, sealer);
        self.chunks.add(&trailer);
        let head = self.sealer.map(|sealer| sealer.trailer.head);
        FinishedPack { name: self.name, body: Body::Bytes(self.chunks.finish()), raw_bytes: self.raw_bytes, head }
    }
}

/// Bytes one after the other, in buffers that go back to their pool when the object is stored.
#[derive(Debug)]
struct Chunks {
    pool: Pool,
    full: Vec<Bytes>,
    open: Option<Buffer>,
    bytes: u64,
}

impl Chunks {
    fn new(pool: &Pool) -> Chunks {
        Chunks { pool: pool.clone(), full: Vec::new(), open: None, bytes: 0 }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = (self.bytes % CHUNK_BYTES as u64) as usize;
            let chunk = self.open.get_or_insert_with(|| self.pool.take());
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - used));
            chunk[used..used + now.len()].copy_from_slice(now);
            self.bytes += now.len() as u64;
            if used + now.len() == CHUNK_BYTES {
                self.full.extend(self.open.take().map(Bytes::from_owner));
            }
            bytes = later;
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        let used = (self.bytes % CHUNK_BYTES as u64) as usize;
        self.full.extend(self.open.take().map(|chunk| Bytes::from_owner(chunk).slice(..used)));
        self.full
    }
}

#[derive(Debug)]
pub struct FinishedPack {
    pub name: std::sync::Arc<str>,
    pub body: Body,
    /// Of all its frames.
    pub raw_bytes: u64,
    /// With what it opens, when it is sealed.
    pub head: Option<Head>,
}

/// The frames that a pack's trailer lists.
pub fn frames(key: &ObjectKey, name: &str, trailer: &Trailer) -> Result<Vec<FrameRef>, RepoError> {
    let pack: std::sync::Arc<str> = name.into();
    let mut offset = 0;
    let mut frames = Vec::with_capacity(trailer.body.len() / ENTRY_BYTES);
    let (entries, rest) = trailer.body.as_chunks::<ENTRY_BYTES>();
    for entry in entries {
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
        let mut sha = [0u8; 32];
        sha.copy_from_slice(&entry[8..]);
        frames.push(FrameRef { pack: pack.clone(), offset, raw_bytes: word(0), stored_bytes: word(4), sha256: Sha(sha) });
        offset += u64::from(word(4));
    }
    if !rest.is_empty() || offset != trailer.content_bytes {
        return Err(RepoError::damaged(key, "its table of frames does not fit its length"));
    }
    Ok(frames)
}
