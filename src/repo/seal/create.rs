//! The first keyring of a repository.
//!
//! It is written before `lastgood.json`, which names its key id: an `init` that was interrupted in between leaves a keyring
//! alone, and the next `init` with the same keys goes on from it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::epoch::EpochKey;
use super::keyring::{self, Keyring};
use super::keys::Keys;
use super::slot::{Place, Slot, To};
use super::{Seal, text};
use crate::clock;
use crate::repo::RepoError;
use crate::storage::{Created, Storage};

/// How a new repository shall be sealed.
pub struct Sealing<'a> {
    /// Who gets a reader's slot; not empty.
    pub readers: Vec<To<'a>>,
    /// Where this host's writer key goes, before anything depends on it.
    pub key_file: Option<PathBuf>,
}

impl Sealing<'_> {
    pub async fn begin(&self, storage: &Arc<dyn Storage>, keys: &Keys) -> Result<Arc<Seal>, RepoError> {
        if let Some(keyring) = keyring::newest(storage).await? {
            return resume(&keyring, keys);
        }
        if let Some((path, seal)) = &keys.file {
            let what = format!("{path} is the key of the repository {}, and {} is empty", seal.repository(), storage.place());
            return Err(RepoError::WrongKey { what });
        }
        // Without any of these, nobody on this host could go on, or nobody at all could read.
        if self.readers.is_empty() || (self.key_file.is_none() && !keys.opens_keyrings()) {
            return Err(RepoError::NoWayIn { place: storage.place().into() });
        }
        let (repository, key) = (clock::random_hex(16), EpochKey::random());
        let place = Place { repository: &repository, epoch: 1 };
        let slots = self.readers.iter().map(|to| Slot::wrap(place, &key, to, None, clock::now()));
        let slots = slots.collect::<Result<Vec<_>, _>>().map_err(RepoError::Slot)?;
        let keyring = Keyring::first(&repository, &key, slots, clock::now());
        match keyring.write(storage, &key).await {
            Ok(Created::New) => {}
            // Another init of the same moment was quicker.
            Ok(Created::AlreadyThere) | Err(RepoError::Conflict { .. }) => {
                let theirs = keyring::newest(storage).await?;
                return resume(&theirs.ok_or_else(|| RepoError::damaged(&keyring.key(), "it came and went"))?, keys);
            }
            Err(error) => return Err(error),
        }
        let seal = keyring.seal(key)?;
        if let Some(path) = &self.key_file {
            write_writer_file(path, &seal)?;
        }
        Ok(Arc::new(seal))
    }
}

fn resume(keyring: &Keyring, keys: &Keys) -> Result<Arc<Seal>, RepoError> {
    match keys.offline()? {
        Some(seal) if seal.repository() == keyring.repository => Ok(seal),
        _ => keys.open_keyring(keyring).map(Arc::new),
    }
}

/// Writes the writer's part of `seal`.
pub fn write_writer_file(path: &Path, seal: &Seal) -> Result<(), RepoError> {
    let lines = text::write(&seal.to_writer());
    let head = format!("lastgood writer key of the repository {}, key id {}", seal.repository(), seal.key_id());
    write_key_file(path, &Zeroizing::new(format!("{head}\n\n{}", *lines)))
}

/// Writes a secret where only its owner can read it. Never replaces: the file there may be the only copy of a key.
pub fn write_key_file(path: &Path, text: &str) -> Result<(), RepoError> {
    let failed = |source| RepoError::KeyFile { path: path.into(), source };
    let taken = |error: std::io::Error| match error.kind() {
        // What it opened may be needed until every host has the new one.
        std::io::ErrorKind::AlreadyExists => std::io::Error::other("the file exists; move it away first, nothing is overwritten"),
        _ => error,
    };
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(taken).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(directory).and_then(|dir| dir.sync_all()).map_err(failed)
}
