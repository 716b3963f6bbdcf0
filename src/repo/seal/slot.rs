//! A slot: the key of an epoch, wrapped by a passphrase or for an age recipient.

use argon2::{Algorithm, Argon2, Params, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Role;
use super::crypto::{self, GcmKey, Secret};
use super::epoch::EpochKey;

/// What a passphrase costs to try, when nothing else is asked for: RFC 9106, section 4, second recommended option with one lane.
pub const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;
/// A keyring that asks for more than this is not believed: whoever writes into the bucket must not exhaust the reader's host.
const MEMORY_MAX_KIB: u32 = 1 << 20;
const PASSES_MAX: u32 = 20;
const LANES_MAX: u32 = 16;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// 8 random hex digits.
    pub id: String,
    pub role: Role,
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(flatten)]
    pub wrap: Wrap,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Wrap {
    /// Sealed with a key that Argon2id makes of the passphrase.
    Passphrase { memory_kib: u32, passes: u32, lanes: u32, salt: String, wrapped: String },
    /// Encrypted with age (<https://age-encryption.org/v1>).
    Recipient { recipient: String, wrapped: String },
}

impl Wrap {
    pub fn kind(&self) -> &'static str {
        match self {
            Wrap::Passphrase { .. } => "passphrase",
            Wrap::Recipient { .. } => "recipient",
        }
    }
}

/// Who shall be able to open a slot.
pub enum To<'a> {
    Passphrase { passphrase: &'a str, memory_kib: u32 },
    Recipient(&'a str),
}

/// Where a slot is: bound to what is wrapped, so that a slot is good in its place only.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub repository: &'a str,
    pub epoch: u32,
}

impl Place<'_> {
    fn bound(&self, slot: &str, role: Role) -> Vec<u8> {
        format!("lastgood slot\0{}\0{}\0{slot}\0{role}", self.repository, self.epoch).into_bytes()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error("an age recipient is expected, like age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p")]
    NoRecipient,
    #[error("a passphrase of at least {MINIMUM} characters is expected; take several random words", MINIMUM = PASSPHRASE_MIN)]
    Short,
}

/// Shorter ones are tried through in no time.
pub const PASSPHRASE_MIN: usize = 8;

impl Slot {
    /// Wraps `key`, as it is: a reader's or a writer's.
    pub fn wrap(place: Place, key: &EpochKey, to: &To, comment: Option<String>, created: Timestamp) -> Result<Slot, SlotError> {
        let (id, role) = (crate::clock::random_hex(4), key.role());
        let bound = place.bound(&id, role);
        let wrap = match to {
            To::Passphrase { passphrase, .. } if passphrase.chars().count() < PASSPHRASE_MIN => return Err(SlotError::Short),
            To::Passphrase { passphrase, memory_kib } => {
                let mut salt = [0; 16];
                crypto::fill_random(&mut salt);
                let cost = (*memory_kib, PASSES, LANES);
                let wrapping = stretch(passphrase, &salt, cost).expect("our own parameters are valid");
                let mut wrapped = key.to_bytes().to_vec();
                // The salt is random, so this key seals once.
                GcmKey::new(&wrapping).seal(0, 0, &bound, &mut wrapped);
                Wrap::Passphrase {
                    memory_kib: cost.0,
                    passes: cost.1,
                    lanes: cost.2,
                    salt: hex::encode(salt),
                    wrapped: hex::encode(wrapped),
                }
            }
            To::Recipient(recipient) => {
                let parsed: age::x25519::Recipient = recipient.parse().map_err(|_| SlotError::NoRecipient)?;
                // age binds nothing to its ciphertext, so what the slot is bound to is inside.
                let mut plain = Zeroizing::new((bound.len() as u32).to_le_bytes().to_vec());
                plain.extend_from_slice(&bound);
                plain.extend_from_slice(&key.to_bytes());
                let wrapped = age::encrypt(&parsed, &plain).map_err(|_| SlotError::NoRecipient)?;
                Wrap::Recipient { recipient: recipient.to_string(), wrapped: hex::encode(wrapped) }
            }
        };
        Ok(Slot { id, role, created, comment, wrap })
    }

