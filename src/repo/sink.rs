//! Where a compressed file gathers before it is stored: in memory while it is short, then in a temporary file, so that a push stays
//! small. A temporary directory that is full or closed must not stop archiving: then it is memory all the same, up to a limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::clock;

/// So much is kept in memory before a file is made.
const SHORT_BYTES: u64 = 1 << 20;
/// So much may lie in memory when no file can be made.
const IN_MEMORY_BYTES: u64 = 24 << 20;

#[derive(Debug)]
pub enum Content {
    Memory(Vec<Bytes>),
    /// Without a name: it is gone when it is closed.
    File(File),
}

pub struct Sink {
    memory: Vec<Bytes>,
    file: Option<File>,
    /// Directories in which a file may be made, the best first.
    scratch: Vec<PathBuf>,
    /// Why there is no file although there should be one.
    refused: Option<io::Error>,
    bytes: u64,
    /// Of what is stored, where that is wanted.
    hasher: Option<Sha256>,
}

impl Sink {
    /// What is long will be a file in the first directory of `scratch` that allows it.
    pub fn new(scratch: &[PathBuf], hasher: Option<Sha256>) -> Sink {
        Sink { memory: Vec::new(), file: None, scratch: scratch.into(), refused: None, bytes: 0, hasher }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was gathered, and its hash.
    pub fn finish(self) -> (Content, Option<Sha256>) {
        let content = match self.file {
            Some(file) => Content::File(file),
            None => Content::Memory(self.memory),
        };
        (content, self.hasher)
    }

    /// From memory into a file that nobody else can read.
    fn begin_file(&mut self) -> io::Result<()> {
        let mut opened = Err(io::ErrorKind::NotFound.into());
        for directory in &self.scratch {
            opened = unnamed(directory);
            if opened.is_ok() {
                break;
            }
        }
        let mut file = opened?;
        self.memory.iter().try_for_each(|piece| file.write_all(piece))?;
        self.memory.clear();
        self.file = Some(file);
        Ok(())
    }

    /// From the file back into memory.
    fn give_up_file(&mut self, error: io::Error) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            let mut raw = vec![0; self.bytes as usize];
            file.read_exact_at(&mut raw, 0)?;
            self.memory = vec![raw.into()];
        }
        self.refused = Some(error);
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        let all = self.bytes + bytes.len() as u64;
        if all > SHORT_BYTES
            && self.file.is_none()
            && self.refused.is_none()
            && let Err(error) = self.begin_file()
        {
            self.give_up_file(error)?;
        }
        if let Some(file) = &mut self.file {
            match file.write_all(bytes) {
                Ok(()) => return Ok(()),
                Err(error) => self.give_up_file(error)?,
            }
        }
        if let Some(refused) = self.refused.as_ref().filter(|_| all > IN_MEMORY_BYTES) {
            let tried: Vec<_> = self.scratch.iter().map(|directory| directory.display().to_string()).collect();
            let what = format!("it is too long for memory, and cannot be a file in {}: {refused}", tried.join(" or "));
            return Err(io::Error::new(refused.kind(), what));
        }
        self.memory.push(Bytes::copy_from_slice(bytes));
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.keep(bytes)?;
        self.bytes += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file without a name. Where the file system makes none, it has one for a moment.
fn unnamed(directory: &Path) -> io::Result<File> {
    let options = |flags: OFlags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(flags.bits() as i32);
        options
    };
    if let Ok(file) = options(OFlags::TMPFILE).open(directory) {
        return Ok(file);
    }
    let path = directory.join(format!(".lastgood-{}", clock::random_hex(8)));
    let file = options(OFlags::empty()).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn filled(directory: &Path, pieces: u8) -> io::Result<Content> {
        let nowhere = directory.join("no such directory");
        let mut sink = Sink::new(&[nowhere, directory.into()], None);
        (0..pieces).try_for_each(|n| sink.write_all(&[n; 300 << 10]))?;
        assert_eq!(sink.bytes(), u64::from(pieces) * (300 << 10));
        Ok(sink.finish().0)
    }

    fn expected(pieces: u8) -> Vec<u8> {
        (0..pieces).flat_map(|n| [n; 300 << 10]).collect()
    }

    fn content(file: &File) -> Vec<u8> {
        let mut raw = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut raw, 0).unwrap();
        raw
    }

    #[test]
    fn short_ones_stay_in_memory_and_long_ones_are_files_that_nobody_else_can_find_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let Content::Memory(pieces) = filled(dir.path(), 3).unwrap() else { panic!("a file") };
        assert!(pieces.concat() == expected(3));
        let Content::File(file) = filled(dir.path(), 9).unwrap() else { panic!("memory") };
        assert!(content(&file) == expected(9));
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.nlink()), (0o600, 0));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn without_room_for_a_file_it_is_memory_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("no such directory");
        let Content::Memory(pieces) = filled(&nowhere, 9).unwrap() else { panic!("a file") };
        assert!(pieces.concat() == expected(9));
        let error = filled(&nowhere, 100).unwrap_err();
        assert!(error.to_string().contains("too long for memory"), "{error}");
        // A file that cannot be written any more: what it took is read back.
        let mut sink = Sink::new(&[dir.path().into()], None);
        (0..5).for_each(|n| sink.write_all(&[n; 300 << 10]).unwrap());
        let whole = dir.path().join("whole");
        std::fs::write(&whole, content(sink.file.as_ref().unwrap())).unwrap();
        sink.file = Some(File::open(&whole).unwrap());
        (5..9).for_each(|n| sink.write_all(&[n; 300 << 10]).unwrap());
        let Content::Memory(pieces) = sink.finish().0 else { panic!("a file") };
        assert!(pieces.concat() == expected(9));
    }
}
