//! The envelope that every object but `lastgood.json` has: zstd frames with the content, then a trailer.
//!
//! The trailer is a zstd *skippable frame*, so `zstd -dc` gives exactly the content. Its payload is a body that depends on the
//! kind of object, and a footer of 48 bytes, which are the object's last:
//!
//! | bytes | what |
//! |---|---|
//! | 32 | SHA-256 of the body |
//! | 4 | length of the body, little endian |
//! | 2 | format version |
//! | 1 | kind |
//! | 1 | flags; bit 0: content and body are sealed |
//! | 8 | `lastgood` |
//!
//! An object without its trailer was cut short; that is seen without reading the rest.
//!
//! Sealed, the body is a head in the clear (epoch and seed, see [`Head`]) and then what it would be, sealed. The seal of the
//! body holds the length of the content and the last 16 bytes of the footer too.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::document::{self, Document};
use super::seal::crypto::TAG_BYTES;
use super::seal::{HEAD_BYTES, Head, Sealer, TrailerSealer};
use super::vault::Vault;
use super::{FORMAT_VERSION, RepoError, copies};
use crate::storage::{Created, Fault, ObjectKey, Part, Storage};

/// One of the 16 magic numbers that the zstd format keeps for skippable frames.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5C;
const FOOTER_BYTES: usize = 48;
const FOOTER_MAGIC: &[u8; 8] = b"lastgood";
/// Bytes before the trailer's payload: magic and length.
pub const TRAILER_HEAD_BYTES: usize = 8;
const FLAG_SEALED: u8 = 1;
/// Fetched first when a trailer is read; holds the whole trailer of a document, a segment, and most packs.
const TAIL_BYTES: u64 = 64 << 10;
/// A trailer longer than this is damage; a pack of 32 MiB with frames of a few bytes stays far below.
const BODY_MAX_BYTES: usize = 256 << 20;
/// Level 3 looks back 2 MiB, and no level of zstd further than 128 MiB.
const WINDOW_LOG_MAX: u32 = 27;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ObjectKind {
    Document = 1,
    Pack = 2,
    WalFile = 3,
}

/// A trailer that was read and checked.
#[derive(Debug, Clone)]
pub struct Trailer {
    pub body: Bytes,
    /// Length of what is before the trailer.
    pub content_bytes: u64,
    /// With what a sealed object opens.
    pub head: Option<Head>,
}

/// The SHA-256 of raw content; hex in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha(pub [u8; 32]);

impl Sha {
    pub fn of(bytes: &[u8]) -> Sha {
        Sha(Sha256::digest(bytes).into())
    }
}

impl std::fmt::Display for Sha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for Sha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Sha {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Sha {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let mut raw = [0u8; 32];
        hex::decode_to_slice(text.as_bytes(), &mut raw).map_err(serde::de::Error::custom)?;
        Ok(Sha(raw))
    }
}

/// The trailer's bytes, ready to be written behind `content_bytes` of content.
pub fn trailer(kind: ObjectKind, body: &[u8], content_bytes: u64, sealer: Option<&TrailerSealer>) -> Vec<u8> {
    let Some(sealer) = sealer else { return assemble(kind, body, 0) };
    let body_bytes = HEAD_BYTES + body.len() + TAG_BYTES;
    let footer_end = footer_end(body_bytes, kind, FLAG_SEALED);
    let mut sealed = body.to_vec();
    sealer.key.seal(0, 0, &[&content_bytes.to_le_bytes()[..], &footer_end].concat(), &mut sealed);
    assemble(kind, &[&sealer.head.to_bytes()[..], &sealed].concat(), FLAG_SEALED)
}

