//! Keyrings after the first: slots added and removed, and new epochs.

use std::sync::Arc;

use super::epoch::EpochKey;
use super::keyring::{self, Keyring};
use super::keys::Keys;
use super::slot::{Slot, To, Wrap};
use super::{Role, Seal};
use crate::clock;
use crate::repo::RepoError;
use crate::repo::layout;
use crate::repo::vault::Vault;
use crate::storage::{ObjectKey, Storage};

/// The keyring that counts, of a sealed repository.
pub async fn current(vault: &Vault) -> Result<Keyring, RepoError> {
    let Some(seal) = vault.seal() else { return Err(RepoError::NotSealed { place: vault.storage().place().into() }) };
    let missing = || RepoError::damaged(&layout::keyring(1, 1), "no keyring is there");
    let keyring = keyring::newest(vault.storage()).await?.ok_or_else(missing)?;
    if keyring.repository != seal.repository() || keyring.key_id() != seal.key_id() {
        let what = format!("it belongs to key id {}, and the configured key to {}", keyring.key_id(), seal.key_id());
        return Err(RepoError::damaged(&keyring.key(), what));
    }
    Ok(keyring)
}

/// The reader's key of the keyring's epoch.
fn reader<'a>(seal: &'a Seal, keyring: &Keyring, what: &str) -> Result<&'a EpochKey, RepoError> {
    let (epoch, key) = seal.newest();
    if epoch != keyring.epoch {
        return Err(RepoError::UnknownEpoch { key: keyring.key(), epoch: keyring.epoch, known: epoch });
    }
    match key.role() {
        Role::Reader => Ok(key),
        Role::Writer => Err(RepoError::NeedsReader { what: what.into() }),
    }
}

async fn write(storage: &Arc<dyn Storage>, keyring: &Keyring, signer: &EpochKey) -> Result<(), RepoError> {
    // One that is there already is the same to the byte: an earlier attempt of ours. Another is a conflict.
    keyring.write(storage, signer).await.map(drop)
}

/// Adds a slot; answers it.
pub async fn add(vault: &Vault, to: &To<'_>, role: Role, comment: Option<String>) -> Result<Slot, RepoError> {
    let keyring = current(vault).await?;
    let seal = vault.seal().ok_or_else(|| RepoError::NotSealed { place: vault.storage().place().into() })?;
    let key = reader(seal, &keyring, "to add a key")?;
    let wrapped = if role == Role::Writer { key.to_writer() } else { key.clone() };
    let slot = Slot::wrap(keyring.place(), &wrapped, to, comment, clock::now()).map_err(RepoError::Slot)?;
    let slots = keyring.slots.iter().cloned().chain([slot.clone()]).collect();
    write(vault.storage(), &keyring.with_slots(slots, clock::now()), key).await?;
    Ok(slot)
}

/// What removing a slot did.
#[derive(Debug)]
pub struct Removed {
    pub slot: Slot,
    /// Older keyrings that still hold it, because they could not be deleted.
    pub left: Vec<ObjectKey>,
}

/// Removes a slot, and the older keyrings that hold it.
pub async fn remove(vault: &Vault, id: &str) -> Result<Removed, RepoError> {
    let keyring = current(vault).await?;
    let seal = vault.seal().ok_or_else(|| RepoError::NotSealed { place: vault.storage().place().into() })?;
    let key = reader(seal, &keyring, "to remove a key")?;
    let (gone, stay): (Vec<Slot>, Vec<Slot>) = keyring.slots.iter().cloned().partition(|slot| slot.id == id);
    let Some(slot) = gone.into_iter().next() else {
        let known: Vec<&str> = keyring.slots.iter().map(|slot| slot.id.as_str()).collect();
        return Err(RepoError::NoSlot { id: id.into(), known: known.join(", ") });
    };
    if !stay.iter().any(|slot| slot.role == Role::Reader) {
        return Err(RepoError::LastReader { id: id.into() });
    }
    let next = keyring.with_slots(stay, clock::now());
    write(vault.storage(), &next, key).await?;
    let left = delete_before(vault.storage(), &next).await?;
    Ok(Removed { slot, left })
}

