//! Keeping what a restore reads from expiring, before it touches anything.

use std::time::Duration;

use super::RestoreError;
use super::plan::Plan;
use crate::monitor::Monitor;
use crate::repo::RepoError;
use crate::repo::lease::Lease;
use crate::repo::manifest::FileLine;
use crate::repo::repository::Cluster;
use crate::storage::Fault;

/// How long a restored server is given to fetch its WAL, from a Friday evening to the look at it on Monday: until then nothing that
/// it needs is expired.
pub const RECOVERY_HOLD: Duration = Duration::from_secs(72 * 3600);

/// What is read from here on is kept from expiring, and its first list of files was read.
#[derive(Debug)]
pub struct Pinned {
    /// Absent where the repository cannot be written; a restore must not fail for that.
    pub(super) lease: Option<Lease>,
    pub(super) first: Vec<FileLine>,
}

/// Pins what the plan needs. Touches nothing but the repository.
pub async fn pin(cluster: &Cluster, plan: &Plan, monitor: &dyn Monitor) -> Result<Pinned, RestoreError> {
    let lease = async {
        let lease = match Lease::take(cluster, &format!("restore-{}", crate::clock::random_hex(4)), &plan.snapshot).await {
            Ok(lease) => Some(lease),
            Err(RepoError::Storage(error)) if matches!(error.fault, Fault::Denied | Fault::ReadOnly | Fault::Full) => {
                monitor.warn(&format!("{error}; the restore goes on without a lease: let nothing expire meanwhile"));
                None
            }
            Err(error) => return Err(error),
        };
        // Whoever expires deletes the manifest and then looks for leases; we look for the manifest after taking ours.
        let there = cluster.storage().stat(&cluster.layout().manifest(&plan.snapshot)).await;
        Ok((lease, there))
    };
    let (pinned, first) = tokio::join!(lease, plan.manifest().files(cluster, 0));
    let (lease, there) = pinned?;
    let first = match there.map_err(RepoError::from) {
        Ok(Some(_)) => first.map_err(RestoreError::from),
        Ok(None) => Err(RestoreError::Expired { snapshot: plan.snapshot.clone() }),
        Err(error) => Err(error.into()),
    };
    let pinned = Pinned { lease, first: Vec::new() };
    match first {
        Ok(first) => Ok(Pinned { first, ..pinned }),
        Err(error) => {
            pinned.release().await;
            Err(error)
        }
    }
}

impl Pinned {
    pub(super) async fn release(self) {
        if let Some(lease) = self.lease {
            lease.release().await;
        }
    }
}
