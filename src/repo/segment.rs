//! Archived WAL files: segments, and the history, `.partial` and `.backup` files beside them.
//!
//! Content: zstd frames with exactly the file's bytes, half a mebibyte in each, sealed in chunks where the repository is. Trailer body: JSON
//! with name, system identifier, length, SHA-256, and for a segment the summary that `postgres::wal::transaction` made of it.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RepoError;
use super::compress;
use super::copies;
use super::document::{Document, first_defect};
use super::object::{self, ObjectKind, Sha};
use super::repository::Cluster;
use super::seal::stream::{OpeningWriter, SealingWriter};
use super::seal::{Sealer, TrailerSealer};
use super::sink::{Content, Sink};
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::WalFile;
use crate::storage::memory::MemoryStorage;
use crate::storage::{Body, Created, ObjectKey, Part, Storage};

/// Bytes asked for at once when an object is larger than one request should be.
const PIECE_BYTES: u64 = 16 << 20;

/// What the trailer of an archived file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WalFileTrailer {
    pub name: String,
    pub system_identifier: SystemId,
    pub raw_bytes: u64,
    pub sha256: Sha,
    /// SHA-256 of the sealed content, so that a writer, who cannot open it, can prove that it is sound. Absent where nothing is
    /// sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_sha256: Option<Sha>,
    /// SHA-256 of the segment before it, as the server that archived it had it; absent where its writer did not know it. Two trailers
    /// that differ only in this vouch for the same file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Sha>,
    /// Of a segment what it holds, absent where it could not be understood; of a history file the fork (`lineage::fork`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<serde_json::Value>,
}

/// What a writer knows of a file beside its bytes.
#[derive(Debug, Clone, Default)]
pub struct Said {
    pub previous: Option<Sha>,
    pub summary: Option<serde_json::Value>,
}

/// A history file has a line for each timeline, a `.backup` file a few.
const SMALL_MAX: u64 = 16 << 20;

impl Document for WalFileTrailer {
    /// A length decides how much is written when the file is fetched.
    fn defect(&self) -> Option<String> {
        let fits = match self.name.parse() {
            Ok(WalFile::Segment(_) | WalFile::Partial(_) | WalFile::Torn(..)) => self.raw_bytes <= 1 << 30,
            Ok(WalFile::History(_) | WalFile::Backup(..)) => self.raw_bytes <= SMALL_MAX,
            Err(_) => return Some("its name is none that PostgreSQL archives".into()),
        };
        first_defect([(fits, "its length is impossible")])
    }
}

/// A file compressed, sealed where the repository is, and ready to be stored.
#[derive(Debug)]
pub struct Encoded {
    content: Content,
    pub raw_bytes: u64,
    pub sha256: Sha,
    /// Length of the content as it is stored.
    stored_bytes: u64,
    sealed: Option<Sealed>,
}

/// What the trailer of a sealed file is made with.
#[derive(Debug)]
struct Sealed {
    trailer: TrailerSealer,
    stored_sha256: Sha,
}

/// Raw bytes in one zstd frame of an archived file: as far as level 1 looks back. Frames that begin anew spare zstd the copying of
/// what it looks back on.
const FRAME_BYTES: usize = 512 << 10;

/// Where a file on its way into the repository may gather: best where it only needs to get its name.
pub fn scratch(cluster: &Cluster) -> Vec<PathBuf> {
    cluster.storage().scratch().into_iter().chain([std::env::temp_dir()]).collect()
}

/// Compresses, hashes and seals a file in one pass, on two threads; `observe` sees the raw bytes go by. What is long gathers in a
/// file in one of the directories `scratch` (see [`scratch`]).
pub fn encode(
    mut source: impl Read,
    level: i32,
    sealer: Option<Sealer>,
    scratch: &[PathBuf],
    observe: &mut dyn FnMut(&[u8]),
) -> io::Result<Encoded> {
    let hasher_of_stored = sealer.is_some().then(Sha256::new);
    let (content, trailer) = sealer.map(|s| (s.content, s.trailer)).unzip();
    let mut sink = SealingWriter::new(content, Sink::new(scratch, hasher_of_stored));
    let mut hasher = Sha256::new();
    let (mut raw_bytes, mut ended) = (0, false);
    compress::frames(level, &mut sink, |buffer| {
        if ended {
            return Ok(false);
        }
        buffer.reserve(FRAME_BYTES);
        (&mut source).take(FRAME_BYTES as u64).read_to_end(buffer)?;
        hasher.update(&buffer);
        observe(buffer);
        raw_bytes += buffer.len() as u64;
        ended = buffer.len() < FRAME_BYTES;
        // A file of whole frames ends with one; an empty file is an empty frame.
        Ok(!buffer.is_empty() || raw_bytes == 0)
    })?;
    let sink = sink.finish()?;
    let stored_bytes = sink.bytes();
    let (content, hasher_of_stored) = sink.finish();
    let sealed = trailer.zip(hasher_of_stored);
    let sealed = sealed.map(|(trailer, hasher)| Sealed { trailer, stored_sha256: Sha(hasher.finalize().into()) });
    Ok(Encoded { content, raw_bytes, sha256: Sha(hasher.finalize().into()), stored_bytes, sealed })
}

