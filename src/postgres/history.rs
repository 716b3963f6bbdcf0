//! Timeline history files (`00000003.history`): which timeline came from which, and where they parted.
//!
//! Source: `src/backend/access/transam/timeline.c`, `readTimeLineHistory`.

use super::lsn::{Lsn, Timeline};
use super::wal::name::SegmentName;

#[derive(Debug, thiserror::Error)]
#[error("the history file of timeline {timeline} cannot be read: line {line:?}")]
pub struct HistoryError {
    timeline: Timeline,
    line: String,
}

/// One stretch of a path through timelines: from where it begins (inclusive) to where it was left (exclusive).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub timeline: Timeline,
    pub begin: Lsn,
    pub end: Option<Lsn>,
}

/// The path of WAL that leads to a timeline, oldest stretch first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    stretches: Vec<Stretch>,
}

impl History {
    /// The path of a timeline that has no history file: it was there from `initdb` on.
    pub fn first(timeline: Timeline) -> History {
        History { stretches: vec![Stretch { timeline, begin: Lsn(0), end: None }] }
    }

    /// Reads the content of `timeline`'s history file.
    pub fn parse(timeline: Timeline, text: &str) -> Result<History, HistoryError> {
        let mut stretches = Vec::new();
        let mut begin = Lsn(0);
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = || HistoryError { timeline, line: line.into() };
            let mut fields = line.split_whitespace();
            let parent: u32 = fields.next().and_then(|f| f.parse().ok()).ok_or_else(bad)?;
            let end: Lsn = fields.next().and_then(|f| f.parse().ok()).ok_or_else(bad)?;
            if parent >= timeline.0 || end < begin {
                return Err(bad());
            }
            stretches.push(Stretch { timeline: Timeline(parent), begin, end: Some(end) });
            begin = end;
        }
        stretches.push(Stretch { timeline, begin, end: None });
        Ok(History { stretches })
    }

    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    pub fn timeline(&self) -> Timeline {
        self.stretches[self.stretches.len() - 1].timeline
    }

    /// The path to an ancestor, as if nobody had left it.
    pub fn until(&self, timeline: Timeline) -> Option<History> {
        let last = self.stretches.iter().position(|stretch| stretch.timeline == timeline)?;
        let mut stretches = self.stretches[..=last].to_vec();
        stretches[last].end = None;
        Some(History { stretches })
    }

    /// Where `timeline` was left on this path: `None` when it is not on it, `Some(None)` when it is the last.
    pub fn left(&self, timeline: Timeline) -> Option<Option<Lsn>> {
        self.stretches.iter().find(|s| s.timeline == timeline).map(|s| s.end)
    }

    /// Whether a state that was consistent at `lsn` on `timeline` lies on this path (rules 16, 39).
    pub fn contains(&self, timeline: Timeline, lsn: Lsn) -> bool {
        self.left(timeline).is_some_and(|end| end.is_none_or(|end| lsn <= end))
    }

    /// The timeline that a position belongs to: at a fork the new one.
    pub fn at(&self, lsn: Lsn) -> Timeline {
        let begun = self.stretches.iter().rev().find(|stretch| stretch.begin <= lsn);
        begun.map_or(self.stretches[0].timeline, |stretch| stretch.timeline)
    }

    /// Where two paths part; `None` when one is the beginning of the other.
    pub fn fork(&self, other: &History) -> Option<Lsn> {
        for (one, two) in self.stretches.iter().zip(&other.stretches) {
            if one.timeline != two.timeline {
                // From here on both write, each on its own.
                return Some(one.begin.min(two.begin));
            }
            if one.end != two.end {
                return [one.end, two.end].into_iter().flatten().min();
            }
        }
        None
    }

    /// The file in which recovery looks for segment `number`: of the newest timeline that reaches into it, because at a
    /// switch the new timeline's first segment begins as a copy of the old one's (`XLogFileReadAnyTLI`).
    pub fn segment(&self, number: u64, segment_bytes: u64) -> SegmentName {
        let holds = |s: &&Stretch| s.begin.segment(segment_bytes) <= number;
        let stretch = self.stretches.iter().rev().find(holds).unwrap_or(&self.stretches[0]);
        SegmentName::new(stretch.timeline, number, segment_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "1\t0/3000100\tno recovery target specified\n\n2\t0/5000000\tbefore 2026\n";

    #[test]
    fn a_path_knows_where_each_timeline_was_left() {
        let history = History::parse(Timeline(3), TEXT).unwrap();
        assert_eq!(history.timeline(), Timeline(3));
        assert_eq!(history.left(Timeline(1)), Some(Some(Lsn(0x300_0100))));
        assert!(history.contains(Timeline(1), Lsn(0x300_0100)));
        assert!(!history.contains(Timeline(1), Lsn(0x300_0101)));
        assert!(history.contains(Timeline(3), Lsn(0x900_0000)));
        assert!(!history.contains(Timeline(4), Lsn(1)));
    }

    #[test]
    fn a_segment_is_looked_for_on_the_newest_timeline_that_reaches_it() {
        let history = History::parse(Timeline(3), TEXT).unwrap();
        let name = |n| history.segment(n, 16 << 20).to_string();
        assert_eq!(name(2), "000000010000000000000002");
        assert_eq!(name(3), "000000020000000000000003");
        assert_eq!(name(4), "000000020000000000000004");
        assert_eq!(name(5), "000000030000000000000005");
    }

    #[test]
    fn two_paths_part_where_the_first_was_left() {
        let parse = |timeline, text| History::parse(Timeline(timeline), text).unwrap();
        let third = parse(3, TEXT);
        assert_eq!(History::first(Timeline(1)).fork(&third), Some(Lsn(0x300_0100)));
        assert_eq!(parse(2, "1\t0/3000100\tx\n").fork(&third), Some(Lsn(0x500_0000)));
        assert_eq!(parse(4, "1\t0/2000000\tx\n").fork(&third), Some(Lsn(0x200_0000)));
        assert_eq!(third.fork(&third), None);
    }

    #[test]
    fn what_is_no_history_is_refused() {
        for bad in ["x\t0/1\n", "1\tnowhere\n", "5\t0/1\n", "1\t0/9\n2\t0/1\n"] {
            assert!(History::parse(Timeline(3), bad).is_err(), "{bad:?}");
        }
    }
}
