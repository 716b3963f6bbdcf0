//! Takes the pages of one segment, and gives its index and its summary: one walk for both.

use super::collect::{Collect, MappedFiles};
use super::seam::{Continuation, OpenRecord};
use super::{Neighbour, NoIndex, SegmentIndex};
use crate::postgres::lsn::Lsn;
use crate::postgres::wal::header::{self, PageHeader};
use crate::postgres::wal::pages::Pages;
use crate::postgres::wal::reader::{PAGE_BYTES, Walk};
use crate::postgres::wal::replay::Boundary;
use crate::postgres::wal::transaction::SegmentSummary;

#[derive(Debug)]
pub struct Fold {
    walk: Walk,
    collect: Collect,
    pages: Pages,
    timeline: u32,
    continuation: Option<Continuation>,
    overwrites: bool,
    limit: Lsn,
    state: State,
    problem: Option<NoIndex>,
    summary: SegmentSummary,
}

/// What a segment's bytes gave.
#[derive(Debug)]
pub struct Folded {
    pub summary: SegmentSummary,
    pub index: Result<SegmentIndex, NoIndex>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was read.
    New,
    /// What was read continues a record from the segment before.
    Continuing,
    Reading,
    Ended(Lsn),
}

impl Fold {
    /// For the segment that begins at `start`. `mapped` tells where mapped catalogs lie, as far as they were moved.
    pub fn new(start: Lsn, segment_bytes: u64, mapped: MappedFiles) -> Fold {
        let mut collect = Collect::new(mapped);
        collect.index.start = start;
        Fold {
            walk: Walk::new(segment_bytes),
            collect,
            pages: Pages::new(start),
            timeline: 0,
            continuation: None,
            overwrites: false,
            limit: Lsn(u64::MAX),
            state: State::New,
            problem: None,
            summary: SegmentSummary::default(),
        }
    }

    /// Leaves out records from this position on.
    pub fn before(self, limit: Lsn) -> Fold {
        Fold { limit, ..self }
    }

    /// Bytes of the segment, in whatever pieces they come.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut pages = std::mem::take(&mut self.pages);
        pages.feed(bytes, &mut |page, address| self.page(page, address));
        self.pages = pages;
    }

    fn page(&mut self, page: &[u8], address: Lsn) {
        if matches!(self.state, State::Ended(_)) {
            return;
        }
        if self.state != State::Reading {
            self.begin(page, address);
        }
        let (collect, problem, summary, limit) = (&mut self.collect, &mut self.problem, &mut self.summary, self.limit);
        let walked = self.walk.page(page, address, &mut |record| {
            if record.lsn >= limit {
                return;
            }
            summary.add(&record);
            if problem.is_none() && collect.record(&record).is_err() {
                *problem = Some(NoIndex::Malformed { lsn: record.lsn });
            }
        });
        if let Err(end) = walked {
            self.state = State::Ended(end.lsn());
            self.summary.ends_at = Some(end.lsn());
        }
    }

    /// Keeps what continues a record from before; the walk passes it over.
    fn begin(&mut self, page: &[u8], address: Lsn) {
        let header = PageHeader::parse(page).filter(|header| header.address == address);
        let Some(header) = header else {
            self.state = State::Reading;
            return;
        };
        if self.state == State::New {
            self.timeline = header.timeline.0;
        }
        let continues = header.flags & header::FIRST_IS_CONTINUATION != 0 && header.remaining > 0;
        if !continues {
            // Begun twice: the server did not finish what it had begun.
            self.continuation = None;
            self.overwrites = header.flags & header::FIRST_IS_OVERWRITE != 0;
            self.state = State::Reading;
            return;
        }
        let end = (header.bytes + header.remaining as usize).min(PAGE_BYTES);
        let continuation = self.continuation.get_or_insert_default();
        continuation.take(&page[header.bytes..end]);
        continuation.is_end = header.bytes + header.remaining as usize <= PAGE_BYTES;
        self.state = if continuation.is_end { State::Reading } else { State::Continuing };
    }

    pub fn finish(mut self) -> Folded {
        let has_ended = matches!(self.state, State::Ended(_));
        self.summary.open = !has_ended && self.walk.open_record().is_some_and(SegmentSummary::wants);
        let open = self.walk.unfinished().filter(|_| !has_ended).map(OpenRecord::of);
        if self.state != State::New {
            let boundary = Boundary::new(self.walk.first_previous(), self.overwrites, self.continuation.as_ref(), open.as_ref());
            self.summary.replay.get_or_insert_default().boundary = boundary;
        }
        Folded { summary: std::mem::take(&mut self.summary), index: self.index(open) }
    }

    fn index(self, open: Option<OpenRecord>) -> Result<SegmentIndex, NoIndex> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if self.state == State::New {
            return Err(NoIndex::NoWal);
        }
        let previous = self.walk.first_previous();
        let mut index = self.collect.finish();
        if let State::Ended(lsn) = self.state {
            index.ends_at = Some(lsn);
            if self.timeline == 0 {
                return Err(NoIndex::NoWal);
            }
        }
        (index.timeline, index.open, index.continuation) = (self.timeline, open, self.continuation);
        index.neighbour = Some(Neighbour { previous, overwrites: self.overwrites });
        Ok(index)
    }
}
