//! Sealing: encryption of everything that a repository holds. `docs/format.md` describes it to the byte.
//!
//! - [`crypto`]: the primitives.
//! - [`epoch`]: the key of one epoch, as a reader or a writer holds it.
//! - [`stream`]: long content, sealed chunk by chunk as it goes by.
//! - [`text`]: a key as text, for a file or for paper.
//! - [`slot`]: a key wrapped by a passphrase or for a recipient.
//! - [`keyring`]: the objects that hold the slots, signed.
//! - [`create`]: the first keyring of a repository. [`rotation`]: the later ones.
//! - [`keys`]: from what is configured to a [`Seal`].
//!
//! # Who can do what
//! A *reader* key opens everything. A *writer* key seals everything and opens documents (names, hashes, maps, trailers), but no
//! table data and no WAL: it is what a database host may hold, so that a thief of its files gets nothing from the repository that
//! the host did not have.
//!
//! # Invariants
//! - A key seals each position once: keys are derived per object from a seed that is fresh for each write, and bound to the
//!   object's whole key, so that an object or a frame that was moved, renamed or exchanged does not open.
//! - What is not sealed is refused in a sealed repository, and the other way round.

pub mod create;
pub mod crypto;
pub mod epoch;
pub mod keyring;
pub mod keys;
pub mod rotation;
pub mod slot;
pub mod stream;
pub mod text;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::RepoError;
use super::object::Sha;
use crate::storage::ObjectKey;
use crypto::{GcmKey, Secret};
use epoch::EpochKey;

/// What `seal` says in `lastgood.json`.
pub const CIPHER: &str = "aes-256-gcm";
/// Bytes of a [`Head`].
pub const HEAD_BYTES: usize = 36;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Reader,
    Writer,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Role::Reader { "reader" } else { "writer" })
    }
}

/// Who may open the content of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Readers and writers: documents, maps, and the small files beside the WAL.
    Meta,
    /// Readers: packs of data, WAL, and what its records did: pieces of records stand in the index.
    Data,
}

impl Class {
    /// By the key alone, to which the content key is bound: an object renamed into another class does not open.
    fn of(key: &ObjectKey) -> Class {
        let parts: Vec<&str> = key.as_str().split('/').collect();
        let is_data = match parts.as_slice() {
            ["clusters", _, "packs", _, pack] => pack.starts_with('d'),
            ["clusters", _, "wal", _, kind, ..] => matches!(*kind, "segments" | "partial" | "torn" | "index"),
            _ => false,
        };
        if is_data { Class::Data } else { Class::Meta }
    }
}

/// What a reader needs besides its key to open one object: in front of the sealed trailer, and in the pack table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, Sha)", into = "(u32, Sha)")]
pub struct Head {
    pub epoch: u32,
    /// Random; for data the public half of a key pair whose secret half is forgotten.
    pub seed: [u8; 32],
}

impl From<(u32, Sha)> for Head {
    fn from((epoch, seed): (u32, Sha)) -> Self {
        Head { epoch, seed: seed.0 }
    }
}

impl From<Head> for (u32, Sha) {
    fn from(head: Head) -> Self {
        (head.epoch, Sha(head.seed))
    }
}

impl Head {
    pub fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[4..].copy_from_slice(&self.seed);
        bytes
    }

    pub fn from_bytes(bytes: &[u8; HEAD_BYTES]) -> Head {
        let (epoch, seed) = bytes.split_at(4);
        Head { epoch: u32::from_le_bytes(epoch.try_into().expect("four bytes")), seed: seed.try_into().expect("32 bytes") }
    }
}

/// Seals one object.
#[derive(Debug)]
pub struct Sealer {
    pub content: GcmKey,
    pub trailer: TrailerSealer,
}

/// Seals one object's trailer.
#[derive(Debug)]
pub struct TrailerSealer {
    pub head: Head,
    pub key: GcmKey,
}

