//! The spool: notes from one call to the next.
//!
//! `<spool>/<cluster>/<system>-<place>/` where the place is the device and inode of the data directory, so that a restored
//! copy never believes what was written for its original (rule 25). Without a usable spool everything works, one file at a time.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::durable;
use crate::postgres::lsn::{SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::repo::object::Sha;

/// For so long nobody asks again whether a rival has appeared.
const KNOWN_S: i64 = 60;
/// zstd level of the indexes that wait to be rolled up.
const INDEX_LEVEL: i32 = 3;

/// What a segment on its way is called behind its name.
const COMING: &str = ".coming";

/// Which start of the host this is (`/proc/sys/kernel/random/boot_id`). Prefetched segments are not flushed: what lay there before a
/// crash is not believed. Where it cannot be told, nothing is.
static BOOT: LazyLock<String> = LazyLock::new(|| {
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_string());
    read.ok().filter(|id| !id.is_empty()).unwrap_or_else(|| clock::random_hex(16))
});

#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
}

/// Proof that a segment was stored while it looked like this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    pub bytes: u64,
    pub modified_ns: i128,
    pub inode: u64,
    /// In which repository.
    pub place: String,
}

/// The segment that was stored last from this data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    pub segment: SegmentName,
    pub sha256: Sha,
    /// The file that it was: a volume that was set back has another of the name. And the repository.
    pub file: Acknowledgement,
}

/// What one call leaves for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Why the last segment has no index.
    IndexProblem,
    /// The last segment that may hold something destructive.
    Suspicion,
    /// The last segment that the tripwire has looked at.
    Watched,
    /// Why the last alert did not reach everybody.
    AlertProblem,
    /// A file after which a parent may have more archived than the timeline that left it.
    Fork,
    /// Since when a standby cannot fetch, and when that was told last; in seconds since 1970.
    Unreachable,
}

impl Note {
    fn file(self) -> &'static str {
        match self {
            Note::IndexProblem => "index-problem",
            Note::Suspicion => "suspicion",
            Note::Watched => "watched",
            Note::AlertProblem => "alert-problem",
            Note::Fork => "fork",
            Note::Unreachable => "unreachable",
        }
    }
}

impl Acknowledgement {
    pub fn of(metadata: &fs::Metadata, place: &str) -> Acknowledgement {
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Acknowledgement { bytes: metadata.len(), modified_ns, inode: metadata.ino(), place: place.into() }
    }
}

