//! Files past the page cache, where the file system can.
//!
//! What is stored is not read again soon, and what is restored or verified was not read lately: kept in the page cache, it would only
//! push out the pages of the server that we serve.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_setfl};

use super::Body;
use crate::aligned::{self, ALIGN_BYTES, Pool};

/// Less than this is not worth a disk's attention of its own; it goes through the page cache.
const DIRECT_MIN_BYTES: u64 = 512 << 10;
/// Reads up to this length go past the page cache: those of `repo::fetch`.
const READ_MAX_BYTES: usize = 8 << 20;
/// Reads past the page cache at once: each has a buffer for the longest, and short ones come in crowds. The others go through it.
const READERS: usize = 8;

/// Writes the pieces of an object's body.
pub fn write(mut file: &File, body: &Body, pieces: &[Bytes]) -> io::Result<()> {
    let aligned = pieces.iter().take_while(|piece| aligned::is_aligned(piece)).count();
    let (whole, rest) = pieces.split_at(if body.len() >= DIRECT_MIN_BYTES { aligned } else { 0 });
    let is_direct = !whole.is_empty() && fcntl_setfl(file, OFlags::DIRECT).is_ok();
    for piece in whole {
        match file.write_all(piece) {
            // Some file systems take the flag, and then nothing that is written with it.
            Err(error) if is_direct && error.kind() == io::ErrorKind::InvalidInput => {
                fcntl_setfl(file, OFlags::empty())?;
                file.write_all(piece)?;
            }
            written => written?,
        }
    }
    if is_direct {
        fcntl_setfl(file, OFlags::empty())?;
    }
    rest.iter().try_for_each(|piece| file.write_all(piece))
}

/// Buffers for [`read`].
pub fn pool() -> Pool {
    Pool::new(READ_MAX_BYTES + 2 * ALIGN_BYTES)
}

/// Reads a stretch of a file; `None` when it has to be read through the page cache. The end of the file may come before the stretch's.
pub fn read(file: &File, start: u64, bytes: u64, pool: &Pool) -> io::Result<Option<Bytes>> {
    let is_worth_it = (DIRECT_MIN_BYTES..=READ_MAX_BYTES as u64).contains(&bytes);
    let Some(mut buffer) = is_worth_it.then(|| pool.take_of(READERS)).flatten() else { return Ok(None) };
    if fcntl_setfl(file, OFlags::DIRECT).is_err() {
        return Ok(None);
    }
    let unit = ALIGN_BYTES as u64;
    let begin = start / unit * unit;
    let before = (start - begin) as usize;
    let wanted = (start + bytes - begin).next_multiple_of(unit) as usize;
    let mut got = 0;
    while got < wanted {
        match file.read_at(&mut buffer[got..wanted], begin + got as u64) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The end of the file is not at a multiple of the unit, or the file system cannot after all.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                fcntl_setfl(file, OFlags::empty())?;
                if got == 0 {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
    let end = got.min(before + bytes as usize);
    Ok(Some(Bytes::from_owner(buffer).slice(before.min(end)..end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_stretch_of_a_file_is_read_as_it_is() {
        let content: Vec<u8> = (0..3_000_001u32).map(|n| (n * 7 + n / 251) as u8).collect();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), &content).unwrap();
        let pool = pool();
        for (start, bytes) in [(0, 1 << 20), (1, 1 << 20), (4095, 2_000_000), (1_000_001, 2_000_000), (2_400_001, 600_000)] {
            let file = File::open(path.path()).unwrap();
            let read = read(&file, start as u64, bytes as u64, &pool).unwrap();
            if let Some(read) = read {
                assert!(read == content[start..start + bytes], "{start} {bytes}");
            }
        }
        let file = File::open(path.path()).unwrap();
        assert!(read(&file, 0, 100, &pool).unwrap().is_none(), "a short one goes through the page cache");
        let cut = read(&file, 2_900_000, 1 << 20, &pool).unwrap();
        assert!(cut.is_none_or(|read| read == content[2_900_000..]), "what is not there is not made up");
    }

    #[test]
    fn what_is_written_in_pieces_is_whole() {
        let pool = Pool::new(1 << 20);
        let mut pieces: Vec<Bytes> = (1..4u8)
            .map(|number| {
                let mut buffer = pool.take();
                buffer.fill(number);
                Bytes::from_owner(buffer)
            })
            .collect();
        pieces.push(Bytes::from_static(b"and a rest"));
        let path = tempfile::NamedTempFile::new().unwrap();
        let file = File::options().write(true).open(path.path()).unwrap();
        let body = Body::Bytes(pieces.clone());
        write(&file, &body, &pieces).unwrap();
        assert!(std::fs::read(path.path()).unwrap() == pieces.concat());
    }
}
