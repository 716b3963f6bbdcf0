//! The same repository in several places.
//!
//! What `storage::several` cannot know: which repository a place holds, what is about one place only, and whether two objects that
//! differ in bytes are the same. Sealed twice, the same content has other bytes; its identity is the raw content.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::RepoError;
use super::object::{self, ObjectKind};
use super::repository;
use super::segment::WalFileTrailer;
use super::vault::Vault;
use crate::storage::several::Rules;
use crate::storage::{Created, Fault, ObjectKey, Part, Storage, StorageError};

/// For [`crate::storage::several::Several`].
pub const RULES: Rules = Rules { identify, is_local };

fn identify(storage: Arc<dyn Storage>) -> BoxFuture<'static, Result<Option<String>, StorageError>> {
    async move {
        match repository::read_record(&*storage).await {
            Ok(record) => Ok(Some(record.id)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(RepoError::Storage(error)) => Err(error),
            Err(error) => {
                let (place, key) = (storage.place().to_string(), "lastgood.json".to_string());
                Err(StorageError { operation: "read", place, key, fault: Fault::Other, detail: error.to_string() })
            }
        }
    }
    .boxed()
}

/// Leases exclude in one place and by its clock; probes ask one place.
fn is_local(key: &str) -> bool {
    key.starts_with("probe/") || key.split('/').nth(2) == Some("leases")
}

/// Proves that every place is there and holds this repository: an unmounted directory would take everything and keep nothing, and
/// would say "not found" of everything.
pub async fn prove_places(storage: &dyn Storage) -> Result<(), RepoError> {
    let mut expected = None;
    for copy in storage.copies() {
        let place = || copy.place().to_string();
        let record = match object::absent(repository::read_record(&*copy).await)? {
            Some(record) => record,
            None => return Err(RepoError::NoCopy { place: place() }),
        };
        let expected = expected.get_or_insert_with(|| record.id.clone());
        if *expected != record.id {
            return Err(RepoError::OtherRepository { place: place(), found: record.id, expected: expected.clone() });
        }
    }
    Ok(())
}

/// After a create that found something there, and what was found is what was to be written: lets every place have it. A place that
/// has something else under this name is a conflict.
pub async fn settle(vault: &Vault, key: &ObjectKey) -> Result<(), RepoError> {
    let copies = vault.copies();
    let Some((first, others)) = copies.split_first() else { return Ok(()) };
    for other in others {
        let there = other.storage().stat(key).await?;
        let Some(here) = first.storage().stat(key).await? else {
            // Only a mirror has it: what the first lost comes back.
            copy(other, first, key).await?;
            continue;
        };
        match there {
            None => copy(first, other, key).await?,
            Some(there) if there.bytes == here.bytes && same_bytes(first, other, key).await? => {}
            Some(_) if same_content(first, other, key).await? => {}
            Some(_) => {
                let place = format!("{} and {}", first.storage().place(), other.storage().place());
                return Err(RepoError::Apart { key: key.clone(), place });
            }
        }
    }
    Ok(())
}

/// The caller has proven the content.
async fn copy(from: &Vault, to: &Vault, key: &ObjectKey) -> Result<(), RepoError> {
    let read = from.storage().read(key, Part::Whole).await?;
    match to.storage().create(key, crate::storage::Body::Bytes(vec![read.bytes])).await? {
        Created::New | Created::AlreadyThere => Ok(()),
    }
}

async fn same_bytes(one: &Vault, other: &Vault, key: &ObjectKey) -> Result<bool, RepoError> {
    let (one, other) = futures::try_join!(one.storage().read(key, Part::Whole), other.storage().read(key, Part::Whole))?;
    Ok(one.bytes == other.bytes)
}

/// Whether two objects of one key that differ in bytes are the same, by what trailers vouch for: what was encrypted twice, or a WAL file
/// whose writer knew its predecessor in one place and not in the other.
pub async fn same_content(one: &Vault, other: &Vault, key: &ObjectKey) -> Result<bool, RepoError> {
    match object::read_kind(&**one.storage(), key).await? {
        Some(ObjectKind::Document) => Ok(object::get_document(one, key).await? == object::get_document(other, key).await?),
        Some(ObjectKind::WalFile) => {
            let said = async |vault: &Vault| -> Result<WalFileTrailer, RepoError> {
                object::from_json(key, &object::read_trailer(vault, key, ObjectKind::WalFile).await?.body)
            };
            let (one, other) = (said(one).await?, said(other).await?);
            Ok((one.sha256, one.raw_bytes) == (other.sha256, other.raw_bytes))
        }
        _ => Ok(false),
    }
}
