//! Keyrings: the objects `keys/<epoch>-<number>` with the slots of an epoch. The highest name counts.
//!
//! A keyring is the one kind of object in a sealed repository that is not sealed itself: it is where opening begins. It is signed
//! with a key that only readers have. Each epoch's signing key is signed by the one before, back to the first, whose SHA-256
//! is the repository's key id: a keyring that the owner of the bucket made up is refused wherever the key id is known.
//!
//! A document of two JSON lines: the keyring, and the signature over the exact bytes of the first line.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::crypto::{self, GcmKey};
use super::epoch::EpochKey;
use super::slot::{Place, Slot};
use super::{Role, Seal};
use crate::repo::document::{self, Document, first_defect};
use crate::repo::layout;
use crate::repo::object::{self, Sha};
use crate::repo::vault::Vault;
use crate::repo::{FORMAT_VERSION, RepoError};
use crate::storage::{Created, Depth, ObjectKey, Storage, list_all};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyring {
    pub format: u16,
    /// The repository's id, as in `lastgood.json`.
    pub repository: String,
    pub epoch: u32,
    pub number: u32,
    pub written: Timestamp,
    /// One for each epoch up to this, oldest first.
    pub lineage: Vec<Ancestor>,
    pub slots: Vec<Slot>,
    /// Keys of the epochs before, for those who have this one's.
    pub earlier: Vec<Earlier>,
}

/// The public signing key of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    pub epoch: u32,
    pub verify: Sha,
    /// By the epoch before; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// Keys of an earlier epoch, sealed under this epoch's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    pub epoch: u32,
    pub reader: String,
    pub writer: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Signature {
    signature: String,
}

impl Document for Signature {}

impl Document for Keyring {
    fn defect(&self) -> Option<String> {
        first_defect([
            (document::is_time(self.written), "its time is impossible"),
            // Numbers in keys have six digits, and the next must have them too.
            (self.epoch < 999_999 && self.number < 999_999, "its number is impossible"),
        ])
    }
}

/// The first 32 hex digits of the SHA-256 of the first epoch's public signing key.
pub fn key_id(verify: &[u8; 32]) -> String {
    hex::encode(&Sha::of(verify).0[..16])
}

fn lineage_message(repository: &str, epoch: u32, verify: &[u8; 32]) -> Vec<u8> {
    [format!("lastgood epoch\0{repository}\0{epoch}\0").as_bytes(), verify].concat()
}

impl Keyring {
    /// The first keyring of a repository.
    pub fn first(repository: &str, key: &EpochKey, slots: Vec<Slot>, written: Timestamp) -> Keyring {
        let lineage = vec![Ancestor { epoch: 1, verify: Sha(*key.verify()), signature: None }];
        Keyring {
            format: FORMAT_VERSION,
            repository: repository.into(),
            epoch: 1,
            number: 1,
            written,
            lineage,
            slots,
            earlier: Vec::new(),
        }
    }

    /// The first keyring of the next epoch; `seal` holds the reader's keys of all epochs up to this one's.
    pub fn next_epoch(&self, seal: &Seal, key: &EpochKey, slots: Vec<Slot>, written: Timestamp) -> Option<Keyring> {
        let epoch = self.epoch + 1;
        let mut lineage = self.lineage.clone();
        let signature = seal.newest().1.sign(&lineage_message(&self.repository, epoch, key.verify()))?;
        lineage.push(Ancestor { epoch, verify: Sha(*key.verify()), signature: Some(hex::encode(signature)) });
        let sealed = |(before, old): (&u32, &EpochKey)| {
            let wrap = |role: Role, old: &EpochKey| {
                let mut bytes = old.to_bytes().to_vec();
                earlier_key(key, role, epoch, *before)?.seal(0, 0, b"", &mut bytes);
                Some(hex::encode(bytes))
            };
            let (reader, writer) = (wrap(Role::Reader, old)?, wrap(Role::Writer, &old.to_writer())?);
            Some(Earlier { epoch: *before, reader, writer })
        };
        let earlier = seal.epochs().iter().map(sealed).collect::<Option<Vec<_>>>()?;
        Some(Keyring { epoch, number: 1, written, lineage, slots, earlier, ..self.clone() })
    }

    /// The next keyring of this epoch, with other slots.
    pub fn with_slots(&self, slots: Vec<Slot>, written: Timestamp) -> Keyring {
        Keyring { number: self.number + 1, written, slots, ..self.clone() }
    }

