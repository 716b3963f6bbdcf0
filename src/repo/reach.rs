//! Which packs are needed, as the pack tables say that are there.
//!
//! A pack table is written just before the manifest. So an id that has one was a snapshot, or within a moment of being one, and
//! whether its manifest is there does not matter for what it needs. Deleting a pack takes more than that its own snapshot is
//! gone: no pack table may name it, and that is known only when every one was read.

use std::collections::BTreeSet;

use futures::StreamExt;

use super::RepoError;
use super::manifest::SegmentLine;
use super::object::{self, absent};
use super::pack_table::PackLine;
use super::repository::Cluster;
use crate::storage::{Depth, list_all};

/// Pack tables that are read at the same time.
const TABLES_AHEAD: usize = 8;

/// Ids below which something lies.
#[derive(Debug, Clone, Default)]
pub struct Ids {
    /// With file lists or tables.
    pub files: BTreeSet<String>,
    pub packs: BTreeSet<String>,
}

impl Ids {
    pub async fn list(cluster: &Cluster) -> Result<Ids, RepoError> {
        let (storage, layout) = (cluster.storage(), cluster.layout());
        let (packs, files) = (layout.all_packs(), layout.all_files());
        let (packs, files) =
            futures::try_join!(list_all(storage, &packs, Depth::Folder), list_all(storage, &files, Depth::Folder))?;
        let names = |folders: Vec<String>| folders.iter().map(|folder| folder.trim_end_matches('/').to_string()).collect();
        Ok(Ids { files: names(files.folders), packs: names(packs.folders) })
    }

    pub fn all(&self) -> BTreeSet<String> {
        self.files.union(&self.packs).cloned().collect()
    }
}

/// The pack table of an id, whatever became of its manifest; `None` where there is none. Its own checksum is all that vouches for it.
pub async fn pack_table(cluster: &Cluster, id: &str) -> Result<Option<Vec<PackLine>>, RepoError> {
    let key = cluster.layout().pack_table(id);
    let Some(raw) = absent(object::get_document(cluster.vault(), &key).await)? else { return Ok(None) };
    lines(raw, |line| object::from_json(&key, line)).map(Some)
}

/// The same of the WAL table.
pub async fn wal_table(cluster: &Cluster, id: &str) -> Result<Option<Vec<SegmentLine>>, RepoError> {
    let key = cluster.layout().wal_table(id);
    let Some(raw) = absent(object::get_document(cluster.vault(), &key).await)? else { return Ok(None) };
    lines(raw, |line| object::from_json(&key, line)).map(Some)
}

fn lines<T>(raw: Vec<u8>, read: impl Fn(&[u8]) -> Result<T, RepoError>) -> Result<Vec<T>, RepoError> {
    raw.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(read).collect()
}

/// Whether one of the two tables is there: both are written last, just before the manifest.
pub async fn has_table(cluster: &Cluster, id: &str) -> Result<bool, RepoError> {
    let (packs, wal) = (cluster.layout().pack_table(id), cluster.layout().wal_table(id));
    let (packs, wal) = futures::try_join!(cluster.storage().stat(&packs), cluster.storage().stat(&wal))?;
    Ok(packs.is_some() || wal.is_some())
}

/// What all pack tables together name.
#[derive(Debug, Default)]
pub struct Named {
    /// Ids of the snapshots whose packs are named.
    pub writers: BTreeSet<String>,
    /// Why that may not be all: a pack table that could not be read.
    pub unreadable: Option<String>,
}

/// Reads the pack table of every id in `ids`; one of the `committed` must have one.
pub async fn named(cluster: &Cluster, ids: BTreeSet<String>, committed: &BTreeSet<String>) -> Named {
    let read = |id: String| async move {
        let table = pack_table(cluster, &id).await;
        (id, table)
    };
    let mut reads = futures::stream::iter(ids).map(read).buffered(TABLES_AHEAD);
    let mut named = Named::default();
    while let Some((id, table)) = reads.next().await {
        match table {
            Ok(Some(table)) => {
                for line in &table {
                    if !named.writers.contains(line.writer()) {
                        named.writers.insert(line.writer().to_string());
                    }
                }
            }
            Ok(None) if !committed.contains(&id) => {}
            Ok(None) => {
                let key = cluster.layout().pack_table(&id);
                named.unreadable.get_or_insert(format!("{key} is missing"));
            }
            Err(error) => {
                named.unreadable.get_or_insert(error.to_string());
            }
        }
    }
    named
}
