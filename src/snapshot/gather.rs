//! From the WAL between two snapshots to the pages that it changed.
//!
//! # The stretch
//! From the parent's **start** to this snapshot's **start**, on the path of the server's timeline: what was changed while the
//! parent was being copied lies between, and what changes while this one is being copied its own WAL mends. Whole segments are taken;
//! more than is needed does no harm.
//!
//! # Proof
//! Every segment of the stretch must be known, be understood, and follow the one before; records that cross from one into the next are
//! put together by their CRC. Whatever is in doubt makes the answer an error, and everything is read.
//!
//! # From where
//! The indexes that this host kept; the server's `pg_wal` for what is not archived yet, as the segment with this start is; then
//! the repository's roll-ups and segments. Nothing is waited for.

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::changes::Changes;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, SystemId};
use crate::postgres::wal::index::fold::Fold;
use crate::postgres::wal::index::seam::Seam;
use crate::postgres::wal::index::{MappedFiles, NoIndex, SegmentIndex, What};
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;
use crate::repo::repository::Cluster;
use crate::timeline::archive::Archive;
use crate::timeline::indexes::{self, Indexed, Kept, Wanted};
use crate::timeline::tail::{self, Tail};

/// Segments that are fetched whole because nobody has their index; beyond, reading the files is cheaper.
const FETCHED_MAX: usize = 256;

/// Why WAL does not tell what changed.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    #[error("WAL segment {segment} is neither archived nor in pg_wal")]
    Missing { segment: SegmentName },
    #[error("of WAL segment {segment} there is no index: {source}")]
    NoIndex { segment: SegmentName, source: NoIndex },
    #[error("the WAL in segment {segment} ends at {lsn}")]
    Ends { segment: SegmentName, lsn: Lsn },
    #[error("a record that crosses into WAL segment {segment} cannot be put together")]
    Torn { segment: SegmentName },
    #[error("at {lsn} changes were made that WAL does not hold (wal_level = minimal)")]
    Minimal { lsn: Lsn },
    #[error("WAL segment {segment} changed more relations than its index holds")]
    Cut { segment: SegmentName },
    #[error("more pages changed than are worth remembering")]
    TooMany,
    #[error("{count} WAL segments would have to be fetched for it; `lastgood verify --reindex` makes what is missing")]
    Far { count: usize },
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("a thread died: {detail}")]
    Thread { detail: String },
}

/// Between which positions of which WAL.
#[derive(Debug, Clone)]
pub struct Stretch {
    pub system: SystemId,
    pub segment_bytes: u64,
    pub blocks_per_file: u32,
    /// To the server's timeline.
    pub path: History,
    pub from: Lsn,
    pub to: Lsn,
    pub pg_wal: PathBuf,
    pub kept: Kept,
}

impl Stretch {
    fn numbers(&self) -> RangeInclusive<u64> {
        self.from.segment(self.segment_bytes)..=self.to.segment(self.segment_bytes)
    }

    fn name(&self, number: u64) -> SegmentName {
        self.path.segment(number, self.segment_bytes)
    }
}

/// All pages that were changed in a stretch of WAL, or that may have been.
pub async fn changes(cluster: &Cluster, stretch: Stretch) -> Result<Changes, Unknown> {
    let last = *stretch.numbers().end();
    let begun = tokio::task::spawn_blocking(move || {
        let mut gather = Gather::new(stretch);
        let found = gather.read_here()?;
        Ok::<_, Unknown>((gather, found))
    });
    let (mut gather, found) = begun.await.map_err(|error| Unknown::Thread { detail: error.to_string() })??;
    if gather.unknown.is_none() && gather.next <= last {
        gather.read_archive(cluster, found).await?;
    }
    gather.finish()
}

/// Takes indexes in order.
struct Gather {
    stretch: Stretch,
    changes: Changes,
    /// The segment that comes next.
    next: u64,
    seam: Option<Seam>,
    /// Catalogs are of no interest here.
    mapped: MappedFiles,
    unknown: Option<Unknown>,
}

