//! Reads files, checks their pages, cuts what is new into frames.
//!
//! One [`Reader`] per thread. A job is one large file, or some small ones that share frames. New bytes are collected until a
//! frame is full; a file's map is put together when all its frames have their place.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::SnapshotError;
use super::pack::{Cancelled, Packer};
use crate::postgres::data_directory::Class;
use crate::postgres::lsn::Lsn;
use crate::postgres::page::{self, PAGE_BYTES};
use crate::repo::frame::{Compressor, FRAME_BYTES, FrameRef};
use crate::repo::manifest::{DamagedPage, FileLine, INLINE_FRAMES, MapPlace, What, encode_path};
use crate::repo::map::{Cursor, FileMap, MapBuilder};
use crate::repo::object::{self, Sha};

/// Bytes asked of the file system at once.
const READ_BYTES: usize = 1 << 20;
/// Pages of one file that are waited for when they look damaged; beyond, the file is damaged enough to be quick.
const PATIENT_PAGES: usize = 16;

/// A file to be read, with what the parent knows of it.
#[derive(Debug)]
pub struct Task {
    pub path: Vec<u8>,
    pub class: Class,
    /// Length at listing.
    pub bytes: u64,
    pub mode: u32,
    pub modified_ns: i64,
    pub inode: u64,
    /// Whether to go on to the end when the file grew: not for WAL-logged files (rule 9).
    pub to_the_end: bool,
    pub parent: Option<FileMap>,
    /// SHA-256 of the parent's file, where it has one.
    pub parent_content: Option<Sha>,
}

/// One line of the file list to be: taken over from the parent, or made by reading.
#[derive(Debug)]
pub enum Item {
    Keep(Box<FileLine>),
    Read(Task),
}

/// What is the same for all files of a snapshot.
#[derive(Debug, Clone)]
pub struct Terms {
    pub root: PathBuf,
    pub checksums: bool,
    pub blocks_per_file: u32,
    /// Pages of main forks below this are the parent's; `Lsn(0)` when there is none.
    pub parent_start: Lsn,
    pub compression_level: i32,
}

/// What became of a job.
#[derive(Debug, Default)]
pub struct Outcome {
    pub lines: Vec<FileLine>,
    pub damaged: Vec<DamagedPage>,
    pub read_bytes: u64,
    pub new_bytes: u64,
}

#[derive(Debug)]
pub enum ReadError {
    Cancelled,
    Failed(SnapshotError),
}

impl From<Cancelled> for ReadError {
    fn from(_: Cancelled) -> Self {
        ReadError::Cancelled
    }
}

pub struct Reader {
    terms: Arc<Terms>,
    data: Arc<Packer>,
    maps: Arc<Packer>,
    compressor: Compressor,
    buffer: Vec<u8>,
    pending: Vec<u8>,
    /// Frames of the current job that are stored; drafts point to them by number.
    frames: Vec<FrameRef>,
    outcome: Outcome,
}

/// A run whose frame may not be stored yet.
enum Draft {
    Zeros(u64),
    Old { frame: FrameRef, position: u32, bytes: u64 },
    New { frame: usize, position: u32, bytes: u64 },
}

struct DraftFile<'a> {
    task: &'a Task,
    runs: Vec<Draft>,
    bytes: u64,
    content: Option<Sha>,
}

impl Reader {
    pub fn new(terms: Arc<Terms>, data: Arc<Packer>, maps: Arc<Packer>) -> Reader {
        let compressor = Compressor::new(terms.compression_level);
        Reader {
            terms,
            data,
            maps,
            compressor,
            buffer: vec![0; READ_BYTES],
            pending: Vec::with_capacity(FRAME_BYTES),
            frames: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    /// Does one job; its lines come in the order of the items. Files that vanished are left out (rule 10).
    pub fn job(&mut self, items: &[Item]) -> Result<Outcome, ReadError> {
        self.outcome = Outcome::default();
        self.frames.clear();
        let mut drafts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Item::Keep(line) => drafts.push(Err(line)),
                Item::Read(task) => drafts.extend(self.file(task)?.map(Ok)),
            }
        }
        self.flush()?;
        for draft in drafts {
            let line = match draft {
                Ok(draft) => self.line(draft)?,
                Err(kept) => FileLine::clone(kept),
            };
            self.outcome.lines.push(line);
        }
        Ok(std::mem::take(&mut self.outcome))
    }

