//! Fields from the front of a record's data; `None` where it is too short.

#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub fn i64(&mut self) -> Option<i64> {
        Some(i64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// Items of `N` bytes after their count. With `cut`, as many as there are; else `None` when one is missing.
    pub fn array<const N: usize>(&mut self, cut: bool) -> Option<&'a [[u8; N]]> {
        let count = self.u32()? as usize;
        let there = self.0.len() / N;
        if count > there && !cut {
            return None;
        }
        let (items, _) = self.bytes(count.min(there) * N)?.as_chunks::<N>();
        if count > there {
            self.0 = &[];
        }
        Some(items)
    }
}

/// The u32 at `at` of an item.
pub fn u32_of<const N: usize>(item: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([item[at], item[at + 1], item[at + 2], item[at + 3]])
}
