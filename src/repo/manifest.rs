//! Snapshots: the manifest, the file lists and tables it points to.
//!
//! # What
//! A manifest is small, so that a thousand of them can be listed quickly. The files are in *file lists*, JSON lines in the order
//! of the walk, split into objects of a few MiB; the packs and the WAL that the snapshot needs are in two tables of their own.
//! The manifest holds the SHA-256 of each: it is the root of a Merkle tree that reaches down to every raw byte.
//!
//! # Order
//! Packs, file lists, tables, manifest. Writing the manifest commits the snapshot; without it there is none.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RepoError;
use super::document::{self, Document};
use super::frame::FrameRef;
use super::map::FileMap;
use super::object::{self, Sha};
use super::pack_table::PackLine;
use super::repository::Cluster;
use super::validate::Lists;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::storage::ObjectKey;

/// Raw bytes after which a file list is finished and the next begun.
const LIST_BYTES: usize = 4 << 20;
/// Maps with more frames than this lie in a pack, and the file list holds their place.
pub const INLINE_FRAMES: usize = 8;

/// An object that the manifest vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub raw_bytes: u64,
    pub sha256: Sha,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceLink {
    pub oid: String,
    pub target: String,
    /// The path itself, encoded as [`encode_place`] does, where it is no text; `target` shows it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded: Option<String>,
}

impl TablespaceLink {
    /// Where the tablespace was.
    pub fn place(&self) -> PathBuf {
        self.encoded.as_deref().and_then(decode_place).unwrap_or_else(|| PathBuf::from(&self.target))
    }
}

/// A page whose checksum did not hold when it was read, twice the same (rule 12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPage {
    pub path: String,
    pub block: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub files: u64,
    /// Bytes of all files.
    pub raw_bytes: u64,
    /// Raw bytes that this snapshot stored anew.
    pub new_bytes: u64,
    /// What those took after compression, with maps.
    pub stored_bytes: u64,
    /// Bytes read from the data directory.
    pub read_bytes: u64,
    /// Bytes of files that changed, in pages that were not read because WAL proves that they did not.
    #[serde(default)]
    pub unread_bytes: u64,
}

/// Packs of snapshots that are gone, of which little was needed: what became of them when this snapshot was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// Those that this snapshot does without; `stored_bytes` become free when the older ones that need them go.
    pub packs: u64,
    pub stored_bytes: u64,
    /// Raw bytes that were stored anew for it.
    pub rewritten_bytes: u64,
    /// Those that wait for another snapshot, because the limit was reached.
    pub waiting_packs: u64,
    pub waiting_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u16,
    pub id: String,
    pub cluster: String,
    pub system_identifier: SystemId,
    pub major: u32,
    pub version: String,
    pub control_version: u32,
    pub catalog_version: u32,
    pub block_bytes: u32,
    pub blocks_per_file: u32,
    pub wal_segment_bytes: u32,
    pub data_checksums: bool,
    pub timeline: Timeline,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    /// The database's clock.
    pub start_time: Timestamp,
    pub stop_time: Timestamp,
    /// The host's clock, nanoseconds since 1970, before the first file was listed. A file that was modified near or after it
    /// is read again next time, whatever its times say.
    pub listed_ns: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    pub from_standby: bool,
    pub backup_label: String,
    pub tablespaces: Vec<TablespaceLink>,
    pub data_directory: String,
    /// Where the server's settings lay, when that was outside of the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<String>,
    /// Where `pg_wal` was, when it was a link; encoded as [`encode_place`] does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_directory: Option<String>,
    pub owner: String,
    pub group: String,
    pub mode: u32,
    pub file_lists: Vec<Part>,
    pub pack_table: Part,
    pub wal_table: Part,
    /// Names of databases and relations; absent where the server could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalogue: Option<Part>,
    /// First and last segment needed to be consistent.
    pub first_segment: SegmentName,
    pub last_segment: SegmentName,
    pub totals: Totals,
    /// Absent where there was none to think of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Retired>,
    #[serde(default)]
    pub damaged_pages: Vec<DamagedPage>,
    /// The end of the audit when this was committed, so that entries cannot be cut off unseen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<super::audit::Head>,
    /// SHA-256 over path, kind, length and map digest of every file: the snapshot's identity, in any repository.
    pub root: Sha,
    pub written_by: String,
}

/// One line of a file list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLine {
    /// Relative to the data directory, see [`encode_path`].
    pub path: String,
    #[serde(flatten)]
    pub what: What,
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum What {
    File {
        bytes: u64,
        modified_ns: i64,
        inode: u64,
        /// Digest of the map, see [`FileMap::digest`].
        digest: Sha,
        /// SHA-256 of the file, for a small one that shares its frame with others: so that it can be compared.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Sha>,
        #[serde(flatten)]
        map: MapPlace,
    },
    Directory,
    Tablespace {
        target: String,
        /// As in [`TablespaceLink`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encoded: Option<String>,
    },
}

