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
use crate::support::wal_writer::SEGMENT;

/// A broken promise, in words.
pub type Verdict = Result<(), String>;

pub struct Judge<'a> {
    truth: &'a Truth,
    stage: &'a Stage,
    pub segments: BTreeMap<SegmentName, Sha>,
    tails: BTreeMap<SegmentName, Arc<Vec<u8>>>,
    archive: Archive,
    manifests: Vec<Manifest>,
}

impl<'a> Judge<'a> {
    pub async fn new(truth: &'a Truth, stage: &'a Stage) -> Judge<'a> {
        let (segments, archive, manifests) = (stage.segments(truth).await, stage.archive(truth).await, stage.manifests().await);
        let tails = stage.tails(&archive).await;
        Judge { truth, stage, segments, tails, archive, manifests }
    }

    pub async fn windows(&self) -> Vec<Window> {
        windows::windows(&self.archive, &self.manifests).await.unwrap().windows
    }

    /// Whether a window's last segment is that of the timeline that was left, which the old primary went on to fill.
    pub fn ends_with_its_parent(&self, window: &Window) -> bool {
        let path = self.archive.path(window.timeline);
        path.is_some_and(|path| self.archive.ends_at_fork(&path, window.to_lsn.segment(SEGMENT)).is_some())
    }

    pub async fn find(&self, target: &Target, timeline: Option<Timeline>, inclusive: bool) -> Result<Found, FindError> {
        let question = Question { target, timeline, inclusive, stop_at_end: false };
        find::find(&self.archive, &self.manifests, &question).await
    }

    /// Every window leads to where it says, and so does each moment in it that is tried.
    pub async fn promises(&self, dice: &mut Dice) -> Verdict {
        for window in self.windows().await {
            let mut targets: Vec<_> = window.snapshots.iter().map(|id| (Target::Snapshot(id.clone()), true)).collect();
            let ends_with_its_parent = self.ends_with_its_parent(&window);
            if !ends_with_its_parent {
                targets.extend([(Target::Latest, true), (Target::Lsn(window.to_lsn), true)]);
            }
            if !ends_with_its_parent && window.to_time > window.from_time {
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
                if let (Target::Time(time), Err(FindError::AfterLast { .. } | FindError::Gap { .. })) = (&target, &found)
                    && *time >= self.last_commit(&window).await?
                {
                    continue;
                }
                let found = found.map_err(|error| format!("{promise} is promised and refused: {error}"))?;
                let (_, recovered, count) = self.follow(&found).map_err(|problem| format!("{promise}: {problem}"))?;
                let last = recovered.records[..count].last().map_or(0, |record| record.lsn);
                if target == Target::Latest && last < window.to_lsn.0 && window.to_lsn > found.snapshot.stop_lsn {
                    return Err(format!("{promise}: recovery ends at {} already", Lsn(last)));
                }
                if let Target::Time(time) = target {
                    self.stops_in_time(&found, &recovered, count, time).map_err(|problem| format!("{promise}: {problem}"))?;
                }
            }
        }
        Ok(())
    }

    /// When the last transaction of a window was committed.
    async fn last_commit(&self, window: &Window) -> Result<jiff::Timestamp, String> {
        let found = self.find(&Target::Latest, Some(window.timeline), true).await.map_err(|error| error.to_string())?;
        let (_, recovered, _) = self.follow(&found)?;
        Ok(recovered.records.iter().filter_map(|record| record.commit).max().unwrap_or(window.from_time))
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
        // What is not archived whole is put into `pg_wal`, as far as the plan wants it.
        let numbers = found.snapshot.start_lsn.segment(SEGMENT)..=found.last_segment;
        let provided: Vec<SegmentName> = numbers.filter_map(|number| self.archive.on_path(&found.path, number)).collect();
        let archived = |name: SegmentName| -> Option<Arc<Vec<u8>>> {
            match self.segments.get(&name) {
                Some(sha256) => self.truth.contents.get(sha256).map(|content| content.bytes.clone()),
                None => self.tails.get(&name).filter(|_| provided.contains(&name)).cloned(),
            }
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
