//! Before a byte is copied: whether all parties speak of the same cluster, whether WAL arrives, the id, and the lease.

use std::cmp::Ordering;
use std::path::Path;
use std::time::Duration;

use super::{SnapshotError, wait};
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::apart::Apart;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory;
use crate::postgres::lsn::Timeline;
use crate::postgres::page::PAGE_BYTES;
use crate::postgres::session::{Facts, Session};
use crate::postgres::wal::name::SegmentName;
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
pub fn check(
    record: &ClusterRecord,
    session: &Session,
    facts: &Facts,
    directory: &Path,
    apart: &[Apart],
) -> Result<ControlFile, SnapshotError> {
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
    let archived = record.current().map_or(control.wal_segment_bytes, |history| history.wal_segment_bytes);
    if control.wal_segment_bytes != archived {
        return Err(SnapshotError::SegmentSize { name: record.name.clone(), here: control.wal_segment_bytes, archived });
    }
    if control.block_bytes as usize != PAGE_BYTES {
        return Err(SnapshotError::BlockSize { bytes: control.block_bytes });
    }
    // A standby that was made by a restore follows its primary, and writes no history of its own.
    let mark = directory.join(data_directory::RESTORED_MARK);
    let is_restored = mark.try_exists().map_err(|source| SnapshotError::Read { path: mark, source })?;
    if !facts.in_recovery && is_restored {
        return Err(SnapshotError::NotReleased { dir: directory.into() });
    }
    if facts.archive_mode == "off" {
        let reason = "archive_mode is off; `lastgood init` prints the settings, and this one needs a restart".into();
        return Err(SnapshotError::Archiving { reason });
    }
    let tablespaces = data_directory::tablespaces(directory)?;
    let own = data_directory::own_directory(facts.major(), control.catalog_version);
    let own = tablespaces.iter().map(|(_, dir)| dir.join(&own));
    for dir in [directory.to_path_buf()].into_iter().chain(own) {
        data_directory::check_apart(&dir, apart)?;
    }
    Ok(control)
}

/// The timeline that the server is on. After a promotion pg_control has the one before, until the checkpoint with which the snapshot begins.
pub async fn timeline(session: &Session, facts: &Facts, in_control: Timeline) -> Result<Timeline, SnapshotError> {
    if facts.in_recovery {
        return Ok(in_control);
    }
    let name = session.value("SELECT pg_walfile_name(pg_current_wal_lsn())").await?;
    Ok(name.parse().map_or(in_control, |name: SegmentName| name.timeline))
}

/// The part of an id that sorts.
fn second(id: &str) -> &str {
    id.split('-').next().unwrap_or_default()
}

/// An id from the database's clock that sorts after every id that ever was (rules 7 and 18): two in one second would not. A clock that
/// went back (or ran ahead once) does not order anything: then the id is one second after the newest.
async fn new_id(session: &Session, mut now: jiff::Timestamp, newest: Option<String>) -> Result<String, SnapshotError> {
    let newest = newest.unwrap_or_default();
    loop {
        match seconds_of(now).as_str().cmp(second(&newest)) {
            Ordering::Greater => return Ok(id_of(now)),
            Ordering::Less => return after(&newest).map(id_of).ok_or(SnapshotError::Clock { newest }),
            Ordering::Equal => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        now = session.now().await?;
    }
}

const ID_TIME: &str = "%Y%m%dT%H%M%SZ";

fn seconds_of(at: jiff::Timestamp) -> String {
    at.strftime(ID_TIME).to_string()
}

fn id_of(at: jiff::Timestamp) -> String {
    format!("{}-{}", seconds_of(at), clock::random_hex(2))
}

/// A second after the one in an id; `None` behind the last second that an id can have, or where it has none.
fn after(id: &str) -> Option<jiff::Timestamp> {
    let at = jiff::civil::DateTime::strptime(ID_TIME, second(id)).ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    let next = at.checked_add(jiff::SignedDuration::from_secs(1)).ok()?;
    Some(next).filter(|next| seconds_of(*next).as_str() > second(id))
}

/// What to say when the ids of this cluster are ahead of the database's clock.
pub fn ahead(id: &str, now: jiff::Timestamp) -> Option<String> {
    let at = after(id)?;
    let hours = at.duration_since(now).as_hours();
    (hours >= 1).then(|| {
        format!(
            "the database's clock ({now:.0}) is {hours} h behind the newest snapshot: one was taken while a clock ran ahead; ids go on \
             after it, one second each, and what matters is ordered by LSN"
        )
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_sorts_after_those_of_a_clock_that_ran_ahead() {
        let id = |id: &str| after(id).map(seconds_of);
        assert_eq!(id("20280105T235959Z-ab12").as_deref(), Some("20280106T000000Z"));
        assert_eq!(id("20280228T235959Z-ab12").as_deref(), Some("20280229T000000Z"));
        for none in ["", "99991231T235959Z-ab12", "x"] {
            assert_eq!(id(none), None, "{none}");
        }
        let now = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        assert!(ahead("20280105T235959Z-ab12", now("2026-12-01T00:00:00Z")).unwrap().contains("9624 h behind"));
        assert_eq!(ahead("20261201T000000Z-ab12", now("2026-12-01T00:30:00Z")), None);
    }
}
