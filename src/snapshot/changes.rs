//! Which pages changed since the parent began, as WAL tells it.
//!
//! Only main forks are here: WAL does not describe the others page by page. Clearing a bit of a visibility map registers no
//! block, and the free space map is not logged at all. The rules are those of PostgreSQL 17's incremental backups
//! (`src/backend/backup/basebackup_incremental.c`, `GetFileBackupMethod`).
//!
//! # Memory
//! A bit for each page, in groups of [`GROUP_BLOCKS`] that hold a changed one; at most [`GROUPS_MAX`] groups.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::postgres::data_directory;
use crate::postgres::page::PAGE_BYTES;
use crate::postgres::wal::index::changed::ChangedBlocks;
use crate::postgres::wal::reference::{MAIN_FORK, RelFileLocator};

const GROUP_BLOCKS: u32 = 1024;
const WORD_BLOCKS: u32 = u64::BITS;
/// Some 64 MiB: changes that are spread over three terabytes.
const GROUPS_MAX: usize = 400_000;

type Bits = [u64; (GROUP_BLOCKS / WORD_BLOCKS) as usize];

/// There is more than fits into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

#[derive(Debug, Default)]
pub struct Changes {
    blocks_per_file: u32,
    groups: HashMap<(RelFileLocator, u32), Bits>,
    /// From this block on all of the relation is new.
    limits: HashMap<RelFileLocator, u32>,
    /// Tablespace and database whose files are all new.
    databases: BTreeSet<(u32, u32)>,
}

impl Changes {
    pub fn new(blocks_per_file: u32) -> Changes {
        Changes { blocks_per_file, ..Changes::default() }
    }

    /// Adds what a stretch of WAL changed; the order of stretches does not matter.
    pub fn add(&mut self, changed: &ChangedBlocks) -> Result<(), TooMany> {
        self.databases.extend(&changed.databases);
        for (fork, change) in changed.forks.iter().filter(|(fork, _)| fork.fork == MAIN_FORK) {
            if let Some(limit) = change.limit {
                let known = self.limits.entry(fork.locator).or_insert(limit);
                *known = limit.min(*known);
            }
            for (first, last) in &change.ranges {
                self.mark(fork.locator, *first, *last)?;
            }
        }
        if self.groups.len() + self.limits.len() > GROUPS_MAX { Err(TooMany) } else { Ok(()) }
    }

    fn mark(&mut self, relation: RelFileLocator, first: u32, last: u32) -> Result<(), TooMany> {
        for group in first / GROUP_BLOCKS..=last / GROUP_BLOCKS {
            if self.groups.len() > GROUPS_MAX {
                return Err(TooMany);
            }
            let bits = self.groups.entry((relation, group)).or_default();
            let begin = first.max(group * GROUP_BLOCKS) - group * GROUP_BLOCKS;
            let end = last.min(group * GROUP_BLOCKS + (GROUP_BLOCKS - 1)) - group * GROUP_BLOCKS;
            for block in begin..=end {
                bits[(block / WORD_BLOCKS) as usize] |= 1 << (block % WORD_BLOCKS);
            }
        }
        Ok(())
    }

    /// What changed in a file of a main fork, which is file number `file` of its relation; `None` when all of it may be new.
    pub fn of_file(self: &Arc<Self>, path: &[u8], file: u32) -> Option<FileChanges> {
        let relation = data_directory::main_fork(path)?;
        let first_block = file.checked_mul(self.blocks_per_file)?;
        let limit = self.limits.get(&relation).copied().unwrap_or(u32::MAX);
        let is_new = self.is_of_new_database(relation) || limit <= first_block;
        (!is_new).then(|| FileChanges { changes: self.clone(), relation, first_block, limit: limit - first_block })
    }

    /// Whether a main fork is another than the one that had its path before: its database was made since. Its pages may be copies that
    /// are older than the parent, so that their LSNs prove nothing; and a file system without times of birth may have used an inode
    /// number again.
    pub fn is_another(&self, path: &[u8]) -> bool {
        data_directory::main_fork(path).is_some_and(|relation| self.is_of_new_database(relation))
    }

    fn is_of_new_database(&self, relation: RelFileLocator) -> bool {
        self.databases.contains(&(relation.tablespace, relation.database))
    }
}

/// The changes of one file.
#[derive(Debug, Clone)]
pub struct FileChanges {
    changes: Arc<Changes>,
    relation: RelFileLocator,
    first_block: u32,
    /// From this page of the file on all is new.
    limit: u32,
}

impl FileChanges {
    /// The first page from `page` on that may have changed, or `end`.
    pub fn next(&self, page: u64, end: u64) -> u64 {
        let stop = end.min(u64::from(self.limit));
        let mut at = page;
        while at < stop {
            let block = u64::from(self.first_block) + at;
            let (group, within) = (block / u64::from(GROUP_BLOCKS), (block % u64::from(GROUP_BLOCKS)) as u32);
            let found = u32::try_from(group).ok().and_then(|group| self.changes.groups.get(&(self.relation, group)));
            if let Some(next) = found.and_then(|bits| next_bit(bits, within)) {
                return (at + u64::from(next - within)).min(stop);
            }
            at += u64::from(GROUP_BLOCKS - within);
        }
        stop.max(page)
    }

