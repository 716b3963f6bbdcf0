//! The indexes of segments on a path, in order, from wherever they are: roll-ups, this host's spool, or made from the segments.
//!
//! What cannot be had from a roll-up (none is there yet, it is damaged, or the key at hand does not open it) is made from the segment
//! itself, so a query never fails for want of an index. At most [`AHEAD`] roll-ups or segments are on their way at a time, and one
//! index is open.

use std::io::Write;
use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::StreamExt;

use super::archive::Archive;
use crate::postgres::history::History;
use crate::postgres::wal::index::fold::Fold;
use crate::postgres::wal::index::{MappedFiles, NoIndex, SegmentIndex};
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;
use crate::repo::object::Sha;
use crate::repo::rollup::{self, Group, RollUp};

/// Roll-ups and segments that are fetched ahead.
const AHEAD: usize = 3;

/// Indexes that this host kept when it archived, by segment.
pub type Local<'a> = &'a (dyn Fn(SegmentName) -> Option<Vec<u8>> + Sync);

/// The same for those who hold on to it.
#[derive(Clone)]
pub struct Kept {
    index: Arc<dyn Fn(SegmentName) -> Option<Vec<u8>> + Send + Sync>,
    digest: Arc<dyn Fn(SegmentName) -> Option<Sha> + Send + Sync>,
}

impl Kept {
    pub fn new(index: impl Fn(SegmentName) -> Option<Vec<u8>> + Send + Sync + 'static) -> Kept {
        Kept { index: Arc::new(index), digest: Arc::new(|_| None) }
    }

    /// With what is known of the digests of the server's own segments.
    pub fn with_digests(self, digest: impl Fn(SegmentName) -> Option<Sha> + Send + Sync + 'static) -> Kept {
        Kept { digest: Arc::new(digest), ..self }
    }

    pub fn index(&self, segment: SegmentName) -> Option<Vec<u8>> {
        (self.index)(segment)
    }

    /// Of the server's own file, as it was when it was archived.
    pub fn digest(&self, segment: SegmentName) -> Option<Sha> {
        (self.digest)(segment)
    }
}

/// Nothing is kept.
impl Default for Kept {
    fn default() -> Kept {
        Kept::new(nothing_local)
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

/// No spool.
pub fn nothing_local(_: SegmentName) -> Option<Vec<u8>> {
    None
}

/// What is asked.
pub struct Wanted<'a> {
    pub archive: &'a Archive,
    pub path: &'a History,
    pub numbers: RangeInclusive<u64>,
    pub local: Local<'a>,
    /// Where mapped catalogs lie, for indexes that must be made.
    pub mapped: Arc<MappedFiles>,
    /// Whether to go on where only a reader's key could open the segment; it then has no index, and says why.
    pub passes_sealed: bool,
}

/// Where the indexes came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sources {
    pub rolled_up: u64,
    pub local: u64,
    /// Made from the segments.
    pub made: u64,
}

/// The index of one segment, or why there is none.
#[derive(Debug)]
pub struct Indexed {
    pub number: u64,
    pub name: SegmentName,
    pub index: Result<SegmentIndex, NoIndex>,
}

/// A stretch of segments that comes from one place.
#[derive(Debug, Clone)]
enum Piece {
    Group(Group, RangeInclusive<u64>),
    One(u64, SegmentName),
}

/// What was fetched for a piece.
enum Had {
    RollUp(RollUp, RangeInclusive<u64>),
    One(Box<Indexed>, bool),
    /// A segment that is damaged or was deleted meanwhile: a gap.
    Nothing,
}

/// Hands the index of each segment of the path to `visit`, in order, until it answers `false`. Missing segments are left out.
pub async fn each(wanted: &Wanted<'_>, visit: &mut (dyn FnMut(Indexed) -> bool + Send)) -> Result<Sources, RepoError> {
    let mut sources = Sources::default();
    let mut pieces = pieces(wanted);
    pieces.reverse();
    // A roll-up that does not open is replaced by its segments, which then come next.
    while !pieces.is_empty() {
        let mut instead = None;
        {
            let mut running =
                futures::stream::iter(pieces.iter().rev().cloned()).map(|piece| fetch(wanted, piece)).buffered(AHEAD);
            let mut done = 0;
            while let Some(had) = running.next().await {
                done += 1;
                match had?.and_then(|had| hand_over(had, wanted, &mut sources, visit)) {
                    Ok(true) => {}
                    Ok(false) => return Ok(sources),
                    Err(numbers) => {
                        instead = Some((done, numbers));
                        break;
                    }
                }
            }
        }
        let Some((done, numbers)) = instead else { break };
        pieces.truncate(pieces.len() - done);
        let singles = numbers.rev().filter_map(|number| Some(Piece::One(number, wanted.archive.on_path(wanted.path, number)?)));
        pieces.extend(singles);
    }
    Ok(sources)
}

