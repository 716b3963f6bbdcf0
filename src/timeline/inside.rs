//! Whether a restore would stop in the middle of something that cannot be stopped in the middle of (rule 42).
//!
//! DROP DATABASE and DROP TABLESPACE remove files by records of their own, before the transaction commits. Recovery that stops between
//! the two has the name, and not the files.

use super::archive::Archive;
use super::find::{FindError, Found};
use super::indexes::nothing_local;
use super::story::{self, Question};
use super::told::{Kind, Told};
use crate::postgres::lsn::Lsn;
use crate::postgres::settings::RecoveryTarget;

/// Segments around the target that are looked at: such a transaction is short.
const AROUND: u64 = 1;

/// Refuses a target inside DROP DATABASE or DROP TABLESPACE, with the one before it.
pub async fn check(archive: &Archive, found: &Found, target: &str) -> Result<(), FindError> {
    let RecoveryTarget::Lsn { lsn, inclusive } = found.recovery else { return Ok(()) };
    let number = lsn.segment(archive.segment_bytes);
    let first = found.snapshot.start_lsn.segment(archive.segment_bytes);
    let Some(last) = archive.contiguous_end(&found.path, number) else { return Ok(()) };
    let numbers = number.saturating_sub(AROUND).max(first)..=last.min(number + AROUND);
    let question = Question {
        archive,
        manifests: std::slice::from_ref(&found.snapshot),
        path: &found.path,
        since: None,
        until: None,
        from: None,
        to: None,
        many_rows: u64::MAX,
        numbers: Some(numbers),
        local: &nothing_local,
        passes_sealed: false,
    };
    let story = story::tell(&question).await?;
    match story.events.iter().find(|told| splits(told, lsn, inclusive)) {
        None => Ok(()),
        Some(told) => Err(FindError::Inside {
            target: target.into(),
            what: told.text.clone(),
            begin: told.target,
            commit: told.lsn,
            event: told.id.clone(),
        }),
    }
}

fn splits(told: &Told, stop: Lsn, inclusive: bool) -> bool {
    let is_removal = matches!(told.kind, Kind::DropDatabase | Kind::DropTablespace);
    let has_begun = if inclusive { told.target <= stop } else { told.target < stop };
    let has_ended = if inclusive { told.lsn <= stop } else { told.lsn < stop };
    is_removal && has_begun && !has_ended
}
