//! Full-page images: pages as they were when a record was written.
//!
//! Source: `src/backend/access/transam/xlogreader.c` (`RestoreBlockImage`), `src/common/pg_lzcompress.c`, and the LZ4 block
//! format.

use super::reference::{BLOCK_BYTES, Block, Compression};

/// The page of a block's image; `None` without an image, or when the image is not what its header says.
pub fn restore(block: &Block) -> Option<Vec<u8>> {
    let header = block.reference.image?;
    let (hole, hole_bytes) = (usize::from(header.hole_offset), usize::from(header.hole_bytes));
    let dense_bytes = BLOCK_BYTES.checked_sub(hole_bytes)?;
    let mut page = match header.compression {
        Compression::None => block.image.to_vec(),
        Compression::Pglz => pglz(block.image, dense_bytes)?,
        Compression::Lz4 => lz4(block.image, dense_bytes)?,
        Compression::Zstd => zstd::bulk::decompress(block.image, dense_bytes).ok()?,
        Compression::Unknown => return None,
    };
    if page.len() != dense_bytes || hole > dense_bytes {
        return None;
    }
    page.splice(hole..hole, std::iter::repeat_n(0, hole_bytes));
    Some(page)
}

/// Repeats `length` bytes from `distance` back; they may overlap what they make.
fn repeat(out: &mut Vec<u8>, distance: usize, length: usize, limit: usize) -> Option<()> {
    if distance == 0 || out.len() + length > limit {
        return None;
    }
    let from = out.len().checked_sub(distance)?;
    for at in from..from + length {
        out.push(out[at]);
    }
    Some(())
}

/// `pglz_decompress`: groups of eight items after a byte that says which of them repeat.
fn pglz(mut source: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(limit);
    let mut byte = || {
        let (first, rest) = source.split_first()?;
        source = rest;
        Some(*first)
    };
    while out.len() < limit {
        let Some(control) = byte() else { break };
        for bit in 0..8 {
            if out.len() >= limit {
                break;
            }
            let Some(first) = byte() else { return Some(out) };
            if control & (1 << bit) == 0 {
                out.push(first);
                continue;
            }
            let distance = usize::from(first & 0xF0) << 4 | usize::from(byte()?);
            let mut length = usize::from(first & 0x0F) + 3;
            if length == 18 {
                length += usize::from(byte()?);
            }
            let room = limit - out.len();
            repeat(&mut out, distance, length.min(room), limit)?;
        }
    }
    Some(out)
}

/// One LZ4 block: literals, then a match, until the last literals.
fn lz4(mut source: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(limit);
    loop {
        let (token, rest) = source.split_first()?;
        source = rest;
        let literals = lz4_length(usize::from(token >> 4), &mut source)?;
        let (taken, rest) = source.split_at_checked(literals)?;
        if out.len() + literals > limit {
            return None;
        }
        out.extend_from_slice(taken);
        source = rest;
        if source.is_empty() {
            return Some(out);
        }
        let (distance, rest) = source.split_at_checked(2)?;
        source = rest;
        let length = lz4_length(usize::from(token & 0x0F), &mut source)? + 4;
        repeat(&mut out, usize::from(u16::from_le_bytes([distance[0], distance[1]])), length, limit)?;
    }
}

/// A length that began with four bits: 15 says that bytes follow, up to one that is not 255.
fn lz4_length(bits: usize, source: &mut &[u8]) -> Option<usize> {
    let mut length = bits;
    if bits == 15 {
        loop {
            let (more, rest) = source.split_first()?;
            *source = rest;
            length = length.checked_add(usize::from(*more))?;
            if *more != 255 {
                break;
            }
        }
    }
    Some(length)
}