/// The places to ask, in order.
fn pieces(wanted: &Wanted<'_>) -> Vec<Piece> {
    let Wanted { archive, path, numbers, local, .. } = wanted;
    let mut pieces = Vec::new();
    let mut number = *numbers.start();
    while number <= *numbers.end() {
        let Some(name) = archive.on_path(path, number) else {
            match archive.after_gap(path, number) {
                Some(next) => number = next,
                None => break,
            }
            continue;
        };
        let group = archive.group(name).filter(|_| archive.is_archived(name) && archive.ends_at_fork(path, number).is_none());
        let Some(group) = group.filter(|_| local(name).is_none()) else {
            pieces.push(Piece::One(number, name));
            number += 1;
            continue;
        };
        let end = (*group.numbers().end()).min(*numbers.end());
        let same = |n: &u64| archive.on_path(path, *n).is_some_and(|name| name.timeline == group.timeline);
        let last = (number..=end).take_while(same).last().unwrap_or(number);
        pieces.push(Piece::Group(group, number..=last));
        number = last + 1;
    }
    pieces
}

/// Fetches a piece; the inner error names segments that must be read one by one.
async fn fetch(wanted: &Wanted<'_>, piece: Piece) -> Result<Result<Had, RangeInclusive<u64>>, RepoError> {
    let archive = wanted.archive;
    match piece {
        Piece::Group(group, numbers) => {
            match rollup::fetch(archive.cluster(), archive.system, archive.segment_bytes, &group).await {
                Ok(Some(rollup)) => Ok(Ok(Had::RollUp(rollup, numbers))),
                Ok(None) => Ok(Err(numbers)),
                Err(error) if error.is_damage() || error.is_newer_epoch() || matches!(error, RepoError::WriterKey { .. }) => {
                    Ok(Err(numbers))
                }
                Err(error) => Err(error),
            }
        }
        Piece::One(number, name) => {
            if let Some(index) = (wanted.local)(name).and_then(|raw| SegmentIndex::parse(&raw).ok())
                && index.start == archive.segment_start(number)
            {
                return Ok(Ok(Had::One(Box::new(Indexed { number, name, index: Ok(index) }), true)));
            }
            let mut maker =
                Maker(Fold::new(archive.segment_start(number), archive.segment_bytes, MappedFiles::clone(&wanted.mapped)));
            match archive.fetch(name, &mut maker).await {
                Ok(()) => Ok(Ok(Had::One(Box::new(Indexed { number, name, index: maker.0.finish().index }), false))),
                Err(RepoError::WriterKey { .. }) if wanted.passes_sealed => {
                    Ok(Ok(Had::One(Box::new(Indexed { number, name, index: Err(NoIndex::Sealed) }), false)))
                }
                Err(error) if error.is_damage() || error.is_newer_epoch() => Ok(Ok(Had::Nothing)),
                Err(error) => Err(error),
            }
        }
    }
}

/// `false` when nothing more is wanted; an error names segments that must be read one by one.
fn hand_over(
    had: Had,
    wanted: &Wanted<'_>,
    sources: &mut Sources,
    visit: &mut (dyn FnMut(Indexed) -> bool + Send),
) -> Result<bool, RangeInclusive<u64>> {
    match had {
        Had::Nothing => Ok(true),
        Had::One(indexed, is_local) => {
            let source = if is_local { &mut sources.local } else { &mut sources.made };
            *source += 1;
            Ok(visit(*indexed))
        }
        Had::RollUp(rollup, numbers) => {
            let (mut goes_on, mut next) = (true, *numbers.start());
            let opened = rollup.each(&mut |number, raw| {
                if numbers.contains(&number) {
                    sources.rolled_up += 1;
                    next = number + 1;
                    let name = SegmentName::new(rollup.group().timeline, number, wanted.archive.segment_bytes);
                    let index = if raw.is_empty() { Err(NoIndex::NeverMade) } else { SegmentIndex::parse(raw) };
                    goes_on = visit(Indexed { number, name, index });
                }
                goes_on && number < *numbers.end()
            });
            // The rest of a damaged one comes from the segments.
            if opened.is_err() { Err(next..=*numbers.end()) } else { Ok(goes_on) }
        }
    }
}

/// Makes an index from a segment as it is decompressed.
struct Maker(Fold);

impl Write for Maker {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.feed(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
