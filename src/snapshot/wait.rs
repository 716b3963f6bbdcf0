//! Waiting for WAL to reach the repository, with a deadline and the reason when it does not come (rules 1, 5, 17).

use std::time::Duration;

use super::SnapshotError;
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::lsn::SystemId;
use crate::postgres::session::Session;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::manifest::SegmentLine;
use crate::repo::object;
use crate::repo::repository::Cluster;
use crate::repo::segment;

/// Pauses between two looks: an eighth of what was waited already, so that what arrives is seen little later than it arrived.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Waits until a segment is in the repository; answers its checksum.
pub async fn for_segment(
    cluster: &Cluster,
    system: SystemId,
    name: SegmentName,
    session: &Session,
    timeout: Duration,
) -> Result<SegmentLine, SnapshotError> {
    let began = clock::monotonic();
    let failed_before = session.archiver().await?.failed;
    loop {
        let found = segment::read_trailer(cluster, system, &WalFile::Segment(name)).await;
        if let Some(trailer) = object::absent(found)? {
            return Ok(SegmentLine(name, trailer.sha256));
        }
        if began.elapsed() >= timeout {
            let reason = reason(session, failed_before).await;
            return Err(SnapshotError::WalMissing { segment: name.to_string(), waited_s: timeout.as_secs(), reason });
        }
        tokio::time::sleep((began.elapsed() / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
    }
}

/// What the server's statistics tell about archiving.
async fn reason(session: &Session, failed_before: i64) -> String {
    let Ok(state) = session.archiver().await else { return "and the server does not answer any more".into() };
    match (state.last_failed, state.last_archived) {
        (Some(failed), _) if state.failed > failed_before => {
            format!("archive_command fails for {failed}: the server's log says why")
        }
        (_, Some(archived)) => format!(
            "the server archived {archived} last: does archive_command write into this repository, and is the archiver keeping up?"
        ),
        _ => "the server has not archived anything yet: is archive_command the one that `lastgood init` prints?".into(),
    }
}

/// Proves that archiving works before a byte is copied (rule 5).
pub async fn prove_archiving(
    cluster: &Cluster,
    system: SystemId,
    session: &Session,
    timeout: Duration,
) -> Result<SegmentName, SnapshotError> {
    let switched = session.switch_segment("lastgood archive check").await?;
    let name: SegmentName =
        switched.parse().map_err(|_| SnapshotError::Archiving { reason: format!("no segment name: {switched:?}") })?;
    match for_segment(cluster, system, name, session, timeout).await {
        Ok(_) => history_is_there(cluster, system, name).await.map(|()| name),
        Err(SnapshotError::WalMissing { waited_s, reason, .. }) => {
            let reason = format!("segment {name} did not reach the repository within {waited_s} s; {reason}");
            Err(SnapshotError::Archiving { reason })
        }
        Err(error) => Err(error),
    }
}

/// A server that was promoted while archiving was off never archived the history of its timeline.
async fn history_is_there(cluster: &Cluster, system: SystemId, name: SegmentName) -> Result<(), SnapshotError> {
    let file = WalFile::History(name.timeline);
    // The first timeline has none.
    if name.timeline.0 == 1 || object::absent(segment::read_trailer(cluster, system, &file).await)?.is_some() {
        return Ok(());
    }
    let reason = format!(
        "the history file {file} of the server's timeline is not in the repository (the server was promoted while archiving was \
         off?); store it once, in the data directory, with: lastgood archive-push pg_wal/{file}"
    );
    Err(SnapshotError::Archiving { reason })
}

/// Waits for every segment that a snapshot needs, and the history of its timeline; answers them with their checksums.
pub async fn for_snapshot(
    cluster: &Cluster,
    system: SystemId,
    segments: impl Iterator<Item = SegmentName>,
    session: &Session,
    timeout: Duration,
    monitor: &dyn Monitor,
) -> Result<Vec<SegmentLine>, SnapshotError> {
    monitor.phase("wait for WAL", 0);
    let mut lines = Vec::new();
    for name in segments {
        lines.push(for_segment(cluster, system, name, session, timeout).await?);
    }
    if let Some(SegmentLine(last, _)) = lines.last() {
        // The first timeline has no history file.
        if last.timeline.0 > 1 {
            history(cluster, system, *last, session, timeout).await?;
        }
    }
    Ok(lines)
}

async fn history(
    cluster: &Cluster,
    system: SystemId,
    last: SegmentName,
    session: &Session,
    timeout: Duration,
) -> Result<(), SnapshotError> {
    let file = WalFile::History(last.timeline);
    let began = clock::monotonic();
    while object::absent(segment::read_trailer(cluster, system, &file).await)?.is_none() {
        if began.elapsed() >= timeout {
            let reason = reason(session, 0).await;
            return Err(SnapshotError::WalMissing { segment: file.to_string(), waited_s: timeout.as_secs(), reason });
        }
        tokio::time::sleep(LONGEST_PAUSE).await;
    }
    Ok(())
}
