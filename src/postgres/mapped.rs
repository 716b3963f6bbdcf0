//! Where mapped catalogs lie: `pg_filenode.map` of each database and of the cluster.
//!
//! Source: `src/backend/utils/cache/relmapper.c` (`RelMapFile`): a magic number, a count, 62 mappings (64 since 16), and a CRC32C
//! of all before it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::postgres::wal::index::MappedFiles;

/// `RELMAPPER_FILEMAP_MAGIC`.
const MAGIC: u32 = 0x0059_2717;
const FILE_NAME: &str = "pg_filenode.map";
/// Databases whose maps are read; catalogs of further ones are known where initdb put them.
const DATABASES_MAX: usize = 2000;

/// Catalogs that lie elsewhere than where initdb put them. A map that cannot be read says nothing.
pub fn moved(data_directory: &Path) -> MappedFiles {
    let mut moved = MappedFiles::new();
    let mut add = |database: u32, directory: &Path| {
        for (oid, number) in fs::read(directory.join(FILE_NAME)).ok().and_then(|bytes| parse(&bytes)).unwrap_or_default() {
            if oid != number {
                moved.insert((database, oid), number);
            }
        }
    };
    add(0, &data_directory.join("global"));
    let databases = databases_below(&data_directory.join("base"));
    let links = directories(&data_directory.join("pg_tblspc"));
    let elsewhere = links.iter().flat_map(|link| directories(link)).flat_map(|version| databases_below(&version));
    for (database, directory) in databases.into_iter().chain(elsewhere).take(DATABASES_MAX) {
        add(database, &directory);
    }
    moved
}

fn directories(below: &Path) -> Vec<PathBuf> {
    fs::read_dir(below).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn databases_below(place: &Path) -> Vec<(u32, PathBuf)> {
    let oid = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
    directories(place).into_iter().filter_map(|path| Some((oid(&path)?, path))).collect()
}

/// Relation OID and file number.
fn parse(bytes: &[u8]) -> Option<Vec<(u32, u32)>> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let count = word(4).filter(|count| word(0) == Some(MAGIC) && *count <= 64)? as usize;
    // 512 bytes before 16, with four at the end that the CRC does not fill; 524 since.
    let crc_at = if bytes.len() == 512 { 504 } else { bytes.len().checked_sub(4)? };
    if word(crc_at)? != crc32c::crc32c(bytes.get(..crc_at)?) {
        return None;
    }
    (0..count).map(|index| Some((word(8 + 8 * index)?, word(12 + 8 * index)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mappings: &[(u32, u32)], slots: usize) -> Vec<u8> {
        let mut bytes = [MAGIC.to_le_bytes(), (mappings.len() as u32).to_le_bytes()].concat();
        for (oid, number) in mappings {
            bytes.extend([oid.to_le_bytes(), number.to_le_bytes()].concat());
        }
        bytes.resize(8 + 8 * slots, 0);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        if slots == 62 {
            bytes.extend([0; 4]);
        }
        bytes
    }

    #[test]
    fn both_lengths_are_read_and_a_torn_one_is_not() {
        for slots in [62, 64] {
            let mut bytes = file(&[(1259, 16400), (1247, 1247)], slots);
            assert_eq!(parse(&bytes), Some(vec![(1259, 16400), (1247, 1247)]));
            bytes[12] ^= 1;
            assert_eq!(parse(&bytes), None);
        }
        assert_eq!(parse(b"short"), None);
    }

    #[test]
    fn only_what_moved_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for place in ["global", "base/5", "pg_tblspc/16390/PG_15_202209061/7"] {
            fs::create_dir_all(dir.path().join(place)).unwrap();
        }
        fs::write(dir.path().join("global").join(FILE_NAME), file(&[(1262, 1262)], 62)).unwrap();
        fs::write(dir.path().join("base/5").join(FILE_NAME), file(&[(1259, 16400), (1247, 1247)], 62)).unwrap();
        fs::write(dir.path().join("pg_tblspc/16390/PG_15_202209061/7").join(FILE_NAME), file(&[(1247, 99999)], 64)).unwrap();
        assert_eq!(moved(dir.path()), MappedFiles::from([((5, 1259), 16400), ((7, 1247), 99999)]));
    }
}
