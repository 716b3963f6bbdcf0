//! A lease that excludes nobody: it says what somebody reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::BEATS_PER_LEASE;
use super::beat::{self, Beat};
use crate::repo::RepoError;
use crate::repo::repository::Cluster;
use crate::storage::ObjectKey;

/// A pin that this process holds and keeps beating; it ends with [`Lease::release`], or by growing stale.
#[derive(Debug)]
pub struct Lease {
    cluster: Cluster,
    name: String,
    snapshot: String,
    holder: String,
    /// The last beat that was sent, or is about to be.
    newest: Arc<AtomicU32>,
    beats: Option<JoinHandle<()>>,
}

impl Lease {
    /// `operation` must not be that of another pin on the same snapshot: it carries something random.
    pub async fn take(cluster: &Cluster, operation: &str, snapshot: &str) -> Result<Lease, RepoError> {
        let first = Beat::first(cluster, operation, snapshot, 0);
        let name = format!("{operation}-{snapshot}");
        let holder = first.holder.clone();
        // From here on it is given up by being dropped, also when the first beat fails or is not waited for.
        let newest = Arc::new(AtomicU32::new(1));
        let mut lease = Lease {
            cluster: cluster.clone(),
            name: name.clone(),
            snapshot: snapshot.into(),
            holder,
            newest: newest.clone(),
            beats: None,
        };
        first.put(cluster, &cluster.layout().pin(&name, 1)).await?;
        lease.beats = Some(tokio::spawn(keep_beating(cluster.clone(), name, first, newest)));
        Ok(lease)
    }

    /// Gives the lease up. A beat that cannot be deleted grows stale.
    pub async fn release(mut self) {
        self.stop();
        let _ = self.cluster.storage().delete(&self.standing()).await;
    }

    /// The beats that may stand there: the last one, and the one before where the deletion that follows a beat was not done.
    fn standing(&self) -> Vec<ObjectKey> {
        let newest = self.newest.load(Ordering::Acquire);
        (newest.saturating_sub(1).max(1)..=newest).map(|beat| self.cluster.layout().pin(&self.name, beat)).collect()
    }

    /// Ends the work and leaves the pin standing for `hold`, whatever becomes of this process: somebody else goes on with what was
    /// begun, like a server that replays WAL after a restore. Where that cannot be written, the lease is given up.
    pub async fn leave(mut self, operation: &str, hold: Duration) {
        self.stop();
        let last = self.newest.load(Ordering::Acquire);
        let first = Beat::first(&self.cluster, operation, &self.snapshot, 0);
        beat::forget(&first.holder);
        // Without a boot id nobody takes the end of this process for the end of the work.
        let rest = Beat { boot: String::new(), beat: last + 1, stale_after_s: hold.as_secs(), ..first };
        let _ = rest.put(&self.cluster, &self.cluster.layout().pin(&self.name, rest.beat)).await;
        let _ = self.cluster.storage().delete(&self.standing()).await;
    }

    fn stop(&mut self) {
        if let Some(beats) = self.beats.take() {
            beats.abort();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop();
        beat::forget(&self.holder);
    }
}

async fn keep_beating(cluster: Cluster, name: String, mut beat: Beat, newest: Arc<AtomicU32>) {
    loop {
        tokio::time::sleep(Duration::from_secs(beat.stale_after_s) / BEATS_PER_LEASE).await;
        let before = cluster.layout().pin(&name, beat.beat);
        beat.beat += 1;
        newest.store(beat.beat, Ordering::Release);
        if beat.put(&cluster, &cluster.layout().pin(&name, beat.beat)).await.is_err() {
            // The next beat tries again; until the lease is stale nobody acts on its absence.
            continue;
        }
        let _ = cluster.storage().delete(&[before]).await;
    }
}
