//! Which blocks of which relation files a stretch of WAL changes.
//!
//! # The rules
//! Those of PostgreSQL 17 (`src/backend/postmaster/walsummarizer.c`, `src/common/blkreftable.c`): every block reference marks its
//! block, except in the free space map. A *limit* says that from this block on all is new, because the file was made, cut or
//! removed: what the marks below say still counts. A database that was created or dropped is new as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::postgres::wal::reference::{FSM_FORK, INIT_FORK, MAIN_FORK, RelFileLocator, VM_FORK};

/// Relation forks of one segment that are told apart; a segment of 1 GiB has seldom more than some thousand.
const FORKS_MAX: usize = 1 << 20;
/// Marks that are collected before they are sorted.
const FRESH: usize = 1024;
/// `HEAPBLOCKS_PER_PAGE` of the visibility map: two bits for each block of the heap.
const HEAP_BLOCKS_PER_MAP_BLOCK: u32 = (8192 - 24) * 4;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fork {
    pub locator: RelFileLocator,
    pub fork: u8,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// All blocks from here on are new.
    pub limit: Option<u32>,
    /// First and last block of each stretch; sorted, with gaps between them.
    pub ranges: Vec<(u32, u32)>,
}

impl Change {
    pub fn blocks(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    fn set_limit(&mut self, limit: u32) {
        if self.limit.is_some_and(|known| known <= limit) {
            return;
        }
        self.limit = Some(limit);
        self.ranges.retain(|(first, _)| *first < limit);
        if let Some((_, last)) = self.ranges.last_mut() {
            *last = (*last).min(limit.saturating_sub(1));
        }
    }

    /// Adds what happened after it.
    pub fn then(&mut self, later: &Change) {
        if let Some(limit) = later.limit {
            self.set_limit(limit);
        }
        self.ranges = joined(self.ranges.iter().chain(&later.ranges).copied().collect());
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangedBlocks {
    pub forks: BTreeMap<Fork, Change>,
    /// Tablespace and database whose files are all new.
    pub databases: BTreeSet<(u32, u32)>,
}

impl ChangedBlocks {
    /// Adds what happened after it.
    pub fn then(&mut self, later: &ChangedBlocks) {
        for (fork, change) in &later.forks {
            self.forks.entry(*fork).or_default().then(change);
        }
        self.databases.extend(&later.databases);
    }
}

fn joined(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// Marks of one fork while they are collected.
#[derive(Debug, Default)]
struct Marks {
    change: Change,
    fresh: Vec<u32>,
}

impl Marks {
    fn settle(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let fresh = self.fresh.drain(..).map(|block| (block, block));
        self.change.ranges = joined(self.change.ranges.drain(..).chain(fresh).collect());
    }
}

/// Numbers that are spread by a multiplication: the server chose them, no attacker.
#[derive(Debug, Default)]
pub(super) struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u32(u32::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(26) ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

pub(super) type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHasher>>;

/// Forks looked up last: a row and its indexes come in turns.
const REMEMBERED: usize = 4;

/// Collects marks; memory grows with distinct blocks, not with references.
#[derive(Debug, Default)]
pub struct Collector {
    places: QuickMap<Fork, usize>,
    forks: Vec<(Fork, Marks)>,
    recent: [usize; REMEMBERED],
    next_recent: usize,
    databases: BTreeSet<(u32, u32)>,
    is_cut: bool,
}

impl Collector {
    fn place(&mut self, fork: Fork) -> Option<usize> {
        for place in self.recent {
            if self.forks.get(place).is_some_and(|(known, _)| *known == fork) {
                return Some(place);
            }
        }
        let place = match self.places.get(&fork) {
            Some(place) => *place,
            None if self.forks.len() >= FORKS_MAX => {
                self.is_cut = true;
                return None;
            }
            None => {
                self.forks.push((fork, Marks::default()));
                self.places.insert(fork, self.forks.len() - 1);
                self.forks.len() - 1
            }
        };
        self.recent[self.next_recent] = place;
        self.next_recent = (self.next_recent + 1) % REMEMBERED;
        Some(place)
    }

    pub fn mark(&mut self, locator: RelFileLocator, fork: u8, block: u32) {
        if fork == FSM_FORK {
            return;
        }
        let Some(place) = self.place(Fork { locator, fork }) else { return };
        let marks = &mut self.forks[place].1;
        if marks.fresh.last() == Some(&block) {
            return;
        }
        marks.fresh.push(block);
        if marks.fresh.len() >= FRESH.max(2 * marks.change.ranges.len()) {
            marks.settle();
        }
    }

    pub fn set_limit(&mut self, locator: RelFileLocator, fork: u8, limit: u32) {
        if fork == FSM_FORK {
            return;
        }
        let Some(place) = self.place(Fork { locator, fork }) else { return };
        let marks = &mut self.forks[place].1;
        marks.settle();
        marks.change.set_limit(limit);
    }

    /// The files of a relation are removed.
    pub fn remove(&mut self, locator: RelFileLocator) {
        for fork in [MAIN_FORK, VM_FORK, INIT_FORK] {
            self.set_limit(locator, fork, 0);
        }
    }

    /// The visibility map of a relation whose heap was cut to `heap_blocks`.
    pub fn cut_visibility_map(&mut self, locator: RelFileLocator, heap_blocks: u32) {
        self.set_limit(locator, VM_FORK, heap_blocks.div_ceil(HEAP_BLOCKS_PER_MAP_BLOCK));
    }

    pub fn new_database(&mut self, tablespace: u32, database: u32) {
        self.databases.insert((tablespace, database));
    }

    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub fn finish(self) -> ChangedBlocks {
        let settled = |(fork, mut marks): (Fork, Marks)| {
            marks.settle();
            (fork, marks.change)
        };
        ChangedBlocks { forks: self.forks.into_iter().map(settled).collect(), databases: self.databases }
    }
}
