//! Reads files, checks their pages, cuts what is new into frames.
//!
//! One [`Reader`] per thread. A job is one large file, or some small ones that share frames. New bytes are collected until a
//! frame is full; a file's map is put together when all its frames have their place.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::SnapshotError;
use super::changes::{FileChanges, Known};
use super::pack::{Cancelled, Packer};
use super::retire::Retire;
use super::stash::Stash;
use super::steady::{self, Seen};
use super::stretch::{self, FileFacts, Line, ParentMap, Stretch};
use super::unread::{self, Piece};
use crate::postgres::data_directory::{Class, may_vanish};
use crate::postgres::lsn::Lsn;
use crate::postgres::page::{self, PAGE_BYTES};
use crate::repo::frame::{Compressor, FRAME_BYTES, FrameRef};
use crate::repo::hash;
use crate::repo::manifest::{DamagedPage, FileLine, encode_path};
use crate::repo::map::{Cursor, FileMap, MapBuilder};
use crate::repo::object::Sha;

/// Bytes asked of the file system at once, in a multiple of frames: as many as are hashed together.
const READ_BYTES: usize = hash::AT_ONCE * FRAME_BYTES;
/// Pages of one file that are waited for when they look damaged; beyond, the file is damaged enough to be quick.
const PATIENT_PAGES: usize = 16;

/// A file to be read, with what the parent knows of it.
#[derive(Debug, Clone)]
pub struct Task {
    pub facts: FileFacts,
    pub class: Class,
    /// What of the file to read.
    pub range: Range<u64>,
    /// Whether to go on to the end when the file grew, and to read again what was replaced meanwhile: not for relations (rule 9).
    pub to_the_end: bool,
    pub parent: Option<Arc<ParentMap>>,
    /// SHA-256 of the parent's file, where it has one.
    pub parent_content: Option<Sha>,
    /// What need not be read; all is read when absent.
    pub known: Option<Known>,
    /// It is another file than the parent's, of the same relation: each page is read, and is the parent's only where WAL, which has no
    /// gap since, names no change of it, and the page agrees.
    pub doubted: Option<FileChanges>,
}

impl Task {
    fn is_whole(&self) -> bool {
        self.range == (0..self.facts.bytes)
    }

    /// Whether nothing of the file changed: it is here because of where the parent has it.
    pub fn is_same(&self) -> bool {
        matches!(self.known, Some(Known::Same))
    }

    fn stretch(&self, map: Option<FileMap>) -> Line {
        Line::Stretch(Box::new(Stretch { facts: self.facts.clone(), range: self.range.clone(), map }))
    }
}

/// One line of the file list to be: taken over from the parent, or made by reading.
#[derive(Debug)]
pub enum Item {
    /// With the bytes that would have been read without the WAL index.
    Keep(Box<FileLine>, u64),
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
    pub retire: Arc<Retire>,
}

/// What became of a job.
#[derive(Debug, Default)]
pub struct Outcome {
    pub lines: Vec<Line>,
    pub damaged: Vec<DamagedPage>,
    pub read_bytes: u64,
    pub unread_bytes: u64,
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
    stash: Stash,
    /// Frames of the current job that are stored; drafts point to them by number, and the stashed ones follow.
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
    /// Where in the file what was read ends.
    end: u64,
    content: Option<Sha>,
}