/// What storing a file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    New,
    /// The same content was there (rule 22).
    Same,
    /// Other content was there, and stays.
    Different {
        there: Sha,
    },
}

/// Stores a file under its name, or compares with what is there.
pub async fn store(
    cluster: &Cluster,
    system: SystemId,
    file: &WalFile,
    encoded: Encoded,
    said: Said,
) -> Result<Stored, RepoError> {
    let key = cluster.layout().wal(system, file);
    let (raw_bytes, sha256) = (encoded.raw_bytes, encoded.sha256);
    let stored_sha256 = encoded.sealed.as_ref().map(|sealed| sealed.stored_sha256);
    let Said { previous, summary } = said;
    let name = file.to_string();
    let body = WalFileTrailer { name, system_identifier: system, raw_bytes, sha256, stored_sha256, previous, summary };
    let sealer = encoded.sealed.as_ref().map(|sealed| &sealed.trailer);
    let trailer = object::trailer(ObjectKind::WalFile, &object::to_json(&body), encoded.stored_bytes, sealer);
    let body = match encoded.content {
        Content::Memory(mut pieces) => {
            pieces.push(trailer.into());
            Body::Bytes(pieces)
        }
        Content::File(mut file) => {
            let failed = |source| RepoError::File { path: key.name().into(), source };
            file.write_all(&trailer).map_err(failed)?;
            let bytes = file.metadata().map_err(failed)?.len();
            Body::Unnamed { file: Arc::new(file), bytes }
        }
    };
    if cluster.storage().create(&key, body).await? == Created::New {
        return Ok(Stored::New);
    }
    let there = read_trailer(cluster, system, file).await?;
    if there.sha256 != sha256 || there.raw_bytes != raw_bytes {
        return Ok(Stored::Different { there: there.sha256 });
    }
    // After "success" the server recycles its copy, so what is stored must be sound, not only say that it is the same.
    if cluster.vault().can_open(&key) {
        fetch(cluster, system, file, &mut io::sink()).await?;
    } else {
        prove_stored(cluster, &key, &there).await?;
    }
    copies::settle(cluster.vault(), &key).await?;
    Ok(Stored::Same)
}

/// Proves that the sealed content is what was written, without opening it.
pub async fn prove_stored(cluster: &Cluster, key: &ObjectKey, there: &WalFileTrailer) -> Result<(), RepoError> {
    let trailer = object::read_trailer(cluster.vault(), key, ObjectKind::WalFile).await?;
    let (mut hasher, mut at) = (Sha256::new(), 0);
    while at < trailer.content_bytes {
        let bytes = PIECE_BYTES.min(trailer.content_bytes - at);
        hasher.update(&cluster.storage().read(key, Part::Range { start: at, bytes }).await?.bytes);
        at += bytes;
    }
    if there.stored_sha256 != Some(Sha(hasher.finalize().into())) {
        return Err(RepoError::damaged(key, "the SHA-256 of its sealed content does not hold"));
    }
    Ok(())
}

/// What is stored under a name, from its trailer alone.
pub async fn read_trailer(cluster: &Cluster, system: SystemId, file: &WalFile) -> Result<WalFileTrailer, RepoError> {
    let key = cluster.layout().wal(system, file);
    let trailer = object::read_trailer(cluster.vault(), &key, ObjectKind::WalFile).await?;
    checked(&key, system, file, &trailer.body)
}

/// Why a writer gets no content: it is not there, or it is not for writers.
async fn absent_or_writer(cluster: &Cluster, key: ObjectKey) -> RepoError {
    match object::read_trailer(cluster.vault(), &key, ObjectKind::WalFile).await {
        Ok(_) => RepoError::WriterKey { key },
        Err(error) => error,
    }
}

fn checked(key: &ObjectKey, system: SystemId, file: &WalFile, body: &[u8]) -> Result<WalFileTrailer, RepoError> {
    let trailer: WalFileTrailer = object::from_json(key, body)?;
    if trailer.name != file.to_string() || trailer.system_identifier != system {
        return Err(RepoError::damaged(key, format!("it holds {} of system {}", trailer.name, trailer.system_identifier)));
    }
    Ok(trailer)
}

