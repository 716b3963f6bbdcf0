//! Which WAL there is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;

use super::latest::{self, Decisions, Followed};
use super::listing::{self, Runs};
use super::tail::{self, Tail};
use crate::lineage::chain::Link;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::postgres::wal::transaction::SegmentSummary;
use crate::repo::RepoError;
use crate::repo::gone::Gone;
use crate::repo::record::ClusterRecord;
use crate::repo::repository::Cluster;
use crate::repo::rollup::{self, Group};
use crate::repo::segment;
use crate::storage::{Depth, list_all};

/// Summaries that are remembered.
const SEEN: usize = 1024;

/// Segments of one history of a cluster, as runs of numbers without gaps: small whatever the number of segments.
#[derive(Debug, Clone)]
pub struct Archive {
    cluster: Cluster,
    pub system: SystemId,
    pub segment_bytes: u64,
    runs: Runs,
    /// What lies there although it was expired: a deletion that was not finished.
    leftovers: Runs,
    gone: Gone,
    /// Roll-ups of the WAL index, the highest over each stretch, in order.
    groups: Vec<Group>,
    histories: BTreeMap<Timeline, History>,
    /// Ends of WAL that are no whole archived segments.
    tails: BTreeMap<SegmentName, Tail>,
    /// Which timelines are followed by themselves, and which never.
    decisions: Decisions,
    /// Summaries that were read a moment ago: a plan looks at the last segments from several sides. Archived segments do not change.
    seen: Arc<Mutex<BTreeMap<SegmentName, (SegmentSummary, Link)>>>,
    /// History files that are damaged; their timelines cannot be restored to.
    pub unreadable: Vec<(String, String)>,
}

impl Archive {
    /// Lists roll-ups and segments, page by page, and reads the history files.
    pub async fn load(cluster: &Cluster, system: SystemId, segment_bytes: u64) -> Result<Archive, RepoError> {
        // What is expired meanwhile may be listed, and is only found missing when it is wanted.
        let (gone, (mut runs, groups), (histories, unreadable), tails) = tokio::try_join!(
            Gone::read(cluster, system),
            listing::list(cluster, system, segment_bytes),
            histories(cluster, system),
            tail::stored(cluster, system),
        )?;
        if gone.unreadable.is_some() {
            // A roll-up over segments that are gone proves nothing, and which those are is not known.
            runs = listing::segments(cluster, system, segment_bytes).await?;
        }
        let mut leftovers = runs.clone();
        gone.numbers(segment_bytes).for_each(|(timeline, first, last)| runs.remove(timeline, first, last));
        runs.iter().for_each(|(timeline, first, last)| leftovers.remove(timeline, first, last));
        let archive = Archive {
            cluster: cluster.clone(),
            system,
            segment_bytes,
            runs,
            leftovers,
            gone,
            groups,
            histories,
            tails: BTreeMap::new(),
            decisions: Decisions::default(),
            seen: Arc::default(),
            unreadable,
        };
        let tails = tails.into_iter().filter(|(name, _)| !archive.is_archived(*name)).collect();
        Ok(Archive { tails, ..archive })
    }

    /// Takes over what was decided about timelines: which are never followed by themselves, and which took over.
    pub fn decide(&mut self, record: &ClusterRecord) {
        let successors = record.successors.iter().filter(|s| s.system_identifier == self.system);
        let successors = successors.map(|successor| successor.timeline).collect();
        self.decisions = Decisions { abandoned: record.abandoned(self.system), successors };
    }

    /// The timeline that `latest` means, or the two between which nobody has decided.
    pub async fn latest(&self) -> Result<Followed, RepoError> {
        latest::of(self, &self.decisions).await
    }

    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// Adds WAL and history files that lie in a data directory and are not archived.
    pub fn add_tails(&mut self, found: tail::Found) {
        for (timeline, history) in found.histories {
            self.histories.entry(timeline).or_insert(history);
        }
        // Before a stored `.partial` of the same name: the directory may have gone on since.
        self.tails.extend(found.segments.into_iter().filter(|(name, _)| !self.is_archived(*name)).collect::<Vec<_>>());
    }

    /// Puts a directory's own WAL in the place of what is archived under the names from `from` on, which is of another history.
    pub fn put_own(&mut self, from: SegmentName, own: BTreeMap<SegmentName, Tail>) {
        if let Some(number) = from.number(self.segment_bytes) {
            self.runs.remove(from.timeline, number, u64::MAX);
        }
        self.tails.retain(|name, _| *name < from || name.timeline != from.timeline);
        self.tails.extend(own);
    }

    pub fn has_history(&self, timeline: Timeline) -> bool {
        self.histories.contains_key(&timeline)
    }

    pub fn tail(&self, name: SegmentName) -> Option<&Tail> {
        self.tails.get(&name)
    }

