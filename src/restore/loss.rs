//! What a restore gives up: transactions that ended after its target, as far as the archive and the directory tell.

use jiff::Timestamp;
use serde::Serialize;

use super::RestoreError;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::settings::RecoveryTarget;
use crate::postgres::wal::transaction::Kind;
use crate::timeline::archive::Archive;
use crate::timeline::find::Found;
use crate::timeline::scan;

/// Segments whose summaries are read before the count becomes "at least".
const SEGMENTS_MAX: u64 = 2048;

/// Committed transactions that the restored cluster will not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Loss {
    pub transactions: u64,
    /// There is more than was counted.
    pub at_least: bool,
    /// When the last of them ended.
    pub last: Option<Timestamp>,
}

/// Counts on the path of the timeline that the present cluster is on.
pub async fn count(archive: &Archive, found: &Found, present: Option<Timeline>) -> Result<Loss, RestoreError> {
    let path = present.and_then(|timeline| archive.path(timeline)).unwrap_or_else(|| found.path.clone());
    let (stop, inclusive) = match found.recovery {
        RecoveryTarget::Lsn { lsn, inclusive } => (lsn, inclusive),
        RecoveryTarget::Immediate => (found.snapshot.stop_lsn, true),
        RecoveryTarget::End => (Lsn(u64::MAX), true),
    };
    let (from, inclusive) = match found.path.fork(&path) {
        // What the present cluster did after it left our path is lost whole.
        Some(fork) if fork < stop => (fork, false),
        _ => (stop, inclusive),
    };
    after(archive, &path, from, inclusive).await
}

/// Transactions that ended on `path` after `from`.
pub async fn after(archive: &Archive, path: &History, from: Lsn, inclusive: bool) -> Result<Loss, RestoreError> {
    let mut loss = Loss::default();
    if from == Lsn(u64::MAX) {
        return Ok(loss);
    }
    let first = from.segment(archive.segment_bytes);
    let Some(end) = archive.contiguous_end(path, first) else { return Ok(loss) };
    let (mut counted, mut last) = (0, None);
    let lost = |lsn: Lsn| if inclusive { lsn > from } else { lsn >= from };
    scan::segment(archive, path, first, end, |event| {
        if matches!(event.kind, Kind::Commit { .. }) && lost(event.lsn) {
            counted += 1;
            last = last.max(Some(event.time));
        }
        true
    })
    .await?;
    loss.transactions = counted;
    loss.last = last;
    let limit = end.min(first + SEGMENTS_MAX);
    loss.at_least = limit < end;
    for (number, summary) in archive.summaries(path, first + 1..=limit).await? {
        match summary {
            // A summary leaves out a record that crosses into the next segment: such a segment is read.
            Some(summary) if !summary.open => {
                loss.transactions += summary.commits;
                loss.last = loss.last.max(summary.latest);
            }
            _ => {
                scan::segment(archive, path, number, end, |event| {
                    loss.transactions += u64::from(matches!(event.kind, Kind::Commit { .. }));
                    loss.last = loss.last.max(Some(event.time));
                    true
                })
                .await?;
            }
        }
    }
    Ok(loss)
}