    pub fn place(&self) -> Place<'_> {
        Place { repository: &self.repository, epoch: self.epoch }
    }

    pub fn key_id(&self) -> String {
        self.lineage.first().map(|first| key_id(&first.verify.0)).unwrap_or_default()
    }

    pub fn key(&self) -> ObjectKey {
        layout::keyring(self.epoch, self.number)
    }

    /// All keys that the holder of this epoch's key has.
    pub fn seal(&self, own: EpochKey) -> Result<Seal, RepoError> {
        let damaged = |what: &str| RepoError::damaged(&self.key(), what);
        if self.lineage.last().is_none_or(|last| last.verify.0 != *own.verify()) {
            return Err(damaged("the key in its slots is not the one that signed it"));
        }
        let mut epochs = std::collections::BTreeMap::new();
        for earlier in &self.earlier {
            let role = own.role();
            let sealed = if role == Role::Reader { &earlier.reader } else { &earlier.writer };
            let key =
                earlier_key(&own, role, self.epoch, earlier.epoch).ok_or_else(|| damaged("its earlier keys do not open"))?;
            let mut bytes = zeroize::Zeroizing::new(Vec::new());
            let opens = hex::decode(sealed).is_ok_and(|sealed| key.open(0, 0, b"", &sealed, &mut bytes));
            let opened = opens.then(|| EpochKey::from_bytes(role, &bytes)).flatten();
            epochs.insert(earlier.epoch, opened.ok_or_else(|| damaged("its earlier keys do not open"))?);
        }
        epochs.insert(self.epoch, own);
        Ok(Seal::new(&self.repository, &self.key_id(), epochs))
    }

    /// Signs and writes it; a name that is taken means that somebody else changed the keys in the meantime.
    pub async fn write(&self, storage: &std::sync::Arc<dyn Storage>, signer: &EpochKey) -> Result<Created, RepoError> {
        let mut raw = object::to_json(self);
        let signature = signer.sign(&raw).ok_or_else(|| RepoError::NeedsReader { what: "to sign a keyring".into() })?;
        raw.push(b'\n');
        raw.extend(object::to_json(&Signature { signature: hex::encode(signature) }));
        raw.push(b'\n');
        object::put_document(&Vault::plain(storage.clone()), &self.key(), &raw).await
    }
}

/// The key under which keys of the epoch `before` are sealed; it seals one thing, and always the same.
fn earlier_key(own: &EpochKey, role: Role, epoch: u32, before: u32) -> Option<GcmKey> {
    let secret = if role == Role::Reader { own.root()? } else { own.meta() };
    let info = format!("lastgood earlier {role}\0{epoch}\0{before}");
    Some(GcmKey::new(&crypto::hkdf(secret.bytes(), b"", &[info.as_bytes()])))
}

/// Epoch and number of all keyrings that are there, in order.
pub async fn list(storage: &dyn Storage) -> Result<Vec<(u32, u32)>, RepoError> {
    let page = list_all(storage, layout::KEYRINGS, Depth::All).await?;
    let number = |text: &str| (text.len() == 6 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?;
    let names = page.objects.iter().filter_map(|object| {
        let (epoch, number_) = object.key.name().split_once('-')?;
        Some((number(epoch)?, number(number_)?))
    });
    Ok(names.collect())
}

/// The keyring that counts, its signatures proven. A damaged one is an error: an older one would bring removed slots back.
pub async fn newest(storage: &std::sync::Arc<dyn Storage>) -> Result<Option<Keyring>, RepoError> {
    let Some((epoch, number)) = list(&**storage).await?.pop() else { return Ok(None) };
    let key = layout::keyring(epoch, number);
    let raw = object::get_document(&Vault::plain(storage.clone()), &key).await?;
    let keyring = parse(&key, &raw)?;
    if (keyring.epoch, keyring.number) != (epoch, number) {
        let what = format!("it says it is number {} of epoch {}", keyring.number, keyring.epoch);
        return Err(RepoError::damaged(&key, what));
    }
    Ok(Some(keyring))
}

fn parse(key: &ObjectKey, raw: &[u8]) -> Result<Keyring, RepoError> {
    let damaged = |what: &str| RepoError::damaged(key, what);
    let mut lines = raw.splitn(2, |b| *b == b'\n');
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    document::prove_format(key, first)?;
    let keyring: Keyring = object::from_json(key, first)?;
    let signature: Signature = object::from_json(key, second)?;
    let mut before: Option<&Ancestor> = None;
    for (ancestor, epoch) in keyring.lineage.iter().zip(1..) {
        let signed = match before {
            None => true,
            Some(before) => {
                let message = lineage_message(&keyring.repository, epoch, &ancestor.verify.0);
                let signature = ancestor.signature.as_deref().and_then(|s| hex::decode(s).ok()).unwrap_or_default();
                crypto::verifies(&before.verify.0, &message, &signature)
            }
        };
        if ancestor.epoch != epoch || !signed {
            return Err(damaged("its epochs do not follow from the first: it was not made by a holder of the keys"));
        }
        before = Some(ancestor);
    }
    let Some(own) = before.filter(|own| own.epoch == keyring.epoch) else {
        return Err(damaged("its epochs do not lead to its own"));
    };
    if !crypto::verifies(&own.verify.0, first, &hex::decode(&signature.signature).unwrap_or_default()) {
        return Err(damaged("its signature does not hold: it was not made by a holder of the keys"));
    }
    Ok(keyring)
}
