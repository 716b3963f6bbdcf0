//! One object from a store into another, proven in between.
//!
//! It is read into a place of its own (memory, or a temporary directory when it is long) and proven there by the same code that
//! reads a repository, so that what is created over there is exactly what was proven.

use std::sync::Arc;

use crate::clock;
use crate::repo::RepoError;
use crate::repo::copies;
use crate::repo::object::absent;
use crate::repo::proof::{self, Proof};
use crate::repo::vault::Vault;
use crate::storage::fs::DirectoryStorage;
use crate::storage::memory::MemoryStorage;
use crate::storage::{Body, Created, ObjectInfo, ObjectKey, Part, Storage, StorageError};

/// Objects up to this length are held in memory: every pack is.
const IN_MEMORY_BYTES: u64 = 40 << 20;
/// Bytes asked for at once of a longer one.
const PIECE_BYTES: u64 = 16 << 20;

/// Copies objects of one repository into one store.
pub struct Copier {
    from: Vault,
    to: Arc<dyn Storage>,
}

impl Copier {
    pub fn new(from: &Vault, to: Arc<dyn Storage>) -> Copier {
        Copier { from: from.clone(), to }
    }

    /// The destination, with the keys of the source.
    pub fn there(&self) -> Vault {
        Vault::new(self.to.clone(), self.from.seal().cloned())
    }

    pub fn to(&self) -> &Arc<dyn Storage> {
        &self.to
    }

    /// Copies one object; `None` when it is gone by now.
    pub async fn copy(&self, object: &ObjectInfo) -> Result<Option<Proof>, RepoError> {
        let staged = absent(Staged::read(self.from.storage(), &object.key, object.bytes).await)?;
        let Some(staged) = staged else { return Ok(None) };
        let proof = staged.prove(&self.from).await?;
        if self.to.create(&object.key, staged.body.clone()).await? == Created::New {
            return Ok(Some(proof));
        }
        // Somebody else was quicker: a push that writes to both, or another copy.
        match self.to.stat(&object.key).await? {
            Some(there) if there.bytes == object.bytes => Ok(Some(proof)),
            Some(_) if copies::same_content(&self.from, &self.there(), &object.key).await? => Ok(Some(proof)),
            _ => Err(RepoError::Conflict { key: object.key.clone() }),
        }
    }
}

/// Reads an object of `vault`'s repository and proves it; answers what to write elsewhere and how far it was proven.
pub async fn prove_elsewhere(vault: &Vault, key: &ObjectKey) -> Result<Option<(Staged, Proof)>, RepoError> {
    let Some(info) = vault.storage().stat(key).await? else { return Ok(None) };
    let Some(staged) = absent(Staged::read(vault.storage(), key, info.bytes).await)? else { return Ok(None) };
    let proof = staged.prove(vault).await?;
    Ok(Some((staged, proof)))
}

/// An object on its way.
pub struct Staged {
    key: ObjectKey,
    pub body: Body,
    place: Arc<dyn Storage>,
    /// Removed when dropped.
    _directory: Option<Directory>,
}

impl Staged {
    async fn read(from: &Arc<dyn Storage>, key: &ObjectKey, bytes: u64) -> Result<Staged, RepoError> {
        if bytes > IN_MEMORY_BYTES {
            return Self::read_long(from, key, bytes).await;
        }
        let read = from.read(key, Part::Whole).await?;
        let (body, place) = (Body::Bytes(vec![read.bytes]), Arc::new(MemoryStorage::new()));
        place.create(key, body.clone()).await?;
        Ok(Staged { key: key.clone(), body, place, _directory: None })
    }

    async fn read_long(from: &Arc<dyn Storage>, key: &ObjectKey, bytes: u64) -> Result<Staged, RepoError> {
        let directory = Directory::make()?;
        let path = directory.0.join("whole");
        let failed = |source| RepoError::File { path: path.clone(), source };
        let mut file = crate::durable::create_private(&path).map_err(failed)?;
        let mut at = 0;
        while at < bytes {
            let piece = from.read(key, Part::Range { start: at, bytes: PIECE_BYTES.min(bytes - at) }).await?;
            std::io::Write::write_all(&mut file, &piece.bytes).map_err(failed)?;
            at += piece.bytes.len() as u64;
        }
        let body = Body::File { path, bytes };
        let place = Arc::new(DirectoryStorage::new(directory.0.clone()));
        place.create(key, body.clone()).await?;
        Ok(Staged { key: key.clone(), body, place, _directory: Some(directory) })
    }

    /// On a thread for CPU work.
    async fn prove(&self, vault: &Vault) -> Result<Proof, RepoError> {
        let vault = Vault::new(self.place.clone(), vault.seal().cloned());
        let (key, runtime) = (self.key.clone(), tokio::runtime::Handle::current());
        let proving = tokio::task::spawn_blocking(move || runtime.block_on(proof::prove(&vault, &key)));
        match proving.await {
            Ok(proof) => proof,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Creates it in another store; `false` when something was there.
    pub async fn create_in(&self, to: &dyn Storage) -> Result<bool, StorageError> {
        Ok(to.create(&self.key, self.body.clone()).await? == Created::New)
    }
}

/// A temporary directory; removed when dropped.
struct Directory(std::path::PathBuf);

impl Directory {
    fn make() -> Result<Directory, RepoError> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("lastgood-mirror-{}", clock::random_hex(6)));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| RepoError::File { path: path.clone(), source })?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
