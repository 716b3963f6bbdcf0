//! `lastgood.json` written again, where everything else of a repository is there.
//!
//! # When
//! Only where objects of clusters lie, and the store has said that `lastgood.json` is not there, or what is there is no such record.
//! Never in an empty place, and never after an error.
//!
//! # From what
//! A mirror's record is the same, id included, so it is taken first. Without one, the objects tell whether they are encrypted. The
//! keyring, or an exported key, then holds the repository's id: objects open with no other. Nothing holds the id of a repository
//! that is not encrypted: it gets a new one, and mirrors that nobody named keep the old one.

use std::sync::Arc;

use super::object::{self, absent};
use super::record::RepositoryRecord;
use super::repository::{self, read_record};
use super::seal::CIPHER;
use super::seal::keyring;
use super::seal::keys::Keys;
use super::vault::Vault;
use super::{FORMAT_VERSION, RepoError, layout};
use crate::clock;
use crate::storage::{Created, Depth, ObjectKey, Storage, list_all};

/// Objects of each cluster that are looked at, to see whether they are encrypted and open.
const SAMPLES: usize = 8;

/// Where the repository's id came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Mirror(String),
    /// Keyring or exported key.
    Keys,
    /// Nothing holds it.
    New,
}

/// Writes `lastgood.json` again; `None` where it is there and whole. `mirrors` are by name.
pub async fn repository_record(
    storage: &Arc<dyn Storage>,
    keys: &Keys,
    mirrors: &[(String, Arc<dyn Storage>)],
) -> Result<Option<(RepositoryRecord, Origin)>, RepoError> {
    let is_damaged = match absent(read_record(&**storage).await) {
        Ok(Some(_)) => return Ok(None),
        Ok(None) => false,
        Err(RepoError::Damaged { .. }) => true,
        Err(error) => return Err(error),
    };
    let samples = samples(&**storage).await?;
    if samples.is_empty() {
        return Err(RepoError::NothingToRebuild { place: storage.place().into() });
    }
    let sealed = is_sealed(&**storage, &samples).await?;
    let (record, origin) = match from_mirrors(&samples, mirrors).await? {
        Some(found) => found,
        None => from_objects(storage, keys, sealed).await?,
    };
    if (record.seal != "none") != sealed {
        let what = "a mirror says otherwise of its encryption than the objects that are here";
        return Err(RepoError::damaged(&layout::repository(), what));
    }
    prove(storage, keys, &record, &samples).await?;
    if is_damaged {
        make_room(&**storage).await?;
    }
    let mut json = serde_json::to_vec_pretty(&record).expect("our own types are JSON");
    json.push(b'\n');
    match storage.create(&layout::repository(), json.into()).await? {
        Created::New => Ok(Some((record, origin))),
        // Somebody else was quicker; theirs counts.
        Created::AlreadyThere => Ok(Some((read_record(&**storage).await?, origin))),
    }
}

/// Whether clusters' objects lie there: then a `lastgood.json` that is not there was lost.
pub async fn holds_clusters(storage: &dyn Storage) -> Result<bool, RepoError> {
    Ok(!storage.list(layout::CLUSTERS, None, Depth::Folder).await?.folders.is_empty())
}

/// Manifests, tables and records: some of each cluster.
async fn samples(storage: &dyn Storage) -> Result<Vec<ObjectKey>, RepoError> {
    let mut samples = Vec::new();
    for cluster in list_all(storage, layout::CLUSTERS, Depth::Folder).await?.folders {
        for folder in ["snapshots/", "record/", "files/", "wal/"] {
            let page = storage.list(&format!("{}{cluster}{folder}", layout::CLUSTERS), None, Depth::All).await?;
            samples.extend(page.objects.into_iter().take(SAMPLES).map(|object| object.key));
        }
    }
    Ok(samples)
}

async fn is_sealed(storage: &dyn Storage, samples: &[ObjectKey]) -> Result<bool, RepoError> {
    let mut found = None;
    for key in samples {
        if let Some(sealed) = object::read_sealed(storage, key).await? {
            if found.is_some_and(|before| before != sealed) {
                return Err(RepoError::damaged(key, "some objects are encrypted here and others are not"));
            }
            found = Some(sealed);
        }
    }
    found.ok_or_else(|| RepoError::damaged(&samples[0], "no object can be read that would tell whether they are encrypted"))
}

/// The record of a mirror that has the same objects.
async fn from_mirrors(
    samples: &[ObjectKey],
    mirrors: &[(String, Arc<dyn Storage>)],
) -> Result<Option<(RepositoryRecord, Origin)>, RepoError> {
    for (name, mirror) in mirrors {
        let Some(record) = absent(read_record(&**mirror).await)? else { continue };
        for key in samples {
            if mirror.stat(key).await?.is_some() {
                return Ok(Some((record, Origin::Mirror(name.clone()))));
            }
        }
    }
    Ok(None)
}

async fn from_objects(storage: &Arc<dyn Storage>, keys: &Keys, sealed: bool) -> Result<(RepositoryRecord, Origin), RepoError> {
    let known = match (sealed, keyring::newest(storage).await?, keys.offline()?) {
        (false, ..) => None,
        (true, Some(keyring), _) => Some((keyring.repository.clone(), keyring.key_id())),
        (true, None, Some(seal)) => Some((seal.repository().to_string(), seal.key_id().to_string())),
        (true, None, None) => return Err(RepoError::Sealed { key: layout::repository() }),
    };
    let origin = if known.is_some() { Origin::Keys } else { Origin::New };
    let (id, key_id) = known.unzip();
    let record = RepositoryRecord {
        repository: "lastgood".into(),
        format: FORMAT_VERSION.into(),
        minimum_reader: 1,
        id: id.unwrap_or_else(|| clock::random_hex(16)),
        created: clock::now(),
        seal: if sealed { CIPHER.into() } else { "none".into() },
        key_id,
        conditional_create: repository::proves_conditional_create(&**storage).await?,
    };
    Ok((record, origin))
}

/// That the keys at hand open what lies here, under this id: the first object that is whole decides.
async fn prove(
    storage: &Arc<dyn Storage>,
    keys: &Keys,
    record: &RepositoryRecord,
    samples: &[ObjectKey],
) -> Result<(), RepoError> {
    let vault = Vault::new(storage.clone(), keys.open(storage, record).await?);
    let mut last = None;
    for key in samples.iter().filter(|key| !key.as_str().contains("/wal/") || vault.seal().is_none()) {
        let read = match object::read_kind(&**storage, key).await? {
            Some(kind) => object::read_trailer(&vault, key, kind).await,
            None => continue,
        };
        match read {
            Ok(_) => return Ok(()),
            Err(error) if error.is_damage() => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| RepoError::damaged(&samples[0], "no object can be read that would prove the keys")))
}

async fn make_room(storage: &dyn Storage) -> Result<(), RepoError> {
    let key = layout::repository();
    if let Some(bucket) = storage.bucket() {
        return Ok(bucket.hide(&key).await?);
    }
    match storage.delete(std::slice::from_ref(&key)).await?.pop() {
        Some((_, error)) => Err(error.into()),
        None => Ok(()),
    }
}
