//! Long content, sealed in chunks as it goes by, in memory of one chunk.
//!
//! The nonce of a chunk is its offset in the object and a flag that is 1 for the last: chunks can be neither exchanged nor left
//! out, and the stream can be neither cut short at a chunk's border nor made longer.

use std::io::{self, Write};

use super::crypto::{GcmKey, TAG_BYTES};

/// Bytes of content in a chunk; the last may be shorter, or empty when there is no content at all.
pub const CHUNK_BYTES: usize = 128 << 10;
const STORED_BYTES: usize = CHUNK_BYTES + TAG_BYTES;
const LAST: u32 = 1;

/// Seals what is written, and writes it on.
pub struct SealingWriter<W> {
    key: Option<GcmKey>,
    inner: W,
    pending: Vec<u8>,
    offset: u64,
}

impl<W: Write> SealingWriter<W> {
    /// Without a key everything goes by unchanged.
    pub fn new(key: Option<GcmKey>, inner: W) -> Self {
        let pending = Vec::with_capacity(if key.is_some() { STORED_BYTES } else { 0 });
        SealingWriter { key, inner, pending, offset: 0 }
    }

    fn chunk(&mut self, flag: u32) -> io::Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        key.seal(self.offset, flag, b"", &mut self.pending);
        self.inner.write_all(&self.pending)?;
        self.offset += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Seals the last chunk.
    pub fn finish(mut self) -> io::Result<W> {
        self.chunk(LAST)?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for SealingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.key.is_none() {
            return self.inner.write(bytes);
        }
        // A full chunk waits until more comes: only then it is not the last.
        if self.pending.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.chunk(0)?;
        }
        let count = bytes.len().min(CHUNK_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens what is written, and writes it on. What does not open is [`io::ErrorKind::InvalidData`].
pub struct OpeningWriter<W> {
    key: Option<GcmKey>,
    inner: W,
    pending: Vec<u8>,
    opened: Vec<u8>,
    offset: u64,
}

impl<W: Write> OpeningWriter<W> {
    pub fn new(key: Option<GcmKey>, inner: W) -> Self {
        OpeningWriter { key, inner, pending: Vec::new(), opened: Vec::new(), offset: 0 }
    }

    fn chunk(&mut self, flag: u32) -> io::Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        if !key.open(self.offset, flag, b"", &self.pending, &mut self.opened) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.inner.write_all(&self.opened)?;
        self.offset += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Opens the last chunk.
    pub fn finish(mut self) -> io::Result<W> {
        self.chunk(LAST)?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for OpeningWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.key.is_none() {
            return self.inner.write(bytes);
        }
        if self.pending.len() == STORED_BYTES && !bytes.is_empty() {
            self.chunk(0)?;
        }
        let count = bytes.len().min(STORED_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::*;

    fn key() -> Option<GcmKey> {
        Some(GcmKey::new(&Secret::new([9; 32])))
    }

    fn sealed(raw: &[u8]) -> Vec<u8> {
        let mut writer = SealingWriter::new(key(), Vec::new());
        for piece in raw.chunks(77_777) {
            writer.write_all(piece).unwrap();
        }
        writer.finish().unwrap()
    }

    fn opened(sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut writer = OpeningWriter::new(key(), Vec::new());
        for piece in sealed.chunks(50_001) {
            writer.write_all(piece)?;
        }
        writer.finish()
    }

    #[test]
    fn any_length_comes_back_and_no_border_can_be_moved() {
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let raw: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let there = sealed(&raw);
            assert_eq!(there.len(), length + TAG_BYTES * length.div_ceil(CHUNK_BYTES).max(1));
            assert_eq!(opened(&there).unwrap(), raw);
            for cut in [there.len() - 1, there.len().saturating_sub(STORED_BYTES), STORED_BYTES.min(there.len() - 1)] {
                assert!(opened(&there[..cut]).is_err(), "{length} cut to {cut}");
            }
            assert!(opened(&[&there[..], &there[..]].concat()).is_err());
            assert!(opened(&[&there[..], &[0]].concat()).is_err());
        }
        let three = sealed(&[5; 3 * CHUNK_BYTES]);
        let swapped = [&three[STORED_BYTES..2 * STORED_BYTES], &three[..STORED_BYTES], &three[2 * STORED_BYTES..]].concat();
        assert!(opened(&swapped).is_err());
        let without = [&three[..STORED_BYTES], &three[2 * STORED_BYTES..]].concat();
        assert!(opened(&without).is_err());
    }
}
