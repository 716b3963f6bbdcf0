//! The limit of the machine, see [`crate::tools`].
//!
//! A pack is: the frames, one behind the other; then the list of files as JSON; then its length in 8 bytes.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use lastgood::repo::hash;
use lastgood::repo::object::Sha;
use serde::{Deserialize, Serialize};

use crate::stage::files;

const FRAME_BYTES: usize = 128 << 10;
/// What a thread takes at a time.
const JOB_FRAMES: usize = 64;

/// A part of a file: where its raw bytes belong, and where the frame is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Frame {
    file: usize,
    at: u64,
    bytes: usize,
    offset: u64,
    stored: usize,
    sha256: Sha,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    files: Vec<PathBuf>,
    frames: Vec<Frame>,
}

/// `limit full DATA`, `limit pack DATA PACK`, `limit restore PACK INTO`.
pub fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["full", data] => compress(Path::new(data), None).map(drop),
        ["pack", data, pack] => make_pack(Path::new(data), Path::new(pack)),
        ["restore", pack, into] => restore(Path::new(pack), Path::new(into)),
        _ => bail!("limit full DATA | pack DATA PACK | restore PACK INTO"),
    }
}

/// Whether a snapshot has it: WAL has its own way, and sockets and the like are no files.
fn belongs(data: &Path, path: &Path) -> bool {
    let inside = path.strip_prefix(data).unwrap_or(path);
    !inside.starts_with("pg_wal") && !inside.ends_with("postmaster.pid")
}

fn frames_of(data: &Path) -> Result<Contents> {
    let mut contents = Contents::default();
    for path in files(data)?.into_iter().filter(|path| belongs(data, path)) {
        let bytes = path.metadata()?.len();
        let file = contents.files.len();
        contents.files.push(path.strip_prefix(data)?.to_path_buf());
        for at in (0..bytes).step_by(FRAME_BYTES) {
            let length = (bytes - at).min(FRAME_BYTES as u64) as usize;
            contents.frames.push(Frame { file, at, bytes: length, offset: 0, stored: 0, sha256: Sha([0; 32]) });
        }
    }
    Ok(contents)
}

