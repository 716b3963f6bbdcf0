//! What a restore gives up: transactions that ended after its target, as far as the archive and the directory tell.

use jiff::Timestamp;
use serde::Serialize;

use super::RestoreError;
use super::present::Present;
use crate::postgres::history::History;
use crate::postgres::lsn::Lsn;
use crate::postgres::settings::RecoveryTarget;
use crate::postgres::wal::transaction::Kind;
use crate::repo::RepoError;
use crate::timeline::archive::Archive;
use crate::timeline::find::Found;
use crate::timeline::scan;

/// Segments whose summaries are read before the count becomes "at least".
const SEGMENTS_MAX: u64 = 2048;

/// Committed transactions that the restored cluster will not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Loss {
    pub transactions: u64,
    /// There may be more than was counted.
    pub at_least: bool,
    /// When the last of them ended.
    pub last: Option<Timestamp>,
    /// Why nobody can tell how many; what was counted is then no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

impl Loss {
    pub fn unknown(why: impl Into<String>) -> Loss {
        Loss { unknown: Some(why.into()), ..Loss::default() }
    }
}

/// Counts on the path of the cluster that stands in the place.
pub async fn count(found: &Found, present: &Present) -> Result<Loss, RestoreError> {
    let (stop, inclusive) = match found.recovery {
        RecoveryTarget::Lsn { lsn, inclusive } => (lsn, inclusive),
        RecoveryTarget::Immediate => (found.snapshot.stop_lsn, true),
        RecoveryTarget::End => (Lsn(u64::MAX), true),
    };
    beyond(present, &found.path, stop, inclusive).await
}

/// Transactions of `present` that a cluster on `path` which ends at `stop` does not have.
pub async fn beyond(present: &Present, path: &History, stop: Lsn, inclusive: bool) -> Result<Loss, RestoreError> {
    let (mut from, mut inclusive, mut exact) = match path.fork(&present.path) {
        // What the present cluster did after it left our path is lost whole.
        Some(fork) if fork < stop => (fork, false, true),
        _ => (stop, inclusive, true),
    };
    // So is what it did after its history left the archive's under the same names.
    if let Some((at, is_exact)) = present.parted.filter(|(at, _)| *at < from) {
        (from, inclusive, exact) = (at, false, is_exact);
    }
    let mut loss = after(&present.archive, &present.path, from, inclusive).await?;
    loss.at_least |= !exact;
    Ok(loss)
}

/// Transactions that ended on `path` after `from`.
pub async fn after(archive: &Archive, path: &History, from: Lsn, inclusive: bool) -> Result<Loss, RestoreError> {
    if from == Lsn(u64::MAX) {
        return Ok(Loss::default());
    }
    match counted(archive, path, from, inclusive).await {
        Ok(loss) => Ok(loss),
        Err(error) if error.is_damage() || error.is_newer_epoch() => Ok(Loss::unknown(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

async fn counted(archive: &Archive, path: &History, from: Lsn, inclusive: bool) -> Result<Loss, RepoError> {
    let mut loss = Loss::default();
    let first = from.segment(archive.segment_bytes);
    let Some(end) = archive.contiguous_end(path, first) else {
        return Ok(match archive.after_gap(path, first) {
            Some(_) => Loss::unknown(format!("WAL from {} on is missing", path.segment(first, archive.segment_bytes))),
            None => loss,
        });
    };
    let mut count = Count { loss: &mut loss, from, inclusive };
    scan::segment(archive, path, first, end, |event| count.add(&event)).await?;
    let limit = end.min(first + SEGMENTS_MAX);
    loss.at_least = limit < end || archive.after_gap(path, end).is_some();
    for (number, summary) in archive.summaries(path, first + 1..=limit).await? {
        match summary {
            // A summary leaves out a record that crosses into the next segment, and holds what lies behind a fork: such a segment is read.
            Some(summary) if !summary.open && archive.ends_at_fork(path, number).is_none() => {
                loss.transactions += summary.commits;
                if summary.commits > 0 {
                    loss.last = loss.last.max(summary.latest);
                }
            }
            _ => {
                let mut count = Count { loss: &mut loss, from, inclusive };
                scan::segment(archive, path, number, end, |event| count.add(&event)).await?;
            }
        }
    }
    Ok(loss)
}

/// Counts what was committed after a position.
struct Count<'a> {
    loss: &'a mut Loss,
    from: Lsn,
    inclusive: bool,
}

impl Count<'_> {
    fn add(&mut self, event: &crate::postgres::wal::transaction::Event) -> bool {
        let is_after = if self.inclusive { event.lsn > self.from } else { event.lsn >= self.from };
        if is_after && matches!(event.kind, Kind::Commit { .. }) {
            self.loss.transactions += 1;
            self.loss.last = self.loss.last.max(Some(event.time));
        }
        true
    }
}