impl Spool {
    /// Opens, and makes where needed, the spool of one data directory.
    pub fn open(root: &Path, cluster: &str, system: SystemId, data_directory: &Path) -> io::Result<Spool> {
        let dir = Spool::place(root, cluster, system, data_directory)?;
        let spool = Spool { dir };
        for dir in [spool.dir.join("pushed"), spool.fetched_dir(), spool.dir.join("index"), spool.questions()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(spool)
    }

    /// Opens what others left there, and makes nothing: whoever only reads may be another user, and archiving could not write into a
    /// directory of theirs.
    pub fn existing(root: &Path, cluster: &str, system: SystemId, data_directory: &Path) -> io::Result<Spool> {
        let dir = Spool::place(root, cluster, system, data_directory)?;
        fs::metadata(&dir)?;
        Ok(Spool { dir })
    }

    /// The spool of a system when this host has one of it and no second: whoever does not know the data directory can ask for
    /// indexes, which say the same of a segment wherever they were made.
    pub fn only(root: &Path, cluster: &str, system: SystemId) -> Option<Spool> {
        let begin = format!("{system}-");
        let is_its = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&begin));
        let mut found = fs::read_dir(root.join(cluster)).ok()?.flatten().filter(is_its);
        let only = found.next()?;
        found.next().is_none().then(|| Spool { dir: only.path() })
    }

    fn place(root: &Path, cluster: &str, system: SystemId, data_directory: &Path) -> io::Result<PathBuf> {
        let place = fs::metadata(data_directory)?;
        Ok(root.join(cluster).join(format!("{system}-{:x}-{:x}", place.dev(), place.ino())))
    }

    fn pushed(&self, segment: SegmentName) -> PathBuf {
        self.dir.join("pushed").join(segment.to_string())
    }

    fn fetched_dir(&self) -> PathBuf {
        self.dir.join("fetched").join(&*BOOT)
    }

    /// Where a prefetched segment lies, complete and verified, if it is there.
    pub fn fetched(&self, segment: SegmentName) -> PathBuf {
        self.fetched_dir().join(segment.to_string())
    }

    /// Where it grows until then.
    pub fn coming(&self, segment: SegmentName) -> PathBuf {
        self.fetched_dir().join(format!("{segment}{COMING}"))
    }

    /// Bytes that are there of a segment on its way; `None` when nobody fetches it.
    pub fn coming_bytes(&self, segment: SegmentName) -> Option<u64> {
        let bytes = fs::metadata(self.coming(segment)).ok()?.len();
        // Else it was left by a process that is no more.
        self.is_somebody_fetching().then_some(bytes)
    }

    /// Where [`super::inquiry`] has its questions.
    pub fn questions(&self) -> PathBuf {
        self.dir.join("questions")
    }

    pub fn acknowledge(&self, segment: SegmentName, acknowledgement: &Acknowledgement) -> io::Result<()> {
        let json = serde_json::to_vec(acknowledgement).map_err(io::Error::other)?;
        // Losing it costs a second push, so it need not survive a crash; it must not be half written.
        let path = self.pushed(segment);
        write_private(&path, &json)
    }

    /// Takes an acknowledgement out; it counts only for the very file it was written for.
    pub fn take_acknowledgement(&self, segment: SegmentName, now: &Acknowledgement) -> bool {
        let path = self.pushed(segment);
        let Ok(json) = fs::read(&path) else { return false };
        let _ = fs::remove_file(&path);
        serde_json::from_slice::<Acknowledgement>(&json).is_ok_and(|then| then == *now)
    }

    pub fn is_acknowledged(&self, segment: SegmentName) -> bool {
        self.pushed(segment).exists()
    }

    /// Removes acknowledgements of segments that PostgreSQL does not ask for any more (rule 25).
    pub fn forget_acknowledgements(&self, is_ready: impl Fn(&str) -> bool) {
        remove(&self.dir.join("pushed"), |name| !is_ready(name));
    }

    /// Removes prefetched segments that recovery has passed.
    pub fn forget_fetched(&self, passed: impl Fn(SegmentName) -> bool) {
        remove(&self.fetched_dir(), |name| name.parse().is_ok_and(&passed));
    }

    /// Removes what nobody believes any more: what is unfinished, and what was fetched before the host started. For the holder of
    /// [`Spool::lock_fetching`].
    pub fn sweep_fetched(&self) {
        remove(&self.fetched_dir(), |name| name.ends_with(COMING));
        for entry in fs::read_dir(self.dir.join("fetched")).into_iter().flatten().flatten() {
            if entry.file_name() != BOOT.as_str() {
                let path = entry.path();
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
        }
    }

    /// Leaves word of what recovery asks for.
    pub fn ask(&self, segment: SegmentName) {
        // Look-ahead stays behind without it, and recovery fetches for itself.
        let _ = write_private(&self.dir.join("asked"), segment.to_string().as_bytes());
    }

    /// What recovery asked for last.
    pub fn asked(&self) -> Option<SegmentName> {
        fs::read_to_string(self.dir.join("asked")).ok()?.parse().ok()
    }

    /// Leaves word of the first segment that was not there, or that nothing is known of the archive's end.
    pub fn set_end(&self, segment: Option<SegmentName>) {
        let path = self.dir.join("end");
        let _ = match segment {
            Some(segment) => write_private(&path, segment.to_string().as_bytes()),
            None => fs::remove_file(&path),
        };
    }

    /// Where the archive ended when look-ahead came there. It may have gone on since.
    pub fn end(&self) -> Option<SegmentName> {
        fs::read_to_string(self.dir.join("end")).ok()?.parse().ok()
    }

    /// What its file system has left for us; nothing when that cannot be told.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.dir).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn indexed(&self, segment: SegmentName) -> PathBuf {
        self.dir.join("index").join(segment.to_string())
    }

    /// Keeps the index of a segment that was stored.
    pub fn keep_index(&self, segment: SegmentName, index: &[u8]) -> io::Result<()> {
        write_private(&self.indexed(segment), &zstd::bulk::compress(index, INDEX_LEVEL)?)
    }

    pub fn has_index(&self, segment: SegmentName) -> bool {
        self.indexed(segment).exists()
    }

    /// The index of a segment, as it was kept. What a crash left of one is none.
    pub fn index(&self, segment: SegmentName) -> Option<Vec<u8>> {
        let mut decoder = zstd::stream::read::Decoder::new(fs::File::open(self.indexed(segment)).ok()?).ok()?;
        let mut index = Vec::new();
        decoder.read_to_end(&mut index).ok()?;
        (!index.is_empty()).then_some(index)
    }

    /// Segments whose indexes are kept, in order.
    pub fn indexes(&self) -> Vec<SegmentName> {
        let entries = fs::read_dir(self.dir.join("index")).into_iter().flatten().flatten();
        let mut names: Vec<SegmentName> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        names.sort_unstable();
        names
    }

    pub fn forget_indexes(&self, unwanted: impl Fn(SegmentName) -> bool) {
        remove(&self.dir.join("index"), |name| name.parse().is_ok_and(&unwanted));
    }

    /// What a recent call proved: that the repository at `place` knows this system, and up to which segment this timeline may write
    /// (`Some(None)`: without limit).
    pub fn known(&self, place: &str, timeline: Timeline) -> Option<Option<SegmentName>> {
        let path = self.dir.join("known");
        let written = fs::metadata(&path).and_then(|m| m.modified()).ok().and_then(|at| jiff::Timestamp::try_from(at).ok());
        let age_s = clock::now().duration_since(written?).as_secs();
        let text = fs::read_to_string(path).ok()?;
        let limit = text.strip_prefix(&format!("{place} {timeline} ")).filter(|_| (0..KNOWN_S).contains(&age_s))?;
        if limit == "-" { Some(None) } else { limit.parse().ok().map(Some) }
    }

    pub fn set_known(&self, place: &str, timeline: Timeline, limit: Option<SegmentName>) {
        let limit = limit.map_or("-".to_string(), |limit| limit.to_string());
        // Only saves requests next time.
        let _ = write_private(&self.dir.join("known"), format!("{place} {timeline} {limit}").as_bytes());
    }

    /// Leaves word of the digest that a file had on its way into the archive, so that a backup need not read it again.
    pub fn set_read(&self, read: &Last) {
        if let Ok(json) = serde_json::to_vec(read) {
            let _ = write_private(&self.dir.join("read"), &json);
        }
    }

    /// The digest of a segment of this data directory, if it is the one that was read last, and the very file.
    pub fn digest(&self, segment: SegmentName, file: &Path) -> Option<Sha> {
        let read: Last = serde_json::from_slice(&fs::read(self.dir.join("read")).ok()?).ok()?;
        let now = Acknowledgement::of(&fs::metadata(file).ok()?, &read.file.place);
        (read.segment == segment && read.file == now).then_some(read.sha256)
    }

    /// Leaves word of the segment that was stored last. Without it, the next push asks the archive about its predecessor.
    pub fn set_last(&self, last: &Last) {
        if let Ok(json) = serde_json::to_vec(last) {
            let _ = write_private(&self.dir.join("last"), &json);
        }
    }

    pub fn last(&self) -> Option<Last> {
        serde_json::from_slice(&fs::read(self.dir.join("last")).ok()?).ok()
    }

    /// Leaves a note for others, or takes it away. Only saves work, so a note that cannot be written is none.
    pub fn note(&self, note: Note, text: Option<&str>) {
        let path = self.dir.join(note.file());
        let _ = match text {
            Some(text) => write_private(&path, text.as_bytes()),
            None => fs::remove_file(&path),
        };
    }

    pub fn noted(&self, note: Note) -> Option<String> {
        fs::read_to_string(self.dir.join(note.file())).ok()
    }

    /// Whether a refusal is another than the last one that was noted: PostgreSQL tries again each second.
    pub fn is_new_refusal(&self, text: &str) -> bool {
        let path = self.dir.join("refused");
        if fs::read_to_string(&path).is_ok_and(|noted| noted == text) {
            return false;
        }
        let _ = write_private(&path, text.as_bytes());
        true
    }

    /// A lock that one process holds that looks at what was archived.
    pub fn lock_watching(&self) -> Option<fs::File> {
        self.lock("watching").ok()
    }

    /// A lock that one prefetching process holds; `None` when another does. It ends with the value.
    pub fn lock_fetching(&self) -> Option<fs::File> {
        self.lock("lock").ok()
    }

    /// Whether a process is at work that fetches ahead. Not where that cannot be told: nobody should wait for it.
    pub fn is_somebody_fetching(&self) -> bool {
        self.lock("lock").is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn lock(&self, name: &str) -> io::Result<fs::File> {
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.dir.join(name))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    }
}

