//! Whether a file in a data directory and an archived segment are the same WAL.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::postgres::lsn::SystemId;
use crate::postgres::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::object::{self, Sha};
use crate::repo::repository::Cluster;
use crate::repo::segment;

/// Read at a time while a file is hashed.
const READ_BYTES: usize = 256 << 10;

/// What a file of this name and the archive's segment have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Every byte: both have this digest.
    Same(Sha),
    Differs {
        there: Sha,
        here: Sha,
    },
    /// The archive has no such segment; the file has this digest.
    NotArchived(Sha),
}

/// Compares by digest: one small read of the archive.
pub async fn whole(cluster: &Cluster, system: SystemId, name: SegmentName, file: PathBuf) -> Result<Compared, RepoError> {
    let read = segment::read_trailer(cluster, system, &WalFile::Segment(name)).await;
    let trailer = object::absent(read)?;
    let here = digest_of(file).await?;
    Ok(match trailer.map(|trailer| trailer.sha256) {
        None => Compared::NotArchived(here),
        Some(there) if there == here => Compared::Same(here),
        Some(there) => Compared::Differs { there, here },
    })
}

/// SHA-256 of a file, on a thread for such work.
pub async fn digest_of(path: PathBuf) -> Result<Sha, RepoError> {
    let hash = {
        let path = path.clone();
        move || {
            let (mut file, mut hasher) = (fs::File::open(path)?, Sha256::new());
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok::<_, io::Error>(Sha(hasher.finalize().into())),
                    count => hasher.update(&buffer[..count]),
                }
            }
        }
    };
    let hashed = match tokio::task::spawn_blocking(hash).await {
        Ok(hashed) => hashed,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    hashed.map_err(|source| RepoError::File { path, source })
}

/// A segment in a `pg_wal` that is what its name says: recycled files carry the address that they had before.
pub fn is_segment(path: &Path, name: SegmentName, system: SystemId) -> bool {
    let read = || {
        let mut head = Vec::with_capacity(LONG_HEADER_BYTES);
        let file = fs::File::open(path).ok()?;
        let bytes = file.metadata().ok()?.len();
        file.take(LONG_HEADER_BYTES as u64).read_to_end(&mut head).ok()?;
        let header = SegmentHeader::parse(&head).ok()?;
        (header.system_identifier == system && header.check(name, bytes).is_ok()).then_some(())
    };
    read().is_some()
}

/// Offset of the first byte of a file's first `bytes` that the archive's segment has otherwise; `None` when they are the same.
pub async fn first_difference(
    cluster: &Cluster,
    system: SystemId,
    name: SegmentName,
    file: &Path,
    bytes: u64,
) -> Result<Option<u64>, RepoError> {
    let failed = |source| RepoError::File { path: file.into(), source };
    let local = fs::File::open(file).map_err(failed)?;
    let mut beside = Beside { local: io::BufReader::new(local.take(bytes)), at: 0, differs: None };
    segment::fetch(cluster, system, &WalFile::Segment(name), &mut beside).await?;
    Ok(beside.differs)
}

/// Compares what is written with a file.
struct Beside {
    local: io::BufReader<io::Take<fs::File>>,
    at: u64,
    differs: Option<u64>,
}

impl Write for Beside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut here = vec![0; bytes.len()];
        let mut filled = 0;
        while filled < here.len() && self.differs.is_none() {
            match self.local.read(&mut here[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        let apart = here[..filled].iter().zip(bytes).position(|(here, there)| here != there);
        if let (None, Some(apart)) = (self.differs, apart) {
            self.differs = Some(self.at + apart as u64);
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