/// The keys of a repository, of all epochs that the holder knows. The highest is written with.
#[derive(Debug)]
pub struct Seal {
    /// The repository's id.
    repository: String,
    key_id: String,
    epochs: BTreeMap<u32, EpochKey>,
    /// Heads of packs that were read about, so that a frame costs one request and not two.
    heads: Mutex<HashMap<String, Head>>,
}

impl Seal {
    /// `epochs` is not empty.
    pub fn new(repository: &str, key_id: &str, epochs: BTreeMap<u32, EpochKey>) -> Seal {
        debug_assert!(!epochs.is_empty());
        Seal { repository: repository.into(), key_id: key_id.into(), epochs, heads: Mutex::default() }
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    pub fn epochs(&self) -> &BTreeMap<u32, EpochKey> {
        &self.epochs
    }

    /// The newest epoch and its key.
    pub fn newest(&self) -> (u32, &EpochKey) {
        let (epoch, key) = self.epochs.last_key_value().expect("a seal has an epoch");
        (*epoch, key)
    }

    pub fn role(&self) -> Role {
        self.newest().1.role()
    }

    /// The same keys, without the right to read data.
    pub fn to_writer(&self) -> Seal {
        let epochs = self.epochs.iter().map(|(epoch, key)| (*epoch, key.to_writer())).collect();
        Seal::new(&self.repository, &self.key_id, epochs)
    }

    /// Tells these keys from others, without telling them.
    pub fn fingerprint(&self) -> String {
        let (epoch, key) = self.newest();
        format!("{} {} {epoch} {}", self.repository, self.key_id, hex::encode(key.public()))
    }

    /// Keys for writing an object once.
    pub fn sealer(&self, key: &ObjectKey) -> Sealer {
        self.sealer_from(key, &Secret::random())
    }

    /// The same from given randomness, which must never be used twice: for test vectors.
    pub fn sealer_from(&self, key: &ObjectKey, random: &Secret) -> Sealer {
        let (epoch, keys) = self.newest();
        let (seed, content) = match Class::of(key) {
            Class::Meta => {
                let seed = *random.bytes();
                (seed, meta_content(keys, &seed, key))
            }
            Class::Data => {
                let seed = crypto::x25519_public(random);
                let shared = crypto::x25519(random, keys.public()).expect("our own public key is of full order");
                (seed, data_content(keys, &shared, &seed, key))
            }
        };
        let trailer = TrailerSealer { head: Head { epoch, seed }, key: trailer(keys, &seed, key) };
        Sealer { content: GcmKey::new(&content), trailer }
    }

    fn epoch(&self, key: &ObjectKey, head: &Head) -> Result<&EpochKey, RepoError> {
        self.epochs.get(&head.epoch).ok_or_else(|| RepoError::UnknownEpoch {
            key: key.clone(),
            epoch: head.epoch,
            known: self.newest().0,
        })
    }

    /// The key that opens an object's trailer.
    pub fn trailer_key(&self, key: &ObjectKey, head: &Head) -> Result<GcmKey, RepoError> {
        Ok(trailer(self.epoch(key, head)?, &head.seed, key))
    }

    /// The key that opens an object's content; a writer has none for data.
    pub fn content_key(&self, key: &ObjectKey, head: &Head) -> Result<GcmKey, RepoError> {
        let keys = self.epoch(key, head)?;
        if Class::of(key) == Class::Meta {
            return Ok(GcmKey::new(&meta_content(keys, &head.seed, key)));
        }
        let secret = keys.data().ok_or_else(|| RepoError::WriterKey { key: key.clone() })?;
        let shared = crypto::x25519(secret, &head.seed).ok_or_else(|| RepoError::damaged(key, "its seed is no public key"))?;
        Ok(GcmKey::new(&data_content(keys, &shared, &head.seed, key)))
    }

    /// Whether this key opens the content of `key`.
    pub fn can_open(&self, key: &ObjectKey) -> bool {
        Class::of(key) == Class::Meta || self.role() == Role::Reader
    }

    pub fn remember(&self, key: &ObjectKey, head: Head) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_string(), head);
    }

    pub fn remembered(&self, key: &ObjectKey) -> Option<Head> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).get(key.as_str()).copied()
    }
}