    /// Whether this page may have changed.
    pub fn has(&self, page: u64) -> bool {
        self.next(page, page + 1) == page
    }

    /// Whether none of the file's first `pages` changed.
    pub fn is_unchanged(&self, pages: u64) -> bool {
        self.next(0, pages) >= pages
    }
}

/// What is known of a file that need not be read whole.
#[derive(Debug, Clone)]
pub enum Known {
    /// Nothing changed, as length, times and inode prove, or WAL.
    Same,
    /// WAL tells which pages changed.
    Pages(FileChanges),
}

impl Known {
    /// The first byte of `range`, which begins with a page, that may have changed; its end when none did.
    pub fn next(&self, range: Range<u64>) -> u64 {
        let page = PAGE_BYTES as u64;
        match self {
            Known::Same => range.end,
            Known::Pages(changes) => changes.next(range.start / page, range.end / page) * page,
        }
    }
}

fn next_bit(bits: &Bits, from: u32) -> Option<u32> {
    let first = (from / WORD_BLOCKS) as usize;
    (first..bits.len()).find_map(|word| {
        let masked = if word == first { bits[word] & (u64::MAX << (from % WORD_BLOCKS)) } else { bits[word] };
        (masked != 0).then(|| word as u32 * WORD_BLOCKS + masked.trailing_zeros())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::wal::index::changed::{Change, Fork};

    const RELATION: RelFileLocator = RelFileLocator { tablespace: 1663, database: 5, number: 16384 };

    fn changed(limit: Option<u32>, ranges: &[(u32, u32)]) -> ChangedBlocks {
        let fork = Fork { locator: RELATION, fork: MAIN_FORK };
        ChangedBlocks { forks: [(fork, Change { limit, ranges: ranges.to_vec() })].into(), databases: BTreeSet::new() }
    }

    fn file(changes: Changes, file: u32) -> Option<FileChanges> {
        let path = if file == 0 { "base/5/16384".to_string() } else { format!("base/5/16384.{file}") };
        Arc::new(changes).of_file(path.as_bytes(), file)
    }

    #[test]
    fn every_named_block_is_found_and_no_other() {
        let mut changes = Changes::new(131_072);
        let ranges = [(0, 0), (63, 64), (1023, 1024), (5000, 9000), (131_070, 131_075)];
        changes.add(&changed(None, &ranges)).unwrap();
        let file = file(changes, 0).unwrap();
        let mut found = Vec::new();
        let mut page = 0;
        loop {
            page = file.next(page, 131_072);
            if page == 131_072 {
                break;
            }
            found.push(page);
            page += 1;
        }
        let expected = ranges.iter().flat_map(|(first, last)| *first..=*last).filter(|block| *block < 131_072);
        assert_eq!(found, expected.map(u64::from).collect::<Vec<_>>());
        assert!(!file.is_unchanged(1) && file.next(1, 60) == 60);
    }

    #[test]
    fn blocks_count_across_the_files_of_a_relation() {
        let mut changes = Changes::new(131_072);
        changes.add(&changed(None, &[(131_070, 131_075)])).unwrap();
        let second = file(changes, 1).unwrap();
        assert_eq!((second.next(0, 100), second.next(3, 100), second.next(4, 100)), (0, 3, 100));
    }

    #[test]
    fn a_limit_makes_all_behind_it_new() {
        let mut changes = Changes::new(131_072);
        changes.add(&changed(Some(131_080), &[(3, 3)])).unwrap();
        changes.add(&changed(Some(131_090), &[])).unwrap();
        let changes = Arc::new(changes);
        let first = changes.of_file(b"base/5/16384", 0).unwrap();
        assert_eq!((first.next(0, 131_072), first.next(4, 131_072)), (3, 131_072));
        let second = changes.of_file(b"base/5/16384.1", 1).unwrap();
        assert_eq!((second.next(0, 50), second.next(9, 50), second.next(0, 7)), (8, 9, 7));
        assert!(changes.of_file(b"base/5/16384.2", 2).is_none());
        let mut cut = Changes::new(131_072);
        cut.add(&changed(Some(0), &[])).unwrap();
        assert!(file(cut, 0).is_none(), "a limit at the file's begin");
    }

    #[test]
    fn a_new_database_is_new_as_a_whole() {
        let mut changes = Changes::new(131_072);
        changes.add(&ChangedBlocks { databases: [(1663, 5)].into(), ..ChangedBlocks::default() }).unwrap();
        let changes = Arc::new(changes);
        assert!(changes.of_file(b"base/5/1", 0).is_none() && changes.of_file(b"pg_tblspc/9/PG_15_1/5/1", 0).is_some());
        assert!(changes.is_another(b"base/5/1") && !changes.is_another(b"base/6/1") && !changes.is_another(b"base/5/PG_VERSION"));
        assert!(changes.of_file(b"base/6/1", 0).is_some_and(|file| file.is_unchanged(1000)));
        assert!(changes.of_file(b"base/6/1_vm", 0).is_none() && changes.of_file(b"pg_xact/0000", 0).is_none());
    }

    #[test]
    fn memory_has_a_bound() {
        let mut changes = Changes::new(131_072);
        assert_eq!(changes.add(&changed(None, &[(0, u32::MAX)])), Err(TooMany));
        assert!(changes.groups.len() <= GROUPS_MAX + 1);
    }
}
