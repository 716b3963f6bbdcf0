//! What the WAL between the snapshot and the target asks of the place and of the server that replays it.

use std::path::PathBuf;

use super::RestoreError;
use super::place::{self, Standing};
use super::plan::TablespacePlan;
use crate::postgres::control::Limits;
use crate::postgres::lsn::Lsn;
use crate::postgres::settings::RecoveryTarget;
use crate::timeline::archive::Archive;
use crate::timeline::find::Found;

/// Segments whose summaries are read at a time.
const PORTION: usize = 256;

/// Answers the highest limits that are replayed, beside those of the snapshot's `pg_control`. Of segments that were archived before
/// summaries told them, nothing is known.
///
/// Tablespaces that were made after the snapshot are linked by replay to where the original has them, and written there: allowed only
/// into an empty directory, so that a restore beside a living server never writes into its files.
pub async fn read(archive: &Archive, found: &Found, mapped: &[TablespacePlan]) -> Result<Limits, RestoreError> {
    let first = found.snapshot.start_lsn.segment(archive.segment_bytes);
    let stop = match found.recovery {
        RecoveryTarget::Lsn { lsn, .. } => lsn,
        RecoveryTarget::Immediate => found.snapshot.stop_lsn,
        RecoveryTarget::End => Lsn(u64::MAX),
    };
    let mut limits = Limits::default();
    for portion in (first..=found.last_segment).collect::<Vec<_>>().chunks(PORTION) {
        for (_, summary) in archive.summaries(&found.path, portion.iter().copied()).await? {
            let Some(summary) = summary else { continue };
            let raised = summary.replay.and_then(|replay| replay.limits);
            limits = limits.or_higher(raised.unwrap_or_default());
            let replayed = found.snapshot.start_lsn..=stop;
            for made in summary.tablespaces.into_iter().filter(|made| replayed.contains(&made.lsn)) {
                let path = PathBuf::from(&made.location);
                // Restored into the very place, which was looked at already.
                if mapped.iter().any(|t| t.into == path) {
                    continue;
                }
                let problem = match place::look(&path) {
                    Ok(Standing::Empty) => continue,
                    Ok(Standing::Absent) => "it does not exist".to_string(),
                    Ok(standing) => format!("there is {}", standing.words()),
                    Err(RestoreError::Place { problem, .. }) => problem,
                    Err(error) => return Err(error),
                };
                let problem = format!("tablespace {} is made here by WAL after the snapshot, and {problem}", made.oid);
                let mend = "restore from a later snapshot or to an earlier moment, or make it an empty directory";
                return Err(RestoreError::Place { path, problem, mend });
            }
        }
    }
    Ok(limits)
}
