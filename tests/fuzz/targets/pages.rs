//! Any bytes as a segment: its header, its records, its summary and its index.
#![no_main]

use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::wal::header::SegmentHeader;
use lastgood::postgres::wal::index::MappedFiles;
use lastgood::postgres::wal::index::fold::Fold;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let header = SegmentHeader::parse(bytes);
    let start = header.map_or(Lsn(0), |header| header.address);
    let mut fold = Fold::new(start, 1 << 20, MappedFiles::new());
    fold.feed(bytes);
    let folded = fold.finish();
    if let Ok(index) = folded.index {
        assert!(index.last_record >= index.first_record);
    }
});
