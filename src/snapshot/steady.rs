//! Whether a file that no WAL describes stood still while it was read.
//!
//! PostgreSQL and people replace such files by renaming (`replorigin_checkpoint`, settings) or write them anew in place. What was read
//! counts when the name still is the file that was opened, and that file was not written meanwhile: never a beginning of one content
//! at the length of another.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// A file that no WAL describes is read again so often when it is replaced or written meanwhile; then what was read last counts.
pub const ATTEMPTS: u32 = 5;
pub const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);
/// Up to this length a file is expected to stand still for a moment: settings, states, maps of numbers.
const SHORT_BYTES: u64 = 1 << 20;
/// By so much, or by its own length, a file may grow while it is read, and is still read to its end.
const GROWTH_BYTES: u64 = 64 << 20;

/// How a file was before it was read.
pub struct Seen {
    place: (u64, u64),
    bytes: u64,
    changed: (i64, i64),
}

impl Seen {
    pub fn of(file: &File) -> io::Result<Seen> {
        let metadata = file.metadata()?;
        let place = (metadata.dev(), metadata.ino());
        Ok(Seen { place, bytes: metadata.len(), changed: (metadata.mtime(), metadata.mtime_nsec()) })
    }

    /// Whether the name still is the file that was read, and a short file was not written meanwhile. A name that is gone leaves what was
    /// read; a long file that grows is never whole (a log).
    pub fn is_still(&self, file: &File, path: &Path) -> io::Result<bool> {
        match fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) != self.place => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        }
        let now = Seen::of(file)?;
        Ok(self.bytes.max(now.bytes) > SHORT_BYTES || (now.bytes, now.changed) == (self.bytes, self.changed))
    }
}

/// Where reading ends in a file that grows and grows.
pub fn longest(file: &File) -> io::Result<u64> {
    let bytes = file.metadata()?.len();
    Ok(bytes.saturating_add(bytes.max(GROWTH_BYTES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_or_written_meanwhile_did_not_stand_still() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("f"), dir.path().join("g"));
        fs::write(&path, "one").unwrap();
        let file = File::open(&path).unwrap();
        let seen = Seen::of(&file).unwrap();
        assert!(seen.is_still(&file, &path).unwrap());
        fs::write(&other, "two").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!seen.is_still(&file, &path).unwrap(), "replaced");
        let file = File::open(&path).unwrap();
        let seen = Seen::of(&file).unwrap();
        fs::write(&path, "longer").unwrap();
        assert!(!seen.is_still(&file, &path).unwrap(), "written");
        fs::remove_file(&path).unwrap();
        assert!(seen.is_still(&file, &path).unwrap(), "gone: what was read is all there is");
        // A long one that grows is a log.
        let long = File::create(&path).unwrap();
        long.set_len(SHORT_BYTES).unwrap();
        let seen = Seen::of(&long).unwrap();
        long.set_len(SHORT_BYTES + 1).unwrap();
        assert!(seen.is_still(&long, &path).unwrap());
        assert_eq!(longest(&long).unwrap(), SHORT_BYTES + 1 + GROWTH_BYTES);
    }
}
