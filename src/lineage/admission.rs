//! Whether a timeline that the archive does not know yet may enter it.
//!
//! An ordinary failover leaves its parent at its end, or, when the old primary lived a little longer, inside the last segment that
//! the parent archived: that is admitted, because WAL must not pile up on a new primary. Refused is what contradicts the archive:
//! - a decision: another timeline that left here was declared the successor (`lastgood release`);
//! - a fork later than where an archived timeline left the same parent: what lies between was left behind with it;
//! - whole segments of the archive beyond the fork: the archive's own server went on, so this one branched off in its past.
//!
//! Where both sides go on inside one segment nothing is refused; which of them `latest` follows is decided by a person
//! (`timeline::latest`).

use crate::postgres::history::{History, Stretch};
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::name::SegmentName;

/// A timeline of the archive, beside the one that wants to enter.
#[derive(Debug, Clone)]
pub struct Branch {
    pub path: History,
    /// The first whole segment archived on its path beyond the segment in which the two part.
    pub beyond: Option<SegmentName>,
}

/// What people decided: timelines that nobody continues, and timelines that were declared to go on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Decisions<'a> {
    pub abandoned: &'a [Timeline],
    pub successors: &'a [Timeline],
}

/// Why a timeline may not enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contradiction {
    /// `other` was declared the successor where the candidate leaves it out.
    Decided { other: Timeline, at: Lsn },
    /// `other` left `parent` at `at`, before the candidate did.
    LeftBefore { other: Timeline, parent: Timeline, at: Lsn },
    /// Both have a timeline of this number, which begins elsewhere: two servers took the same number.
    SameNumber { timeline: Timeline, here: Lsn, there: Lsn },
    /// `timeline` of the archive goes on beyond `at` with this whole segment.
    GoesOn { timeline: Timeline, at: Lsn, with: SegmentName },
}

impl Contradiction {
    /// The archive's side, in words.
    pub fn there(&self) -> String {
        match self {
            Contradiction::Decided { other, at } => {
                format!("timeline {other}, which leaves this path at {at}, was declared the successor in the archive")
            }
            Contradiction::LeftBefore { other, parent, at } => {
                format!("the archive's timeline {other} left timeline {parent} at {at}, before that")
            }
            Contradiction::SameNumber { timeline, there, .. } => {
                format!("the archive's timeline {timeline} is another one, which begins at {there}")
            }
            Contradiction::GoesOn { timeline, at, with } => {
                format!("the archive's timeline {timeline} goes on beyond {at}, with segment {with}")
            }
        }
    }
}

/// Where a path goes on after it parted from another at `at`: the stretch that holds what follows.
fn after(path: &History, at: Lsn) -> Option<Stretch> {
    path.stretches().iter().find(|stretch| stretch.end.is_none_or(|end| at < end)).copied()
}