impl Gather {
    fn new(stretch: Stretch) -> Gather {
        let (changes, next) = (Changes::new(stretch.blocks_per_file), *stretch.numbers().start());
        Gather { stretch, changes, next, seam: None, mapped: MappedFiles::new(), unknown: None }
    }

    /// As many segments from the first as this host can answer for without asking the repository. Not for async code.
    fn read_here(&mut self) -> Result<tail::Found, Unknown> {
        let Stretch { pg_wal, system, kept, .. } = self.stretch.clone();
        let found = tail::in_directory(&pg_wal, system).map_err(|source| Unknown::Read { path: pg_wal, source })?;
        let last = *self.stretch.numbers().end();
        while self.next <= last && self.unknown.is_none() {
            let (number, name) = (self.next, self.stretch.name(self.next));
            let index = match found.segments.get(&name) {
                // Nobody keeps the index of what is still being written.
                Some(Tail::File(path)) if number == last => self.fold(path, number)?,
                there => match self.kept(&kept, number, there) {
                    Some(index) => Ok(index),
                    None => break,
                },
            };
            self.take(Indexed { number, name, index });
        }
        Ok(found)
    }

    /// The index that was kept of an earlier segment. Of one that was archived just now it may be on its way: then it is made from the
    /// server's file, when that is still whole.
    fn kept(&self, kept: &Kept, number: u64, there: Option<&Tail>) -> Option<SegmentIndex> {
        let known = kept.index(self.stretch.name(number)).and_then(|raw| SegmentIndex::parse(&raw).ok());
        match (known, there) {
            (None, Some(Tail::File(path))) => {
                let made = self.fold(path, number).ok().and_then(Result::ok);
                made.filter(|index| index.ends_at.is_none())
            }
            (known, _) => known,
        }
    }

