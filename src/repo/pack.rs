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
use crate::storage::{Body, ObjectKey};

/// Stored bytes after which a pack is finished.
pub const PACK_BYTES: usize = 32 << 20;
const ENTRY_BYTES: usize = 40;

/// A pack that is being filled.
#[derive(Debug)]
pub struct PackBuilder {
    name: std::sync::Arc<str>,
    frames: Vec<Bytes>,
    table: Vec<u8>,
    bytes: u64,
    sealer: Option<Sealer>,
}

impl PackBuilder {
    /// `name` is `<snapshot>/<pack>`; the sealer is for that pack.
    pub fn new(name: &str, sealer: Option<Sealer>) -> PackBuilder {
        PackBuilder { name: name.into(), frames: Vec::new(), table: Vec::new(), bytes: 0, sealer }
    }

    /// Adds a compressed frame and says where it will be.
    pub fn add(&mut self, mut stored: Vec<u8>, raw_bytes: u32, sha256: Sha) -> FrameRef {
        if let Some(sealer) = &self.sealer {
            sealer.content.seal(self.bytes, 0, b"", &mut stored);
        }
        let frame =
            FrameRef { pack: self.name.clone(), offset: self.bytes, stored_bytes: stored.len() as u32, raw_bytes, sha256 };
        self.table.extend_from_slice(&raw_bytes.to_le_bytes());
        self.table.extend_from_slice(&frame.stored_bytes.to_le_bytes());
        self.table.extend_from_slice(&sha256.0);
        self.bytes += stored.len() as u64;
        self.frames.push(stored.into());
        frame
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= PACK_BYTES as u64
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The finished object.
    pub fn finish(mut self) -> FinishedPack {
        self.frames.push(trailer(ObjectKind::Pack, &self.table, self.bytes, self.sealer.as_ref().map(|s| &s.trailer)).into());
        FinishedPack { name: self.name, body: Body::Bytes(self.frames), head: self.sealer.map(|sealer| sealer.trailer.head) }
    }
}

#[derive(Debug)]
pub struct FinishedPack {
    pub name: std::sync::Arc<str>,
    pub body: Body,
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