/// Judges the path of a timeline that is not archived yet.
pub fn admit(candidate: &History, branches: &[Branch], decisions: Decisions<'_>) -> Result<(), Contradiction> {
    for Branch { path, beyond } in branches {
        let other = path.timeline();
        let same_number = |stretch: &Stretch| {
            let known =
                path.stretches().iter().find(|known| known.timeline == stretch.timeline && known.begin != stretch.begin)?;
            Some(Contradiction::SameNumber { timeline: known.timeline, here: stretch.begin, there: known.begin })
        };
        if let Some(contradiction) = candidate.stretches().iter().find_map(same_number) {
            return Err(contradiction);
        }
        if decisions.abandoned.contains(&other) || candidate.left(other) == Some(None) {
            continue;
        }
        let Some(at) = candidate.fork(path) else { continue };
        let (Some(here), Some(there)) = (after(candidate, at), after(path, at)) else { continue };
        // The line that a person chose is followed beside everything that it left, from then on.
        if here.begin == at && decisions.successors.contains(&here.timeline) {
            continue;
        }
        if there.begin == at && there.timeline != here.timeline {
            if decisions.successors.contains(&there.timeline) {
                return Err(Contradiction::Decided { other: there.timeline, at });
            }
            // The candidate stayed on the parent when the other left it.
            if here.begin < at {
                return Err(Contradiction::LeftBefore { other: there.timeline, parent: here.timeline, at });
            }
        }
        if let Some(with) = beyond {
            return Err(Contradiction::GoesOn { timeline: with.timeline, at, with: *with });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    fn path(timeline: u32, text: &str) -> History {
        History::parse(Timeline(timeline), text).unwrap()
    }

    fn segment(timeline: u32, number: u64) -> Option<SegmentName> {
        Some(SegmentName::new(Timeline(timeline), number, SEGMENT))
    }

    fn judged(
        candidate: &History,
        branches: &[(History, Option<SegmentName>)],
        decisions: Decisions<'_>,
    ) -> Option<Contradiction> {
        let branches: Vec<Branch> =
            branches.iter().map(|(path, beyond)| Branch { path: path.clone(), beyond: *beyond }).collect();
        admit(candidate, &branches, decisions).err()
    }

    const NONE: Decisions<'static> = Decisions { abandoned: &[], successors: &[] };

    #[test]
    fn a_failover_enters_and_a_copy_from_the_past_does_not() {
        let first = path(1, "");
        let two = path(2, "1\t0/3000100\tx\n");
        assert_eq!(judged(&two, &[(first.clone(), None)], NONE), None);
        let goes_on = judged(&two, &[(first, segment(1, 4))], NONE);
        assert_eq!(
            goes_on,
            Some(Contradiction::GoesOn { timeline: Timeline(1), at: Lsn(0x300_0100), with: segment(1, 4).unwrap() })
        );
    }

    /// The old primary comes back and is promoted: its timeline left the first after the second did.
    #[test]
    fn what_stayed_when_another_left_does_not_enter() {
        let (first, two) = (path(1, ""), path(2, "1\t0/3000100\tx\n"));
        let three = path(3, "1\t0/3000200\tx\n");
        let other = Timeline(2);
        let expected = Contradiction::LeftBefore { other, parent: Timeline(1), at: Lsn(0x300_0100) };
        assert_eq!(judged(&three, &[(first.clone(), None), (two.clone(), None)], NONE), Some(expected));
        // Unless the second was given up.
        let decided = Decisions { abandoned: &[Timeline(2)], successors: &[] };
        assert_eq!(judged(&three, &[(first.clone(), None), (two.clone(), segment(2, 4))], decided), None);
        // One that left before it, in the same segment: both may go on, and somebody decides; but not in the past of what went on.
        let early = path(3, "1\t0/3000080\tx\n");
        assert_eq!(judged(&early, &[(first.clone(), None), (two.clone(), None)], NONE), None);
        assert!(judged(&early, &[(first, None), (two, segment(2, 4))], NONE).is_some());
    }

    /// A server of another second timeline wants in with its third.
    #[test]
    fn a_number_that_was_taken_twice_does_not_enter() {
        let two = path(2, "1\t0/3000100\tx\n");
        let three = path(3, "1\t0/2000100\tx\n2\t0/5000000\tx\n");
        let (here, there) = (Lsn(0x200_0100), Lsn(0x300_0100));
        let expected = Contradiction::SameNumber { timeline: Timeline(2), here, there };
        assert_eq!(judged(&three, &[(path(1, ""), None), (two, None)], NONE), Some(expected));
    }

    #[test]
    fn decisions_count_before_segments() {
        let (first, two) = (path(1, ""), path(2, "1\t0/3000100\tx\n"));
        let chosen = Decisions { abandoned: &[], successors: &[Timeline(2)] };
        assert_eq!(judged(&two, &[(first.clone(), segment(1, 9))], chosen), None);
        // A failover of the chosen one, beside the parent that had gone on.
        let three = path(3, "1\t0/3000100\tx\n2\t0/5000000\tx\n");
        assert_eq!(judged(&three, &[(first.clone(), segment(1, 9)), (two.clone(), None)], chosen), None);
        // Another copy of the first, from a moment before: the decision was for the second.
        let rogue = path(4, "1\t0/3000080\tx\n");
        let decided = Some(Contradiction::GoesOn { timeline: Timeline(1), at: Lsn(0x300_0080), with: segment(1, 9).unwrap() });
        assert_eq!(judged(&rogue, &[(first, segment(1, 9)), (two.clone(), None)], chosen), decided);
        let late = path(4, "1\t0/3000100\tx\n");
        let decided = Some(Contradiction::Decided { other: Timeline(2), at: Lsn(0x300_0100) });
        assert_eq!(judged(&late, &[(two, None)], chosen), decided);
    }
}
