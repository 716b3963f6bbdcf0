//! Leases: who is at work on a cluster, on whatever host.
//!
//! Objects are never changed, so a heartbeat is a new object: `leases/<holder>/<beat>`. The newest beat counts; older ones are
//! deleted when that is allowed. A lease is stale when its newest beat is older than [`STALE_AFTER_S`], or when it was taken on this
//! host, since its last start, in this namespace of processes, by a process that is gone. A lease protects from waste, not from
//! loss: a snapshot looks for all its packs before it commits.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::RepoError;
use super::object;
use super::repository::Cluster;
use crate::clock;
use crate::storage::{Depth, ObjectKey, list_all};

/// Seconds between two beats.
pub const BEAT_S: u64 = 60;
/// A holder that missed this many seconds of beats is gone.
pub const STALE_AFTER_S: i64 = 15 * 60;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub operation: String,
    /// What it pins: the id of the snapshot that is being written or read.
    pub snapshot: String,
    pub host: String,
    /// Changes at every start of the host, so that a pid of before is not mistaken for one of now.
    pub boot: String,
    pub pid: u32,
    pub started: Timestamp,
    pub beat: u32,
}

/// A lease that this process holds and keeps beating; it ends with [`Lease::release`], or by growing stale.
#[derive(Debug)]
pub struct Lease {
    cluster: Cluster,
    holder: String,
    beats: JoinHandle<()>,
}

impl Lease {
    pub async fn take(cluster: &Cluster, operation: &str, snapshot: &str) -> Result<Lease, RepoError> {
        let first = Beat {
            operation: operation.into(),
            snapshot: snapshot.into(),
            host: host(),
            boot: boot(),
            pid: std::process::id(),
            started: clock::now(),
            beat: 1,
        };
        let holder = format!("{operation}-{snapshot}");
        put(cluster, &holder, &first).await?;
        let beats = tokio::spawn(keep_beating(cluster.clone(), holder.clone(), first));
        Ok(Lease { cluster: cluster.clone(), holder, beats })
    }

    /// Gives the lease up. A beat that cannot be deleted grows stale.
    pub async fn release(self) {
        self.beats.abort();
        let prefix = format!("{}{}/", self.cluster.layout().leases(), self.holder);
        if let Ok(page) = list_all(self.cluster.storage(), &prefix, Depth::All).await {
            let keys: Vec<ObjectKey> = page.objects.into_iter().map(|o| o.key).collect();
            let _ = self.cluster.storage().delete(&keys).await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

async fn put(cluster: &Cluster, holder: &str, beat: &Beat) -> Result<(), RepoError> {
    let key = cluster.layout().lease(holder, beat.beat);
    object::put_document(cluster.vault(), &key, &object::to_json(beat)).await.map(|_| ())
}

async fn keep_beating(cluster: Cluster, holder: String, mut beat: Beat) {
    loop {
        tokio::time::sleep(Duration::from_secs(BEAT_S)).await;
        let before = cluster.layout().lease(&holder, beat.beat);
        beat.beat += 1;
        if put(&cluster, &holder, &beat).await.is_err() {
            // The next beat tries again; until the lease is stale nobody acts on its absence.
            continue;
        }
        let _ = cluster.storage().delete(&[before]).await;
    }
}

/// Ids of the snapshots that living leases pin, and the keys of stale beats.
pub async fn pinned(cluster: &Cluster) -> Result<(Vec<String>, Vec<ObjectKey>), RepoError> {
    let page = list_all(cluster.storage(), &cluster.layout().leases(), Depth::All).await?;
    let (mut living, mut stale) = (Vec::new(), Vec::new());
    for object in page.objects {
        // A beat may be replaced while we look; then the next one pins the same.
        let Some(raw) = object::absent(object::get_document(cluster.vault(), &object.key).await)? else { continue };
        let beat: Beat = object::from_json(&object.key, &raw)?;
        let age_s = clock::now().duration_since(object.modified).as_secs();
        if age_s > STALE_AFTER_S || is_gone(&beat) { stale.push(object.key) } else { living.push(beat.snapshot) }
    }
    Ok((living, stale))
}

/// Whether the holder was a process of this host that no longer runs.
fn is_gone(beat: &Beat) -> bool {
    beat.host == host() && beat.boot == boot() && !std::path::Path::new("/proc").join(beat.pid.to_string()).exists()
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Containers share the host's boot id, and not its processes.
    let processes = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), processes.display())
}
