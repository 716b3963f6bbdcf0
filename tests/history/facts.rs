//! The same over facts: segments are values, and what is asked are the decisions alone. So many more histories fit into a second.
//!
//! Held: a failover of the line that lives is taken; what is taken beside another line parts from it where nothing of that line was
//! archived any more, or somebody decided so; the answer does not depend on the order in which the archive lists its timelines; and where
//! two segments are neighbours by name and not in any server's WAL, the chain breaks there.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use lastgood::lineage::admission::{self, Branch, Decisions};
use lastgood::lineage::chain::{self, Link};
use lastgood::postgres::history::History;
use lastgood::postgres::lsn::{Lsn, Timeline};
use lastgood::postgres::wal::name::SegmentName;
use lastgood::repo::object::Sha;

use crate::property::dice::Dice;
use crate::support::wal_writer::SEGMENT;

/// Records begin at multiples of this.
const UNIT: u64 = SEGMENT / 8;

#[derive(Debug, Clone)]
struct Line {
    left: Vec<(u32, u64)>,
    timeline: u32,
    at: u64,
    content: u64,
    /// Finished segments in its `pg_wal`, by name.
    segments: BTreeMap<SegmentName, u64>,
    /// What it has not archived yet, in order.
    ready: Vec<SegmentName>,
    is_known: bool,
}

impl Line {
    fn path(&self) -> History {
        let text: String = self.left.iter().map(|(timeline, end)| format!("{timeline}\t{}\tx\n", Lsn(*end))).collect();
        History::parse(Timeline(self.timeline), &text).unwrap()
    }

    /// Writes so many records, each unlike any other.
    fn write(&mut self, units: u64, next: &mut u64) {
        for _ in 0..units {
            *next += 1;
            self.content = mixed(self.content, *next);
            self.at += UNIT;
            if self.at.is_multiple_of(SEGMENT) {
                let name = SegmentName::new(Timeline(self.timeline), self.at / SEGMENT - 1, SEGMENT);
                self.segments.insert(name, self.content);
                self.ready.push(name);
            }
        }
    }

    fn fork(&self, timeline: u32) -> Line {
        let mut left = self.left.clone();
        left.push((self.timeline, self.at));
        Line { left, timeline, ready: Vec::new(), is_known: false, ..self.clone() }
    }
}

fn mixed(one: u64, two: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (one, two).hash(&mut hasher);
    hasher.finish()
}

fn digest(content: u64) -> Sha {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&content.to_le_bytes());
    Sha(bytes)
}

#[derive(Debug, Default)]
struct Archive {
    histories: BTreeMap<u32, History>,
    links: BTreeMap<SegmentName, Link>,
    abandoned: Vec<Timeline>,
    successors: Vec<Timeline>,
}

impl Archive {
    fn path(&self, timeline: u32) -> Option<History> {
        if timeline == 1 { Some(History::first(Timeline(1))) } else { self.histories.get(&timeline).cloned() }
    }

    /// The first whole segment of a path beyond the one that holds a position.
    fn beyond(&self, path: &History, at: Lsn) -> Option<SegmentName> {
        self.links.keys().copied().find(|name| {
            let number = name.number(SEGMENT).unwrap();
            let own = path.stretches().iter().find(|stretch| stretch.timeline == name.timeline);
            number > at.last_segment_before(SEGMENT)
                && own.is_some_and(|own| {
                    own.begin.segment(SEGMENT) <= number && own.end.is_none_or(|end| number <= end.last_segment_before(SEGMENT))
                })
        })
    }

    fn branches(&self, candidate: &History) -> Vec<Branch> {
        let mut paths: Vec<History> = self.histories.values().cloned().collect();
        paths.extend(candidate.stretches().iter().rev().skip(1).filter_map(|stretch| candidate.until(stretch.timeline)));
        let beyond = |path: &History| candidate.fork(path).and_then(|at| self.beyond(path, at));
        paths.into_iter().map(|path| Branch { beyond: beyond(&path), path }).collect()
    }