/// Reads a file into `sink`, and proves its length and SHA-256 (rule 31). On an error, what `sink` got is worthless.
///
/// Where several places have it, it is proven before `sink` gets the first byte, so that what is damaged in one is read from another.
pub async fn fetch(
    cluster: &Cluster,
    system: SystemId,
    file: &WalFile,
    sink: &mut (dyn Write + Send),
) -> Result<WalFileTrailer, RepoError> {
    let copies = cluster.vault().copies();
    if copies.is_empty() {
        return fetch_alone(cluster, system, file, sink).await;
    }
    let first = prove_in_memory(cluster, system, file).await;
    let Err(damage) = &first else { return fetch_alone(&first?, system, file, sink).await };
    if damage.is_damage() {
        for copy in copies {
            if let Ok(sound) = prove_in_memory(&cluster.through(copy.storage().clone()), system, file).await {
                return fetch_alone(&sound, system, file, sink).await;
            }
        }
    }
    Err(first.expect_err("looked at above"))
}

/// A cluster to read the file from, where it was proven: the bytes themselves, or, when they are many, the place that has them.
async fn prove_in_memory(cluster: &Cluster, system: SystemId, file: &WalFile) -> Result<Cluster, RepoError> {
    let key = cluster.layout().wal(system, file);
    let tail = cluster.storage().read(&key, Part::Tail { bytes: 2 * PIECE_BYTES }).await?;
    let proven = if tail.bytes.len() as u64 == tail.object_bytes {
        let memory = MemoryStorage::new();
        memory.create(&key, Body::Bytes(vec![tail.bytes])).await?;
        cluster.through(Arc::new(memory))
    } else {
        cluster.clone()
    };
    fetch_alone(&proven, system, file, &mut io::sink()).await?;
    Ok(proven)
}

async fn fetch_alone(
    cluster: &Cluster,
    system: SystemId,
    file: &WalFile,
    sink: &mut (dyn Write + Send),
) -> Result<WalFileTrailer, RepoError> {
    let key = cluster.layout().wal(system, file);
    let vault = cluster.vault();
    if !vault.can_open(&key) {
        return Err(absent_or_writer(cluster, key).await);
    }
    // The tail of a short object is the whole object: one request for nearly all.
    let tail = cluster.storage().read(&key, Part::Tail { bytes: 2 * PIECE_BYTES }).await?;
    let trailer = object::parse_trailer(vault, &key, ObjectKind::WalFile, &tail.bytes, tail.object_bytes)?;
    let expected = checked(&key, system, file, &trailer.body)?;
    let content_key = match (vault.seal(), &trailer.head) {
        (Some(seal), Some(head)) => Some(seal.content_key(&key, head)?),
        _ => None,
    };
    let mut counted = Counted { sink, hasher: Sha256::new(), bytes: 0, limit: expected.raw_bytes };
    let tail_begins = tail.object_bytes - tail.bytes.len() as u64;
    let mut at = 0;
    {
        let failed = |error: io::Error| explain(&key, &error);
        let decoder = zstd::stream::write::Decoder::new(&mut counted).map_err(failed)?;
        let mut opening = OpeningWriter::new(content_key, decoder);
        while at < tail_begins {
            let bytes = PIECE_BYTES.min(tail_begins - at);
            let piece = cluster.storage().read(&key, Part::Range { start: at, bytes }).await?;
            opening.write_all(&piece.bytes).map_err(failed)?;
            at += bytes;
        }
        let rest = (trailer.content_bytes - at) as usize;
        opening.write_all(&tail.bytes[..rest]).map_err(failed)?;
        opening.finish().map_err(failed)?.flush().map_err(failed)?;
    }
    if counted.bytes != expected.raw_bytes || Sha(counted.hasher.finalize().into()) != expected.sha256 {
        return Err(RepoError::damaged(&key, "its SHA-256 does not hold"));
    }
    Ok(expected)
}

/// A write that failed on our side keeps its own words; everything else is damage.
fn explain(key: &ObjectKey, error: &io::Error) -> RepoError {
    match error.raw_os_error() {
        Some(errno) => RepoError::File { path: key.name().into(), source: io::Error::from_raw_os_error(errno) },
        None => RepoError::damaged(key, "it cannot be opened or decompressed"),
    }
}

/// Hashes and counts what passes; refuses more than was announced.
struct Counted<'a> {
    sink: &'a mut (dyn Write + Send),
    hasher: Sha256,
    bytes: u64,
    limit: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.hasher.update(bytes);
        self.sink.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