/// Runs `work` on all frames, on all cores; `work` gets what its thread has made with `start`, some frames, and the first one's
/// number.
fn on_all_cores<T>(
    frames: &[Frame],
    start: impl Fn() -> Result<T> + Sync,
    work: impl Fn(&mut T, &[Frame], usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let run = || -> Result<()> {
        let mut own = start()?;
        loop {
            let first = next.fetch_add(JOB_FRAMES, Ordering::Relaxed);
            if first >= frames.len() {
                return Ok(());
            }
            work(&mut own, &frames[first..frames.len().min(first + JOB_FRAMES)], first)?;
        }
    };
    let cores = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Everything that compressing keeps between frames.
struct Workshop {
    compressor: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
    packed: Vec<u8>,
}

impl Workshop {
    fn new() -> Result<Workshop> {
        let packed = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME_BYTES));
        Ok(Workshop { compressor: zstd::bulk::Compressor::new(1)?, raw: vec![0; hash::AT_ONCE * FRAME_BYTES], packed })
    }

    /// Reads frame `place` of those that are hashed together.
    fn read(&mut self, file: &File, frame: &Frame, place: usize) -> Result<()> {
        let raw = &mut self.raw[place * FRAME_BYTES..][..frame.bytes];
        // Files may have become shorter since they were listed; the rest counts as it was.
        let mut filled = 0;
        while filled < raw.len() {
            match file.read_at(&mut raw[filled..], frame.at + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Hashes and compresses what was read; `each` gets each frame's place among them.
    fn frames(&mut self, frames: &[Frame], mut each: impl FnMut(usize, Sha, &[u8]) -> Result<()>) -> Result<()> {
        let raw: Vec<&[u8]> = self.raw.chunks(FRAME_BYTES).zip(frames).map(|(raw, frame)| &raw[..frame.bytes]).collect();
        let digests = hash::many(&raw);
        for (place, raw) in raw.iter().enumerate() {
            self.packed.clear();
            self.compressor.compress_to_buffer(raw, &mut self.packed)?;
            each(place, digests[place], &self.packed)?;
        }
        Ok(())
    }
}

type Sink<'a> = &'a (dyn Fn(usize, Sha, &[u8]) -> Result<()> + Sync);

fn compress(data: &Path, sink: Option<Sink<'_>>) -> Result<Contents> {
    let contents = frames_of(data)?;
    on_all_cores(&contents.frames, Workshop::new, |workshop, job, first| {
        let mut open: Option<(usize, File)> = None;
        for (group, frames) in job.chunks(hash::AT_ONCE).enumerate() {
            for (place, frame) in frames.iter().enumerate() {
                if open.as_ref().is_none_or(|(file, _)| *file != frame.file) {
                    let path = data.join(&contents.files[frame.file]);
                    open = Some((frame.file, File::open(&path).with_context(|| format!("open {}", path.display()))?));
                }
                let Some((_, file)) = &open else { continue };
                workshop.read(file, frame, place)?;
            }
            let number = first + group * hash::AT_ONCE;
            workshop.frames(frames, |place, sha256, packed| sink.map_or(Ok(()), |sink| sink(number + place, sha256, packed)))?;
        }
        Ok(())
    })?;
    Ok(contents)
}

fn make_pack(data: &Path, pack: &Path) -> Result<()> {
    let mut contents = frames_of(data)?;
    let target = Mutex::new((BufWriter::new(File::create(pack)?), 0u64, vec![None; contents.frames.len()]));
    compress(
        data,
        Some(&|number, sha256, packed| {
            let mut target = target.lock().unwrap_or_else(|e| e.into_inner());
            let (file, end, places) = &mut *target;
            file.write_all(packed)?;
            if let Some(place) = places.get_mut(number) {
                *place = Some((*end, packed.len(), sha256));
            }
            *end += packed.len() as u64;
            Ok(())
        }),
    )?;
    let (mut file, _, places) = target.into_inner().unwrap_or_else(|e| e.into_inner());
    for (frame, place) in contents.frames.iter_mut().zip(places) {
        (frame.offset, frame.stored, frame.sha256) = place.context("a frame was not packed")?;
    }
    let list = serde_json::to_vec(&contents)?;
    file.write_all(&list)?;
    file.write_all(&(list.len() as u64).to_le_bytes())?;
    Ok(file.flush()?)
}

fn restore(pack: &Path, into: &Path) -> Result<()> {
    let mut file = File::open(pack)?;
    let end = file.seek(SeekFrom::End(-8))?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut list = vec![0; u64::from_le_bytes(length) as usize];
    let begin = end - list.len() as u64;
    file.read_exact_at(&mut list, begin)?;
    let contents: Contents = serde_json::from_slice(&list)?;
    for path in &contents.files {
        let path = into.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(into))?;
        File::create(path)?;
    }
    let start = || Ok((zstd::bulk::Decompressor::new()?, Vec::new(), vec![0; hash::AT_ONCE * FRAME_BYTES]));
    on_all_cores(&contents.frames, start, |(decompressor, packed, raw), job, _| {
        let mut open: Option<(usize, File)> = None;
        for frames in job.chunks(hash::AT_ONCE) {
            for (raw, frame) in raw.chunks_mut(FRAME_BYTES).zip(frames) {
                packed.resize(frame.stored, 0);
                file.read_exact_at(packed, frame.offset)?;
                decompressor.decompress_to_buffer(packed, raw)?;
            }
            let raw: Vec<&[u8]> = raw.chunks(FRAME_BYTES).zip(frames).map(|(raw, frame)| &raw[..frame.bytes]).collect();
            let digests = hash::many(&raw);
            for ((raw, frame), digest) in raw.into_iter().zip(frames).zip(digests) {
                if digest != frame.sha256 {
                    bail!("a frame is damaged");
                }
                if open.as_ref().is_none_or(|(number, _)| *number != frame.file) {
                    let path = into.join(&contents.files[frame.file]);
                    open = Some((frame.file, File::options().write(true).open(path)?));
                }
                if let Some((_, target)) = &open {
                    target.write_all_at(raw, frame.at)?;
                }
            }
        }
        Ok(())
    })
}
