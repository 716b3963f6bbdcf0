//! A store, and the keys that what is in it is sealed with.

use std::sync::Arc;

use super::RepoError;
use super::object::{self, ObjectKind};
use super::pack_table::PackLine;
use super::repository::Cluster;
use super::seal::crypto::GcmKey;
use super::seal::{Seal, Sealer};
use crate::storage::{ObjectKey, Storage};

#[derive(Debug, Clone)]
pub struct Vault {
    storage: Arc<dyn Storage>,
    seal: Option<Arc<Seal>>,
}

impl Vault {
    /// Nothing is sealed here.
    pub fn plain(storage: Arc<dyn Storage>) -> Vault {
        Vault { storage, seal: None }
    }

    /// Everything is sealed here, when there is a seal.
    pub fn new(storage: Arc<dyn Storage>, seal: Option<Arc<Seal>>) -> Vault {
        Vault { storage, seal }
    }

    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Each place that holds this repository, alone; see [`Storage::copies`].
    pub fn copies(&self) -> Vec<Vault> {
        self.storage.copies().into_iter().map(|storage| Vault { storage, seal: self.seal.clone() }).collect()
    }

    pub fn seal(&self) -> Option<&Arc<Seal>> {
        self.seal.as_ref()
    }

    /// Keys for writing an object once; `None` where nothing is sealed.
    pub fn sealer(&self, key: &ObjectKey) -> Option<Sealer> {
        self.seal.as_ref().map(|seal| seal.sealer(key))
    }

    /// Whether the content of `key` can be opened with the keys at hand.
    pub fn can_open(&self, key: &ObjectKey) -> bool {
        self.seal.as_ref().is_none_or(|seal| seal.can_open(key))
    }

    /// The key of a pack's frames, `None` where nothing is sealed. Costs a request for a pack that no pack table named before.
    pub async fn frame_key(&self, key: &ObjectKey) -> Result<Option<GcmKey>, RepoError> {
        let Some(seal) = &self.seal else { return Ok(None) };
        // A writer is told before anything is asked.
        if !seal.can_open(key) {
            return Err(RepoError::WriterKey { key: key.clone() });
        }
        let head = match seal.remembered(key) {
            Some(head) => head,
            None => {
                let trailer = object::read_trailer(self, key, ObjectKind::Pack).await?;
                let head = trailer.head.ok_or_else(|| RepoError::damaged(key, "it is not sealed"))?;
                seal.remember(key, head);
                head
            }
        };
        seal.content_key(key, &head).map(Some)
    }

    /// Keeps what a pack table says about packs, so that their frames cost no further request.
    pub fn remember(&self, cluster: &Cluster, packs: &[PackLine]) {
        let Some(seal) = &self.seal else { return };
        for line in packs {
            if let Some(head) = line.head {
                seal.remember(&cluster.layout().pack(&line.name), head);
            }
        }
    }
}
