//! Whether a bucket's versions and locks are what the configuration takes them for.
//!
//! Nothing is written to find out but a lock for longer on the repository's own record, which nobody ever deletes.

use super::check::Findings;
use super::hidden;
use crate::repo::RepoError;
use crate::repo::layout;
use crate::repo::locks::days_after;
use crate::repo::repository::Cluster;
use crate::storage::bucket::{Bucket, Lock, Protection};
use crate::storage::{Fault, Storage};

/// Of a place that is a bucket; others have nothing to say.
pub async fn check(findings: &mut Findings, storage: &dyn Storage) {
    let Some(bucket) = storage.bucket() else { return };
    let protection = match bucket.protection().await {
        Ok(protection) => protection,
        Err(error) if error.fault == Fault::Denied && bucket.lock().is_none() && !bucket.deletes_versions() => {
            let what = "whether the bucket keeps versions and has locks is not known here (s3:GetBucketVersioning)";
            return findings.ok("versions", what);
        }
        Err(error) => {
            let mend = "give this host s3:GetBucketVersioning and s3:GetBucketObjectLockConfiguration, for the bucket";
            return findings.fail(
                "versions",
                format!("the bucket is not what it is configured for, or does not tell: {error}"),
                mend,
            );
        }
    };
    versions(findings, protection, bucket.deletes_versions());
    match (bucket.lock(), protection.has_lock) {
        (Some(lock), true) => locks(findings, bucket, lock).await,
        (Some(lock), false) => findings.fail(
            "locks",
            format!(
                "object_lock_days is {}, and the bucket has no Object Lock: it takes nothing that is to be locked",
                lock.days
            ),
            "turn on versioning and Object Lock for the bucket, or take object_lock_days out of [repository.s3]",
        ),
        (None, true) => findings.warn(
            "locks",
            "the bucket has Object Lock, and nothing is locked or planned for it from here",
            "set object_lock_days under [repository.s3], on every host the same",
        ),
        (None, false) => {}
    }
}

fn versions(findings: &mut Findings, protection: Protection, deletes_versions: bool) {
    match (protection.keeps_versions, deletes_versions) {
        (true, true) => findings.ok("versions", "the bucket keeps versions, and what is deleted from here goes with all of them"),
        (true, false) => findings.ok("versions", "the bucket keeps versions, so what is deleted from here is only hidden"),
        (false, true) => {
            let mend = "turn on versioning for the bucket, or take delete_versions out of [repository.s3]";
            findings.warn("versions", "delete_versions is set, and the bucket keeps no versions", mend);
        }
        (false, false) => findings.ok("versions", "the bucket keeps no versions: what is deleted or overwritten is gone"),
    }
}

/// The right to lock for longer, proven by using it; never to shorten.
async fn locks(findings: &mut Findings, bucket: &dyn Bucket, lock: Lock) {
    let key = layout::repository();
    let wanted = days_after(lock.now, lock.days);
    let known = bucket.locked_until(&key).await.ok().flatten();
    let until = known.map_or(wanted, |known| known.max(wanted));
    let mend = "give this host s3:PutObjectRetention and s3:GetObjectRetention (docs/policies: object-lock)";
    let refused = match bucket.extend(std::slice::from_ref(&key), until).await {
        Ok(failed) => failed.into_iter().next().map(|(_, error)| error),
        Err(error) => Some(error),
    };
    if let Some(error) = refused {
        return findings.fail("locks", format!("objects cannot be locked for longer from here: {error}"), mend);
    }
    match bucket.locked_until(&key).await {
        Ok(Some(_)) => findings.ok("locks", format!("objects are locked for {} days, and can be locked for longer", lock.days)),
        Ok(None) => findings.fail("locks", "how long objects are locked cannot be seen from here", mend),
        Err(error) => findings.fail("locks", error.to_string(), "see the message"),
    }
}

/// Snapshots that somebody deleted, and that can be brought back.
pub async fn snapshots(findings: &mut Findings, cluster: &Cluster) -> Result<(), RepoError> {
    let Some(bucket) = cluster.storage().bucket() else { return Ok(()) };
    match hidden::snapshots(cluster, bucket).await {
        Ok(hidden) => {
            for one in hidden {
                let mend = "`lastgood verify --repair` brings it back; find out who deletes here";
                findings.fail("versions", format!("snapshot {}: {}", one.snapshot, one.describe()), mend);
            }
            Ok(())
        }
        // Not every host may see versions, and not every store has them.
        Err(RepoError::Storage(error)) if matches!(error.fault, Fault::Denied | Fault::Other) => Ok(()),
        Err(error) => Err(error),
    }
}