/// A file that is being read, beside the parent's map of it.
struct OpenFile<'a> {
    file: File,
    path: PathBuf,
    cursor: Cursor<'a>,
    /// What is read now is stored, whatever the parent has.
    anew: bool,
    /// Damaged pages of the job's earlier files.
    damaged_before: usize,
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
            stash: Stash::default(),
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
            let draft = match item {
                Item::Keep(line, unread) => {
                    self.outcome.unread_bytes += unread;
                    Ok(Line::Whole(line.clone()))
                }
                Item::Read(task) => match self.file(task)? {
                    Some(draft) => Err(draft),
                    None if task.is_whole() => continue,
                    None => Ok(task.stretch(None)),
                },
            };
            drafts.push(draft);
        }
        self.flush()?;
        self.unstash()?;
        for draft in drafts {
            let line = draft.or_else(|draft| self.line(draft))?;
            self.outcome.lines.push(line);
        }
        Ok(std::mem::take(&mut self.outcome))
    }

    fn file<'a>(&mut self, task: &'a Task) -> Result<Option<DraftFile<'a>>, ReadError> {
        let path = self.terms.root.join(as_path(&task.facts.path));
        if !task.to_the_end {
            return match self.open(task, &path)? {
                Some(file) => self.opened(task, file, path).map(Some),
                None => Ok(None),
            };
        }
        // What no WAL describes is right only as one whole that somebody wrote.
        for attempt in 1.. {
            let Some(file) = self.open(task, &path)? else { return Ok(None) };
            let failed = |source| ReadError::Failed(SnapshotError::Read { path: path.clone(), source });
            let seen = Seen::of(&file).map_err(failed)?;
            let draft = self.opened(task, file.try_clone().map_err(failed)?, path.clone())?;
            if seen.is_still(&file, &path).map_err(failed)? || attempt == steady::ATTEMPTS {
                return Ok(Some(draft));
            }
            std::thread::sleep(steady::BETWEEN_ATTEMPTS);
        }
        unreachable!("the last attempt answers")
    }

    fn open(&self, task: &Task, path: &Path) -> Result<Option<File>, ReadError> {
        match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_vanish(&task.facts.path) => Ok(None),
            Err(source) => Err(ReadError::Failed(SnapshotError::Read { path: path.into(), source })),
        }
    }

    fn opened<'a>(&mut self, task: &'a Task, file: File, path: PathBuf) -> Result<DraftFile<'a>, ReadError> {
        let advice = if task.known.is_some() { rustix::fs::Advice::Random } else { rustix::fs::Advice::Sequential };
        let _ = rustix::fs::fadvise(&file, 0, None, advice);
        let mut draft = DraftFile { task, runs: Vec::new(), end: task.range.start, content: None };
        let parent = task.parent.as_ref().and_then(|parent| parent.get()).unwrap_or_default();
        let damaged_before = self.outcome.damaged.len();
        let mut open = OpenFile { file, path, cursor: Cursor::new(&parent), anew: false, damaged_before };
        let Some(known) = &task.known else {
            let end = match task.to_the_end {
                true => steady::longest(&open.file)
                    .map_err(|source| ReadError::Failed(SnapshotError::Read { path: open.path.clone(), source }))?,
                false => task.range.end,
            };
            self.read(&mut open, end, &mut draft)?;
            return Ok(draft);
        };
        for piece in unread::pieces(known, task.range.clone(), &parent, &self.terms.retire) {
            match piece {
                Piece::Read { end, anew } => {
                    open.anew = anew;
                    if !self.read(&mut open, end, &mut draft)? {
                        // Truncated meanwhile, and the truncation is in the WAL.
                        break;
                    }
                }
                Piece::Taken { frame, position, bytes } => {
                    draft.runs.push(match frame {
                        Some(frame) => Draft::Old { frame, position, bytes },
                        None => Draft::Zeros(bytes),
                    });
                    draft.end += bytes;
                    self.outcome.unread_bytes += if task.is_same() { 0 } else { bytes };
                }
            }
        }
        Ok(draft)
    }

    /// Reads on to `end`, or to the end of the file. `false` when the file ended before.
    fn read(&mut self, open: &mut OpenFile, end: u64, draft: &mut DraftFile) -> Result<bool, ReadError> {
        loop {
            let wanted = (end - draft.end).min(READ_BYTES as u64);
            if wanted == 0 {
                return Ok(true);
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            let got = read_full(&open.file, &mut buffer[..wanted as usize], draft.end);
            let got = got.map_err(|source| ReadError::Failed(SnapshotError::Read { path: open.path.clone(), source }))?;
            self.outcome.read_bytes += got as u64;
            let base = draft.end;
            let digests = hashed(&buffer[..got], draft.task);
            for (index, bytes) in buffer[..got].chunks_mut(FRAME_BYTES).enumerate() {
                let chunk = Chunk { bytes, offset: base + (index * FRAME_BYTES) as u64, digest: digests[index] };
                self.chunk(open, chunk, draft)?;
            }
            self.buffer = buffer;
            if (got as u64) < wanted {
                return Ok(false);
            }
        }
    }

    /// One frame's worth of a file: pages of a main fork one by one, everything else as a whole.
    fn chunk(&mut self, open: &mut OpenFile, mut chunk: Chunk, draft: &mut DraftFile) -> Result<(), ReadError> {
        let (task, offset) = (draft.task, chunk.offset);
        draft.end = offset + chunk.bytes.len() as u64;
        let file_number = match task.class {
            Class::Plain => return self.whole(open, &chunk, draft),
            Class::Main { file } | Class::Fork { file } => file,
        };
        let mut damaged = [false; FRAME_BYTES / PAGE_BYTES];
        for (index, page) in chunk.bytes.chunks_exact_mut(PAGE_BYTES).enumerate() {
            let in_file = offset / PAGE_BYTES as u64 + index as u64;
            let block = u64::from(file_number) * u64::from(self.terms.blocks_per_file) + in_file;
            if !self.is_good(page, block) {
                // It may be another page when it was read again.
                chunk.digest = None;
                let patient = self.outcome.damaged.len() - open.damaged_before < PATIENT_PAGES;
                damaged[index] = self.stays_bad(&open.file, page, in_file * PAGE_BYTES as u64, block, patient)?;
            }
            if damaged[index] {
                self.outcome.damaged.push(DamagedPage { path: encode_path(&task.facts.path), block });
            }
        }
        if matches!(task.class, Class::Fork { .. }) {
            return self.whole(open, &chunk, draft);
        }
        // Neighbours that are new are taken together.
        let (bytes, mut new_from) = (&*chunk.bytes, 0);
        for (index, page) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            let at = index * PAGE_BYTES;
            let is_doubtful =
                damaged[index] || task.doubted.as_ref().is_some_and(|changes| is_doubtful(changes, page, offset, index));
            if let Some(known) = self.known(open, page, is_doubtful, offset + at as u64) {
                self.new_bytes(&bytes[new_from..at], None, draft)?;
                draft.runs.push(known);
                new_from = at + PAGE_BYTES;
            }
        }
        // A partial last page is not a page (rule 12): stored as it is.
        let digest = chunk.digest.filter(|_| new_from == 0);
        self.new_bytes(&bytes[new_from..], digest, draft)
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

    /// Where a page of a main fork is already; `None` for a new one.
    fn known(&self, open: &mut OpenFile, page: &[u8], is_doubtful: bool, offset: u64) -> Option<Draft> {
        let bytes = PAGE_BYTES as u64;
        if page::is_zero(page) {
            return Some(Draft::Zeros(bytes));
        }
        // The header of a damaged page proves nothing, and neither does one without an LSN: a page that was initialised, and never
        // logged.
        if is_doubtful || open.anew || page::lsn(page) >= self.terms.parent_start {
            return None;
        }
        let location = open.cursor.find(offset, bytes)?;
        let frame = location.frame.filter(|frame| !self.terms.retire.lets_go(frame, bytes))?;
        Some(Draft::Old { frame: frame.clone(), position: location.position, bytes })
    }

    /// A chunk compared by content with the parent's bytes at the same place: with a frame that it fills, or, when the chunk is
    /// the whole small file, with the file's own checksum.
    fn whole(&mut self, open: &mut OpenFile, chunk: &Chunk, draft: &mut DraftFile) -> Result<(), ReadError> {
        let (bytes, offset) = (chunk.bytes.len() as u64, chunk.offset);
        let sha256 = chunk.digest.unwrap_or_else(|| Sha::of(chunk.bytes));
        let is_whole_file = offset == 0 && bytes == draft.task.facts.bytes && bytes < FRAME_BYTES as u64;
        draft.content = is_whole_file.then_some(sha256);
        if let Some(location) = open.cursor.find(offset, bytes)
            && let Some(frame) = location.frame
            && !open.anew
        {
            let fills_frame = location.position == 0 && u64::from(frame.raw_bytes) == bytes && frame.sha256 == sha256;
            let is_the_parents = fills_frame || (is_whole_file && draft.task.parent_content == Some(sha256));
            if is_the_parents && !self.terms.retire.lets_go(frame, bytes) {
                draft.runs.push(Draft::Old { frame: frame.clone(), position: location.position, bytes });
                return Ok(());
            }
        }
        // A frame of its own when it fills one, so that the next snapshot can compare it.
        if chunk.bytes.len() == FRAME_BYTES && !self.pending.is_empty() {
            self.flush()?;
        }
        self.new_bytes(chunk.bytes, Some(sha256), draft)
    }

    /// Stores what is new; `digest` is that of all the bytes, where it is known.
    fn new_bytes(&mut self, mut bytes: &[u8], digest: Option<Sha>, draft: &mut DraftFile) -> Result<(), ReadError> {
        while !bytes.is_empty() {
            let room = FRAME_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let position = self.pending.len() as u32;
            draft.runs.push(Draft::New { frame: self.next_frame(), position, bytes: now.len() as u64 });
            // What is a frame as it lies there need not be copied first.
            if now.len() == FRAME_BYTES {
                self.frame(now, digest)?;
            } else {
                self.pending.extend_from_slice(now);
            }
            if self.pending.len() == FRAME_BYTES {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Number of the frame that is stored next.
    fn next_frame(&self) -> usize {
        self.frames.len() + self.stash.count()
    }

    /// Makes a frame of what is pending.
    fn flush(&mut self) -> Result<(), ReadError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        self.frame(&pending, None)?;
        pending.clear();
        self.pending = pending;
        Ok(())
    }

    fn frame(&mut self, raw: &[u8], digest: Option<Sha>) -> Result<(), ReadError> {
        let sha256 = digest.unwrap_or_else(|| Sha::of(raw));
        self.stash.add(raw, sha256, &mut self.compressor);
        self.outcome.new_bytes += raw.len() as u64;
        if self.stash.is_full() { self.unstash() } else { Ok(()) }
    }

    /// Hands the frames of the stash over together, so that they lie side by side in a pack.
    fn unstash(&mut self) -> Result<(), ReadError> {
        self.data.add_all(self.stash.frames(), &mut self.frames)?;
        self.stash.clear();
        Ok(())
    }

    fn line(&mut self, draft: DraftFile) -> Result<Line, ReadError> {
        let mut builder = MapBuilder::default();
        for run in &draft.runs {
            match run {
                Draft::Zeros(bytes) => builder.zeros(*bytes),
                Draft::Old { frame, position, bytes } => builder.frame(frame, *position, *bytes),
                Draft::New { frame, position, bytes } => builder.frame(&self.frames[*frame], *position, *bytes),
            }
        }
        let map = builder.finish();
        let task = draft.task;
        if !task.is_whole() {
            return Ok(task.stretch(Some(map)));
        }
        let (bytes, digest) = (map.bytes(), map.digest());
        let map = stretch::place(map, &self.maps, &mut self.compressor)?;
        Ok(Line::Whole(Box::new(task.facts.line(bytes, draft.content, digest, map))))
    }
}

/// A frame's worth of what was read.
struct Chunk<'a> {
    bytes: &'a mut [u8],
    /// In the file.
    offset: u64,
    /// SHA-256 of the bytes, where it is known already.
    digest: Option<Sha>,
}

/// Whether page `index` behind `offset` of another file than the parent's may be another page than the parent's: WAL names it, or its header
/// has no LSN that could be compared.
fn is_doubtful(changes: &FileChanges, page: &[u8], offset: u64, index: usize) -> bool {
    page::lsn(page) == Lsn(0) || changes.has(offset / PAGE_BYTES as u64 + index as u64)
}

/// SHA-256 of each frame's worth of a read that will most likely be a frame: all of a file that the parent does not have.
fn hashed(read: &[u8], task: &Task) -> [Option<Sha>; hash::AT_ONCE] {
    let mut digests = [None; hash::AT_ONCE];
    if task.parent.is_none() {
        let mut chunks: [&[u8]; hash::AT_ONCE] = [&[]; hash::AT_ONCE];
        // What is shorter shares a frame with others.
        let full = read.chunks_exact(FRAME_BYTES).zip(&mut chunks).map(|(chunk, slot)| *slot = chunk).count();
        hash::many(&chunks[..full]).into_iter().zip(&mut digests).take(full).for_each(|(sha, digest)| *digest = Some(sha));
    }
    digests
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
