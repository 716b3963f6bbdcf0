//! What a heartbeat says, and whether the process that wrote it is still there.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::config;
use crate::owner;
use crate::repo::RepoError;
use crate::repo::document::{self, Document, first_defect};
use crate::repo::object;
use crate::repo::repository::Cluster;
use crate::storage::ObjectKey;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub operation: String,
    /// What it pins: the id of the snapshot that is being written or read.
    pub snapshot: String,
    pub host: String,
    /// Changes at every start of the host and with the namespace of processes, so that a pid of before or of elsewhere is not
    /// mistaken for one of here and now.
    pub boot: String,
    pub pid: u32,
    #[serde(default)]
    pub user: String,
    /// By the host's clock; for people.
    pub started: Timestamp,
    /// Random, of one lease.
    #[serde(default)]
    pub holder: String,
    /// 0 for what excludes nobody.
    #[serde(default)]
    pub epoch: u32,
    pub beat: u32,
    /// Seconds of silence after which the holder may be taken for gone.
    #[serde(default = "default_stale_after_s")]
    pub stale_after_s: u64,
    /// Nobody beats any more: it stands until it is stale, for somebody else who goes on with what was begun.
    #[serde(default)]
    pub left: bool,
}

fn default_stale_after_s() -> u64 {
    config::LEASE_S
}

/// What is long for a lease; the longest that is configured is minutes.
const STALE_MAX_S: u64 = 7 * 86_400;

impl Document for Beat {
    /// One that would hold for ever is none: nobody could take over.
    fn defect(&self) -> Option<String> {
        first_defect([
            (document::is_time(self.started), "its time is impossible"),
            (self.stale_after_s <= STALE_MAX_S, "its stale_after_s are impossible"),
            (self.epoch <= 99_999_999 && self.beat <= 99_999_999, "its number is impossible"),
        ])
    }
}

impl Beat {
    /// The first beat of a lease of this process, which counts as living until [`forget`].
    pub(super) fn first(cluster: &Cluster, operation: &str, snapshot: &str, epoch: u32) -> Beat {
        let holder = clock::random_hex(8);
        ours().insert(holder.clone());
        Beat {
            operation: operation.into(),
            snapshot: snapshot.into(),
            host: host(),
            boot: boot(),
            pid: std::process::id(),
            user: owner::current(),
            started: clock::now(),
            holder,
            epoch,
            beat: 1,
            stale_after_s: cluster.lease_s(),
            left: false,
        }
    }

    /// Stands for one that cannot be read: nobody knows whose it is, but its age counts.
    pub(super) fn unreadable(epoch: u32) -> Beat {
        let unknown = || "unknown".to_string();
        Beat {
            operation: unknown(),
            snapshot: String::new(),
            host: unknown(),
            boot: String::new(),
            pid: 0,
            user: unknown(),
            started: Timestamp::UNIX_EPOCH,
            holder: String::new(),
            epoch,
            beat: 0,
            stale_after_s: config::LEASE_S,
            left: false,
        }
    }

    /// The key has the holder's random name in it, or the store itself refuses one that is taken.
    pub(super) async fn put(&self, cluster: &Cluster, key: &ObjectKey) -> Result<(), RepoError> {
        object::put_own_document(cluster.vault(), key, &object::to_json(self)).await.map(|_| ())
    }

    /// Whether the holder was a process of this host that no longer runs, or a lease of this process that it gave up without
    /// being able to say so.
    pub(super) fn is_gone(&self) -> bool {
        if self.boot.is_empty() || self.host != host() || self.boot != boot() {
            return false;
        }
        if self.pid == std::process::id() {
            return !ours().contains(&self.holder);
        }
        // The file system would not do: with hidepid, /proc hides processes of other users.
        let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
        rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
    }

    /// Who it is, for people.
    pub fn who(&self) -> String {
        format!("process {} of user {} on host {}", self.pid, self.user, self.host)
    }
}

/// Leases that this process holds, by their holder's random name.
fn ours() -> MutexGuard<'static, BTreeSet<String>> {
    static OURS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lease is given up.
pub(super) fn forget(holder: &str) {
    ours().remove(holder);
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Empty when the kernel does not tell; then nothing is concluded from it.
fn boot() -> String {
    // Containers share the host's boot id, and not its processes.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let processes = std::fs::read_link("/proc/self/ns/pid");
    match (boot, processes) {
        (Ok(boot), Ok(processes)) => format!("{} {}", boot.trim(), processes.display()),
        _ => String::new(),
    }
}
