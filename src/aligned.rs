//! Memory that a disk can read from and write to by itself, used again and again.
//!
//! Direct I/O goes past the page cache: nothing is copied, and a snapshot or a restore does not push the server's own pages out of
//! memory. The price is that memory, file offset and length are multiples of [`ALIGN_BYTES`].

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment and unit of direct I/O: no disk has larger logical blocks, and PostgreSQL's pages are two of them.
pub const ALIGN_BYTES: usize = 4096;

/// Buffers of one size. A buffer that is dropped goes back.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes: usize,
    made: AtomicUsize,
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// `bytes` is the length of each buffer.
    pub fn new(bytes: usize) -> Pool {
        Pool(Arc::new(Shared { bytes, made: AtomicUsize::new(0), idle: Mutex::default() }))
    }

    /// A buffer with whatever bytes it held before.
    pub fn take(&self) -> Buffer {
        self.take_of(usize::MAX).expect("there is no limit")
    }

    /// The same, unless `most` buffers are in use already.
    pub fn take_of(&self, most: usize) -> Option<Buffer> {
        let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let make = || {
            let more = |made| (made < most).then_some(made + 1);
            self.0.made.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
            Some(vec![0; self.0.bytes + ALIGN_BYTES])
        };
        let memory = idle.or_else(make)?;
        let begin = memory.as_ptr().align_offset(ALIGN_BYTES);
        Some(Buffer { memory, begin, pool: self.0.clone() })
    }
}

/// Bytes that begin at a multiple of [`ALIGN_BYTES`] in memory.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    begin: usize,
    pool: Arc<Shared>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.begin..][..self.pool.bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..][..self.pool.bytes]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

/// Whether a disk could take these bytes as they lie in memory.
pub fn is_aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(ALIGN_BYTES) && bytes.len().is_multiple_of(ALIGN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        for bytes in [4096, 1 << 20] {
            let pool = Pool::new(bytes);
            let mut first = pool.take();
            first[0] = 7;
            assert!(is_aligned(&first) && first.len() == bytes);
            assert!(!is_aligned(&first[1..]) && !is_aligned(&first[..100]));
            let second = pool.take();
            assert_ne!(first.as_ptr(), second.as_ptr());
            let place = first.as_ptr();
            drop(first);
            let again = pool.take();
            assert_eq!((again.as_ptr(), again[0]), (place, 7));
            assert!(pool.take_of(2).is_none());
            let third = pool.take_of(3);
            assert!(third.is_some() && pool.take_of(3).is_none());
            drop(third);
            assert!(pool.take_of(3).is_some());
        }
    }
}