    fn file<'a>(&mut self, task: &'a Task) -> Result<Option<DraftFile<'a>>, ReadError> {
        let path = self.terms.root.join(as_path(&task.path));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReadError::Failed(SnapshotError::Read { path, source })),
        };
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        let mut draft = DraftFile { task, runs: Vec::new(), bytes: 0, content: None };
        let empty = FileMap::default();
        let parent = task.parent.as_ref().unwrap_or(&empty);
        let mut cursor = Cursor::new(parent);
        let mut damaged_before = self.outcome.damaged.len();
        loop {
            let wanted = if task.to_the_end { READ_BYTES as u64 } else { (task.bytes - draft.bytes).min(READ_BYTES as u64) };
            let mut buffer = std::mem::take(&mut self.buffer);
            let got = read_full(&file, &mut buffer[..wanted as usize], draft.bytes);
            let got = got.map_err(|source| ReadError::Failed(SnapshotError::Read { path: path.clone(), source }))?;
            self.outcome.read_bytes += got as u64;
            let base = draft.bytes;
            let mut at = 0;
            while at < got {
                let end = (at + FRAME_BYTES).min(got);
                let chunk = &mut buffer[at..end];
                self.chunk(&file, chunk, base + at as u64, &mut draft, &mut cursor, &mut damaged_before)?;
                at = end;
            }
            self.buffer = buffer;
            if (got as u64) < wanted || wanted == 0 {
                return Ok(Some(draft));
            }
        }
    }

    /// One frame's worth of a file: pages of a main fork one by one, everything else as a whole.
    fn chunk(
        &mut self,
        file: &File,
        chunk: &mut [u8],
        offset: u64,
        draft: &mut DraftFile,
        cursor: &mut Cursor,
        damaged_before: &mut usize,
    ) -> Result<(), ReadError> {
        let task = draft.task;
        draft.bytes = offset + chunk.len() as u64;
        let file_number = match task.class {
            Class::Plain => return self.whole(chunk, offset, draft, cursor),
            Class::Main { file } | Class::Fork { file } => file,
        };
        let pages = chunk.len() / PAGE_BYTES;
        let mut damaged = [false; FRAME_BYTES / PAGE_BYTES];
        for (index, page) in chunk.chunks_exact_mut(PAGE_BYTES).enumerate() {
            let in_file = offset / PAGE_BYTES as u64 + index as u64;
            let block = u64::from(file_number) * u64::from(self.terms.blocks_per_file) + in_file;
            if !self.is_good(page, block) {
                let patient = self.outcome.damaged.len() - *damaged_before < PATIENT_PAGES;
                damaged[index] = self.stays_bad(file, page, in_file * PAGE_BYTES as u64, block, patient)?;
            }
            if damaged[index] {
                self.outcome.damaged.push(DamagedPage { path: encode_path(&task.path), block });
            }
        }
        if matches!(task.class, Class::Fork { .. }) {
            return self.whole(chunk, offset, draft, cursor);
        }
        for (index, page) in chunk[..pages * PAGE_BYTES].chunks_exact(PAGE_BYTES).enumerate() {
            self.page(page, damaged[index], offset + (index * PAGE_BYTES) as u64, draft, cursor)?;
        }
        // A partial last page is not a page (rule 12): stored as it is.
        self.new_bytes(&chunk[pages * PAGE_BYTES..], draft)
    }

    fn is_good(&self, page: &[u8], block: u64) -> bool {
        if self.terms.checksums { page::checksum_holds(page, block as u32) } else { page::header_is_sane(page) }
    }

    /// Reads a bad page again: one that changes is being written, and WAL will mend it; one that stays is damaged (rule 12).
    fn stays_bad(&self, file: &File, page: &mut [u8], offset: u64, block: u64, patient: bool) -> Result<bool, ReadError> {
        let mut again = vec![0u8; PAGE_BYTES];
        let mut same = 0;
        while same < 2 {
            if same > 0 && patient {
                std::thread::sleep(Duration::from_millis(20));
            }
            let got = read_full(file, &mut again, offset).map_err(|source| {
                let path = self.terms.root.clone();
                ReadError::Failed(SnapshotError::Read { path, source })
            })?;
            if got < PAGE_BYTES {
                // Truncated meanwhile: the truncation is in the WAL.
                return Ok(false);
            }
            if again == *page {
                same += 1;
                continue;
            }
            page.copy_from_slice(&again);
            if self.is_good(page, block) {
                return Ok(false);
            }
            same = 0;
        }
        Ok(true)
    }

    fn page(
        &mut self,
        page: &[u8],
        damaged: bool,
        offset: u64,
        draft: &mut DraftFile,
        cursor: &mut Cursor,
    ) -> Result<(), ReadError> {
        if page::is_zero(page) {
            draft.runs.push(Draft::Zeros(PAGE_BYTES as u64));
            return Ok(());
        }
        // The header of a damaged page proves nothing, and neither does one without an LSN: a page that was initialised, and never
        // logged.
        if !damaged
            && page::lsn(page) < self.terms.parent_start
            && let Some(location) = cursor.find(offset, PAGE_BYTES as u64)
            && let Some(frame) = location.frame
        {
            let (frame, position) = (frame.clone(), location.position);
            draft.runs.push(Draft::Old { frame, position, bytes: PAGE_BYTES as u64 });
            return Ok(());
        }
        self.new_bytes(page, draft)
    }

    /// A chunk compared by content with the parent's bytes at the same place: with a frame that it fills, or, when the chunk is
    /// the whole small file, with the file's own checksum.
    fn whole(&mut self, chunk: &[u8], offset: u64, draft: &mut DraftFile, cursor: &mut Cursor) -> Result<(), ReadError> {
        let bytes = chunk.len() as u64;
        let sha256 = Sha::of(chunk);
        let is_whole_file = offset == 0 && bytes == draft.task.bytes && bytes < FRAME_BYTES as u64;
        draft.content = is_whole_file.then_some(sha256);
        if let Some(location) = cursor.find(offset, bytes)
            && let Some(frame) = location.frame
        {
            let fills_frame = location.position == 0 && u64::from(frame.raw_bytes) == bytes && frame.sha256 == sha256;
            if fills_frame || (is_whole_file && draft.task.parent_content == Some(sha256)) {
                draft.runs.push(Draft::Old { frame: frame.clone(), position: location.position, bytes });
                return Ok(());
            }
        }
        // A frame of its own when it fills one, so that the next snapshot can compare it.
        if chunk.len() == FRAME_BYTES && !self.pending.is_empty() {
            self.flush()?;
        }
        self.new_bytes(chunk, draft)
    }

    fn new_bytes(&mut self, mut bytes: &[u8], draft: &mut DraftFile) -> Result<(), ReadError> {
        while !bytes.is_empty() {
            let room = FRAME_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let position = self.pending.len() as u32;
            draft.runs.push(Draft::New { frame: self.frames.len(), position, bytes: now.len() as u64 });
            self.pending.extend_from_slice(now);
            if self.pending.len() == FRAME_BYTES {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Stores what is pending as one frame.
    fn flush(&mut self) -> Result<(), ReadError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let sha256 = Sha::of(&self.pending);
        let stored = self.compressor.compress(&self.pending);
        let frame = self.data.add(stored, self.pending.len() as u32, sha256)?;
        self.outcome.new_bytes += self.pending.len() as u64;
        self.frames.push(frame);
        self.pending.clear();
        Ok(())
    }

    fn line(&mut self, draft: DraftFile) -> Result<FileLine, ReadError> {
        let mut builder = MapBuilder::default();
        for run in &draft.runs {
            match run {
                Draft::Zeros(bytes) => builder.zeros(*bytes),
                Draft::Old { frame, position, bytes } => builder.frame(frame, *position, *bytes),
                Draft::New { frame, position, bytes } => builder.frame(&self.frames[*frame], *position, *bytes),
            }
        }
        let map = builder.finish();
        let digest = map.digest();
        let map = if map.frames.len() > INLINE_FRAMES { self.store_map(&map)? } else { MapPlace::Map(map) };
        let task = draft.task;
        Ok(FileLine {
            path: encode_path(&task.path),
            what: What::File {
                bytes: draft.bytes,
                modified_ns: task.modified_ns,
                inode: task.inode,
                digest,
                content: draft.content,
                map,
            },
            mode: task.mode,
        })
    }

    fn store_map(&mut self, map: &FileMap) -> Result<MapPlace, ReadError> {
        let packs: BTreeSet<Arc<str>> = map.frames.iter().map(|frame| frame.pack.clone()).collect();
        let raw = object::to_json(map);
        let stored = self.compressor.compress(&raw);
        let frame = self.maps.add(stored, raw.len() as u32, Sha::of(&raw))?;
        Ok(MapPlace::MapFrame { frame, packs: packs.into_iter().collect() })
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// Fills the buffer, or reads to the end of the file.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
