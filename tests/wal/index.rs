//! The index of a segment against pg_waldump, over segment borders, and against damage.

use std::collections::{BTreeMap, BTreeSet};

use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::scratch::Stop;
use lastgood::postgres::wal::index::changed::{ChangedBlocks, Fork};
use lastgood::postgres::wal::index::fold::Fold;
use lastgood::postgres::wal::index::seam::Seam;
use lastgood::postgres::wal::index::{MappedFiles, NoIndex, SegmentIndex};
use lastgood::postgres::wal::reader::{PAGE_BYTES, Record, Walk};
use lastgood::postgres::wal::reference::{self, RelFileLocator};
use lastgood::postgres::wal::{database, ended, heap, image, storage, xlog};
use lastgood::timeline::catalogue::Names;
use lastgood::timeline::events::Events;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::Dumped;
use super::load::{self, Wal};
use crate::support::world::World;

/// The index of one segment, fed in pieces of this length.
pub fn index_in(bytes: &[u8], start: Lsn, segment_bytes: u64, pieces: usize) -> Result<SegmentIndex, NoIndex> {
    let mut fold = Fold::new(start, segment_bytes, MappedFiles::new());
    bytes.chunks(pieces).for_each(|piece| fold.feed(piece));
    fold.finish().index
}

/// Indexes of all segments in order, with those of the records between them.
pub fn indexes(wal: &Wal) -> Vec<SegmentIndex> {
    let mut all = Vec::new();
    let mut seam: Option<Seam> = None;
    for (name, bytes) in &wal.files {
        let start = name.start(wal.segment_bytes).unwrap();
        let index = index_in(bytes, start, wal.segment_bytes, bytes.len()).unwrap();
        if let (Some(head), Some(continuation)) = (seam.take(), &index.continuation) {
            let continued = head.continued(continuation).unwrap_or_else(|| panic!("{name}: the parts do not fit"));
            if continuation.is_end {
                all.push(continued.finish(&MappedFiles::new()).unwrap());
            } else {
                seam = Some(continued);
            }
        }
        if let Some(open) = &index.open {
            seam = Some(Seam::new(open.clone(), index.major));
        }
        all.push(index);
    }
    all
}

/// `1663/5/16385` as pg_waldump prints block references, or `base/5/16385_vm`, `global/1262` as it prints files.
fn fork(text: &str, name: &str) -> Fork {
    let number = |text: &str| text.parse::<u32>().unwrap_or_else(|_| panic!("{text}"));
    let (path, suffix) = text.split_once('_').filter(|_| !text.starts_with("pg_")).unwrap_or((text, name));
    let parts: Vec<&str> = path.split('/').collect();
    let (tablespace, database, file) = match parts[..] {
        ["base", database, file] => (1663, number(database), file),
        ["global", file] => (1664, 0, file),
        [tablespace, database, file] => (number(tablespace), number(database), file),
        _ => panic!("{text}"),
    };
    let fork = ["main", "fsm", "vm", "init"].iter().position(|known| *known == suffix).unwrap_or_else(|| panic!("{text} {name}"));
    Fork { locator: RelFileLocator { tablespace, database, number: number(file) }, fork: fork as u8 }
}

type Expected = BTreeMap<Fork, (Option<u32>, BTreeSet<u32>)>;

fn limit(expected: &mut Expected, fork: Fork, blocks: u32) {
    let known = expected.entry(fork).or_default();
    if known.0.is_none_or(|limit| blocks < limit) {
        known.0 = Some(blocks);
        known.1.retain(|block| *block < blocks);
    }
}

/// What pg_waldump's text says was changed, by the rules of PostgreSQL 17's summarizer.
fn expected(dumped: &[Dumped]) -> Expected {
    let mut expected = Expected::new();
    for line in dumped {
        let (what, references) = line.description.split_once(", blkref").unwrap_or((&line.description, ""));
        for reference in references.split("blkref").filter(|text| !text.is_empty()) {
            let words: Vec<&str> = reference.trim_end_matches(',').split_whitespace().collect();
            let (name, block) = if words[3] == "fork" { (words[4], words[6]) } else { ("main", words[4]) };
            let fork = fork(words[2], name);
            if fork.fork != 1 {
                expected.entry(fork).or_default().1.insert(block.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap());
            }
        }
        let words: Vec<&str> = what.split_whitespace().collect();
        match (line.manager.as_str(), words[0]) {
            ("Storage", "CREATE") => limit(&mut expected, fork(words[1], "main"), 0),
            ("Storage", "TRUNCATE") => {
                let (main, blocks): (Fork, u32) = (fork(words[1], "main"), words[3].parse().unwrap());
                limit(&mut expected, main, blocks);
                limit(&mut expected, Fork { fork: 2, ..main }, blocks.div_ceil(32672));
            }
            ("Transaction", "COMMIT" | "COMMIT_PREPARED" | "ABORT" | "ABORT_PREPARED") => {
                let files = what.split("; rels: ").nth(1).map_or("", |rest| rest.split(';').next().unwrap());
                for file in files.split_whitespace() {
                    let main = fork(file, "main");
                    [0, 2, 3].into_iter().for_each(|fork| limit(&mut expected, Fork { fork, ..main }, 0));
                }
            }
            _ => {}
        }
    }
    expected
}

