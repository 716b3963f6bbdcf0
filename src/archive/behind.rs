//! Notes in the spool about mirrors that are filled later: since when something was stored that they lack.
//!
//! A note is only a hint for people; what a mirror lacks is seen by comparing listings.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::clock;

/// The note about one mirror.
#[derive(Debug, Clone)]
pub struct Note {
    path: PathBuf,
}

impl Note {
    pub fn of(spool: &Path, mirror: &str) -> Note {
        Note { path: spool.join(format!("behind-{mirror}")) }
    }

    /// Something was stored that the mirror has not: the first such moment stays.
    pub fn mark(&self) {
        if !self.path.exists() {
            let _ = super::spool::write_private(&self.path, clock::now().to_string().as_bytes());
        }
    }

    /// Since when, where a note is there.
    pub fn since(&self) -> Option<Timestamp> {
        let read = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<Timestamp>().ok();
        [self.aside(), self.path.clone()].iter().filter_map(|path| read(path)).min()
    }

    fn aside(&self) -> PathBuf {
        self.path.with_extension("copying")
    }

    /// Puts the note aside while a copy is made: what is stored from now on marks it anew.
    pub fn take(&self) -> Taken {
        if !self.aside().exists() {
            let _ = fs::rename(&self.path, self.aside());
        }
        Taken(self.aside())
    }
}

/// A note that was put aside; it counts until [`Taken::done`].
#[derive(Debug)]
pub struct Taken(PathBuf);

impl Taken {
    /// The copy is complete.
    pub fn done(self) {
        let _ = fs::remove_file(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_during_a_copy_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let note = Note::of(dir.path(), "offsite");
        assert!(note.since().is_none());
        note.mark();
        let first = note.since().unwrap();
        let taken = note.take();
        assert_eq!(note.since(), Some(first), "until the copy is complete");
        note.mark();
        assert_eq!(note.since(), Some(first));
        taken.done();
        assert!(note.since().unwrap() > first);
        // A copy that fails leaves the first moment.
        let since = note.since();
        drop(note.take());
        note.mark();
        assert_eq!(note.since(), since);
        note.take().done();
        assert!(note.since().is_some());
    }
}
