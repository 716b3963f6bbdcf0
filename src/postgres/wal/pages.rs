//! Cuts WAL into pages, in whatever pieces its bytes come.

use super::reader::PAGE_BYTES;
use crate::postgres::lsn::Lsn;

/// Where the next page begins, and what is there of it.
#[derive(Debug, Default)]
pub struct Pages {
    next: Lsn,
    part: Vec<u8>,
}

impl Pages {
    /// Pages of a stretch that begins at `start`.
    pub fn new(start: Lsn) -> Pages {
        Pages { next: start, part: Vec::new() }
    }

    /// Hands each page that is whole to `visit`, with its address. A part of one waits for the rest.
    pub fn feed(&mut self, mut bytes: &[u8], visit: &mut dyn FnMut(&[u8], Lsn)) {
        if !self.part.is_empty() {
            let missing = (PAGE_BYTES - self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.part.len() < PAGE_BYTES {
                return;
            }
            visit(&self.part, self.next);
            self.next.0 += PAGE_BYTES as u64;
            self.part.clear();
        }
        let (pages, rest) = bytes.as_chunks::<PAGE_BYTES>();
        for page in pages {
            visit(page, self.next);
            self.next.0 += PAGE_BYTES as u64;
        }
        self.part.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_give_the_same_pages() {
        let wal: Vec<u8> = (0..5 * PAGE_BYTES + 100).map(|at| (at / 7) as u8).collect();
        for piece in [1, 100, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 3 * PAGE_BYTES, wal.len()] {
            let (mut pages, mut seen) = (Pages::new(Lsn(1 << 24)), Vec::new());
            wal.chunks(piece).for_each(|bytes| pages.feed(bytes, &mut |page, address| seen.push((page.to_vec(), address))));
            let expected = wal.chunks_exact(PAGE_BYTES).zip(0..);
            let expected: Vec<_> = expected.map(|(page, n)| (page.to_vec(), Lsn((1 << 24) + n * PAGE_BYTES as u64))).collect();
            assert!(seen == expected, "pieces of {piece}");
        }
    }
}
