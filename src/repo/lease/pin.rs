//! A lease that excludes nobody: it says what somebody reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::BEATS_PER_LEASE;
use super::beat::{self, Beat};
use crate::repo::RepoError;
use crate::repo::repository::Cluster;
use crate::storage::{Fault, ObjectKey};

/// A pin that this process holds and keeps beating; it ends with [`Lease::release`], or by growing stale.
#[derive(Debug)]
pub struct Lease {
    cluster: Cluster,
    name: String,
    snapshot: String,
    holder: String,
    standing: Arc<Standing>,
    beats: Option<JoinHandle<()>>,
}

impl Lease {
    /// `operation` must not be that of another pin on the same snapshot: it carries something random.
    pub async fn take(cluster: &Cluster, operation: &str, snapshot: &str) -> Result<Lease, RepoError> {
        let first = Beat::first(cluster, operation, snapshot, 0);
        let name = format!("{operation}-{snapshot}");
        let holder = first.holder.clone();
        // From here on it is given up by being dropped, also when the first beat fails or is not waited for.
        let standing = Arc::new(Standing(Mutex::new(vec![1])));
        let mut lease = Lease {
            cluster: cluster.clone(),
            name: name.clone(),
            snapshot: snapshot.into(),
            holder,
            standing: standing.clone(),
            beats: None,
        };
        first.put(cluster, &cluster.layout().pin(&name, 1)).await?;
        lease.beats = Some(tokio::spawn(keep_beating(cluster.clone(), name, first, standing)));
        Ok(lease)
    }

    /// Gives the lease up. A beat that cannot be deleted grows stale.
    pub async fn release(mut self) {
        self.stop().await;
        let _ = self.cluster.storage().delete(&self.standing.keys(&self.cluster, &self.name)).await;
    }

    /// Ends the work and leaves the pin standing for `hold`, whatever becomes of this process: somebody else goes on with what was
    /// begun, like a server that replays WAL after a restore. Where that cannot be written, the lease is given up.
    pub async fn leave(mut self, operation: &str, hold: Duration) {
        self.stop().await;
        let before = self.standing.keys(&self.cluster, &self.name);
        let first = Beat::first(&self.cluster, operation, &self.snapshot, 0);
        beat::forget(&first.holder);
        // Without a boot id nobody takes the end of this process for the end of the work.
        let rest = Beat { boot: String::new(), beat: self.standing.next(), stale_after_s: hold.as_secs(), left: true, ..first };
        let _ = rest.put(&self.cluster, &self.cluster.layout().pin(&self.name, rest.beat)).await;
        let _ = self.cluster.storage().delete(&before).await;
    }

    /// Comes back when no further beat can be sent.
    async fn stop(&mut self) {
        if let Some(beats) = self.beats.take() {
            beats.abort();
            let _ = beats.await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(beats) = &self.beats {
            beats.abort();
        }
        beat::forget(&self.holder);
    }
}

async fn keep_beating(cluster: Cluster, name: String, mut beat: Beat, standing: Arc<Standing>) {
    loop {
        tokio::time::sleep(Duration::from_secs(beat.stale_after_s) / BEATS_PER_LEASE).await;
        let before = standing.keys(&cluster, &name);
        // Counted before it is sent: after an unclear answer it may stand there.
        beat.beat = standing.next();
        if beat.put(&cluster, &cluster.layout().pin(&name, beat.beat)).await.is_err() {
            // The next beat tries again; until the lease is stale nobody acts on its absence.
            continue;
        }
        let is_passing = match cluster.storage().delete(&before).await {
            Ok(failed) => failed.iter().any(|(_, error)| error.fault == Fault::Transient),
            Err(error) => error.fault == Fault::Transient,
        };
        // Where deleting is not allowed it never will be: those are not tried again and again.
        if !is_passing {
            standing.keep_only(beat.beat);
        }
    }
}

/// Numbers of the beats that may stand there: one, and those that could not be deleted or whose answer was lost.
#[derive(Debug)]
struct Standing(Mutex<Vec<u32>>);

impl Standing {
    fn beats(&self) -> MutexGuard<'_, Vec<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self, cluster: &Cluster, name: &str) -> Vec<ObjectKey> {
        self.beats().iter().map(|beat| cluster.layout().pin(name, *beat)).collect()
    }

    fn next(&self) -> u32 {
        let mut beats = self.beats();
        let next = beats.last().map_or(1, |last| last.saturating_add(1));
        beats.push(next);
        next
    }

    fn keep_only(&self, beat: u32) {
        self.beats().retain(|other| *other == beat);
    }
}
