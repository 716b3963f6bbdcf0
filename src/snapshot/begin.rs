//! Before a byte is copied: whether all parties speak of the same cluster, whether WAL arrives, the id, and the lease.

use std::cmp::Ordering;
use std::path::Path;
use std::time::Duration;

use super::{SnapshotError, wait};
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory;
use crate::postgres::page::PAGE_BYTES;
use crate::postgres::session::{Facts, Session};
use crate::repo::lease::{BACKUP, Exclusive};
use crate::repo::record::ClusterRecord;
use crate::repo::repository::Cluster;

/// What a snapshot begins with.
pub struct Begun {
    pub id: String,
    /// To write under.
    pub lease: Exclusive,
    /// Of all snapshots before this one, oldest first.
    pub ids: Vec<String>,
}

/// The id and the lease to write under it. `newest` is the last snapshot as far as it is known.
pub async fn begin(
    cluster: &Cluster,
    session: &Session,
    mut now: jiff::Timestamp,
    mut newest: Option<String>,
) -> Result<Begun, SnapshotError> {
    loop {
        let id = new_id(session, now, newest).await?;
        let lease = Exclusive::take(cluster, BACKUP, "backup", &id).await?;
        // What is known may be old; ours must sort after all that there are.
        match cluster.snapshot_ids().await {
            Ok(ids) if ids.last().is_none_or(|last| second(last) < second(&id)) => return Ok(Begun { id, lease, ids }),
            Ok(mut ids) => {
                lease.release().await;
                newest = ids.pop();
            }
            Err(error) => {
                lease.release().await;
                return Err(error.into());
            }
        }
        now = session.now().await?;
    }
}

/// Server, data directory and repository speak of the same cluster (rules 3 and 15).
pub fn check(record: &ClusterRecord, session: &Session, facts: &Facts, directory: &Path) -> Result<ControlFile, SnapshotError> {
    let (control, _) = ControlFile::read_bytes_stable(directory)?;
    if control.system_identifier != facts.system_identifier {
        return Err(SnapshotError::OtherDirectory {
            dir: directory.into(),
            found: control.system_identifier,
            target: session.target().into(),
            expected: facts.system_identifier,
        });
    }
    if record.current().is_none_or(|h| h.system_identifier != facts.system_identifier) {
        return Err(SnapshotError::Unregistered {
            name: record.name.clone(),
            known: record.histories.iter().map(|h| h.system_identifier).collect(),
            found: facts.system_identifier,
        });
    }
    if control.block_bytes as usize != PAGE_BYTES {
        return Err(SnapshotError::BlockSize { bytes: control.block_bytes });
    }
    // A standby that was made by a restore follows its primary, and writes no history of its own.
    if !facts.in_recovery && directory.join(data_directory::RESTORED_MARK).exists() {
        return Err(SnapshotError::NotReleased { dir: directory.into() });
    }
    if facts.archive_mode == "off" {
        let reason = "archive_mode is off; `lastgood init` prints the settings, and this one needs a restart".into();
        return Err(SnapshotError::Archiving { reason });
    }
    data_directory::tablespaces(directory)?;
    Ok(control)
}

/// The part of an id that sorts.
fn second(id: &str) -> &str {
    id.split('-').next().unwrap_or_default()
}

/// An id from the database's clock that sorts after every id that ever was (rules 7 and 18): two in one second would not.
async fn new_id(session: &Session, mut now: jiff::Timestamp, newest: Option<String>) -> Result<String, SnapshotError> {
    let newest = newest.unwrap_or_default();
    loop {
        let id = format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), clock::random_hex(2));
        match second(&id).cmp(second(&newest)) {
            Ordering::Greater => return Ok(id),
            Ordering::Less => return Err(SnapshotError::Clock { id, newest }),
            Ordering::Equal => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        now = session.now().await?;
    }
}

/// Whether WAL reaches the repository; a standby cannot be asked for a segment.
pub async fn prove_archiving(
    cluster: &Cluster,
    server: wait::Server<'_>,
    facts: &Facts,
    timeout: Duration,
    monitor: &dyn Monitor,
) -> Result<(), SnapshotError> {
    if facts.in_recovery {
        return Ok(());
    }
    monitor.phase("check archiving", 0);
    wait::prove_archiving(cluster, server, timeout).await.map(drop)
}
