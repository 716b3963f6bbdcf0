//! Who goes on: what people chose, which timelines entered the archive and what their parents had by then.

use std::collections::BTreeMap;

use lastgood::postgres::history::History;
use lastgood::postgres::lsn::Timeline;
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::repo::object::Sha;
use lastgood::repo::record::ClusterRecord;

use super::judge::{Judge, Verdict};
use super::stage;
use super::truth::Server;
use crate::support::wal_writer::SEGMENT;

type Segments = BTreeMap<SegmentName, Sha>;

/// A timeline that entered.
#[derive(Debug)]
struct Entered {
    parent: u32,
    fork: u64,
    /// Whole segments that the parent had archived from the fork's own on.
    parent_had: usize,
}

#[derive(Debug, Default)]
pub struct Decisions {
    entered: BTreeMap<u32, Entered>,
    /// The line that was released last.
    pub chosen: Option<History>,
}

/// Segments of a timeline that hold something from a position on.
fn behind(segments: &Segments, timeline: u32, position: u64) -> usize {
    let first = SegmentName::new(Timeline(timeline), position / SEGMENT, SEGMENT);
    segments.keys().filter(|name| name.timeline.0 == timeline && **name >= first).count()
}

impl Decisions {
    /// Notes a history file that was stored.
    pub fn stored(&mut self, server: &Server, file: WalFile, archived: &Segments) {
        let (WalFile::History(timeline), Some((parent, fork))) = (file, server.left.last().copied()) else { return };
        let parent_had = behind(archived, parent, fork);
        self.entered.entry(timeline.0).or_insert(Entered { parent, fork, parent_had });
    }

    /// Whether `latest` may follow a path.
    pub fn judge(&self, judge: &Judge<'_>, path: &History, record: &ClusterRecord) -> Verdict {
        let segments = &judge.segments;
        if let Some(chosen) = &self.chosen
            && path.left(chosen.timeline()).is_none()
        {
            return Err(format!("latest follows timeline {} and {} was chosen", path.timeline(), chosen.timeline()));
        }
        let is_given_up = |timeline: u32| record.abandoned.iter().any(|abandoned| abandoned.timeline.0 == timeline);
        let was_chosen = |timeline: u32| record.successors.iter().any(|successor| successor.timeline.0 == timeline);
        for (timeline, Entered { parent, fork, parent_had }) in &self.entered {
            let lives = behind(segments, *timeline, *fork) > 0;
            let parent_lives = behind(segments, *parent, *fork) > *parent_had;
            let is_decided = is_given_up(*parent) || is_given_up(*timeline) || was_chosen(*timeline);
            if lives && parent_lives && !is_decided && path.left(Timeline(*parent)).is_some() {
                let followed = path.timeline();
                return Err(format!(
                    "latest follows timeline {followed}; {timeline} left {parent}, both went on, and nobody has decided"
                ));
            }
        }
        Ok(())
    }
}

/// Nothing that was accepted contradicts its ancestor: the archive has no other segment before it than its server.
pub fn accepted(server: &Server, file: WalFile, archived: &Segments) -> Verdict {
    let Some((name, bytes)) = stage::before(server, file) else { return Ok(()) };
    match archived.get(&name) {
        Some(there) if *there != Sha::of(bytes) => {
            Err(format!("{file} was accepted behind {name}, which is another than its server has"))
        }
        _ => Ok(()),
    }
}