    /// The index of a segment that the server may still be writing to.
    fn fold(&self, path: &Path, number: u64) -> Result<Result<SegmentIndex, NoIndex>, Unknown> {
        let failed = |source| Unknown::Read { path: path.into(), source };
        let bytes = self.stretch.segment_bytes;
        let mut file = File::open(path).map_err(failed)?;
        let mut fold = Fold::new(Lsn(number * bytes), bytes, MappedFiles::new());
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(fold.finish().index),
                count => fold.feed(&buffer[..count]),
            }
        }
    }

    /// The rest, from roll-ups and segments, and what is not archived yet from `pg_wal`.
    async fn read_archive(&mut self, cluster: &Cluster, found: tail::Found) -> Result<(), Unknown> {
        let Stretch { system, segment_bytes, path, kept, .. } = self.stretch.clone();
        let mut archive = Archive::load(cluster, system, segment_bytes).await?;
        archive.add_tails(found);
        let numbers = self.next..=*self.stretch.numbers().end();
        let mut count = 0;
        for number in numbers.clone() {
            let name = self.stretch.name(number);
            if archive.on_path(&path, number) != Some(name) {
                return Err(Unknown::Missing { segment: name });
            }
            let is_here = archive.group(name).is_some() || archive.tail(name).is_some();
            count += usize::from(!is_here && kept.index(name).is_none());
        }
        if count > FETCHED_MAX {
            return Err(Unknown::Far { count });
        }
        let local = |name| kept.index(name);
        let wanted =
            Wanted { archive: &archive, path: &path, numbers, local: &local, mapped: Arc::default(), passes_sealed: false };
        indexes::each(&wanted, &mut |indexed| {
            self.take(indexed);
            self.unknown.is_none()
        })
        .await?;
        Ok(())
    }

    fn take(&mut self, Indexed { number, name, index }: Indexed) {
        if self.unknown.is_none()
            && let Err(unknown) = self.add(number, name, index)
        {
            self.unknown = Some(unknown);
        }
    }

    fn add(&mut self, number: u64, segment: SegmentName, index: Result<SegmentIndex, NoIndex>) -> Result<(), Unknown> {
        let (expected, last) = (self.stretch.name(self.next), *self.stretch.numbers().end());
        if number != self.next || segment != expected {
            return Err(Unknown::Missing { segment: expected });
        }
        self.next += 1;
        let index = index.map_err(|source| Unknown::NoIndex { segment, source })?;
        if index.start != Lsn(number * self.stretch.segment_bytes) {
            return Err(Unknown::NoIndex { segment, source: NoIndex::Damaged { what: "it is another segment's" } });
        }
        // The server is still writing to the last one; it must reach this snapshot's start.
        if let Some(lsn) = index.ends_at
            && (number < last || lsn < self.stretch.to)
        {
            return Err(Unknown::Ends { segment, lsn });
        }
        self.cross(segment, &index)?;
        self.merge(segment, &index)?;
        if let Some(open) = &index.open {
            self.seam = Some(Seam::new(open.clone(), index.major));
        }
        Ok(())
    }

    /// A record that begins in an earlier segment and goes on in this one. What goes on into the first segment began before the
    /// stretch; what does not go on was never finished (the server broke, and began another record instead).
    fn cross(&mut self, segment: SegmentName, index: &SegmentIndex) -> Result<(), Unknown> {
        let is_first = index.start.0 <= self.stretch.from.0;
        let head = self.seam.take();
        let Some(continuation) = index.continuation.as_ref().filter(|_| !is_first) else { return Ok(()) };
        let continued = head.and_then(|head| head.continued(continuation)).ok_or(Unknown::Torn { segment })?;
        if !continuation.is_end {
            self.seam = Some(continued);
            return Ok(());
        }
        let between = continued.finish(&self.mapped).map_err(|source| Unknown::NoIndex { segment, source })?;
        self.merge(segment, &between)
    }

    fn merge(&mut self, segment: SegmentName, index: &SegmentIndex) -> Result<(), Unknown> {
        if index.cut.blocks {
            return Err(Unknown::Cut { segment });
        }
        let minimal =
            |mark: &&crate::postgres::wal::index::Mark| matches!(mark.what, What::MinimalWal) && mark.lsn >= self.stretch.from;
        if let Some(mark) = index.marks.iter().find(minimal) {
            return Err(Unknown::Minimal { lsn: mark.lsn });
        }
        self.changes.add(&index.changed).map_err(|_| Unknown::TooMany)
    }

    fn finish(self) -> Result<Changes, Unknown> {
        match self.unknown {
            Some(unknown) => Err(unknown),
            None if self.next <= *self.stretch.numbers().end() => Err(Unknown::Missing { segment: self.stretch.name(self.next) }),
            None => Ok(self.changes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lsn::Timeline;
    use crate::postgres::wal::index::seam::{Continuation, Kept as Part, OpenRecord};
    use crate::postgres::wal::index::{Cut, Mark};

    const BYTES: u64 = 16 << 20;

    fn gather() -> Gather {
        Gather::new(Stretch {
            system: SystemId(7),
            segment_bytes: BYTES,
            blocks_per_file: 131_072,
            path: History::parse(Timeline(2), "1\t0/4000100\tx\n").unwrap(),
            from: Lsn(3 * BYTES + 4096),
            to: Lsn(5 * BYTES + 4096),
            pg_wal: PathBuf::new(),
            kept: Kept::default(),
        })
    }

    fn index(number: u64) -> SegmentIndex {
        let ends_at = (number == 5).then_some(Lsn(5 * BYTES + 8192));
        SegmentIndex { start: Lsn(number * BYTES), ends_at, ..SegmentIndex::default() }
    }

    /// Segments 3, 4 and 5, each after `change` had its way.
    fn gathered(change: impl Fn(u64, &mut SegmentIndex) -> Option<Result<(), NoIndex>>) -> Result<(), String> {
        let mut gather = gather();
        for number in 3..=5 {
            let mut index = index(number);
            let name = gather.stretch.name(number);
            match change(number, &mut index) {
                Some(Ok(())) => gather.take(Indexed { number, name, index: Ok(index) }),
                Some(Err(source)) => gather.take(Indexed { number, name, index: Err(source) }),
                None => {}
            }
        }
        gather.finish().map(drop).map_err(|unknown| unknown.to_string())
    }

    fn refused(change: impl Fn(u64, &mut SegmentIndex) -> Option<Result<(), NoIndex>>, words: &str) {
        let why = gathered(change).unwrap_err();
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn only_an_unbroken_stretch_is_believed() {
        assert_eq!(gathered(|_, _| Some(Ok(()))), Ok(()));
        refused(|number, _| (number != 4).then_some(Ok(())), "segment 000000020000000000000004 is neither archived");
        refused(|number, _| (number != 5).then_some(Ok(())), "segment 000000020000000000000005 is neither archived");
        let malformed = NoIndex::Malformed { lsn: Lsn(4 * BYTES + 100) };
        refused(|number, _| Some(if number == 4 { Err(malformed.clone()) } else { Ok(()) }), "no index: the record at 0/4000064");
        let strange = |number: u64, index: &mut SegmentIndex| {
            index.start.0 += number % 2;
            Some(Ok(()))
        };
        refused(strange, "another segment's");
    }

    #[test]
    fn another_timeline_is_not_ours() {
        let mut gather = gather();
        let name = SegmentName::new(Timeline(1), 3, BYTES);
        gather.take(Indexed { number: 3, name, index: Ok(index(3)) });
        let name = SegmentName::new(Timeline(1), 4, BYTES);
        gather.take(Indexed { number: 4, name, index: Ok(index(4)) });
        assert!(gather.finish().unwrap_err().to_string().contains("000000020000000000000004"));
    }

    #[test]
    fn wal_that_ends_early_or_lacks_changes_is_not_believed() {
        let ends = |at: u64, lsn: Lsn| {
            move |number: u64, index: &mut SegmentIndex| {
                index.ends_at = if number == at { Some(lsn) } else { index.ends_at };
                Some(Ok(()))
            }
        };
        refused(ends(4, Lsn(4 * BYTES + 4096)), "ends at 0/4001000");
        refused(ends(5, Lsn(5 * BYTES + 4095)), "ends at 0/5000FFF");
        assert_eq!(gathered(ends(5, Lsn(5 * BYTES + 4096))), Ok(()));
        let minimal = |lsn: Lsn| {
            move |number: u64, index: &mut SegmentIndex| {
                if lsn.segment(BYTES) == number {
                    index.marks.push(Mark { lsn, xid: 0, what: What::MinimalWal });
                }
                Some(Ok(()))
            }
        };
        refused(minimal(Lsn(4 * BYTES + 200)), "wal_level = minimal");
        assert_eq!(gathered(minimal(Lsn(3 * BYTES + 200))), Ok(()), "before the parent");
        let cut = |number: u64, index: &mut SegmentIndex| {
            index.cut = Cut { transactions: true, blocks: number == 5 };
            Some(Ok(()))
        };
        refused(cut, "more relations");
    }

    #[test]
    fn a_record_that_crosses_must_be_whole() {
        let rest = || Continuation { kept: Part { bytes: 8, ..Part::default() }, is_end: true, ..Continuation::default() };
        let lost_head = |number: u64, index: &mut SegmentIndex| {
            index.continuation = (number != 5).then(rest);
            Some(Ok(()))
        };
        refused(lost_head, "crosses into WAL segment 000000020000000000000004");
        let before = |number: u64, index: &mut SegmentIndex| {
            index.continuation = (number == 3).then(rest);
            Some(Ok(()))
        };
        assert_eq!(gathered(before), Ok(()), "begun before the stretch");
        let never_finished = |number: u64, index: &mut SegmentIndex| {
            let head = OpenRecord { lsn: Lsn(4 * BYTES - 8), total: 100, header: vec![0; 8], crc: 0, payload: Part::default() };
            index.open = (number == 3).then_some(head);
            Some(Ok(()))
        };
        assert_eq!(gathered(never_finished), Ok(()), "the server broke");
    }
}
