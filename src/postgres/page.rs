//! Pages of relation files: the LSN in their header and their checksum.
//!
//! Source: `src/include/storage/bufpage.h` (header) and `src/include/storage/checksum_impl.h` (algorithm), the same in
//! PostgreSQL 13 to 18.

use super::lsn::Lsn;

/// The only block size that Debian, RPM and every hosted server use; `check` refuses others.
pub const PAGE_BYTES: usize = 8192;
/// `SizeOfPageHeaderData`.
const HEADER_BYTES: u16 = 24;

/// The LSN of the last WAL record that changed this page.
pub fn lsn(page: &[u8]) -> Lsn {
    let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes")) as u64;
    Lsn(word(0) << 32 | word(4))
}

/// A page that was never initialised (`PageIsNew`): valid when all of it is zero.
pub fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// `pd_upper` is 0 in a page that was never initialised; the server skips its checksum.
fn is_new(page: &[u8]) -> bool {
    page[14] == 0 && page[15] == 0
}

/// Whether the stored checksum is that of the page as block `block` of its relation, counted across segment files.
pub fn checksum_holds(page: &[u8], block: u32) -> bool {
    if is_new(page) {
        return is_zero(page);
    }
    let stored = u16::from_le_bytes([page[8], page[9]]);
    stored == checksum(page, block)
}

/// Whether the header could be one; what can be told of damage without checksums (`PageIsVerified`).
pub fn header_is_sane(page: &[u8]) -> bool {
    if is_new(page) {
        return is_zero(page);
    }
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let (flags, lower, upper, special) = (half(10), half(12), half(14), half(16));
    flags & !0x0007 == 0 && lower >= HEADER_BYTES && lower <= upper && upper <= special && special as usize <= PAGE_BYTES
}

const LANES: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C, 0xF8D4474F, 0xE39EB970,
    0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB, 0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE,
    0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4, 0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE,
    0xF2CA9FD3, 0x959BD756,
];

/// `pg_checksum_page`: 32 parallel FNV-1a sums over the page with its checksum field read as zero.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let page: &[u8; PAGE_BYTES] = page.try_into().expect("a page of 8192 bytes");
    let mut sums = BASE_OFFSETS;
    for (row, chunk) in page.chunks_exact(LANES * 4).enumerate() {
        let mut words = [0u32; LANES];
        for (word, raw) in words.iter_mut().zip(chunk.chunks_exact(4)) {
            *word = u32::from_le_bytes(raw.try_into().expect("four bytes"));
        }
        if row == 0 {
            // pd_checksum is the lower half of the third word.
            words[2] &= 0xffff_0000;
        }
        mix(&mut sums, &words);
    }
    let zeros = [0u32; LANES];
    mix(&mut sums, &zeros);
    mix(&mut sums, &zeros);
    let all = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    // Never 0, so that a page can be told from one without a checksum.
    (all % 65_535 + 1) as u16
}

#[inline]
fn mix(sums: &mut [u32; LANES], words: &[u32; LANES]) {
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ word;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_page_is_valid_and_a_half_zero_one_is_not() {
        let mut page = vec![0u8; PAGE_BYTES];
        assert!(checksum_holds(&page, 7) && header_is_sane(&page));
        page[8000] = 1;
        assert!(!checksum_holds(&page, 7) && !header_is_sane(&page));
    }

    #[test]
    fn the_checksum_depends_on_the_block_number_and_every_byte() {
        let mut page: Vec<u8> = (0..PAGE_BYTES).map(|i| (i % 251) as u8).collect();
        let sum = checksum(&page, 3);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert!(checksum_holds(&page, 3));
        assert!(!checksum_holds(&page, 4));
        page[5000] ^= 1;
        assert!(!checksum_holds(&page, 3));
    }
}
