//! Damaged, truncated and random WAL: the walk ends there, and never panics.

use std::cell::Cell;

use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::scratch::Stop;
use lastgood::postgres::wal::header::SegmentHeader;
use lastgood::postgres::wal::index::MappedFiles;
use lastgood::postgres::wal::index::fold::Fold;
use lastgood::postgres::wal::name::WalFile;
use lastgood::postgres::wal::reader::{End, PAGE_BYTES, Record, Walk};
use lastgood::postgres::wal::transaction;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::load::{self, Short, Wal};
use crate::support::world::World;

/// A stretch of pages as long as a test case reads.
const WINDOW: usize = 24;
const CASES: u32 = 4000;

/// Pages from `start` on, as one walk sees them, and why it ended.
fn walk(pages: &[u8], start: Lsn, segment_bytes: u64) -> (Vec<Short>, Option<End>) {
    let (mut walk, mut records) = (Walk::new(segment_bytes), Vec::new());
    for (index, page) in pages.chunks(PAGE_BYTES).enumerate() {
        let address = Lsn(start.0 + (index * PAGE_BYTES) as u64);
        if let Err(end) = walk.page(page, address, &mut |record| records.push(Short::of(&record))) {
            return (records, Some(end));
        }
    }
    (records, None)
}

async fn real_wal() -> Wal {
    let mut world = World::bare(15, &["--wal-segsize=1"], load::SETTINGS, None).await;
    world.start().await;
    let known = load::play(&world, 1 << 20).await;
    world.server.stop(Stop::Immediate);
    Wal::read(&world, &known)
}

fn runner() -> TestRunner {
    TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() })
}