/// Deletes the keyrings before `keyring`; answers those that stayed.
async fn delete_before(storage: &Arc<dyn Storage>, keyring: &Keyring) -> Result<Vec<ObjectKey>, RepoError> {
    let names = keyring::list(&**storage).await?.into_iter().filter(|name| *name < (keyring.epoch, keyring.number));
    let keys: Vec<ObjectKey> = names.map(|(epoch, number)| layout::keyring(epoch, number)).collect();
    Ok(match storage.delete(&keys).await {
        Ok(failed) => failed.into_iter().map(|(key, _)| key).collect(),
        Err(_) => keys,
    })
}

/// What a new epoch carried over.
#[derive(Debug)]
pub struct Rotated {
    pub seal: Seal,
    pub slots: Vec<Slot>,
    /// Slots whose passphrase is not known here.
    pub dropped: Vec<Slot>,
}

/// Begins a new epoch: recipients get its key, and so does the configured passphrase.
pub async fn rotate(vault: &Vault, keys: &Keys, memory_kib: u32, drop_unknown: bool) -> Result<Rotated, RepoError> {
    let keyring = current(vault).await?;
    let seal = vault.seal().ok_or_else(|| RepoError::NotSealed { place: vault.storage().place().into() })?;
    reader(seal, &keyring, "to begin a new epoch")?;
    let key = EpochKey::random();
    let place = super::slot::Place { epoch: keyring.epoch + 1, ..keyring.place() };
    let (mut slots, mut dropped) = (Vec::new(), Vec::new());
    for slot in &keyring.slots {
        let to = match (&slot.wrap, &keys.passphrase) {
            (Wrap::Recipient { recipient, .. }, _) => To::Recipient(recipient),
            (Wrap::Passphrase { .. }, Some(word)) if slot.open_with_passphrase(keyring.place(), word).is_some() => {
                To::Passphrase { passphrase: word, memory_kib }
            }
            (Wrap::Passphrase { .. }, _) => {
                dropped.push(slot.clone());
                continue;
            }
        };
        let wrapped = if slot.role == Role::Writer { key.to_writer() } else { key.clone() };
        slots.push(Slot::wrap(place, &wrapped, &to, slot.comment.clone(), clock::now()).map_err(RepoError::Slot)?);
    }
    if !dropped.is_empty() && !drop_unknown {
        let names: Vec<String> = dropped.iter().map(|slot| slot.id.clone()).collect();
        return Err(RepoError::SlotsLeft { slots: names.join(", ") });
    }
    if !slots.iter().any(|slot| slot.role == Role::Reader) {
        return Err(RepoError::LastReader {
            id: dropped.iter().find(|s| s.role == Role::Reader).map_or_else(String::new, |s| s.id.clone()),
        });
    }
    let next = keyring.next_epoch(seal, &key, slots.clone(), clock::now());
    let next = next.ok_or_else(|| RepoError::NeedsReader { what: "to begin a new epoch".into() })?;
    write(vault.storage(), &next, &key).await?;
    Ok(Rotated { seal: next.seal(key)?, slots, dropped })
}

/// Says so when the keys at hand are not of the newest epoch.
pub async fn outdated(vault: &Vault) -> Result<Option<String>, RepoError> {
    let Some(seal) = vault.seal() else { return Ok(None) };
    let newest = keyring::list(&**vault.storage()).await?.last().map_or(0, |(epoch, _)| *epoch);
    let own = seal.newest().0;
    Ok((newest > own).then(|| {
        format!(
            "the keys were rotated to epoch {newest}, and this host still writes with epoch {own}: whoever had that key can read \
             what is written now"
        )
    }))
}
