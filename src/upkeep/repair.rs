//! Puts a sound copy in the place of what is damaged or missing.
//!
//! An object is written once and never changed, so a damaged one must go before a sound one can come. It goes only when the sound one
//! is at hand, proven to the last raw byte; and only under the lease that whoever deletes must hold. A crash in between leaves it
//! missing here and sound there, and the next repair goes on.
//!
//! Where deletion is refused (a lock on the object, or no such right), the damaged one stays, and reading goes by the other repository.
//! In a bucket with versions, deletion hides the damaged version and keeps it until its lock ends; and what is missing because it was
//! deleted there comes back from the bucket itself, by removing the marker of that deletion.

use serde::Serialize;

use super::hidden;
use super::mirror::prove_elsewhere;
use crate::repo::RepoError;
use crate::repo::lease::{BACKUP, Exclusive};
use crate::repo::proof::Proof;
use crate::repo::repository::Cluster;
use crate::repo::vault::Vault;
use crate::storage::{Fault, ObjectKey, StorageError};

/// What became of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Repaired {
        from: String,
    },
    /// It is what it says: the trouble is another one.
    Sound,
    /// No sound copy, or none that could be put here; why.
    Left {
        why: String,
    },
}

/// Repairs `objects` of the cluster's repository from others, by name.
pub async fn repair(
    cluster: &Cluster,
    others: &[(String, Vault)],
    objects: &[String],
) -> Result<Vec<(String, Outcome)>, RepoError> {
    let lease = Exclusive::take(cluster, BACKUP, "repair", "objects").await?;
    let fenced = lease.cluster();
    let mut outcomes = Vec::new();
    let mut failed = None;
    for object in objects {
        let repaired = tokio::select! {
            repaired = one(&fenced, others, object) => repaired,
            lost = lease.lost() => Err(lost),
        };
        match repaired {
            Ok(outcome) => outcomes.push((object.clone(), outcome)),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    lease.release().await;
    failed.map_or(Ok(outcomes), Err)
}

async fn one(cluster: &Cluster, others: &[(String, Vault)], object: &str) -> Result<Outcome, RepoError> {
    let left = |why: String| Ok(Outcome::Left { why });
    // A window that ends is named by what it is, not by a key.
    if !ObjectKey::is_valid(object) || !object.contains('/') {
        return left("it is no object".into());
    }
    let key = ObjectKey::new(object);
    let is_there = match prove_elsewhere(cluster.vault(), &key).await {
        Ok(Some((_, Proof::Content))) => return Ok(Outcome::Sound),
        Ok(Some((_, Proof::Trailer))) => return left("whether it is damaged cannot be told with a writer's key".into()),
        Ok(None) => match uncover(cluster, &key).await? {
            Some(repaired @ Outcome::Repaired { .. }) => return Ok(repaired),
            // An older version that is damaged too.
            Some(_) => true,
            None => false,
        },
        Err(error) if error.is_damage() => true,
        // Nobody deletes what is there and only has to be thawed.
        Err(error) if error.is_frozen() => return left(error.to_string()),
        Err(error) => return Err(error),
    };
    let mut why = "no other repository has it".to_string();
    if let Some(bucket) = cluster.storage().bucket()
        && let Some(before) = hidden::before(bucket, &key).await
    {
        why.push_str(&format!("; {before}"));
    }
    for (name, vault) in others {
        let staged = match prove_elsewhere(vault, &key).await {
            Ok(Some((staged, Proof::Content))) => staged,
            Ok(Some((_, Proof::Trailer))) => {
                why = format!("the copy in {name} cannot be proven with a writer's key");
                continue;
            }
            Ok(None) => continue,
            Err(error) => {
                why = format!("the copy in {name}: {error}");
                continue;
            }
        };
        if is_there && let Some(error) = make_room(cluster, &key).await {
            return left(format!("{name} has a sound copy, and the damaged one cannot be deleted: {error}"));
        }
        if !staged.create_in(cluster.storage()).await? {
            return left("it cannot be replaced: a deleted name is still taken".into());
        }
        return match prove_elsewhere(cluster.vault(), &key).await? {
            Some(_) => Ok(Outcome::Repaired { from: name.clone() }),
            None => left("it was written and is not there: this store does not keep what it takes".into()),
        };
    }
    left(why)
}

/// Deletes what is damaged; answers why not. Older versions are no concern of a repair, and a locked one must only be hidden.
async fn make_room(cluster: &Cluster, key: &ObjectKey) -> Option<StorageError> {
    if let Some(bucket) = cluster.storage().bucket() {
        return bucket.hide(key).await.err();
    }
    let refused = cluster.storage().delete(std::slice::from_ref(key)).await;
    refused.map_or_else(Some, |keys| keys.into_iter().next().map(|(_, error)| error))
}

/// From the bucket itself. What comes back is proven as everything else, and is seen again whatever the proof says: there was
/// nothing in its place.
async fn uncover(cluster: &Cluster, key: &ObjectKey) -> Result<Option<Outcome>, RepoError> {
    let Some(bucket) = cluster.storage().bucket() else { return Ok(None) };
    match bucket.uncover(key).await {
        Ok(true) => {}
        // Not every store has versions, and not every host may see them.
        Ok(false) => return Ok(None),
        Err(error) if matches!(error.fault, Fault::Denied | Fault::Other) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    match prove_elsewhere(cluster.vault(), key).await {
        Ok(Some(_)) => Ok(Some(Outcome::Repaired { from: "an older version in the same bucket".into() })),
        Ok(None) => Ok(None),
        Err(error) if error.is_damage() => Ok(Some(Outcome::Left { why: error.to_string() })),
        Err(error) => Err(error),
    }
}