/// Where a file's map is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapPlace {
    Map(FileMap),
    /// The map is the content of a frame; `packs` are those that it points to, known without reading it, and `live_bytes` how much
    /// the file takes from each (absent in older snapshots).
    MapFrame {
        frame: FrameRef,
        packs: Vec<Arc<str>>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        live_bytes: Vec<u64>,
    },
}

/// A segment that a snapshot needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentLine(pub SegmentName, pub Sha);

/// File names are bytes; in JSON, `%` and what is no UTF-8 or a control character becomes `%XX`.
pub fn encode_path(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '%' || c.is_control() {
                let mut raw = [0u8; 4];
                c.encode_utf8(&mut raw).bytes().for_each(|b| text.push_str(&format!("%{b:02X}")));
            } else {
                text.push(c);
            }
        }
        chunk.invalid().iter().for_each(|b| text.push_str(&format!("%{b:02X}")));
    }
    text
}

/// An absolute path as text, encoded as [`encode_path`] does.
pub fn encode_place(path: &Path) -> String {
    encode_path(path.as_os_str().as_bytes())
}

/// The path of [`encode_place`]; `None` when it is none, or not absolute.
pub fn decode_place(text: &str) -> Option<PathBuf> {
    let bytes = decode_path(text.strip_prefix('/')?)?;
    Some(Path::new("/").join(OsString::from_vec(bytes)))
}

/// The bytes of an encoded path; `None` when it is none, or would lead out of the data directory.
pub fn decode_path(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    let stays_inside = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    bytes.split(|b| *b == b'/').all(stays_inside).then_some(bytes)
}

/// Writes the file lists and tables of one snapshot, line by line, in bounded memory.
pub struct ListWriter<'a> {
    cluster: &'a Cluster,
    snapshot: String,
    buffer: Vec<u8>,
    parts: Vec<Part>,
    root: Sha256,
    lists: Lists,
}

impl<'a> ListWriter<'a> {
    pub fn new(cluster: &'a Cluster, snapshot: &str) -> Self {
        ListWriter {
            cluster,
            snapshot: snapshot.into(),
            buffer: Vec::new(),
            parts: Vec::new(),
            root: Sha256::new(),
            lists: Lists::default(),
        }
    }

    /// Nothing is written that no restore would take.
    pub async fn add(&mut self, line: &FileLine) -> Result<(), RepoError> {
        if let Some(what) = line.defect().or_else(|| self.lists.line(line)) {
            let key = self.cluster.layout().files(&self.snapshot, self.parts.len() as u32 + 1);
            return Err(RepoError::Damaged { key, what: format!("{what}; run the backup again") });
        }
        self.root.update(root_line(line));
        self.buffer.extend(object::to_json(line));
        self.buffer.push(b'\n');
        if self.buffer.len() >= LIST_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), RepoError> {
        let key = self.cluster.layout().files(&self.snapshot, self.parts.len() as u32 + 1);
        let part = put_part(self.cluster, &key, &self.buffer).await?;
        self.parts.push(part);
        self.buffer.clear();
        Ok(())
    }

    /// The lists and the snapshot's root.
    pub async fn finish(mut self) -> Result<(Vec<Part>, Sha), RepoError> {
        if !self.buffer.is_empty() {
            self.flush().await?;
        }
        Ok((self.parts, Sha(self.root.finalize().into())))
    }
}

/// What of a file goes into the root: nothing that depends on the host or on where frames lie.
fn root_line(line: &FileLine) -> Vec<u8> {
    let rest = match &line.what {
        What::File { bytes, digest, .. } => format!("file {bytes} {digest}"),
        What::Directory => "directory".into(),
        What::Tablespace { .. } => "tablespace".into(),
    };
    format!("{}\0{rest}\n", line.path).into_bytes()
}

async fn put_part(cluster: &Cluster, key: &ObjectKey, raw: &[u8]) -> Result<Part, RepoError> {
    object::put_own_document(cluster.vault(), key, raw).await?;
    Ok(Part { raw_bytes: raw.len() as u64, sha256: Sha::of(raw) })
}

/// Writes a table as JSON lines.
pub async fn put_table<T: Serialize>(cluster: &Cluster, key: &ObjectKey, lines: &[T]) -> Result<Part, RepoError> {
    let mut raw = Vec::new();
    for line in lines {
        raw.extend(object::to_json(line));
        raw.push(b'\n');
    }
    put_part(cluster, key, &raw).await
}

