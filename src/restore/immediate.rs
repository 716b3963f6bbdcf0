//! Where a server stops that shall stop as soon as it is consistent.
//!
//! PostgreSQL looks for that before the next record, so there must be one. A snapshot of a standby often ends where a segment does, and when
//! its primary has written nothing since, the archive has no next record: recovery then ends "before the configured target was reached".
//! So the target is the last record before, which is the one that makes the server consistent.

use crate::postgres::settings::RecoveryTarget;
use crate::repo::RepoError;
use crate::timeline::archive::Archive;
use crate::timeline::find::Found;

/// The target that the server gets.
pub async fn target(archive: &Archive, found: &Found) -> Result<RecoveryTarget, RepoError> {
    let (stop, bytes) = (found.snapshot.stop_lsn, archive.segment_bytes);
    if found.recovery != RecoveryTarget::Immediate || stop.0 % bytes != 0 {
        return Ok(found.recovery);
    }
    let summaries = archive.summaries(&found.path, [stop.last_segment_before(bytes)]).await?;
    let last = summaries.into_iter().find_map(|(_, summary)| summary?.last_record);
    // Without one, the record that ends here began a segment before, and is the last of a longer run.
    Ok(last.map_or(found.recovery, |lsn| RecoveryTarget::Lsn { lsn, inclusive: true }))
}