    /// Runs of archived segments, by timeline.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    /// Segments that were expired and may still lie there.
    pub fn leftovers(&self) -> &Runs {
        &self.leftovers
    }

    /// What was expired.
    pub fn gone(&self) -> &Gone {
        &self.gone
    }

    /// First and last number of each run of a timeline's segments, archived or not.
    pub fn numbers(&self, timeline: Timeline) -> Vec<(u64, u64)> {
        let mut runs = self.runs.clone();
        for name in self.tails.keys().filter(|name| name.timeline == timeline) {
            if let Some(number) = name.number(self.segment_bytes) {
                runs.add(timeline, number, number);
            }
        }
        runs.of(timeline).to_vec()
    }

    /// The roll-up that holds a segment's index.
    pub fn group(&self, name: SegmentName) -> Option<Group> {
        let number = name.number(self.segment_bytes)?;
        let of = |level| Group::of(name.timeline, level, number);
        rollup::LEVELS.rev().map(of).find(|group| self.groups.binary_search(group).is_ok())
    }

    /// A roll-up that was written meanwhile.
    pub fn add_group(&mut self, group: Group) {
        if let Err(place) = self.groups.binary_search(&group) {
            self.groups.insert(place, group);
        }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn has(&self, name: SegmentName) -> bool {
        self.is_archived(name) || self.tails.contains_key(&name)
    }

    /// Whether the whole segment is archived.
    pub fn is_archived(&self, name: SegmentName) -> bool {
        let Some(number) = name.number(self.segment_bytes) else { return false };
        self.runs.around(name.timeline, number).is_some()
    }

    /// Every timeline that has WAL or a history.
    pub fn timelines(&self) -> Vec<Timeline> {
        let tails = self.tails.keys().map(|name| name.timeline);
        let mut all: Vec<Timeline> = self.runs.timelines().chain(self.histories.keys().copied()).chain(tails).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub fn count(&self) -> u64 {
        self.runs.count()
    }

    /// The path to a timeline; `None` when its history file is missing.
    pub fn path(&self, timeline: Timeline) -> Option<History> {
        match self.histories.get(&timeline) {
            Some(history) => Some(history.clone()),
            None if timeline.0 == 1 => Some(History::first(timeline)),
            None => None,
        }
    }

    /// Timelines that are followed by themselves, newest first.
    pub fn followed(&self) -> Vec<Timeline> {
        self.timelines().into_iter().rev().filter(|timeline| !self.decisions.abandoned.contains(timeline)).collect()
    }

    /// The timeline that is followed by itself as far as names tell; between two that wait for a decision, the newer one.
    pub fn newest(&self) -> Option<History> {
        let followed = match latest::decide(&latest::by_names(self), &self.decisions, self.segment_bytes) {
            Followed::Timeline(timeline) => self.path(timeline),
            Followed::Undecided { .. } | Followed::Nothing => None,
        };
        followed.or_else(|| self.newest_of_all())
    }

    fn newest_of_all(&self) -> Option<History> {
        self.followed().into_iter().find_map(|timeline| self.path(timeline))
    }

    /// The file that holds segment `number` on a path: of the newest timeline that has it, as recovery looks (see
    /// [`History::segment`]); right after a switch the new timeline's copy may not be archived yet.
    pub fn on_path(&self, path: &History, number: u64) -> Option<SegmentName> {
        let reaches = |stretch: &&crate::postgres::history::Stretch| {
            stretch.begin.segment(self.segment_bytes) <= number
                && stretch.end.is_none_or(|end| number <= end.last_segment_before(self.segment_bytes))
        };
        let names = path.stretches().iter().rev().filter(reaches);
        let mut names = names.map(|stretch| SegmentName::new(stretch.timeline, number, self.segment_bytes));
        let newest = names.next()?;
        if self.has(newest) {
            return Some(newest);
        }
        // An older timeline that went on after the fork would be replayed past it.
        let went_on = |name: &SegmentName| name.next(self.segment_bytes).is_some_and(|next| self.has(next));
        names.find(|name| self.has(*name)).filter(|name| !went_on(name))
    }

    /// Where a segment that stands in for a later timeline's first one must not be read any further: its own timeline was left
    /// there. `None` for a segment of the right timeline.
    pub fn ends_at_fork(&self, path: &History, number: u64) -> Option<Lsn> {
        let name = self.on_path(path, number)?;
        let end = path.left(name.timeline)??;
        // The next timeline begins in this segment, and has no copy of it here.
        (end.segment(self.segment_bytes) == number && path.timeline() != name.timeline).then_some(end)
    }

    /// The last segment that is reached from `first` on a path without a gap; `None` when `first` is missing.
    pub fn contiguous_end(&self, path: &History, first: u64) -> Option<u64> {
        let mut last = None;
        let mut number = first;
        while self.on_path(path, number).is_some() {
            last = Some(number);
            if self.ends_at_fork(path, number).is_some() {
                break;
            }
            number += 1;
        }
        last
    }

    /// The first segment after `number` that exists on the path: where a gap ends.
    pub fn after_gap(&self, path: &History, number: u64) -> Option<u64> {
        let starts = path.stretches().iter().flat_map(|stretch| self.runs.of(stretch.timeline));
        let later = starts.map(|run| run.0.max(number + 1)).filter(|first| *first > number);
        later.filter(|first| self.on_path(path, *first).is_some()).min()
    }

    /// Summaries of segments on a path, in order; `None` for one that could not be understood when it was archived, or that is
    /// damaged now.
    pub async fn summaries(
        &self,
        path: &History,
        numbers: impl IntoIterator<Item = u64>,
    ) -> Result<Vec<(u64, Option<SegmentSummary>)>, RepoError> {
        let read = self.trailers(path, numbers).await?;
        Ok(read.into_iter().map(|(number, summary, _)| (number, summary)).collect())
    }

    /// The same, with each archived segment's place in the chain of digests.
    pub async fn trailers(
        &self,
        path: &History,
        numbers: impl IntoIterator<Item = u64>,
    ) -> Result<Vec<(u64, Option<SegmentSummary>, Option<Link>)>, RepoError> {
        let names = numbers.into_iter().filter_map(|number| Some((number, self.on_path(path, number)?)));
        let read = |(number, name): (u64, SegmentName)| async move {
            let file = match self.tails.get(&name) {
                Some(Tail::File(path)) => {
                    return Ok((number, tail::summary(path.clone(), name, self.segment_bytes).await, None));
                }
                Some(Tail::Stored(file)) => *file,
                None => WalFile::Segment(name),
            };
            if let Some((summary, link)) = self.seen().get(&name) {
                return Ok((number, Some(summary.clone()), Some(*link)));
            }
            match segment::read_trailer(&self.cluster, self.system, &file).await {
                Ok(trailer) => {
                    let link = Link { name, sha256: trailer.sha256, previous: trailer.previous };
                    let summary: Option<SegmentSummary> = trailer.summary.and_then(|value| serde_json::from_value(value).ok());
                    // The end of a timeline that was left is not the whole segment of its name.
                    let link = matches!(file, WalFile::Segment(_)).then_some(link);
                    if let (Some(summary), Some(link)) = (summary.clone(), link) {
                        self.remember(name, (summary, link));
                    }
                    Ok((number, summary, link))
                }
                // Who needs the segment itself will be told; a listing must not fail for it.
                Err(error) if error.is_damage() || error.is_newer_epoch() => Ok((number, None, None)),
                Err(error) => Err(error),
            }
        };
        let reads: Vec<_> = names.collect();
        futures::stream::iter(reads).map(read).buffered(16).collect::<Vec<_>>().await.into_iter().collect()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<SegmentName, (SegmentSummary, Link)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, name: SegmentName, known: (SegmentSummary, Link)) {
        let mut seen = self.seen();
        if seen.len() == SEEN {
            seen.clear();
        }
        seen.insert(name, known);
    }

    /// Reads a segment, from wherever it is.
    pub async fn fetch(&self, name: SegmentName, sink: &mut (dyn std::io::Write + Send)) -> Result<(), RepoError> {
        let file = match self.tails.get(&name) {
            Some(Tail::File(path)) => return tail::read(path, sink),
            Some(Tail::Stored(file)) => *file,
            None => WalFile::Segment(name),
        };
        segment::fetch(&self.cluster, self.system, &file, sink).await.map(|_| ())
    }

    pub fn segment_start(&self, number: u64) -> Lsn {
        Lsn(number * self.segment_bytes)
    }
}

type Histories = BTreeMap<Timeline, History>;

/// The history files, and those that are damaged.
async fn histories(cluster: &Cluster, system: SystemId) -> Result<(Histories, Vec<(String, String)>), RepoError> {
    let (mut histories, mut unreadable) = (Histories::new(), Vec::new());
    let prefix = cluster.layout().histories(system);
    for object in list_all(cluster.storage(), &prefix, Depth::All).await?.objects {
        let name = object.key.name().to_string();
        let Ok(WalFile::History(timeline)) = name.parse::<WalFile>() else { continue };
        let mut text = Vec::new();
        let read = segment::fetch(cluster, system, &WalFile::History(timeline), &mut text).await;
        let parsed = match read {
            Ok(_) => History::parse(timeline, &String::from_utf8_lossy(&text)).map_err(|e| e.to_string()),
            Err(error) if error.is_damage() || error.is_newer_epoch() => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        match parsed {
            Ok(history) => drop(histories.insert(timeline, history)),
            Err(problem) => unreadable.push((name, problem)),
        }
    }
    Ok((histories, unreadable))
}
