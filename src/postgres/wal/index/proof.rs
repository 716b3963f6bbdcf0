//! Whether replay passes through neighbouring segments, as far as their indexes say.
//!
//! A roll-up is only written over segments that pass, so that its key says so: whoever asks how far replay goes then reads
//! nothing of what is rolled up.

use super::collect::MARKS_MAX;
use super::seam::Seam;
use super::{MappedFiles, SegmentIndex, What};
use crate::postgres::lsn::Timeline;
use crate::postgres::wal::replay::{Chain, Link};

#[derive(Debug)]
pub struct Proof {
    timeline: Timeline,
    chain: Chain,
    seam: Option<Seam>,
    fails: bool,
}

impl Proof {
    /// For segments that are named by this timeline.
    pub fn new(timeline: Timeline) -> Proof {
        Proof { timeline, chain: Chain::default(), seam: None, fails: false }
    }

    /// Takes the index of the next segment; `None` where none could be made, which says nothing.
    pub fn add(&mut self, index: Option<&SegmentIndex>) {
        let Some(index) = index else {
            (self.chain, self.seam) = (Chain::default(), None);
            return;
        };
        let boundary = index.boundary();
        let link = Link { boundary: boundary.as_ref(), last_record: index.last_record, ends_at: index.ends_at };
        // What an earlier version indexed was not looked at.
        self.fails |= boundary.is_none() || self.chain.next(&link).is_err() || self.stops(index);
        self.cross(index);
        if let Some(open) = &index.open {
            self.seam = Some(Seam::new(open.clone(), index.major));
        }
    }

    /// A record between two segments may carry a mark as well.
    fn cross(&mut self, index: &SegmentIndex) {
        let (Some(head), Some(continuation)) = (self.seam.take(), &index.continuation) else { return };
        match head.continued(continuation) {
            Some(continued) if continuation.is_end => {
                self.fails |= continued.finish(&MappedFiles::new()).is_ok_and(|record| self.stops(&record));
            }
            continued => self.seam = continued,
        }
    }

    /// Marks that stop replay, or may be among what was cut.
    fn stops(&self, index: &SegmentIndex) -> bool {
        let is_stop = |what: &What| match what {
            What::MinimalWal => true,
            What::EndOfRecovery { timeline, .. } => *timeline != self.timeline,
            _ => false,
        };
        index.marks.len() >= MARKS_MAX || index.marks.iter().any(|mark| is_stop(&mark.what))
    }

    pub fn holds(&self) -> bool {
        !self.fails
    }
}
