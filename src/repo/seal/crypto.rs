//! The few primitives that sealing is made of, from `aws-lc-rs`, and secrets that are wiped and never shown.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey as VerifyKey};
use zeroize::Zeroizing;

/// Bytes that AES-256-GCM adds to what it seals.
pub const TAG_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;

/// 32 secret bytes: wiped when dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    pub fn from_slice(bytes: &[u8]) -> Option<Secret> {
        Some(Secret::new(bytes.try_into().ok()?))
    }

    /// From the operating system's generator.
    pub fn random() -> Secret {
        let mut bytes = Zeroizing::new([0; 32]);
        fill_random(&mut *bytes);
        Secret(bytes)
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

pub fn fill_random(bytes: &mut [u8]) {
    // The kernel's generator fails only before it was ever seeded; then there is nothing sensible left to do.
    getrandom::fill(bytes).expect("the operating system has no randomness");
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA256 (RFC 5869) with 32 bytes of output; `info` is the parts one behind the other.
pub fn hkdf(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> Secret {
    let mut out = Zeroizing::new([0; 32]);
    let key = Salt::new(HKDF_SHA256, salt).extract(secret);
    key.expand(info, Length(32)).and_then(|okm| okm.fill(&mut *out)).expect("HKDF gives 32 bytes");
    Secret(out)
}

/// Public key of an X25519 secret.
pub fn x25519_public(secret: &Secret) -> [u8; 32] {
    let key = PrivateKey::from_private_key(&X25519, secret.bytes()).expect("any 32 bytes are an X25519 secret");
    let public = key.compute_public_key().expect("an X25519 secret has a public key");
    public.as_ref().try_into().expect("32 bytes")
}

/// The shared secret of X25519 (RFC 7748); `None` for a public key of small order.
pub fn x25519(secret: &Secret, public: &[u8; 32]) -> Option<Secret> {
    let key = PrivateKey::from_private_key(&X25519, secret.bytes()).ok()?;
    agree(&key, UnparsedPublicKey::new(&X25519, public), (), |shared| Secret::from_slice(shared).ok_or(())).ok()
}

fn ed25519(seed: &Secret) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed.bytes()).expect("any 32 bytes are an Ed25519 seed")
}

/// Public key of an Ed25519 seed.
pub fn ed25519_public(seed: &Secret) -> [u8; 32] {
    ed25519(seed).public_key().as_ref().try_into().expect("32 bytes")
}

/// Signs with Ed25519 (RFC 8032).
pub fn sign(seed: &Secret, message: &[u8]) -> Vec<u8> {
    ed25519(seed).sign(message).as_ref().to_vec()
}

pub fn verifies(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    VerifyKey::new(&ED25519, public).verify(message, signature).is_ok()
}

/// An AES-256-GCM key. Nonces are positions, so a key seals each position once.
pub struct GcmKey(LessSafeKey);

impl std::fmt::Debug for GcmKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GcmKey(..)")
    }
}

impl GcmKey {
    pub fn new(key: &Secret) -> GcmKey {
        GcmKey(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.bytes()).expect("a key of 32 bytes")))
    }

    fn nonce(offset: u64, flag: u32) -> Nonce {
        let mut nonce = [0; NONCE_BYTES];
        nonce[..8].copy_from_slice(&offset.to_le_bytes());
        nonce[8..].copy_from_slice(&flag.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals in place and appends the tag.
    pub fn seal(&self, offset: u64, flag: u32, aad: &[u8], bytes: &mut Vec<u8>) {
        let sealed = self.0.seal_in_place_append_tag(Self::nonce(offset, flag), Aad::from(aad), bytes);
        sealed.expect("AES-GCM seals up to 64 GiB");
    }

    /// Opens `sealed` into `out`, whose former content is lost; `false` when it is not what was sealed here.
    #[must_use]
    pub fn open(&self, offset: u64, flag: u32, aad: &[u8], sealed: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        let Some(at) = sealed.len().checked_sub(TAG_BYTES) else { return false };
        out.resize(at, 0);
        let (text, tag) = sealed.split_at(at);
        let opened = self.0.open_separate_gather(Self::nonce(offset, flag), Aad::from(aad), text, tag, out);
        if opened.is_err() {
            out.clear();
        }
        opened.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5869, test case 1; RFC 7748, section 6.1.
    #[test]
    fn primitives_are_the_ones_of_the_rfcs() {
        let found = hkdf(
            &[0x0b; 22],
            &hex::decode("000102030405060708090a0b0c").unwrap(),
            &[&[0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9]],
        );
        assert_eq!(hex::encode(found.bytes()), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
        let secret = |text: &str| Secret::from_slice(&hex::decode(text).unwrap()).unwrap();
        let alice = secret("77076d0a7318a57d3c16c17251b26645df4c2f92ebc099ac870739a2f0cce58f");
        let bob = secret("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        assert_eq!(hex::encode(x25519_public(&bob)), "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        assert_eq!(x25519(&alice, &x25519_public(&bob)), x25519(&bob, &x25519_public(&alice)));
        assert!(x25519(&alice, &[0; 32]).is_none(), "a public key of small order is refused");
    }

    #[test]
    fn a_secret_is_never_shown() {
        assert_eq!(format!("{:?}", Secret::new([7; 32])), "Secret(..)");
    }

    #[test]
    fn position_and_flag_are_part_of_the_seal() {
        let key = GcmKey::new(&Secret::new([1; 32]));
        let mut sealed = b"frame".to_vec();
        key.seal(5, 0, b"", &mut sealed);
        let mut out = Vec::new();
        assert!(key.open(5, 0, b"", &sealed, &mut out) && out == b"frame");
        assert!(!key.open(6, 0, b"", &sealed, &mut out) && !key.open(5, 1, b"", &sealed, &mut out));
        assert!(!key.open(5, 0, b"x", &sealed, &mut out) && !key.open(5, 0, b"", &sealed[..15], &mut out));
    }
}
