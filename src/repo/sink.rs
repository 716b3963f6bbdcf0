//! Where a compressed file gathers before it is stored: in memory while it is short, then in a temporary file, so that a push stays
//! small. A temporary directory that is full or closed must not stop archiving: then it is memory all the same, up to a limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// So much is kept in memory before a file is made.
const SHORT_BYTES: u64 = 1 << 20;
/// So much may lie in memory when no file can be made.
const IN_MEMORY_BYTES: u64 = 24 << 20;

#[derive(Debug)]
pub enum Content {
    Memory(Vec<Bytes>),
    File(TemporaryFile),
}

/// Removed when dropped.
#[derive(Debug)]
pub struct TemporaryFile(PathBuf);

impl TemporaryFile {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub struct Sink {
    memory: Vec<Bytes>,
    file: Option<(File, TemporaryFile)>,
    temporary: PathBuf,
    /// Why there is no file although there should be one.
    refused: Option<io::Error>,
    bytes: u64,
    /// Of what is stored, where that is wanted.
    hasher: Option<Sha256>,
}

impl Sink {
    /// A long file will be at `temporary`, where nothing may be.
    pub fn new(temporary: &Path, hasher: Option<Sha256>) -> Sink {
        Sink { memory: Vec::new(), file: None, temporary: temporary.into(), refused: None, bytes: 0, hasher }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was gathered, and its hash.
    pub fn finish(self) -> (Content, Option<Sha256>) {
        let content = match self.file {
            Some((_, guard)) => Content::File(guard),
            None => Content::Memory(self.memory),
        };
        (content, self.hasher)
    }

    /// From memory into a file that nobody else can read.
    fn begin_file(&mut self) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&self.temporary)?;
        let guard = TemporaryFile(self.temporary.clone());
        self.memory.iter().try_for_each(|piece| file.write_all(piece))?;
        self.memory.clear();
        self.file = Some((file, guard));
        Ok(())
    }

    /// From the file back into memory.
    fn give_up_file(&mut self, error: io::Error) -> io::Result<()> {
        if let Some((_, guard)) = self.file.take() {
            let mut raw = Vec::new();
            File::open(guard.path())?.take(self.bytes).read_to_end(&mut raw)?;
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
        if let Some((file, _)) = &mut self.file {
            match file.write_all(bytes) {
                Ok(()) => return Ok(()),
                Err(error) => self.give_up_file(error)?,
            }
        }
        if let Some(refused) = self.refused.as_ref().filter(|_| all > IN_MEMORY_BYTES) {
            let what = format!("{} is too long for memory, and {}: {refused}", self.temporary.display(), "cannot be a file");
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn filled(temporary: &Path, pieces: u8) -> io::Result<Content> {
        let mut sink = Sink::new(temporary, None);
        (0..pieces).try_for_each(|n| sink.write_all(&[n; 300 << 10]))?;
        assert_eq!(sink.bytes(), u64::from(pieces) * (300 << 10));
        Ok(sink.finish().0)
    }

    fn expected(pieces: u8) -> Vec<u8> {
        (0..pieces).flat_map(|n| [n; 300 << 10]).collect()
    }

    #[test]
    fn short_ones_stay_in_memory_and_long_ones_are_files_of_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        let Content::Memory(pieces) = filled(&path, 3).unwrap() else { panic!("a file") };
        assert!(pieces.concat() == expected(3) && !path.exists());
        let content = filled(&path, 9).unwrap();
        let Content::File(file) = &content else { panic!("memory") };
        assert!(std::fs::read(file.path()).unwrap() == expected(9));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(content);
        assert!(!path.exists());
    }

    #[test]
    fn without_room_for_a_file_it_is_memory_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("no such directory/long");
        let Content::Memory(pieces) = filled(&nowhere, 9).unwrap() else { panic!("a file") };
        assert!(pieces.concat() == expected(9));
        let error = filled(&nowhere, 100).unwrap_err();
        assert!(error.to_string().contains("too long for memory"), "{error}");
        // A device that is always full: what it took is read back, which is nothing.
        let full = dir.path().join("full");
        let mut sink = Sink::new(&full, None);
        (0..5).for_each(|n| sink.write_all(&[n; 300 << 10]).unwrap());
        sink.file.as_mut().unwrap().0 = File::open(&full).unwrap();
        (5..9).for_each(|n| sink.write_all(&[n; 300 << 10]).unwrap());
        let Content::Memory(pieces) = sink.finish().0 else { panic!("a file") };
        assert!(pieces.concat() == expected(9) && !full.exists());
    }
}