/// A flipped byte inside a record ends the walk before that record; one in a page's header ends it or changes nothing. What was
/// handed on before is what it was: nothing damaged is ever taken for a transaction (rules 21 and 43).
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_ends_the_walk_there() {
    let wal = real_wal().await;
    let all: Vec<u8> = wal.files.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    let begin = wal.files[0].0.start(wal.segment_bytes).unwrap();
    let pages = all.len() / PAGE_BYTES - WINDOW;
    let ended = [Cell::new(0), Cell::new(0)];
    let case = (0..pages, 0..WINDOW * PAGE_BYTES, 1..=255u8);
    runner()
        .run(&case, |(page, at, flip)| {
            let mut bytes = all[page * PAGE_BYTES..(page + WINDOW) * PAGE_BYTES].to_vec();
            let start = Lsn(begin.0 + (page * PAGE_BYTES) as u64);
            let (good, good_end) = walk(&bytes, start, wal.segment_bytes);
            // Begins behind a switch, where nothing is; or what continues a record from before the walk is passed over, in another
            // length, and takes others with it.
            if good_end.is_some() || at < 24 {
                return Ok(());
            }
            bytes[at] ^= flip;
            let (found, end) = walk(&bytes, start, wal.segment_bytes);
            let position = start.0 + at as u64;
            prop_assert!(good.starts_with(&found), "{} of {} records, {:?}", found.len(), good.len(), end);
            // The record that holds the byte, unless the byte only fills the space between two records or follows a switch.
            let holder = good.iter().rposition(|record| record.lsn.0 <= position);
            let in_header = at % PAGE_BYTES < 24 || position % wal.segment_bytes < 40;
            match (holder, &end) {
                (Some(holder), Some(_)) if !in_header => prop_assert!(found.len() <= holder),
                // A length that grew on the last page: the record seems to go on behind what is read.
                (Some(holder), None) if at / PAGE_BYTES == WINDOW - 1 && position - good[holder].lsn.0 < 4 => {
                    prop_assert!(found.len() == holder || found.len() == good.len());
                }
                (_, None) => prop_assert_eq!(found.len(), good.len()),
                _ => {}
            }
            let count = &ended[usize::from(end.is_some())];
            count.set(count.get() + 1);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(ended[1].get() > 2 * ended[0].get(), "most flips are noticed: {ended:?}");
}

/// No checksum covers the headers of pages. Whatever single bit of them flips, no record may silently be passed over.
#[tokio::test(flavor = "multi_thread")]
async fn no_bit_of_a_page_header_hides_a_record() {
    let wal = real_wal().await;
    let (name, bytes) = &wal.files[1];
    let start = name.start(wal.segment_bytes).unwrap();
    let bytes = &bytes[..6 * PAGE_BYTES];
    let (good, end) = walk(bytes, start, wal.segment_bytes);
    assert_eq!(end, None);
    for page in 0..6 {
        for bit in 0..24 * 8 {
            let mut damaged = bytes.to_vec();
            damaged[page * PAGE_BYTES + bit / 8] ^= 1 << (bit % 8);
            let (found, end) = walk(&damaged, start, wal.segment_bytes);
            let complete = found == good || end.is_some();
            // What continues a record from before the walk began is passed over, and takes others with it.
            assert!(good.starts_with(&found) && complete || page == 0, "page {page} bit {bit}: {end:?}");
        }
    }
}

/// Every byte of records that lie in one page, one after the other: none may be changed without being noticed.
#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_record_counts() {
    let wal = real_wal().await;
    let (name, bytes) = &wal.files[0];
    let start = name.start(wal.segment_bytes).unwrap();
    let page = &bytes[..PAGE_BYTES];
    let mut extents = Vec::new();
    let visit = &mut |record: Record| extents.push((record.lsn, 24 + record.payload.len()));
    Walk::new(wal.segment_bytes).page(page, start, visit).unwrap();
    assert!(extents.len() > 5);
    for (index, (lsn, length)) in extents.iter().enumerate() {
        let from = (lsn.0 - start.0) as usize;
        for at in from..from + length {
            let mut damaged = page.to_vec();
            damaged[at] ^= 0x10;
            let (found, end) = walk(&damaged, start, wal.segment_bytes);
            // The last one may seem to go on in the next page.
            assert!(found.len() == index && (end.is_some() || at < from + 4), "byte {at} of {lsn}: {end:?}");
        }
    }
}

/// Input that ends anywhere: what is complete is found, in the walk and in the summary.
#[tokio::test(flavor = "multi_thread")]
async fn truncated_input_ends_the_walk() {
    let wal = real_wal().await;
    let (name, bytes) = &wal.files[1];
    let start = name.start(wal.segment_bytes).unwrap();
    let (good, _) = walk(bytes, start, wal.segment_bytes);
    let case = 0..=bytes.len();
    TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() })
        .run(&case, |length| {
            let (found, end) = walk(&bytes[..length], start, wal.segment_bytes);
            prop_assert!(good.starts_with(&found));
            prop_assert_eq!(end.is_some(), length % PAGE_BYTES != 0);
            let whole = length - length % PAGE_BYTES;
            prop_assert!(found.iter().all(|record| record.lsn.0 < start.0 + whole as u64));
            let mut fold = Fold::new(start, wal.segment_bytes, MappedFiles::new());
            fold.feed(&bytes[..length]);
            prop_assert_eq!(fold.finish().summary.last_record, found.last().map(|record| record.lsn));
            let header = SegmentHeader::parse(&bytes[..length]);
            prop_assert_eq!(header.is_ok(), length >= 40);
            if let Ok(header) = header {
                prop_assert_eq!(header.check(*name, length as u64).is_ok(), length == bytes.len());
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

/// Pages with a good header and anything behind it, pages of anything, and pages of zeros: no record, no panic.
#[test]
fn random_pages_hold_no_records() {
    let page = (any::<u64>(), 0..4usize, any::<u16>(), any::<u32>(), any::<bool>());
    let case = proptest::collection::vec(page, 1..6);
    runner()
        .run(&case, |pages| {
            let mut bytes = Vec::new();
            for (index, (seed, kind, flags, remaining, short)) in pages.iter().enumerate() {
                let mut dice = *seed;
                let mut random = || {
                    dice ^= dice << 13;
                    dice ^= dice >> 7;
                    dice ^= dice << 17;
                    dice as u8
                };
                let mut page: Vec<u8> = (0..PAGE_BYTES).map(|_| if *kind == 0 { 0 } else { random() }).collect();
                if *kind >= 2 {
                    page[..2].copy_from_slice(&0xD110u16.to_le_bytes());
                    page[2..4].copy_from_slice(&(flags & 0x0F).to_le_bytes());
                    page[8..16].copy_from_slice(&((index * PAGE_BYTES) as u64).to_le_bytes());
                    let remaining = if *short { remaining % 9000 } else { *remaining };
                    page[16..20].copy_from_slice(&remaining.to_le_bytes());
                    // Lengths that could be: small ones end in the page, others reach into the next.
                    for at in (24..PAGE_BYTES).step_by(if *short { 64 } else { 8 }) {
                        page[at + 1] &= 0x07;
                        page[at + 2] &= u8::from(!*short);
                        page[at + 3] = 0;
                    }
                }
                bytes.extend(page);
            }
            let (found, _) = walk(&bytes, Lsn(0), 1 << 20);
            prop_assert!(found.is_empty());
            let _ = SegmentHeader::parse(&bytes);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

/// Records with a good checksum and any payload: an event or none, never a panic. (Other servers write what we do not know.)
#[test]
fn any_payload_is_read_or_passed_over() {
    let lengths = prop_oneof![Just(255u8), Just(254), Just(253), Just(252), any::<u8>()];
    let case = (proptest::collection::vec(any::<u8>(), 0..300), lengths, any::<u8>(), 0..3u8, any::<u32>(), 13..=18u32);
    TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() })
        .run(&case, |(mut payload, mark, info, resource_manager, count, major)| {
            if payload.len() > 30 {
                payload[0] = mark;
                // A small number where numbers of items stand.
                payload[14..18].copy_from_slice(&(count % 40).to_le_bytes());
            }
            let payload_bytes = payload.len() as u32;
            let record = Record { major, lsn: Lsn(40), xid: 1000, resource_manager, info, payload: &payload, payload_bytes };
            let _ = transaction::event(&record);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

/// Names of files are read or refused, whatever they are.
#[test]
fn any_name_is_read_or_refused() {
    runner()
        .run(&"[0-9A-Fa-f]{0,25}(\\.(history|partial|[0-9A-F]{8}\\.backup|gz))?|\\PC{0,40}", |text| {
            if let Ok(name) = text.parse::<WalFile>() {
                prop_assert_eq!(name.to_string(), text);
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}