fn trailer(keys: &EpochKey, seed: &[u8; 32], key: &ObjectKey) -> GcmKey {
    GcmKey::new(&crypto::hkdf(keys.meta().bytes(), seed, &[b"lastgood trailer\0", key.as_str().as_bytes()]))
}

fn meta_content(keys: &EpochKey, seed: &[u8; 32], key: &ObjectKey) -> Secret {
    crypto::hkdf(keys.meta().bytes(), seed, &[b"lastgood content\0", key.as_str().as_bytes()])
}

/// The meta key takes part, so that knowing the public key alone is not enough to make data that opens, and breaking X25519 alone
/// is not enough to open it.
fn data_content(keys: &EpochKey, shared: &Secret, seed: &[u8; 32], key: &ObjectKey) -> Secret {
    let secret = Zeroizing::new([&shared.bytes()[..], keys.meta().bytes()].concat());
    let salt = [&seed[..], keys.public()].concat();
    crypto::hkdf(&secret, &salt, &[b"lastgood content\0", key.as_str().as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> Seal {
        Seal::new("id", "key", BTreeMap::from([(1, EpochKey::from_root(Secret::new([3; 32])))]))
    }

    fn key(text: &str) -> ObjectKey {
        ObjectKey::new(text)
    }

    #[test]
    fn data_is_what_a_writer_cannot_open() {
        let data = [
            "clusters/a/packs/s/d000001",
            "clusters/packs/wal/7/segments/b/s",
            "clusters/a/wal/7/partial/p",
            "clusters/a/wal/7/torn/p",
        ];
        let meta =
            ["clusters/a/packs/s/m000001", "clusters/wal/wal/7/history/h", "clusters/a/snapshots/s", "clusters/packs/files/d/d1"];
        let (reader, first) = (seal(), seal());
        let writer = Seal::new("id", "key", BTreeMap::from([(1, first.newest().1.to_writer())]));
        for (name, open) in data.iter().map(|n| (n, false)).chain(meta.iter().map(|n| (n, true))) {
            let key = key(name);
            let sealer = writer.sealer(&key);
            let mut sealed = b"text".to_vec();
            sealer.content.seal(0, 0, b"", &mut sealed);
            let mut out = Vec::new();
            assert!(reader.content_key(&key, &sealer.trailer.head).unwrap().open(0, 0, b"", &sealed, &mut out), "{name}");
            assert_eq!(out, b"text");
            let opened = writer.content_key(&key, &sealer.trailer.head);
            assert_eq!(opened.is_ok(), open, "{name}");
            assert_eq!(writer.can_open(&key), open);
            if let Err(error) = opened {
                assert!(matches!(error, RepoError::WriterKey { .. }));
            }
        }
    }

    #[test]
    fn a_content_key_is_for_one_object_and_one_seed() {
        let seal = seal();
        for (name, other) in
            [("clusters/a/packs/s/d000001", "clusters/a/packs/s/d000002"), ("clusters/a/snapshots/s", "clusters/b/snapshots/s")]
        {
            let sealer = seal.sealer(&key(name));
            let mut sealed = b"text".to_vec();
            sealer.content.seal(0, 0, b"", &mut sealed);
            let mut out = Vec::new();
            assert!(!seal.content_key(&key(other), &sealer.trailer.head).unwrap().open(0, 0, b"", &sealed, &mut out));
            let mut seed = sealer.trailer.head;
            seed.seed[5] ^= 1;
            assert!(!seal.content_key(&key(name), &seed).unwrap().open(0, 0, b"", &sealed, &mut out));
            assert_ne!(seal.sealer(&key(name)).trailer.head.seed, sealer.trailer.head.seed, "fresh for each write");
        }
        let unknown = Head { epoch: 2, seed: [0; 32] };
        assert!(matches!(seal.content_key(&key("x"), &unknown), Err(RepoError::UnknownEpoch { epoch: 2, .. })));
    }
}
