//! From what is configured to a [`Seal`].

use std::sync::Arc;

use zeroize::Zeroizing;

use super::epoch::EpochKey;
use super::keyring::{self, Keyring};
use super::{Role, Seal};
use crate::repo::RepoError;
use crate::repo::record::RepositoryRecord;
use crate::storage::Storage;

/// The keys that a host was given. What is asked for more than once is tried in this order: key file, identities, passphrase.
#[derive(Clone, Default)]
pub struct Keys {
    /// An exported key, and where it came from.
    pub file: Option<(String, Arc<Seal>)>,
    pub identities: Vec<age::x25519::Identity>,
    pub passphrase: Option<Zeroizing<String>>,
    /// The key id that the configuration pins.
    pub pinned: Option<String>,
    /// The key file is enough, even when it is a writer's.
    pub only_write: bool,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Keys {
    pub fn is_empty(&self) -> bool {
        self.file.is_none() && self.identities.is_empty() && self.passphrase.is_none() && self.pinned.is_none()
    }

    /// Whether a keyring can be opened with these.
    pub fn opens_keyrings(&self) -> bool {
        !self.identities.is_empty() || self.passphrase.is_some()
    }

    /// The seal of the key file, without asking the repository: a push is a process for each segment.
    pub fn offline(&self) -> Result<Option<Arc<Seal>>, RepoError> {
        let Some((path, seal)) = &self.file else { return Ok(None) };
        self.check_pin(seal.key_id(), path)?;
        Ok(Some(seal.clone()))
    }

    fn check_pin(&self, found: &str, whose: &str) -> Result<(), RepoError> {
        match &self.pinned {
            Some(pinned) if pinned != found => Err(RepoError::WrongKey {
                what: format!(
                    "{whose} has key id {found}, and [encryption] key_id pins {pinned}: do not use it unless you know why"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// The seal of a repository: `None` when it is not sealed and no key is configured.
    pub async fn open(&self, storage: &Arc<dyn Storage>, record: &RepositoryRecord) -> Result<Option<Arc<Seal>>, RepoError> {
        if record.seal == "none" {
            // Whoever can write lastgood.json must not be able to switch encryption off.
            return if self.is_empty() { Ok(None) } else { Err(RepoError::NotSealed { place: storage.place().into() }) };
        }
        if let Some(seal) = self.file_for(record)?
            && (self.only_write || seal.role() == Role::Reader || !self.opens_keyrings())
        {
            return Ok(Some(seal));
        }
        if !self.opens_keyrings() {
            return Err(RepoError::Sealed { key: crate::repo::layout::repository() });
        }
        let keyring = keyring::newest(storage).await?;
        let keyring = keyring.ok_or_else(|| {
            RepoError::damaged(
                &crate::repo::layout::keyring(1, 1),
                "no keyring is there, so no passphrase or identity opens anything; an exported key does (key_file)",
            )
        })?;
        self.check_record(record, &keyring)?;
        Ok(Some(Arc::new(self.open_keyring(&keyring)?)))
    }

    fn file_for(&self, record: &RepositoryRecord) -> Result<Option<Arc<Seal>>, RepoError> {
        let Some(seal) = self.offline()? else { return Ok(None) };
        let path = self.file.as_ref().map_or("", |(path, _)| path);
        if seal.repository() != record.id {
            let what = format!("{path} is for the repository {}, and this is {}", seal.repository(), record.id);
            return Err(RepoError::WrongKey { what });
        }
        if record.key_id.as_deref().is_some_and(|id| id != seal.key_id()) {
            let what = format!("{path} has key id {}, and lastgood.json says {:?}", seal.key_id(), record.key_id);
            return Err(RepoError::WrongKey { what });
        }
        Ok(Some(seal))
    }

    fn check_record(&self, record: &RepositoryRecord, keyring: &Keyring) -> Result<(), RepoError> {
        let key = keyring.key();
        if keyring.repository != record.id {
            let what = format!("it is for the repository {}, and this is {}", keyring.repository, record.id);
            return Err(RepoError::damaged(&key, what));
        }
        let found = keyring.key_id();
        if record.key_id.as_deref().is_some_and(|id| id != found) {
            let what =
                format!("its key id is {found}, and lastgood.json says {:?}", record.key_id.as_deref().unwrap_or_default());
            return Err(RepoError::damaged(&key, what));
        }
        self.check_pin(&found, key.as_str())
    }

    /// Tries every slot; a reader's counts more than a writer's.
    pub fn open_keyring(&self, keyring: &Keyring) -> Result<Seal, RepoError> {
        self.check_pin(&keyring.key_id(), keyring.key().as_str())?;
        let mut slots: Vec<_> = keyring.slots.iter().collect();
        slots.sort_by_key(|slot| slot.role);
        let own = slots.iter().find_map(|slot| self.open_slot(keyring, slot));
        let own = own.ok_or_else(|| {
            let tried = match (&self.passphrase, self.identities.is_empty()) {
                (Some(_), true) => "the passphrase opens",
                (None, _) => "the age identity opens",
                (Some(_), false) => "neither passphrase nor age identity opens",
            };
            let slots: Vec<String> = keyring.slots.iter().map(|s| format!("{} {}", s.wrap.kind(), s.id)).collect();
            RepoError::WrongKey { what: format!("{tried} none of the slots of {}: {}", keyring.key(), slots.join(", ")) }
        })?;
        keyring.seal(own)
    }

    fn open_slot(&self, keyring: &Keyring, slot: &super::slot::Slot) -> Option<EpochKey> {
        let by_identity = self.identities.iter().find_map(|identity| slot.open_with_identity(keyring.place(), identity));
        by_identity.or_else(|| slot.open_with_passphrase(keyring.place(), self.passphrase.as_ref()?))
    }

    /// Ids of the slots that these keys open.
    pub fn opens(&self, keyring: &Keyring) -> Vec<String> {
        keyring.slots.iter().filter(|slot| self.open_slot(keyring, slot).is_some()).map(|slot| slot.id.clone()).collect()
    }
}
