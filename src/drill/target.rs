//! Whether replay really reached its target. What the server says in its log proves nothing: its positions do.

use jiff::Timestamp;

use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::settings::RecoveryTarget;
use crate::restore::plan::Plan;

/// Between the end of a record and the beginning of the next lie at most a long page header (40 bytes) and the alignment of records.
const BETWEEN_RECORDS_BYTES: u64 = 40 + 8;

/// Where recovery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The end of the last record that was replayed.
    pub lsn: Lsn,
    /// What a crash now would have to replay to again, from `pg_control`: it is on the disk.
    pub durable: (Lsn, Timeline),
    /// The end of the last transaction that was replayed.
    pub last_transaction: Option<Timestamp>,
    /// Recovery pauses at the target; otherwise it has ended there.
    pub is_paused: bool,
}

/// What must be so.
#[derive(Debug, Clone)]
pub struct Expected {
    pub recovery: RecoveryTarget,
    pub path: History,
    /// Start and stop of the snapshot.
    pub start: Lsn,
    pub consistent: Lsn,
    /// The first record that must not have been replayed.
    pub first_lost: Option<Lsn>,
    /// No transaction may have ended later.
    pub time: Option<Timestamp>,
}

impl Expected {
    pub fn of(plan: &Plan, time: Option<Timestamp>) -> Expected {
        let manifest = plan.manifest();
        Expected {
            recovery: plan.found.recovery,
            path: plan.found.path.clone(),
            start: manifest.start_lsn,
            consistent: manifest.stop_lsn,
            first_lost: plan.first_lost.as_ref().map(|moment| moment.lsn),
            time,
        }
    }

    /// Everything that is not as it must be.
    pub fn problems(&self, reached: &Reached) -> Vec<String> {
        let mut problems = Vec::new();
        let lsn = reached.lsn;
        let (missing, wanted) = match self.recovery {
            RecoveryTarget::Lsn { lsn: wanted, inclusive: true } => (lsn <= wanted, wanted),
            RecoveryTarget::Lsn { lsn: wanted, inclusive: false } => (lsn.0 + BETWEEN_RECORDS_BYTES < wanted.0, wanted),
            RecoveryTarget::Immediate | RecoveryTarget::End => (lsn < self.consistent, self.consistent),
        };
        if missing {
            problems.push(format!("replay stopped early: at {lsn}, and the target is at {wanted}"));
        }
        if lsn <= self.start {
            problems.push(format!("no WAL was replayed: it stands at {lsn}, and the snapshot begins at {}", self.start));
        }
        if let Some(first) = self.first_lost.filter(|first| lsn > *first) {
            problems.push(format!("replay went too far: to {lsn}, and the record at {first} must not be there"));
        }
        let (durable, timeline) = reached.durable;
        if durable < lsn {
            problems.push(format!("the disk has the state of {durable} only, and replay says {lsn}"));
        }
        let expected = self.timeline_before(lsn);
        if timeline != expected {
            problems
                .push(format!("what was replayed last is of timeline {timeline}, and the way to the target is on {expected}"));
        }
        if let (Some(last), Some(time)) = (reached.last_transaction, self.time)
            && last > time
        {
            problems.push(format!("a transaction of {last} is there, and the target is {time}"));
        }
        problems
    }

    /// The timeline of the record that ends at `lsn`.
    fn timeline_before(&self, lsn: Lsn) -> Timeline {
        let stretches = self.path.stretches();
        stretches.iter().rev().find(|stretch| stretch.begin < lsn).map_or(self.path.timeline(), |stretch| stretch.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(recovery: RecoveryTarget) -> Expected {
        let path = History::parse(Timeline(2), "1\t0/5000100\tx\n").unwrap();
        Expected { recovery, path, start: Lsn(0x200_0028), consistent: Lsn(0x200_0100), first_lost: None, time: None }
    }

    fn at(lsn: u64, timeline: u32) -> Reached {
        Reached { lsn: Lsn(lsn), durable: (Lsn(lsn), Timeline(timeline)), last_transaction: None, is_paused: true }
    }

    fn said(expected: &Expected, reached: Reached) -> String {
        expected.problems(&reached).join("; ")
    }

    #[test]
    fn a_target_is_reached_exactly_or_not_at_all() {
        let inclusive = expected(RecoveryTarget::Lsn { lsn: Lsn(0x600_0000), inclusive: true });
        assert_eq!(said(&inclusive, at(0x600_0040, 2)), "");
        for early in [0x600_0000, 0x5ff_ffff] {
            assert!(said(&inclusive, at(early, 2)).contains("stopped early"), "{early:X}");
        }
        let mut exclusive = expected(RecoveryTarget::Lsn { lsn: Lsn(0x600_0028), inclusive: false });
        exclusive.first_lost = Some(Lsn(0x600_0028));
        // The record before may end with the page before; the header of the page is no record.
        for good in [0x600_0028, 0x600_0000] {
            assert_eq!(said(&exclusive, at(good, 2)), "", "{good:X}");
        }
        assert!(said(&exclusive, at(0x5ff_fff0, 2)).contains("stopped early"));
        assert!(said(&exclusive, at(0x600_0060, 2)).contains("went too far"));
        let immediate = expected(RecoveryTarget::Immediate);
        assert_eq!(said(&immediate, at(0x200_0100, 1)), "");
        assert!(said(&immediate, at(0x200_00f8, 1)).contains("stopped early"));
        let nothing = said(&immediate, at(0x200_0028, 1));
        assert!(nothing.contains("stopped early") && nothing.contains("no WAL was replayed"), "{nothing}");
    }

    #[test]
    fn a_wrong_timeline_a_lagging_disk_and_a_late_transaction_are_seen() {
        let target = expected(RecoveryTarget::Lsn { lsn: Lsn(0x600_0000), inclusive: true });
        assert!(said(&target, at(0x600_0040, 1)).contains("timeline 00000001"));
        // Nothing of the new timeline was replayed yet.
        let before_fork = expected(RecoveryTarget::Lsn { lsn: Lsn(0x500_0000), inclusive: true });
        assert_eq!(said(&before_fork, at(0x500_0100, 1)), "");
        let mut lagging = at(0x600_0040, 2);
        lagging.durable.0 = Lsn(0x600_0000);
        assert!(said(&target, lagging).contains("the disk has"));
        let time: Timestamp = "2026-11-21T04:15:00Z".parse().unwrap();
        let timed = Expected { time: Some(time), ..target };
        let late = Reached { last_transaction: "2026-11-21T04:15:01Z".parse().ok(), ..at(0x600_0040, 2) };
        assert!(said(&timed, late).contains("a transaction of 2026"));
        let good = Reached { last_transaction: Some(time), ..late };
        assert_eq!(said(&timed, good), "");
    }
}
