//! Whether one stored object is what it says, from its own bytes: what a copy is proven by before it is believed.

use std::io;

use super::frame::{Decompressor, FRAME_MAX_BYTES};
use super::object::{self, ObjectKind};
use super::repository::{self, Cluster};
use super::segment::{self, WalFileTrailer};
use super::vault::Vault;
use super::{RepoError, layout, pack};
use crate::storage::{ObjectKey, Part};

/// How far an object was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Every raw byte, by its SHA-256.
    Content,
    /// Its trailer and length: a writer's key does not open the content of a pack of data.
    Trailer,
}

/// Proves the object `key` of the vault's store. A key that cannot open the content proves what can be proven without.
pub async fn prove(vault: &Vault, key: &ObjectKey) -> Result<Proof, RepoError> {
    if *key == layout::repository() {
        return repository::read_record(&**vault.storage()).await.map(|_| Proof::Content);
    }
    // The one kind that is not sealed in a sealed repository: its signature is proven by whoever opens it.
    if key.as_str().starts_with(layout::KEYRINGS) {
        let plain = Vault::plain(vault.storage().clone());
        return object::get_document(&plain, key).await.map(|_| Proof::Content);
    }
    match object::read_kind(&**vault.storage(), key).await? {
        Some(ObjectKind::Document) => object::get_document(vault, key).await.map(|_| Proof::Content),
        Some(ObjectKind::Pack) => prove_pack(vault, key).await,
        Some(ObjectKind::WalFile) => prove_wal_file(vault, key).await,
        None => Err(RepoError::damaged(key, "it has no trailer: cut short, or not written by lastgood")),
    }
}

/// Opens every frame that the trailer lists.
async fn prove_pack(vault: &Vault, key: &ObjectKey) -> Result<Proof, RepoError> {
    let trailer = object::read_trailer(vault, key, ObjectKind::Pack).await?;
    let frames = pack::frames(key, "", &trailer)?;
    if !vault.can_open(key) {
        return Ok(Proof::Trailer);
    }
    let opens = match (vault.seal(), &trailer.head) {
        (Some(seal), Some(head)) => Some(seal.content_key(key, head)?),
        _ => None,
    };
    let (mut decompressor, mut raw) = (Decompressor::default(), Vec::new());
    for frame in &frames {
        if frame.raw_bytes > FRAME_MAX_BYTES {
            return Err(RepoError::damaged(key, "a frame announces an impossible length"));
        }
        raw.resize(frame.raw_bytes as usize, 0);
        let part = Part::Range { start: frame.offset, bytes: frame.stored_bytes.into() };
        let stored = vault.storage().read(key, part).await?.bytes;
        let opened = decompressor.open(frame, &stored, opens.as_ref(), &mut raw);
        opened.map_err(|what| RepoError::damaged(key, format!("{what} (at byte {})", frame.offset)))?;
    }
    Ok(Proof::Content)
}

/// Its name and system stand in its trailer, and say under which key it must lie.
async fn prove_wal_file(vault: &Vault, key: &ObjectKey) -> Result<Proof, RepoError> {
    let trailer = object::read_trailer(vault, key, ObjectKind::WalFile).await?;
    let said: WalFileTrailer = object::from_json(key, &trailer.body)?;
    let elsewhere = || RepoError::damaged(key, format!("it holds {} of system {}", said.name, said.system_identifier));
    let cluster = key.as_str().strip_prefix(layout::CLUSTERS).and_then(|rest| rest.split('/').next());
    let cluster = Cluster::unchecked(vault.clone(), cluster.ok_or_else(elsewhere)?);
    let file = said.name.parse().map_err(|_| elsewhere())?;
    if cluster.layout().wal(said.system_identifier, &file) != *key {
        return Err(elsewhere());
    }
    if vault.can_open(key) {
        segment::fetch(&cluster, said.system_identifier, &file, &mut io::sink()).await?;
    } else {
        segment::prove_stored(&cluster, key, &said).await?;
    }
    Ok(Proof::Content)
}
