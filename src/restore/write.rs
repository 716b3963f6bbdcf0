//! Writes one batch of files: frames are fetched in the order of the packs and scattered to where they belong.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt, fchown};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::RestoreError;
use crate::monitor::Monitor;
use crate::postgres::owner::Ids;
use crate::repo::RepoError;
use crate::repo::fetch;
use crate::repo::frame::FrameRef;
use crate::repo::map::{FileMap, Run};
use crate::repo::repository::Cluster;

/// A file to be made.
#[derive(Debug)]
pub struct Target {
    pub path: PathBuf,
    pub bytes: u64,
    pub mode: u32,
    pub map: FileMap,
}

/// Some bytes of a frame that belong into a file.
#[derive(Debug, Clone, Copy)]
struct Piece {
    file: u32,
    offset: u64,
    position: u32,
    bytes: u32,
}

/// What was written where, to be compared with what reads back.
struct Written {
    file: u32,
    offset: u64,
    bytes: u32,
    crc: u32,
}

/// How to write.
pub struct Terms {
    pub owner: Option<Ids>,
    pub at_once: usize,
    pub read_back: bool,
    pub monitor: Arc<dyn Monitor>,
}

/// Makes all files of the batch, whole and verified. Each must not exist yet.
pub async fn batch(cluster: &Cluster, targets: Vec<Target>, terms: &Terms) -> Result<(), RestoreError> {
    let files = Arc::new(create(&targets, terms)?);
    let (frames, pieces) = scatter(&targets);
    let paths: Arc<Vec<PathBuf>> = Arc::new(targets.into_iter().map(|t| t.path).collect());
    let (frames, pieces) = (Arc::new(frames), Arc::new(pieces));
    let written = Arc::new(Mutex::new(Vec::new()));
    let visit = {
        let (files, paths, pieces, written) = (files.clone(), paths.clone(), pieces.clone(), written.clone());
        let (monitor, read_back) = (terms.monitor.clone(), terms.read_back);
        Arc::new(move |index: usize, raw: Result<&[u8], RepoError>| -> Result<(), RestoreError> {
            let raw = raw?;
            let mut done = Vec::new();
            for piece in &pieces[index] {
                let bytes = &raw[piece.position as usize..][..piece.bytes as usize];
                let written = files[piece.file as usize].write_all_at(bytes, piece.offset);
                written.map_err(|source| RestoreError::Io {
                    doing: "write",
                    path: paths[piece.file as usize].clone(),
                    source,
                })?;
                monitor.advance(u64::from(piece.bytes));
                if read_back {
                    done.push(Written { file: piece.file, offset: piece.offset, bytes: piece.bytes, crc: crc32c::crc32c(bytes) });
                }
            }
            written.lock().unwrap_or_else(PoisonError::into_inner).extend(done);
            Ok(())
        })
    };
    fetch::each(cluster, frames, terms.at_once, visit).await?;
    let written = std::mem::take(&mut *written.lock().unwrap_or_else(PoisonError::into_inner));
    compare(files, paths, written, terms.at_once).await
}

fn create(targets: &[Target], terms: &Terms) -> Result<Vec<File>, RestoreError> {
    let make = |target: &Target| {
        let file = File::options().read(true).write(true).create_new(true).mode(target.mode & 0o777).open(&target.path)?;
        // Runs of zeros are never written: they are holes.
        file.set_len(target.bytes)?;
        if let Some(owner) = terms.owner {
            fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        Ok(file)
    };
    let failed = |target: &Target, source| RestoreError::Io { doing: "write", path: target.path.clone(), source };
    targets.iter().map(|target| make(target).map_err(|source| failed(target, source))).collect()
}

/// The frames of all maps, sorted for fetching, and the pieces of each.
fn scatter(targets: &[Target]) -> (Vec<FrameRef>, Vec<Vec<Piece>>) {
    let mut places: BTreeMap<(&str, u64), (&FrameRef, Vec<Piece>)> = BTreeMap::new();
    for (index, target) in targets.iter().enumerate() {
        let mut offset = 0;
        for Run(frame, position, bytes) in &target.map.runs {
            if let Some(frame) = frame.and_then(|f| target.map.frames.get(f as usize)) {
                let piece = Piece { file: index as u32, offset, position: *position, bytes: *bytes as u32 };
                places.entry((&frame.pack, frame.offset)).or_insert_with(|| (frame, Vec::new())).1.push(piece);
            }
            offset += bytes;
        }
    }
    places.into_values().map(|(frame, pieces)| (frame.clone(), pieces)).unzip()
}

/// Reads back what was written (rule 38).
async fn compare(
    files: Arc<Vec<File>>,
    paths: Arc<Vec<PathBuf>>,
    written: Vec<Written>,
    threads: usize,
) -> Result<(), RestoreError> {
    let portion = written.len().div_ceil(threads.max(1)).max(1);
    let mut written = written.into_iter();
    let mut running = tokio::task::JoinSet::new();
    loop {
        let mine: Vec<Written> = written.by_ref().take(portion).collect();
        if mine.is_empty() {
            break;
        }
        let (files, paths) = (files.clone(), paths.clone());
        running.spawn_blocking(move || {
            let mut buffer = Vec::new();
            for piece in mine {
                buffer.resize(piece.bytes as usize, 0);
                let path = &paths[piece.file as usize];
                let read = files[piece.file as usize].read_exact_at(&mut buffer, piece.offset);
                read.map_err(|source| RestoreError::Io { doing: "read back", path: path.clone(), source })?;
                if crc32c::crc32c(&buffer) != piece.crc {
                    return Err(RestoreError::ReadBack { path: path.clone() });
                }
            }
            Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        match done {
            Ok(compared) => compared?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    Ok(())
}