/// The changed blocks of all segments, put together, are those of pg_waldump; and each index survives being written and read.
pub fn same_blocks(wal: &Wal, dumped: &[Dumped]) {
    let mut found = ChangedBlocks::default();
    let (mut records, mut commits, mut seams) = (0, 0, 0);
    for index in indexes(wal) {
        let bytes = index.to_bytes().unwrap();
        assert_eq!(SegmentIndex::parse(&bytes).unwrap(), index);
        found.then(&index.changed);
        records += index.records;
        commits += index.activity.commits;
        seams += usize::from(index.start.0 % wal.segment_bytes != 0);
        assert!(!index.cut.blocks && !index.cut.transactions && index.ends_at.is_none());
    }
    assert_eq!(records as usize, dumped.len());
    assert_eq!(commits as usize, dumped.iter().filter(|line| line.description.starts_with("COMMIT")).count());
    // In larger segments, each ends with a switch.
    assert!(seams > 0 || wal.segment_bytes > 1 << 20, "no record crosses a border");
    let expected = expected(dumped);
    assert_eq!(found.forks.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let below = |limit: Option<u32>| move |block: &u32| limit.is_none_or(|limit| *block < limit);
    for (fork, change) in &found.forks {
        let (limit, blocks) = &expected[fork];
        assert_eq!(change.limit, *limit, "{fork:?}");
        let ours: BTreeSet<u32> = change.ranges.iter().flat_map(|(first, last)| *first..=*last).filter(below(*limit)).collect();
        let theirs: BTreeSet<u32> = blocks.iter().copied().filter(below(*limit)).collect();
        assert_eq!(ours, theirs, "{fork:?}");
    }
    assert!(found.forks.len() > 100 && found.forks.values().any(|change| change.blocks() > 20), "{}", found.forks.len());
}

/// The pieces in which a segment comes do not matter.
pub fn pieces_do_not_matter(wal: &Wal) {
    let (name, bytes) = &wal.files[1];
    let start = name.start(wal.segment_bytes).unwrap();
    let whole = index_in(bytes, start, wal.segment_bytes, bytes.len()).unwrap();
    for pieces in [8191, 100_003] {
        assert_eq!(whole, index_in(bytes, start, wal.segment_bytes, pieces).unwrap(), "pieces of {pieces}");
    }
}

/// Everything that reads payloads; it may say no, and must not panic.
fn read_all(record: &Record) {
    let _ = reference::each(record, |_| {});
    let _ = (ended::ended(record), xlog::control(record), storage::storage(record), storage::locks(record));
    let _ = (storage::relation_map(record), storage::oldest_running(record));
    let _ = (database::database(record), database::tablespace(record));
    if let Ok(layout) = reference::each(record, |_| {}) {
        let _ = heap::change(record, &layout);
    }
    for offset in [0, 1, 5, 0xFFFF] {
        let _ = (heap::inserted_class_row(record, offset), heap::database_limit(record, offset));
    }
    for id in 0..3 {
        let page = reference::block(record, id).and_then(|block| image::restore(&block));
        assert!(page.is_none_or(|page| page.len() == 8192));
    }
}

/// A page of 15 with one record of this payload.
fn forged(header: [u8; 24], payload: &[u8]) -> Vec<u8> {
    let mut record = header.to_vec();
    record.extend_from_slice(payload);
    let total = record.len() as u32;
    record[..4].copy_from_slice(&total.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(payload), &record[..20]);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
    let mut page = vec![0u8; PAGE_BYTES];
    page[..2].copy_from_slice(&0xD110u16.to_le_bytes());
    page[2..4].copy_from_slice(&2u16.to_le_bytes());
    page[4] = 1;
    page[40..40 + record.len()].copy_from_slice(&record);
    page
}

/// Records of each manager and kind, as a real server wrote them.
async fn samples() -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut world = World::bare(15, &["--wal-segsize=1"], &format!("{}\nwal_compression = lz4", load::SETTINGS), None).await;
    world.start().await;
    let known = load::play(&world, 1 << 20).await;
    world.server.stop(Stop::Immediate);
    let wal = Wal::read(&world, &known);
    let mut kinds: BTreeMap<(u8, u8), usize> = BTreeMap::new();
    let mut samples = Vec::new();
    let mut walk = Walk::new(wal.segment_bytes);
    for (name, bytes) in &wal.files {
        for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
            let address = Lsn(name.start(wal.segment_bytes).unwrap().0 + (number * PAGE_BYTES) as u64);
            let visit = &mut |record: Record| {
                read_all(&record);
                let count = kinds.entry((record.resource_manager, record.info)).or_default();
                *count += 1;
                if *count <= 20 && record.payload.len() < 8000 {
                    samples.push((record.resource_manager, record.info, record.xid, record.payload.to_vec()));
                }
            };
            walk.page(page, address, visit).unwrap();
        }
    }
    assert!(kinds.len() > 25, "{kinds:?}");
    samples
}

