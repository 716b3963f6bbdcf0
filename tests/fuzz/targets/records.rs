//! Any bytes as the records of one page with a sound header: lengths, continuations, block references.
#![no_main]

use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::wal::reader::{PAGE_BYTES, Walk};
use lastgood::postgres::wal::reference;
use libfuzzer_sys::fuzz_target;

/// `XLOG_PAGE_MAGIC` of 13 to 18.
const MAGIC: [u16; 6] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let mut walk = Walk::new(1 << 20);
    for (number, part) in rest.chunks(PAGE_BYTES - 24).enumerate() {
        let address = (1 << 20) + ((number + 1) * PAGE_BYTES) as u64;
        let mut page = vec![0; PAGE_BYTES];
        page[..2].copy_from_slice(&MAGIC[usize::from(first & 7) % MAGIC.len()].to_le_bytes());
        page[2..4].copy_from_slice(&u16::from(first >> 3 & 1).to_le_bytes());
        page[4..8].copy_from_slice(&1u32.to_le_bytes());
        page[8..16].copy_from_slice(&address.to_le_bytes());
        page[24..24 + part.len()].copy_from_slice(part);
        let walked = walk.page(&page, Lsn(address), &mut |record| {
            let _ = reference::each(&record, |_| {});
        });
        if walked.is_err() {
            return;
        }
    }
});
