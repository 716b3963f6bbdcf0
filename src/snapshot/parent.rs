//! The snapshot to build on, and its file lists beside the walk.

use tokio::runtime::Handle;

use crate::postgres::data_directory::order_key;
use crate::postgres::history::History;
use crate::postgres::lsn::Lsn;
use crate::repo::RepoError;
use crate::repo::manifest::{FileLine, Manifest, What, decode_path};
use crate::repo::pack_table::PackLine;
use crate::repo::presence;
use crate::repo::repository::Cluster;

/// What must be the same in a parent, or page LSNs prove nothing (rule 16).
#[derive(Debug)]
pub struct Conditions<'a> {
    pub system_identifier: crate::postgres::lsn::SystemId,
    /// The path to the timeline the server is on.
    pub history: &'a History,
    pub data_checksums: bool,
    pub block_bytes: u32,
    pub blocks_per_file: u32,
    pub catalog_version: u32,
    /// A parent that stopped later belongs to another future of this cluster.
    pub before: Lsn,
}

impl Conditions<'_> {
    /// Why `manifest` cannot be the parent; `None` when it can.
    pub fn objection(&self, manifest: &Manifest) -> Option<&'static str> {
        if manifest.system_identifier != self.system_identifier {
            return Some("it is of another system");
        }
        if manifest.stop_lsn > self.before {
            return Some("it stopped after this snapshot began");
        }
        if !self.history.contains(manifest.timeline, manifest.stop_lsn) {
            return Some("its timeline does not lead here");
        }
        if manifest.data_checksums != self.data_checksums {
            return Some("data checksums were switched");
        }
        if (manifest.block_bytes, manifest.blocks_per_file) != (self.block_bytes, self.blocks_per_file) {
            return Some("it has another block size");
        }
        (manifest.catalog_version != self.catalog_version).then_some("it has another catalog version")
    }
}

/// A snapshot to build on.
#[derive(Debug)]
pub struct Parent {
    pub manifest: Manifest,
    pub packs: Vec<PackLine>,
}

/// What will probably be the parent, read while the lease is taken: nothing of it ever changes. Whether it may be the parent, and is
/// still all there, is asked under the lease.
pub async fn foresee(cluster: &Cluster, newest: &str) -> Option<Parent> {
    let manifest = Manifest::read(cluster, newest).await.ok()?;
    let packs = manifest.packs(cluster).await.ok()?;
    Some(Parent { manifest, packs })
}

/// What is built on, and what is not although it would fit: the snapshot, and why.
#[derive(Debug, Default)]
pub struct Choice {
    pub parent: Option<Parent>,
    pub passed_over: Vec<(String, String)>,
}

impl Choice {
    /// For people, once for each snapshot that is not built on.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let instead = match &self.parent {
            Some(parent) => format!("this snapshot is built on {} instead", parent.manifest.id),
            None => "this snapshot stores everything anew".into(),
        };
        let warn = move |(id, why): &(String, String)| {
            format!("snapshot {id} cannot be restored as it is ({why}); {instead}. `lastgood verify` says what is lost")
        };
        self.passed_over.iter().map(warn)
    }
}

/// The newest snapshot of `ids` that can be built on, and of which everything is there: what is missing for it, or must be thawed first,
/// would be missing for the new one.
pub async fn find(
    cluster: &Cluster,
    ids: &[String],
    conditions: &Conditions<'_>,
    foreseen: Option<Parent>,
) -> Result<Choice, RepoError> {
    let mut choice = Choice::default();
    let mut foreseen = foreseen.filter(|parent| ids.last() == Some(&parent.manifest.id));
    for id in ids.iter().rev() {
        let (manifest, packs) = match foreseen.take() {
            Some(Parent { manifest, packs }) => (manifest, Some(packs)),
            None => match Manifest::read(cluster, id).await {
                Ok(manifest) => (manifest, None),
                Err(error) if error.is_damage() || error.is_frozen() => {
                    choice.passed_over.push((id.clone(), error.to_string()));
                    continue;
                }
                Err(error) => return Err(error),
            },
        };
        if conditions.objection(&manifest).is_some() {
            continue;
        }
        let presence = match packs {
            Some(packs) => presence::of_known(cluster, &manifest, packs).await?,
            None => presence::of(cluster, &manifest).await?,
        };
        match presence.problem() {
            // With a table that this key does not open, nothing could be carried over.
            None if presence.packs.is_empty() => choice.passed_over.push((id.clone(), "its pack table cannot be read".into())),
            None => {
                choice.parent = Some(Parent { manifest, packs: presence.packs });
                break;
            }
            Some(problem) => choice.passed_over.push((id.clone(), problem)),
        }
    }
    Ok(choice)
}

/// The parent's lines in the order of the walk, one file list in memory at a time. For a thread that may block.
pub struct ParentLines {
    cluster: Cluster,
    manifest: Manifest,
    runtime: Handle,
    next_list: usize,
    lines: std::vec::IntoIter<FileLine>,
    ahead: Option<(Vec<u8>, FileLine)>,
}

impl ParentLines {
    pub fn new(cluster: Cluster, manifest: Manifest, runtime: Handle) -> ParentLines {
        ParentLines { cluster, manifest, runtime, next_list: 0, lines: Vec::new().into_iter(), ahead: None }
    }

    /// The line of `path`, if the parent has it; paths must be asked in the order of the walk.
    pub fn find(&mut self, key: &[u8]) -> Result<Option<FileLine>, RepoError> {
        loop {
            if self.ahead.is_none() {
                self.ahead = self.next()?;
            }
            let Some((ahead, _)) = &self.ahead else { return Ok(None) };
            if ahead.as_slice() > key {
                return Ok(None);
            }
            let is_it = ahead.as_slice() == key;
            let line = self.ahead.take().map(|(_, line)| line);
            if is_it {
                return Ok(line);
            }
        }
    }

    fn next(&mut self) -> Result<Option<(Vec<u8>, FileLine)>, RepoError> {
        loop {
            if let Some(line) = self.lines.next() {
                // Stands at the end, because it is copied last.
                if line.path == super::take::CONTROL_PATH {
                    continue;
                }
                let Some(path) = decode_path(&line.path) else { continue };
                return Ok(Some((order_key(&path, matches!(line.what, What::Directory)), line)));
            }
            if self.next_list == self.manifest.file_lists.len() {
                return Ok(None);
            }
            self.lines = self.runtime.block_on(self.manifest.files(&self.cluster, self.next_list))?.into_iter();
            self.next_list += 1;
        }
    }
}