    /// The key, when this is the passphrase.
    pub fn open_with_passphrase(&self, place: Place, passphrase: &str) -> Option<EpochKey> {
        let Wrap::Passphrase { memory_kib, passes, lanes, salt, wrapped } = &self.wrap else { return None };
        let wrapping = stretch(passphrase, &hex::decode(salt).ok()?, (*memory_kib, *passes, *lanes))?;
        let mut plain = Zeroizing::new(Vec::new());
        let sealed = hex::decode(wrapped).ok()?;
        let opens = GcmKey::new(&wrapping).open(0, 0, &place.bound(&self.id, self.role), &sealed, &mut plain);
        if opens { EpochKey::from_bytes(self.role, &plain) } else { None }
    }

    /// The key, when this is the recipient's identity.
    pub fn open_with_identity(&self, place: Place, identity: &age::x25519::Identity) -> Option<EpochKey> {
        let Wrap::Recipient { wrapped, .. } = &self.wrap else { return None };
        let plain = Zeroizing::new(age::decrypt(identity, &hex::decode(wrapped).ok()?).ok()?);
        let (length, rest) = plain.split_at_checked(4)?;
        let (bound, key) = rest.split_at_checked(u32::from_le_bytes(length.try_into().ok()?) as usize)?;
        (bound == place.bound(&self.id, self.role)).then(|| EpochKey::from_bytes(self.role, key))?
    }
}

/// Argon2id, version 0x13, 32 bytes.
fn stretch(passphrase: &str, salt: &[u8], (memory_kib, passes, lanes): (u32, u32, u32)) -> Option<Secret> {
    if memory_kib > MEMORY_MAX_KIB || passes > PASSES_MAX || lanes > LANES_MAX {
        return None;
    }
    let params = Params::new(memory_kib, passes, lanes, Some(32)).ok()?;
    let mut out = Zeroizing::new([0; 32]);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(passphrase.as_bytes(), salt, &mut *out).ok()?;
    Some(Secret::new(*out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { repository: "72d43c07332f5c65edd550217f538236", epoch: 1 };

    fn cheap(passphrase: &str) -> To<'_> {
        To::Passphrase { passphrase, memory_kib: 64 }
    }

    #[test]
    fn a_slot_opens_with_its_secret_and_in_its_place_only() {
        let identity = age::x25519::Identity::generate();
        let recipient = identity.to_public().to_string();
        for key in [EpochKey::random(), EpochKey::random().to_writer()] {
            let now = crate::clock::now();
            let by_word = Slot::wrap(PLACE, &key, &cheap("correct horse"), None, now).unwrap();
            let by_age = Slot::wrap(PLACE, &key, &To::Recipient(&recipient), None, now).unwrap();
            let word = |slot: &Slot, place, word: &str| slot.open_with_passphrase(place, word).map(|k| k.to_bytes().to_vec());
            let age = |slot: &Slot, place| slot.open_with_identity(place, &identity).map(|k| k.to_bytes().to_vec());
            assert_eq!(word(&by_word, PLACE, "correct horse").unwrap(), *key.to_bytes());
            assert_eq!(age(&by_age, PLACE).unwrap(), *key.to_bytes());
            assert!(word(&by_word, PLACE, "correct house").is_none() && age(&by_word, PLACE).is_none());
            assert!(by_age.open_with_identity(PLACE, &age::x25519::Identity::generate()).is_none());
            for place in [Place { epoch: 2, ..PLACE }, Place { repository: "other", ..PLACE }] {
                assert!(word(&by_word, place, "correct horse").is_none() && age(&by_age, place).is_none());
            }
            for slot in [by_word, by_age] {
                let mut renamed = slot.clone();
                renamed.id = "00000000".into();
                assert!(word(&renamed, PLACE, "correct horse").is_none() && age(&renamed, PLACE).is_none());
                let json = serde_json::to_string(&slot).unwrap();
                assert_eq!(serde_json::from_str::<Slot>(&json).unwrap(), slot);
            }
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let (key, now) = (EpochKey::random(), crate::clock::now());
        assert_eq!(Slot::wrap(PLACE, &key, &To::Recipient("age1x"), None, now), Err(SlotError::NoRecipient));
        assert_eq!(Slot::wrap(PLACE, &key, &cheap("short"), None, now), Err(SlotError::Short));
        let mut greedy = Slot::wrap(PLACE, &key, &cheap("correct horse"), None, now).unwrap();
        let Wrap::Passphrase { memory_kib, .. } = &mut greedy.wrap else { unreachable!() };
        *memory_kib = u32::MAX;
        assert!(greedy.open_with_passphrase(PLACE, "correct horse").is_none());
    }
}