fn remove(dir: &Path, unwanted: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(&unwanted) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Puts a whole note in place; it need not survive a crash.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = durable::temporary_beside(path);
    let written = durable::create_private(&temporary).and_then(|mut file| file.write_all(bytes));
    let placed = written.and_then(|()| fs::rename(&temporary, path));
    if placed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_reads_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("spool");
        let open = |how: fn(&Path, &str, SystemId, &Path) -> io::Result<Spool>| how(&root, "shop", SystemId(7), dir.path());
        assert!(open(Spool::existing).is_err() && !root.exists());
        let segment = SegmentName::new(Timeline(1), 5, 16 << 20);
        open(Spool::open).unwrap().keep_index(segment, b"what happened").unwrap();
        assert_eq!(open(Spool::existing).unwrap().index(segment), Some(b"what happened".to_vec()));
        assert_eq!(Spool::only(&root, "shop", SystemId(7)).unwrap().index(segment), Some(b"what happened".to_vec()));
        assert!(Spool::only(&root, "shop", SystemId(8)).is_none() && Spool::only(&root, "other", SystemId(7)).is_none());
        fs::write(open(Spool::existing).unwrap().indexed(segment), b"").unwrap();
        assert_eq!(open(Spool::existing).unwrap().index(segment), None, "a crash left nothing of it");
        Spool::open(&root, "shop", SystemId(7), &root).unwrap();
        assert!(Spool::only(&root, "shop", SystemId(7)).is_none(), "a copy's and its original's");
    }
}
