//! Any bytes as an index: read or refused, and read again as it was.
#![no_main]

use lastgood::postgres::wal::index::SegmentIndex;
use lastgood::timeline::catalogue::Names;
use lastgood::timeline::events::Events;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = SegmentIndex::parse(bytes) else { return };
    if let Ok(again) = index.to_bytes() {
        assert_eq!(SegmentIndex::parse(&again).as_ref(), Ok(&index));
    }
    let mut events = Events::new(1 << 20, 10, Names::default());
    for _ in 0..2 {
        let _ = events.add(&index);
        events.drain();
    }
});