/// Reads JSON lines that the manifest vouches for.
pub async fn get_part<T: Document>(cluster: &Cluster, key: &ObjectKey, part: &Part) -> Result<Vec<T>, RepoError> {
    let raw = object::get_document(cluster.vault(), key).await?;
    if raw.len() as u64 != part.raw_bytes || Sha::of(&raw) != part.sha256 {
        return Err(RepoError::damaged(key, "it is not the one that the manifest names"));
    }
    raw.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(|line| object::from_json(key, line)).collect()
}

impl Manifest {
    /// Commits the snapshot, whose id is the holder's of the lease for backups alone.
    pub async fn commit(&self, cluster: &Cluster) -> Result<(), RepoError> {
        let key = cluster.layout().manifest(&self.id);
        object::put_own_document(cluster.vault(), &key, &object::to_json(self)).await?;
        Ok(())
    }

    /// Looks whether the store kept it: nothing else would miss it.
    pub async fn prove_committed(&self, cluster: &Cluster) -> Result<(), RepoError> {
        let key = cluster.layout().manifest(&self.id);
        match cluster.storage().stat(&key).await? {
            Some(_) => Ok(()),
            None => Err(RepoError::Damaged { key, what: "the store took it and does not have it; run the backup again".into() }),
        }
    }

    pub async fn read(cluster: &Cluster, id: &str) -> Result<Manifest, RepoError> {
        let key = cluster.layout().manifest(id);
        let raw = object::get_document(cluster.vault(), &key).await?;
        document::prove_format(&key, &raw)?;
        let manifest: Manifest = object::from_json(&key, &raw)?;
        if manifest.id != id || manifest.cluster != cluster.name() {
            return Err(RepoError::damaged(&key, format!("it says it is {} of {}", manifest.id, manifest.cluster)));
        }
        Ok(manifest)
    }

    /// Where `pg_wal` was, when it had a place of its own.
    pub fn wal_place(&self) -> Option<PathBuf> {
        self.wal_directory.as_deref().and_then(decode_place)
    }

    /// File list number `index`, from 0.
    pub async fn files(&self, cluster: &Cluster, index: usize) -> Result<Vec<FileLine>, RepoError> {
        get_part(cluster, &cluster.layout().files(&self.id, index as u32 + 1), &self.file_lists[index]).await
    }

    /// Why the manifest contradicts what it vouches for, if so: its root is that of its lists, and the label that the server will read
    /// begins where the manifest says.
    pub async fn contradiction(&self, cluster: &Cluster) -> Result<Option<String>, RepoError> {
        let (mut root, mut lists) = (Sha256::new(), Lists::default());
        for index in 0..self.file_lists.len() {
            for line in self.files(cluster, index).await? {
                root.update(root_line(&line));
                if let Some(defect) = lists.line(&line) {
                    return Ok(Some(defect));
                }
            }
        }
        if let Some(defect) = lists.end(self) {
            return Ok(Some(defect));
        }
        if Sha(root.finalize().into()) != self.root {
            return Ok(Some("its root is not that of its file lists".into()));
        }
        let begins = format!("START WAL LOCATION: {} ", self.start_lsn);
        let is_of_label = self.backup_label.lines().any(|line| line.starts_with(&begins));
        Ok((!is_of_label).then(|| format!("its backup_label does not begin at {}", self.start_lsn)))
    }

    pub async fn packs(&self, cluster: &Cluster) -> Result<Vec<PackLine>, RepoError> {
        let packs = get_part(cluster, &cluster.layout().pack_table(&self.id), &self.pack_table).await?;
        cluster.vault().remember(cluster, &packs);
        Ok(packs)
    }

    pub async fn wal(&self, cluster: &Cluster) -> Result<Vec<SegmentLine>, RepoError> {
        get_part(cluster, &cluster.layout().wal_table(&self.id), &self.wal_table).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_file_names_come_back() {
        for path in [&b"base/1/2"[..], b"a%b", b"\xff\xfe/x", "\u{e9}\n\t".as_bytes(), b"%41"] {
            assert_eq!(decode_path(&encode_path(path)).unwrap(), path);
        }
        assert_eq!(encode_path(b"a%\xff"), "a%25%FF");
        for bad in ["", "/a", "a//b", "../x", "a/..", "a/./b", "%", "%G0", "a%00"] {
            assert_eq!(decode_path(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_line_is_plain_json() {
        let line = FileLine {
            path: "PG_VERSION".into(),
            what: What::File {
                bytes: 3,
                modified_ns: 5,
                inode: 7,
                digest: Sha([1; 32]),
                content: None,
                map: MapPlace::Map(FileMap::default()),
            },
            mode: 0o600,
        };
        let json = String::from_utf8(object::to_json(&line)).unwrap();
        assert!(json.starts_with(r#"{"path":"PG_VERSION","kind":"file","bytes":3,"#), "{json}");
        assert_eq!(serde_json::from_str::<FileLine>(&json).unwrap(), line);
    }
}