    /// Whether a history file is taken.
    fn admits(&self, candidate: &History, dice: &mut Dice) -> bool {
        let decisions = Decisions { abandoned: &self.abandoned, successors: &self.successors };
        let mut branches = self.branches(candidate);
        let taken = admission::admit(candidate, &branches, decisions).is_ok();
        for at in (1..branches.len()).rev() {
            branches.swap(at, dice.below(at + 1));
        }
        assert_eq!(taken, admission::admit(candidate, &branches, decisions).is_ok(), "the order decides: {candidate:?} {self:?}");
        taken || self.successors.contains(&candidate.timeline())
    }

    /// Whether a segment is taken: its name is free, no timeline left its own before, and its predecessor is the archive's.
    fn takes(&self, line: &Line, name: SegmentName) -> bool {
        let number = name.number(SEGMENT).unwrap();
        let left = |history: &History| match history.left(name.timeline) {
            Some(Some(end)) => !self.abandoned.contains(&history.timeline()) && number > end.last_segment_before(SEGMENT),
            _ => false,
        };
        if self.links.contains_key(&name) || self.abandoned.contains(&name.timeline) || self.histories.values().any(left) {
            return false;
        }
        let path = line.path().until(name.timeline).unwrap();
        let before = chain::predecessor(&path, name, SEGMENT);
        let there = before.and_then(|before| self.links.get(&before));
        let here = before.and_then(|before| line.segments.get(&before)).map(|content| digest(*content));
        there.is_none_or(|there| here.is_none_or(|here| there.sha256 == here))
    }

    fn store(&mut self, line: &Line, name: SegmentName) {
        let path = line.path().until(name.timeline).unwrap();
        let before = chain::predecessor(&path, name, SEGMENT).and_then(|before| line.segments.get(&before));
        let link = Link { name, sha256: digest(line.segments[&name]), previous: before.map(|content| digest(*content)) };
        self.links.insert(name, link);
    }
}

