//! Which segments are archived: from the keys of roll-ups where there are some, and of segments where there are none.
//!
//! A roll-up stands for up to 4,096 segments, so many years of WAL are a few pages of keys. What a higher level covers is passed
//! over in the listings of the lower ones: at most a page is wasted for each stretch.

use std::collections::BTreeMap;

use crate::postgres::lsn::{SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;
use crate::repo::repository::Cluster;
use crate::repo::rollup::{self, Group};
use crate::storage::{Depth, ObjectKey, Page};

/// Runs of segment numbers without gaps, by timeline; sorted, with gaps between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<Timeline, Vec<(u64, u64)>>);

impl Runs {
    /// Adds `first..=last`, joining what touches.
    pub fn add(&mut self, timeline: Timeline, first: u64, last: u64) {
        let runs = self.0.entry(timeline).or_default();
        let from = runs.partition_point(|run| run.1.saturating_add(1) < first);
        let to = runs.partition_point(|run| run.0 <= last.saturating_add(1));
        let joined = runs[from..to].iter().fold((first, last), |all, run| (all.0.min(run.0), all.1.max(run.1)));
        runs.splice(from..to, [joined]);
    }

    /// Takes `first..=last` out.
    pub fn remove(&mut self, timeline: Timeline, first: u64, last: u64) {
        let Some(runs) = self.0.get_mut(&timeline) else { return };
        let rest = |run: &(u64, u64)| {
            let before = (run.0 < first).then(|| (run.0, run.1.min(first.saturating_sub(1))));
            let after = (run.1 > last).then(|| (run.0.max(last.saturating_add(1)), run.1));
            before.into_iter().chain(after)
        };
        *runs = runs.iter().flat_map(rest).collect();
        if runs.is_empty() {
            self.0.remove(&timeline);
        }
    }

    /// Every run, by timeline and number.
    pub fn iter(&self) -> impl Iterator<Item = (Timeline, u64, u64)> {
        self.0.iter().flat_map(|(timeline, runs)| runs.iter().map(|run| (*timeline, run.0, run.1)))
    }

    pub fn of(&self, timeline: Timeline) -> &[(u64, u64)] {
        self.0.get(&timeline).map_or(&[], Vec::as_slice)
    }

    /// The run that holds a segment.
    pub fn around(&self, timeline: Timeline, number: u64) -> Option<(u64, u64)> {
        let runs = self.of(timeline);
        let at = runs.partition_point(|run| run.1 < number);
        runs.get(at).filter(|run| run.0 <= number).copied()
    }

    pub fn timelines(&self) -> impl Iterator<Item = Timeline> {
        self.0.keys().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn count(&self) -> u64 {
        self.0.values().flatten().map(|run| run.1 - run.0 + 1).sum()
    }
}

/// All archived segments of one history; and the roll-ups that were seen, the highest over each stretch.
pub async fn list(cluster: &Cluster, system: SystemId, segment_bytes: u64) -> Result<(Runs, Vec<Group>), RepoError> {
    let layout = cluster.layout();
    let prefixes = rollup::LEVELS.rev().map(|level| layout.rollups(system, level)).chain([layout.segments(system)]);
    let prefixes: Vec<String> = prefixes.collect();
    // The first pages are asked for at once: mostly there is no second one.
    let first = prefixes.iter().map(|prefix| cluster.storage().list(prefix, None, Depth::All));
    let mut pages = futures::future::try_join_all(first).await?.into_iter().zip(&prefixes);
    let (mut runs, mut groups) = (Runs::default(), Vec::new());
    for level in rollup::LEVELS.rev() {
        let Some(first) = pages.next() else { break };
        let covered = runs.clone();
        let key = |name: SegmentName| layout.rollup(system, level, name);
        scan(cluster, first, (segment_bytes, &covered), &key, &mut |object| {
            let Some(group) = Group::named(level, object, segment_bytes) else { return };
            if covered.around(group.timeline, group.first).is_none() {
                runs.add(group.timeline, *group.numbers().start(), *group.numbers().end());
                groups.push(group);
            }
        })
        .await?;
    }
    if let Some(first) = pages.next() {
        let covered = runs.clone();
        let key = |name: SegmentName| layout.wal(system, &crate::postgres::wal::name::WalFile::Segment(name));
        scan(cluster, first, (segment_bytes, &covered), &key, &mut |object| {
            let Ok(name) = object.name().parse::<SegmentName>() else { return };
            let Some(number) = name.number(segment_bytes) else { return };
            runs.add(name.timeline, number, number);
        })
        .await?;
    }
    groups.sort_unstable();
    Ok((runs, groups))
}

/// All archived segments of one history by their own keys, whatever roll-ups say.
pub async fn segments(cluster: &Cluster, system: SystemId, segment_bytes: u64) -> Result<Runs, RepoError> {
    let prefix = cluster.layout().segments(system);
    let page = cluster.storage().list(&prefix, None, Depth::All).await?;
    let (mut runs, none) = (Runs::default(), Runs::default());
    let key = |name: SegmentName| cluster.layout().wal(system, &crate::postgres::wal::name::WalFile::Segment(name));
    scan(cluster, (page, &prefix), (segment_bytes, &none), &key, &mut |object| {
        let Ok(name) = object.name().parse::<SegmentName>() else { return };
        let Some(number) = name.number(segment_bytes) else { return };
        runs.add(name.timeline, number, number);
    })
    .await?;
    Ok(runs)
}

/// Pages through a prefix from its first page on, and leaps over what is covered.
async fn scan(
    cluster: &Cluster,
    (mut page, prefix): (Page, &String),
    (segment_bytes, covered): (u64, &Runs),
    key_of: &(dyn Fn(SegmentName) -> ObjectKey + Sync),
    visit: &mut (dyn FnMut(&ObjectKey) + Send),
) -> Result<(), RepoError> {
    loop {
        page.objects.iter().for_each(|object| visit(&object.key));
        let Some(last) = page.objects.last().filter(|_| page.more) else { return Ok(()) };
        let leap = last.key.name().parse::<SegmentName>().ok().and_then(|name| {
            let run = covered.around(name.timeline, name.number(segment_bytes)?)?;
            Some(key_of(SegmentName::new(name.timeline, run.1, segment_bytes)).to_string())
        });
        let after = Some(last.key.to_string()).max(leap);
        page = cluster.storage().list(prefix, after.as_deref(), Depth::All).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_whatever_the_order() {
        let mut runs = Runs::default();
        let one = Timeline(1);
        for (first, last) in [(10, 10), (12, 20), (5, 5), (11, 11), (30, 40), (4, 6), (35, 36), (41, 41), (50, 60), (2, 100)] {
            runs.add(one, first, last);
            assert!(runs.of(one).windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", runs.of(one));
            assert!((first..=last).all(|number| runs.around(one, number).is_some()));
        }
        assert_eq!(runs.of(one), [(2, 100)]);
        assert_eq!((runs.count(), runs.around(one, 1), runs.around(Timeline(2), 5)), (99, None, None));
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest() {
        let mut runs = Runs::default();
        let one = Timeline(1);
        runs.add(one, 0, 20);
        for (first, last, rest) in
            [(5, 6, vec![(0, 4), (7, 20)]), (0, 0, vec![(1, 4), (7, 20)]), (3, 9, vec![(1, 2), (10, 20)]), (0, u64::MAX, vec![])]
        {
            runs.remove(one, first, last);
            assert_eq!(runs.of(one), rest);
        }
        assert!(runs.is_empty());
    }
}