/// Real payloads with any bytes changed, cut anywhere, and said to be of any kind, by every reader; in a page with a good checksum
/// they give an index, or the reason why there is none.
#[tokio::test(flavor = "multi_thread")]
async fn mutated_payloads_are_read_or_refused() {
    let samples = samples().await;
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let case = (
        any::<prop::sample::Index>(),
        proptest::collection::vec(change, 0..6),
        any::<Option<prop::sample::Index>>(),
        proptest::option::of((0..22u8, any::<u8>())),
        13..=18u32,
        0..70_000u32,
    );
    let (indexed, refused) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() })
        .run(&case, |(sample, changes, cut, kind, major, more)| {
            let (manager, info, xid, mut payload) = samples[sample.index(samples.len())].clone();
            let there = !payload.is_empty();
            for (at, byte) in changes.into_iter().filter(|_| there) {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            let (resource_manager, info) = kind.unwrap_or((manager, info));
            let whole = payload.len() as u32;
            if let Some(cut) = cut {
                payload.truncate(cut.index(payload.len() + 1));
            }
            let record =
                |payload_bytes| Record { major, lsn: Lsn(40), xid, resource_manager, info, payload: &payload, payload_bytes };
            read_all(&record(payload.len() as u32));
            read_all(&record(whole));
            read_all(&record(whole + more));
            let mut header = [0u8; 24];
            header[4..8].copy_from_slice(&xid.to_le_bytes());
            (header[16], header[17]) = (info, resource_manager);
            match index_in(&forged(header, &payload), Lsn(0), 1 << 20, PAGE_BYTES) {
                Ok(index) => {
                    prop_assert_eq!(index.records, 1);
                    let bytes = index.to_bytes().unwrap();
                    prop_assert_eq!(SegmentIndex::parse(&bytes), Ok(index));
                    indexed.set(indexed.get() + 1);
                }
                Err(NoIndex::Malformed { lsn }) => {
                    prop_assert_eq!(lsn, Lsn(40));
                    refused.set(refused.get() + 1);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(indexed.get() > 2000 && refused.get() > 2000, "{indexed:?} {refused:?}");
}

/// A damaged index is refused or read as some index; it never panics and never grows beyond what was given.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_read_or_refused() {
    let mut world = World::bare(15, &["--wal-segsize=1"], load::SETTINGS, None).await;
    world.start().await;
    let known = load::play(&world, 1 << 20).await;
    world.server.stop(Stop::Immediate);
    let wal = Wal::read(&world, &known);
    let sound = indexes(&wal);
    let raws: Vec<Vec<u8>> = sound.iter().map(|index| index.to_bytes().unwrap()).collect();
    let case = (
        any::<prop::sample::Index>(),
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        any::<bool>(),
    );
    TestRunner::new(Config { cases: 10_000, failure_persistence: None, ..Config::default() })
        .run(&case, |(raw, changes, cut)| {
            let mut raw = raws[raw.index(raws.len())].clone();
            for (at, byte) in &changes {
                let at = at.index(raw.len());
                raw[at] = *byte;
                if cut {
                    raw.truncate(at + 1);
                }
            }
            match SegmentIndex::parse(&raw) {
                Ok(index) => {
                    let _ = index.to_bytes();
                    // Read after a sound one, and before itself: whatever crosses a border is put together or refused.
                    let mut events = Events::new(wal.segment_bytes, 10, Names::default());
                    for index in [&sound[0], &index, &index] {
                        let _ = events.add(index);
                    }
                    events.drain();
                }
                Err(NoIndex::Damaged { .. } | NoIndex::Newer { .. }) => prop_assert!(!changes.is_empty()),
                Err(other) => prop_assert!(false, "{other}"),
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}