struct World {
    dice: Dice,
    archive: Archive,
    lines: Vec<Line>,
    images: Vec<Line>,
    next: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let first = Line {
            left: Vec::new(),
            timeline: 1,
            at: SEGMENT,
            content: 0,
            segments: BTreeMap::new(),
            ready: Vec::new(),
            is_known: true,
        };
        World { dice: Dice::new(seed), archive: Archive::default(), lines: vec![first], images: Vec::new(), next: 0 }
    }

    fn step(&mut self) {
        let at = self.dice.below(self.lines.len());
        match self.dice.below(16) {
            0..5 => {
                let units = 1 + self.dice.next() % 12;
                self.lines[at].write(units, &mut self.next);
            }
            5..10 => self.push(at),
            10 => self.images.push(self.lines[at].clone()),
            // A volume is put back, or a copy of it started elsewhere.
            11 if !self.images.is_empty() => {
                let image = self.dice.pick(&self.images).clone();
                if self.dice.chance(50) { self.lines[at] = image } else { self.lines.push(image) }
            }
            // A promotion, of what is up to date or of what lagged.
            12 | 13 if self.lines.len() < 6 => {
                let from =
                    if self.images.is_empty() || self.dice.chance(60) { &self.lines[at] } else { self.dice.pick(&self.images) };
                let sees = self.dice.chance(85);
                let free = |number: &u32| !sees || !self.archive.histories.contains_key(number);
                let number = (from.timeline + 1..).find(free).unwrap();
                let fork = from.fork(number);
                self.lines.push(fork);
            }
            14 => self.release(at),
            _ => {}
        }
    }

    /// Archives what waits, in order or not.
    fn push(&mut self, at: usize) {
        let line = self.lines[at].clone();
        if !line.is_known {
            let path = line.path();
            let same = self.archive.histories.get(&line.timeline).map(|known| *known == path);
            let taken = same.unwrap_or_else(|| self.archive.admits(&path, &mut self.dice));
            if same.is_none() {
                self.judge(&line, taken);
            }
            if !taken {
                return;
            }
            self.archive.histories.insert(line.timeline, path);
            self.lines[at].is_known = true;
        }
        while let Some(name) = self.lines[at].ready.first().copied() {
            let is_same = self.archive.links.get(&name).is_some_and(|link| link.sha256 == digest(line.segments[&name]));
            if !is_same && !self.archive.takes(&line, name) {
                break;
            }
            if !is_same {
                self.archive.store(&line, name);
            }
            self.lines[at].ready.remove(0);
        }
    }

    /// `lastgood release`: this line goes on, and what parted from it does not.
    fn release(&mut self, at: usize) {
        let line = &self.lines[at];
        let path = line.path();
        if self.archive.histories.get(&line.timeline).is_some_and(|known| *known != path) {
            return;
        }
        let known: Vec<u32> = [1].into_iter().chain(self.archive.histories.keys().copied()).collect();
        let own = Timeline(line.timeline);
        self.archive.abandoned.retain(|timeline| *timeline != own);
        for other in known.into_iter().filter(|other| path.left(Timeline(*other)).is_none()) {
            let parts = self.archive.path(other).is_some_and(|other| other.fork(&path).is_some());
            if parts && !self.archive.abandoned.contains(&Timeline(other)) {
                self.archive.abandoned.push(Timeline(other));
            }
        }
        if !self.archive.successors.contains(&own) {
            self.archive.successors.push(own);
        }
    }

    /// The answer to a history file, held against what there is.
    fn judge(&self, line: &Line, taken: bool) {
        let (archive, path) = (&self.archive, line.path());
        let is_undecided = archive.successors.is_empty() && archive.abandoned.is_empty();
        if !is_undecided {
            return;
        }
        let fork = line.left.last().unwrap().1;
        let others: Vec<&History> = archive.histories.values().filter(|other| other.fork(&path).is_some()).collect();
        let (parent, _) = *line.left.last().unwrap();
        let knows_parent = parent == 1
            || archive.histories.get(&parent).is_some_and(|known| path.until(Timeline(parent)).as_ref() == Some(known));
        // The line that lives, as far as the archive knows, and nothing of it beyond the fork.
        let is_failover =
            others.is_empty() && knows_parent && archive.beyond(&path.until(Timeline(parent)).unwrap(), Lsn(fork)).is_none();
        assert!(taken || !is_failover, "a failover is refused: {line:?} {archive:?}");
        if !taken {
            return;
        }
        for other in others {
            let at = other.fork(&path).unwrap();
            assert!(archive.beyond(other, at).is_none(), "{path:?} is taken beside {other:?}, which goes on: {archive:?}");
        }
        let trunk = path.until(Timeline(parent)).unwrap();
        assert!(archive.beyond(&trunk, Lsn(fork)).is_none(), "{path:?} is taken in the past of its parent: {archive:?}");
    }

    /// Neighbours by name that are none in any WAL break the chain.
    fn chains(&self) {
        let timelines = [1].into_iter().chain(self.archive.histories.keys().copied());
        for path in timelines.filter_map(|timeline| self.archive.path(timeline)) {
            let last = self.archive.links.keys().filter_map(|name| name.number(SEGMENT)).max().unwrap_or(0);
            let names = (1..=last).map(|number| path.segment(number, SEGMENT));
            let links: Vec<Option<Link>> = names.map(|name| self.archive.links.get(&name).copied()).collect();
            for run in links.split(Option::is_none) {
                let run: Vec<Link> = run.iter().flatten().copied().collect();
                let is_one = run.windows(2).all(|pair| pair[1].previous.is_none_or(|previous| previous == pair[0].sha256));
                assert_eq!(chain::first_break(&run).is_none(), is_one, "{run:?}");
            }
        }
    }
}

/// Plays histories over facts.
pub fn play(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut world = World::new(seed);
        let steps = 10 + world.dice.below(25);
        for step in 0..steps {
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.step()));
            if let Err(panic) = told {
                eprintln!("LASTGOOD_SEED={seed}, step {step} of {steps}");
                std::panic::resume_unwind(panic);
            }
        }
        world.chains();
    }
}
