//! A walk before the copy: how much there is, and whether a sample of pages agrees with what WAL says.
//!
//! A page with an LSN between the two starts was changed between them, so WAL must name it. One that it does not name says that
//! the index is wrong, and none of it is believed.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::changes::{Changes, FileChanges};
use crate::postgres::data_directory::{self, Class, DataDirectoryError, Entry, Kind, Scope};
use crate::postgres::lsn::Lsn;
use crate::postgres::page::{self, PAGE_BYTES};

/// A page is looked at in each of so many.
const SAMPLE_PAGES: u64 = 4096;

/// What the sample is compared with.
#[derive(Debug, Clone)]
pub struct Sample {
    pub changes: Arc<Changes>,
    /// The parent's start and this snapshot's.
    pub from: Lsn,
    pub to: Lsn,
    /// Files that were modified before need no look: nobody believes WAL for them.
    pub since_ns: i64,
}

/// A page that changed although WAL does not say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    pub path: String,
    pub page: u64,
    pub lsn: Lsn,
}

/// What the walk found.
#[derive(Debug, Default)]
pub struct Survey {
    /// Bytes of all files.
    pub bytes: u64,
    pub contradiction: Option<Contradiction>,
}

/// Walks it all. Not for async code. What cannot be walked is reported by the walk that counts.
pub fn survey(root: PathBuf, scope: &Scope, sample: Option<Sample>) -> Survey {
    let mut survey = Survey::default();
    let mut add = |entry: Entry| {
        if matches!(entry.kind, Kind::File { .. }) {
            survey.bytes += entry.bytes;
        }
        if let (Some(sample), None) = (&sample, &survey.contradiction) {
            survey.contradiction = sample.contradiction(&root, &entry);
        }
        Ok::<(), DataDirectoryError>(())
    };
    let _ = data_directory::walk(&root, scope, &mut add, &mut |_| {});
    survey
}

impl Sample {
    fn contradiction(&self, root: &std::path::Path, entry: &Entry) -> Option<Contradiction> {
        let Kind::File { class: Class::Main { file } } = entry.kind else { return None };
        if entry.modified_ns < i128::from(self.since_ns) {
            return None;
        }
        let changes = self.changes.of_file(&entry.path, file)?;
        let path = root.join(std::ffi::OsStr::from_bytes(&entry.path));
        let opened = File::open(path).ok()?;
        let pages = entry.bytes / PAGE_BYTES as u64;
        (0..pages).step_by(SAMPLE_PAGES as usize).find_map(|first| {
            let end = (first + SAMPLE_PAGES).min(pages);
            let page = unnamed(&changes, first, end, entry.inode)?;
            let lsn = self.changed(&opened, page)?;
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            Some(Contradiction { path, page, lsn })
        })
    }

    /// The LSN of a page that was changed between the starts; seen twice, because the server may be writing it.
    fn changed(&self, file: &File, number: u64) -> Option<Lsn> {
        let read = || -> io::Result<Lsn> {
            let mut head = [0u8; 8];
            file.read_exact_at(&mut head, number * PAGE_BYTES as u64)?;
            Ok(page::lsn(&head))
        };
        let between = |lsn: &Lsn| *lsn >= self.from && *lsn < self.to;
        let lsn = read().ok().filter(between)?;
        (read().ok() == Some(lsn)).then_some(lsn)
    }
}

/// A page of a stretch that WAL does not name; which one differs from file to file.
fn unnamed(changes: &FileChanges, first: u64, end: u64, seed: u64) -> Option<u64> {
    let middle = first + seed % (end - first);
    let is_unnamed = |page: &u64| changes.next(*page, page + 1) > *page;
    // Not far from there.
    (middle..end.min(middle + 64)).chain(first..middle.min(first + 64)).find(is_unnamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(lsns: &[u64]) -> Option<Contradiction> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("base/5")).unwrap();
        let mut bytes = Vec::new();
        for lsn in lsns {
            let mut page = vec![0u8; PAGE_BYTES];
            page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
            page[4..8].copy_from_slice(&(*lsn as u32).to_le_bytes());
            bytes.extend(page);
        }
        std::fs::write(dir.path().join("base/5/7"), bytes).unwrap();
        let changes = Arc::new(Changes::new(131_072));
        survey(
            dir.path().into(),
            &Scope::new(15, 202_209_061),
            Some(Sample { changes, from: Lsn(100), to: Lsn(200), since_ns: 0 }),
        )
        .contradiction
    }

    #[test]
    fn a_page_that_changed_between_contradicts() {
        assert_eq!(sampled(&[0; 3]), None);
        assert_eq!(sampled(&[99; 3]), None);
        assert_eq!(sampled(&[200; 3]), None, "changed while we look");
        let found = sampled(&[150; 3]).unwrap();
        assert_eq!((found.path.as_str(), found.lsn), ("base/5/7", Lsn(150)));
    }
}