/// The footer without its checksum.
fn footer_end(body_bytes: usize, kind: ObjectKind, flags: u8) -> [u8; 16] {
    let mut end = [0; 16];
    end[..4].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    end[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    end[6] = kind as u8;
    end[7] = flags;
    end[8..].copy_from_slice(FOOTER_MAGIC);
    end
}

fn assemble(kind: ObjectKind, body: &[u8], flags: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(TRAILER_HEAD_BYTES + body.len() + FOOTER_BYTES);
    bytes.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    bytes.extend_from_slice(&((body.len() + FOOTER_BYTES) as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(&Sha::of(body).0);
    bytes.extend_from_slice(&footer_end(body.len(), kind, flags));
    bytes
}

/// Length of the body that the footer at the end of `tail` announces.
fn footer_body_bytes(vault: &Vault, key: &ObjectKey, kind: ObjectKind, tail: &[u8]) -> Result<usize, RepoError> {
    let footer = tail.len().checked_sub(FOOTER_BYTES).map(|at| &tail[at..]);
    let footer = footer.filter(|f| &f[40..] == FOOTER_MAGIC);
    let footer = footer.ok_or_else(|| RepoError::damaged(key, "it has no trailer: cut short, or not written by lastgood"))?;
    let version = u16::from_le_bytes([footer[36], footer[37]]);
    if version > FORMAT_VERSION {
        return Err(RepoError::Newer { key: key.clone(), version: version.into() });
    }
    // Neither is ever mixed, or whoever writes into the store could put in something of their own.
    match (vault.seal().is_some(), footer[39] & FLAG_SEALED != 0) {
        (false, true) => return Err(RepoError::Sealed { key: key.clone() }),
        (true, false) => return Err(RepoError::damaged(key, "it is not sealed, and everything in this repository is")),
        _ => {}
    }
    if version == 0 || footer[38] != kind as u8 || footer[39] & !FLAG_SEALED != 0 {
        return Err(RepoError::damaged(key, "its trailer is of another kind"));
    }
    let body = u32::from_le_bytes(footer[32..36].try_into().expect("four bytes")) as usize;
    if body > BODY_MAX_BYTES {
        return Err(RepoError::damaged(key, "its trailer announces an impossible length"));
    }
    Ok(body)
}

/// Checks the trailer at the end of `tail`, which must hold all of it. `object_bytes` is the whole object's length.
pub fn parse_trailer(
    vault: &Vault,
    key: &ObjectKey,
    kind: ObjectKind,
    tail: &Bytes,
    object_bytes: u64,
) -> Result<Trailer, RepoError> {
    let body_bytes = footer_body_bytes(vault, key, kind, tail)?;
    let all = TRAILER_HEAD_BYTES + body_bytes + FOOTER_BYTES;
    let start = tail.len().checked_sub(all).ok_or_else(|| RepoError::damaged(key, "its trailer is cut short"))?;
    let word = |at: usize| u32::from_le_bytes(tail[start + at..start + at + 4].try_into().expect("four bytes"));
    if word(0) != SKIPPABLE_MAGIC || word(4) as usize != body_bytes + FOOTER_BYTES {
        return Err(RepoError::damaged(key, "its trailer does not begin as it should"));
    }
    let body = tail.slice(start + TRAILER_HEAD_BYTES..start + TRAILER_HEAD_BYTES + body_bytes);
    let footer = &tail[tail.len() - FOOTER_BYTES..];
    if Sha::of(&body).0 != footer[..32] {
        return Err(RepoError::damaged(key, "the checksum of its trailer does not hold"));
    }
    let content_bytes = object_bytes - all as u64;
    let Some(seal) = vault.seal() else { return Ok(Trailer { body, content_bytes, head: None }) };
    let does_not_open = || RepoError::damaged(key, "its trailer does not open: it was changed, moved or renamed");
    let (head, sealed) = body.split_first_chunk::<HEAD_BYTES>().ok_or_else(does_not_open)?;
    let head = Head::from_bytes(head);
    let mut opened = Vec::new();
    let bound = [&content_bytes.to_le_bytes()[..], &footer[32..]].concat();
    if !seal.trailer_key(key, &head)?.open(0, 0, &bound, sealed, &mut opened) {
        return Err(does_not_open());
    }
    Ok(Trailer { body: opened.into(), content_bytes, head: Some(head) })
}

/// What an object says it is, without proof; `None` where it has no trailer, or one of a kind that is not known here.
pub async fn read_kind(storage: &dyn Storage, key: &ObjectKey) -> Result<Option<ObjectKind>, RepoError> {
    let tail = storage.read(key, Part::Tail { bytes: FOOTER_BYTES as u64 }).await?.bytes;
    if tail.len() < FOOTER_BYTES || &tail[40..] != FOOTER_MAGIC {
        return Ok(None);
    }
    let kinds = [ObjectKind::Document, ObjectKind::Pack, ObjectKind::WalFile];
    Ok(kinds.into_iter().find(|kind| *kind as u8 == tail[38]))
}

/// Whether an object says that it is sealed; `None` where it has no trailer.
pub async fn read_sealed(storage: &dyn Storage, key: &ObjectKey) -> Result<Option<bool>, RepoError> {
    let tail = storage.read(key, Part::Tail { bytes: FOOTER_BYTES as u64 }).await?.bytes;
    let has_trailer = tail.len() == FOOTER_BYTES && &tail[40..] == FOOTER_MAGIC;
    Ok(has_trailer.then(|| tail[39] & FLAG_SEALED != 0))
}

/// Reads the trailer of an object: one request, two when it is long.
pub async fn read_trailer(vault: &Vault, key: &ObjectKey, kind: ObjectKind) -> Result<Trailer, RepoError> {
    let read = read_trailer_alone(vault, key, kind).await;
    if read.as_ref().is_err_and(RepoError::is_damage) {
        for copy in vault.copies() {
            if let Ok(sound) = read_trailer_alone(&copy, key, kind).await {
                return Ok(sound);
            }
        }
    }
    read
}

async fn read_trailer_alone(vault: &Vault, key: &ObjectKey, kind: ObjectKind) -> Result<Trailer, RepoError> {
    let mut read = vault.storage().read(key, Part::Tail { bytes: TAIL_BYTES }).await?;
    let all = TRAILER_HEAD_BYTES + footer_body_bytes(vault, key, kind, &read.bytes)? + FOOTER_BYTES;
    if all > read.bytes.len() && read.object_bytes >= all as u64 {
        read = vault.storage().read(key, Part::Tail { bytes: all as u64 }).await?;
    }
    parse_trailer(vault, key, kind, &read.bytes, read.object_bytes)
}

#[derive(Debug, Serialize, Deserialize)]
struct DocumentTrailer {
    raw_bytes: u64,
    sha256: Sha,
}

impl Document for DocumentTrailer {}

/// The bytes of a document object: JSON lines in one zstd frame.
pub fn document(raw: &[u8], sealer: Option<&Sealer>) -> Vec<u8> {
    let mut bytes = zstd::bulk::compress(raw, 3).expect("zstd compresses any bytes in memory");
    if let Some(sealer) = sealer {
        sealer.content.seal(0, 0, b"", &mut bytes);
    }
    let trailer_body = DocumentTrailer { raw_bytes: raw.len() as u64, sha256: Sha::of(raw) };
    bytes.extend(trailer(ObjectKind::Document, &to_json(&trailer_body), bytes.len() as u64, sealer.map(|s| &s.trailer)));
    bytes
}

/// Writes a document; the same content under the same key again is no conflict.
pub async fn put_document(vault: &Vault, key: &ObjectKey, raw: &[u8]) -> Result<Created, RepoError> {
    let created = vault.storage().create(key, document(raw, vault.sealer(key).as_ref()).into()).await?;
    settle(vault, key, raw, created).await
}

/// The same below a name that is the writer's own, such as the id of a snapshot under the lease for backups.
pub async fn put_own_document(vault: &Vault, key: &ObjectKey, raw: &[u8]) -> Result<Created, RepoError> {
    let created = vault.storage().create_own(key, document(raw, vault.sealer(key).as_ref()).into()).await?;
    settle(vault, key, raw, created).await
}

async fn settle(vault: &Vault, key: &ObjectKey, raw: &[u8], created: Created) -> Result<Created, RepoError> {
    match created {
        Created::New => Ok(Created::New),
        Created::AlreadyThere if get_document(vault, key).await? == raw => {
            copies::settle(vault, key).await?;
            Ok(Created::AlreadyThere)
        }
        Created::AlreadyThere => Err(RepoError::Conflict { key: key.clone() }),
    }
}

/// Reads a document and proves its checksum. What is damaged in one place is read from another.
pub async fn get_document(vault: &Vault, key: &ObjectKey) -> Result<Vec<u8>, RepoError> {
    let read = get_document_alone(vault, key).await;
    if read.as_ref().is_err_and(RepoError::is_damage) {
        for copy in vault.copies() {
            if let Ok(sound) = get_document_alone(&copy, key).await {
                return Ok(sound);
            }
        }
    }
    read
}

async fn get_document_alone(vault: &Vault, key: &ObjectKey) -> Result<Vec<u8>, RepoError> {
    // The tail of what is no longer than a document can be is the whole of it.
    let read = vault.storage().read(key, Part::Tail { bytes: document::stored_max(key) }).await?;
    if read.bytes.len() as u64 != read.object_bytes {
        return Err(RepoError::damaged(key, format!("it is longer than such a document can be: {} bytes", read.object_bytes)));
    }
    let trailer = parse_trailer(vault, key, ObjectKind::Document, &read.bytes, read.object_bytes)?;
    let expected: DocumentTrailer = from_json(key, &trailer.body)?;
    let mut content = &read.bytes[..trailer.content_bytes as usize];
    let damaged = |what: &str| RepoError::damaged(key, what);
    let mut opened = Vec::new();
    if let (Some(seal), Some(head)) = (vault.seal(), &trailer.head) {
        if !seal.content_key(key, head)?.open(0, 0, b"", content, &mut opened) {
            return Err(damaged("its content does not open: it was changed"));
        }
        content = &opened;
    }
    let most = document::raw_max(key, content.len() as u64);
    if expected.raw_bytes > most {
        let what = format!("it says that it holds {} bytes, and can hold {most} at most", expected.raw_bytes);
        return Err(RepoError::damaged(key, what));
    }
    let raw = decompress(content, expected.raw_bytes).map_err(|_| damaged("it cannot be decompressed"))?;
    if raw.len() as u64 != expected.raw_bytes || Sha::of(&raw) != expected.sha256 {
        return Err(damaged("its checksum does not hold"));
    }
    Ok(raw)
}

/// The raw bytes, as many as there are and one more than `expected` at most: whoever wrote the trailer decides nothing about memory.
fn decompress(content: &[u8], expected: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut decoder = zstd::stream::read::Decoder::with_buffer(content)?;
    // A frame may ask to look back further than its content is long.
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    let mut raw = Vec::new();
    decoder.take(expected.saturating_add(1)).read_to_end(&mut raw)?;
    Ok(raw)
}

/// JSON of our own types, which cannot fail.
pub fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types are JSON")
}

/// Everything that is read is parsed here, and nothing that makes no sense passes.
pub fn from_json<T: Document>(key: &ObjectKey, bytes: &[u8]) -> Result<T, RepoError> {
    let value: T =
        serde_json::from_slice(bytes).map_err(|error| RepoError::damaged(key, format!("unexpected content: {error}")))?;
    match value.defect() {
        None => Ok(value),
        Some(defect) => Err(RepoError::damaged(key, defect)),
    }
}

/// Whether an error means that the object is not there.
pub fn absent<T>(result: Result<T, RepoError>) -> Result<Option<T>, RepoError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(RepoError::Storage(error)) if error.fault == Fault::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
