//! The key of one epoch, as a reader holds it or as a writer does.
//!
//! A reader holds the root R, 32 random bytes, and derives everything from it. A writer holds three keys derived from it: it
//! seals everything and opens documents, and can neither open data nor sign a keyring.

use zeroize::Zeroizing;

use super::Role;
use super::crypto::{self, Secret};

/// Bytes of a writer key: meta key, public data key, public signing key.
pub const WRITER_BYTES: usize = 96;
pub const READER_BYTES: usize = 32;

#[derive(Debug, Clone)]
pub struct EpochKey {
    /// M: seals trailers and documents.
    meta: Secret,
    /// P: data is sealed to it.
    public: [u8; 32],
    /// V: keyrings of this epoch are signed for it.
    verify: [u8; 32],
    reader: Option<Reader>,
}

#[derive(Debug, Clone)]
struct Reader {
    root: Secret,
    /// S: opens data.
    data: Secret,
    sign: Secret,
}

impl EpochKey {
    pub fn random() -> EpochKey {
        EpochKey::from_root(Secret::random())
    }

    pub fn from_root(root: Secret) -> EpochKey {
        let derive = |info: &str| crypto::hkdf(root.bytes(), b"", &[info.as_bytes()]);
        let (meta, data, sign) = (derive("lastgood meta"), derive("lastgood data"), derive("lastgood sign"));
        let (public, verify) = (crypto::x25519_public(&data), crypto::ed25519_public(&sign));
        EpochKey { meta, public, verify, reader: Some(Reader { root, data, sign }) }
    }

    /// What a host gets that shall write and not read.
    pub fn to_writer(&self) -> EpochKey {
        EpochKey { reader: None, ..self.clone() }
    }

    pub fn role(&self) -> Role {
        if self.reader.is_some() { Role::Reader } else { Role::Writer }
    }

    /// The key as bytes: R, or M, P and V.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match &self.reader {
            Some(reader) => reader.root.bytes().to_vec(),
            None => [&self.meta.bytes()[..], &self.public, &self.verify].concat(),
        })
    }

    pub fn from_bytes(role: Role, bytes: &[u8]) -> Option<EpochKey> {
        if role == Role::Reader {
            return Some(EpochKey::from_root(Secret::from_slice(bytes)?));
        }
        let (meta, rest) = bytes.split_at_checked(32)?;
        let (public, verify) = rest.split_at_checked(32)?;
        let (public, verify) = (public.try_into().ok()?, verify.try_into().ok()?);
        Some(EpochKey { meta: Secret::from_slice(meta)?, public, verify, reader: None })
    }

    pub fn meta(&self) -> &Secret {
        &self.meta
    }

    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    pub fn verify(&self) -> &[u8; 32] {
        &self.verify
    }

    /// R, for a reader.
    pub fn root(&self) -> Option<&Secret> {
        self.reader.as_ref().map(|reader| &reader.root)
    }

    /// S, for a reader.
    pub fn data(&self) -> Option<&Secret> {
        self.reader.as_ref().map(|reader| &reader.data)
    }

    /// Signs, as a reader.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.reader.as_ref().map(|reader| crypto::sign(&reader.sign, message))
    }
}
