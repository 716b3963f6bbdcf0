//! What the program promises, held against the truth.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood::postgres::lsn::{Lsn, Timeline};
use lastgood::postgres::wal::name::SegmentName;
use lastgood::repo::manifest::Manifest;
use lastgood::repo::object::Sha;
use lastgood::timeline::archive::Archive;
use lastgood::timeline::find::{self, FindError, Found, Question};
use lastgood::timeline::target::Target;
use lastgood::timeline::windows::{self, Window};

use super::recovery::{Reader, Recovered};
use super::stage::Stage;
use super::truth::{State, Truth, state_after};
use crate::property::dice::Dice;

/// A broken promise, in words.
pub type Verdict = Result<(), String>;

pub struct Judge<'a> {
    truth: &'a Truth,
    stage: &'a Stage,
    segments: BTreeMap<SegmentName, Sha>,
    archive: Archive,
    manifests: Vec<Manifest>,
}

impl<'a> Judge<'a> {
    pub async fn new(truth: &'a Truth, stage: &'a Stage) -> Judge<'a> {
        let (segments, archive, manifests) = (stage.segments(truth).await, stage.archive(truth).await, stage.manifests().await);
        Judge { truth, stage, segments, archive, manifests }
    }

    pub async fn windows(&self) -> Vec<Window> {
        windows::windows(&self.archive, &self.manifests).await.unwrap().windows
    }

    pub async fn find(&self, target: &Target, timeline: Option<Timeline>, inclusive: bool) -> Result<Found, FindError> {
        let question = Question { target, timeline, inclusive, stop_at_end: false };
        find::find(&self.archive, &self.manifests, &question).await
    }

    /// Every window leads to where it says, and so does each moment in it that is tried.
    pub async fn promises(&self, dice: &mut Dice) -> Verdict {
        for window in self.windows().await {
            let mut targets = vec![(Target::Latest, true), (Target::Lsn(window.to_lsn), true)];
            targets.extend(window.snapshots.iter().map(|id| (Target::Snapshot(id.clone()), true)));
            if window.to_time > window.from_time {
                let span = (window.to_time.as_microsecond() - window.from_time.as_microsecond()) as usize;
                let at = window.from_time.as_microsecond() + dice.below(span) as i64;
                targets.push((Target::Time(jiff::Timestamp::from_microsecond(at).unwrap()), true));
                let at = window.from_lsn.0 + dice.next() % (window.to_lsn.0 - window.from_lsn.0 + 1);
                targets.push((Target::Lsn(Lsn(at)), dice.chance(50)));
            }
            for (target, inclusive) in targets {
                let timeline = (!matches!(target, Target::Snapshot(_))).then_some(window.timeline);
                let promise = format!("{target} of the window of timeline {} to {}", window.timeline, window.to_lsn);
                let found = self.find(&target, timeline, inclusive).await;
                let found = found.map_err(|error| format!("{promise} is promised and refused: {error}"))?;
                let (state, recovered, count) = self.follow(&found).map_err(|problem| format!("{promise}: {problem}"))?;
                let _ = state;
                let last = recovered.records[..count].last().map_or(0, |record| record.lsn);
                if target == Target::Latest && last < window.to_lsn.0.min(window.to_lsn.0) && window.to_lsn > found.snapshot.stop_lsn {
                    return Err(format!("{promise}: recovery ends at {} already", Lsn(last)));
                }
                if let Target::Time(time) = target {
                    self.stops_in_time(&found, &recovered, count, time).map_err(|problem| format!("{promise}: {problem}"))?;
                }
            }
        }
        Ok(())
    }

    /// The first transaction after the target is the first that is left out.
    fn stops_in_time(&self, found: &Found, recovered: &Recovered, count: usize, time: jiff::Timestamp) -> Verdict {
        let counts = |lsn: u64| lsn >= found.snapshot.stop_lsn.0;
        let first = recovered.records.iter().position(|r| counts(r.lsn) && r.commit.is_some_and(|commit| commit > time));
        match first {
            Some(first) if first == count => Ok(()),
            first => Err(format!("{count} records are replayed and not {first:?}")),
        }
    }

    /// What a server would replay, and the state that it would be in: one that was true, on the path that is promised.
    pub fn follow(&self, found: &Found) -> Result<(State, Recovered, usize), String> {
        let archived = |name: SegmentName| -> Option<Arc<Vec<u8>>> {
            self.truth.contents.get(self.segments.get(&name)?).map(|content| content.bytes.clone())
        };
        let start = found.snapshot.start_lsn.0;
        let recovered = Reader::new(&archived, &found.path).replay(start);
        let taken = &self.stage.taken[&found.snapshot.id];
        let Some(count) = recovered.until(found.recovery, found.snapshot.stop_lsn.0) else {
            let last = recovered.records.last().map_or(start, |record| record.end);
            return Err(format!("recovery from {} to {:?} ends with FATAL at {}", found.snapshot.id, found.recovery, Lsn(last)));
        };
        let mut state = taken.before;
        for record in &recovered.records[..count] {
            state = state_after(state, record.lsn, record.crc);
            let Some((timeline, end)) = self.truth.states.get(&state) else {
                return Err(format!("recovery from {} mixes two histories at {}", found.snapshot.id, Lsn(record.lsn)));
            };
            if found.path.left(Timeline(*timeline)).is_none_or(|left| left.is_some_and(|left| *end > left.0)) {
                let path = found.path.timeline();
                return Err(format!("recovery to timeline {path} replays {} of timeline {timeline}", Lsn(record.lsn)));
            }
            if record.end == found.snapshot.stop_lsn.0 && state != taken.consistent {
                return Err(format!("snapshot {} becomes consistent with another history", found.snapshot.id));
            }
        }
        Ok((state, recovered, count))
    }
}
