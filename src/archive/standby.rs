//! What a standby is told when the archive cannot answer.
//!
//! A standby asks again every few seconds, and streams meanwhile. A failure that stops recovery elsewhere would shut it down for good, just
//! when it is needed, so there it is a failure that may pass (rule 30). It is no proof: nothing ends by it while the standby follows. A
//! promotion does end by it, and then a timeline whose history file could not be asked for counts as free; a number that is taken twice
//! that way is refused by `archive-push` ([`super::rival`]). So a question for a history file is asked longer.
//!
//! Nobody reads a standby's log: somebody is told at the first failure, and each hour while it lasts.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::spool::{Note, Spool};
use crate::postgres::wal::name::WalFile;

/// Between two tries of one call.
pub const PAUSE: Duration = Duration::from_millis(250);
/// After so long no new try begins. PostgreSQL asks for the same segment again five seconds later.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same for a history file, of which a promotion asks for two or three: a failover must not wait long for an archive that is away.
const PATIENCE_FOR_HISTORIES: Duration = Duration::from_secs(2);
/// An outage that goes on is told again.
const TOLD_AGAIN_S: i64 = 3600;

/// Whether the server in a data directory is a standby. PostgreSQL decides by the same file, and takes it away at a promotion when all
/// questions were asked.
pub fn is_standby(data_directory: &Path) -> bool {
    data_directory.join("standby.signal").exists()
}

/// Whether a failure may be answered with "ask again" for this file: on a standby, and at the end of a promotion, when the signal file is
/// gone already and PostgreSQL asks once more for the history that it leaves. Of that it has its own copy, and takes it; the first timeline
/// has none. Dying there would leave a server that is no standby any more and no primary yet.
pub fn may_ask_again(data_directory: &Path, file: Option<&WalFile>) -> bool {
    if is_standby(data_directory) {
        return true;
    }
    let Some(WalFile::History(timeline)) = file else { return false };
    let has_own = timeline.0 == 1 || data_directory.join(format!("pg_wal/{timeline}.history")).exists();
    has_own && !data_directory.join("recovery.signal").exists()
}

/// How long one call tries.
pub fn patience(file: &WalFile) -> Duration {
    if matches!(file, WalFile::History(_)) { PATIENCE_FOR_HISTORIES } else { PATIENCE }
}

/// Remembers that a call failed. Answers since when calls fail, if somebody is to be told now.
pub fn failed(spool: &Spool, now: Timestamp) -> Option<Timestamp> {
    let noted = spool.noted(Note::Unreachable).and_then(|text| times(&text));
    let (since, told) = noted.unwrap_or((now.as_second(), i64::MIN));
    if now.as_second().saturating_sub(told) < TOLD_AGAIN_S {
        return None;
    }
    // Before it is done: the next call comes in seconds, and telling may take longer.
    spool.note(Note::Unreachable, Some(&format!("{since} {}", now.as_second())));
    Some(Timestamp::from_second(since).unwrap_or(now))
}

/// The archive has answered.
pub fn answered(spool: &Spool) {
    if spool.noted(Note::Unreachable).is_some() {
        spool.note(Note::Unreachable, None);
    }
}

fn times(text: &str) -> Option<(i64, i64)> {
    let (since, told) = text.split_once(' ')?;
    Some((since.parse().ok()?, told.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lsn::SystemId;

    #[test]
    fn only_a_standby_and_the_end_of_its_promotion_may_ask_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        std::fs::create_dir(data.join("pg_wal")).unwrap();
        let may = |name: &str| may_ask_again(data, Some(&name.parse().unwrap()));
        let (segment, first, second) = ("000000010000000000000003", "00000001.history", "00000002.history");
        assert!(may(first) && !may(second) && !may(segment) && !may_ask_again(data, None));
        std::fs::write(data.join("pg_wal/00000002.history"), "").unwrap();
        assert!(may(second) && !may("00000003.history"));
        std::fs::write(data.join("recovery.signal"), "").unwrap();
        assert!(!may(first) && !may(second));
        std::fs::write(data.join("standby.signal"), "").unwrap();
        assert!(may(first) && may("00000003.history") && may(segment));
    }

    #[test]
    fn an_outage_is_told_at_once_and_each_hour() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool"), "shop", SystemId(7), dir.path()).unwrap();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert_eq!(failed(&spool, at(1000)), Some(at(1000)));
        for quiet in [1001, 1005, 4599] {
            assert_eq!(failed(&spool, at(quiet)), None, "{quiet}");
        }
        assert_eq!(failed(&spool, at(4600)), Some(at(1000)), "since the first failure");
        answered(&spool);
        assert_eq!(failed(&spool, at(4601)), Some(at(4601)), "another outage");
    }
}
