//! Page checksums of the restored relations, read from the disk after everything was replayed.
//!
//! Right after the restore pages may be torn, and WAL mends them (rule 12); so they are read when replay stands at its target and a
//! restartpoint has written all of it. Nothing changes them then.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::data_directory::{self, Class, DataDirectoryError, Entry, Kind, Scope};
use crate::postgres::page::{self, PAGE_BYTES};

/// Files are visited in so many rounds, each file in one of them by chance: what the time allows is then a fair sample, and no list of
/// files is kept in memory.
const ROUNDS: u64 = 8;
const READ_PAGES: usize = 128;
/// Damaged pages that are named; the others are counted.
const NAMED: usize = 10;

#[derive(Debug, Default)]
pub struct Pages {
    pub read: u64,
    pub there: u64,
    pub damaged: u64,
    pub named: Vec<String>,
    /// Files that could not be read.
    pub unreadable: Vec<String>,
}

pub struct Request<'a> {
    pub data: &'a Path,
    pub scope: Scope,
    pub blocks_per_file: u32,
    /// Without, only headers are looked at.
    pub has_checksums: bool,
    pub budget: Duration,
}

pub fn check(request: &Request<'_>, monitor: &dyn Monitor) -> Result<Pages, DataDirectoryError> {
    let began = clock::monotonic();
    let seed = (clock::random_fraction() * f64::from(u32::MAX)) as u64;
    let mut pages = Pages::default();
    for round in 0..ROUNDS {
        let mut visit = |entry: Entry| -> Result<(), DataDirectoryError> {
            let Kind::File { class: Class::Main { file } | Class::Fork { file } } = entry.kind else { return Ok(()) };
            if round == 0 {
                pages.there += entry.bytes / PAGE_BYTES as u64;
            }
            if hash(&entry.path, seed) % ROUNDS == round && began.elapsed() < request.budget {
                let first = u64::from(file) * u64::from(request.blocks_per_file);
                let path = request.data.join(std::ffi::OsStr::from_bytes(&entry.path));
                if let Err(error) = pages.file(&path, first, request.has_checksums, monitor) {
                    pages.unreadable.push(format!("{}: {error}", path.display()));
                }
            }
            Ok(())
        };
        data_directory::walk(request.data, &request.scope, &mut visit, &mut |_| {})?;
    }
    Ok(pages)
}

/// FNV-1a.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)) >> 16
}

impl Pages {
    fn file(&mut self, path: &Path, first: u64, has_checksums: bool, monitor: &dyn Monitor) -> std::io::Result<()> {
        let mut file = File::open(path)?;
        let mut buffer = vec![0u8; READ_PAGES * PAGE_BYTES];
        let mut block = first;
        loop {
            let filled = fill(&mut file, &mut buffer)?;
            for page in buffer[..filled].chunks_exact(PAGE_BYTES) {
                let is_good = if has_checksums { page::checksum_holds(page, block as u32) } else { page::header_is_sane(page) };
                if !is_good {
                    self.damaged += 1;
                    if self.named.len() < NAMED {
                        self.named.push(format!("block {block} of {}", path.display()));
                    }
                }
                self.read += 1;
                block += 1;
            }
            monitor.advance(filled as u64);
            if filled < buffer.len() {
                return Ok(());
            }
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;

    #[test]
    fn each_page_of_each_file_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["base/1", "global"] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        let mut page: Vec<u8> = (0..PAGE_BYTES).map(|i| (i % 251) as u8).collect();
        let mut sealed = |block: u32| {
            let sum = page::checksum(&page, block);
            page[8..10].copy_from_slice(&sum.to_le_bytes());
            page.clone()
        };
        for file in 0..40 {
            std::fs::write(dir.path().join(format!("base/1/{}", 16384 + file)), [sealed(0), sealed(1)].concat()).unwrap();
        }
        // The second file of a relation counts on.
        std::fs::write(dir.path().join("base/1/16384.1"), sealed(7)).unwrap();
        let scope = Scope::new(15, 202209061);
        let request =
            Request { data: dir.path(), scope, blocks_per_file: 7, has_checksums: true, budget: Duration::from_secs(3600) };
        let pages = check(&request, &Silent).unwrap();
        assert_eq!((pages.read, pages.there, pages.damaged), (81, 81, 0), "{pages:?}");
        let bad = dir.path().join("base/1/16390");
        std::fs::write(&bad, [sealed(0), sealed(0)].concat()).unwrap();
        let pages = check(&request, &Silent).unwrap();
        assert_eq!((pages.read, pages.damaged), (81, 1));
        assert!(pages.named[0].contains("block 1 of") && pages.named[0].ends_with("16390"), "{pages:?}");
        let nothing = check(&Request { budget: Duration::ZERO, ..request }, &Silent).unwrap();
        assert_eq!((nothing.read, nothing.there), (0, 81));
    }
}
