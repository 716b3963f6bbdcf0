//! What happened in a stretch of time, told from the WAL index.
//!
//! # Where it begins
//! Reading begins at the newest snapshot before the stretch, so that what was made between the two has a name as well. What happened
//! before the stretch is read and not told.
//!
//! # Names
//! An event is told with the newest catalogue before it and what WAL told since. What has no name there is looked for in the next
//! snapshot's catalogue: a database that was made in between is known by then. Catalogues are only read for stretches in which something
//! happened.
//!
//! # What is not known
//! Gaps are named. A segment whose WAL cannot be understood is a gap for the events, not for a restore.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use jiff::Timestamp;
use serde::Serialize;

use super::archive::Archive;
use super::catalogue::{self, Names};
use super::events::{Event, Events, Happened};
use super::indexes::{self, Local, Sources, Wanted};
use super::told::Told;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::index::SegmentIndex;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;

/// Changed or deleted rows of one relation in one transaction that are worth telling, when nothing else is asked.
pub const MANY_ROWS: u64 = 1000;
/// Events that a story tells; a hundred thousand of them are no answer to anybody.
const EVENTS_MAX: usize = 100_000;

/// What is asked.
pub struct Question<'a> {
    pub archive: &'a Archive,
    /// Of the archive's system, oldest first.
    pub manifests: &'a [Manifest],
    pub path: &'a History,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Only what has this target or a later one.
    pub from: Option<Lsn>,
    /// Nothing that ends long after it.
    pub to: Option<Lsn>,
    pub many_rows: u64,
    /// Just these segments; names are the snapshot's, without what the WAL told since.
    pub numbers: Option<RangeInclusive<u64>>,
    pub local: Local<'a>,
    /// Whether WAL that only a reader's key could open is a gap; else it is an error, because what lies there may be what was asked for.
    pub passes_sealed: bool,
}

/// A stretch of segments of which nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub from: String,
    pub to: String,
    pub reason: String,
}

#[derive(Debug, Default, Serialize)]
pub struct Story {
    pub timeline: Option<Timeline>,
    /// In the order of their positions.
    pub events: Vec<Told>,
    /// Commits and aborts by minute since 1970.
    #[serde(skip)]
    pub minutes: BTreeMap<i64, (u32, u32)>,
    pub commits: u64,
    pub aborts: u64,
    pub segments: u64,
    pub first_lsn: Option<Lsn>,
    pub last_lsn: Option<Lsn>,
    /// The last commit or abort.
    pub last_time: Option<Timestamp>,
    pub gaps: Vec<Gap>,
    /// The last snapshot whose catalogue gave names.
    pub names_from: Option<String>,
    /// Events of which some relation or database has no name that is known.
    pub unnamed: usize,
    #[serde(skip)]
    pub sources: Sources,
    /// Bytes of all relations that the catalogue knows.
    #[serde(skip)]
    pub known_bytes: u64,
    /// A transaction that did more than change a few rows is open at the end.
    #[serde(skip)]
    pub is_pending: bool,
    /// There was more than a story tells.
    pub is_cut: bool,
}

/// Tells it.
pub async fn tell(question: &Question<'_>) -> Result<Story, RepoError> {
    let Question { archive, path, .. } = question;
    let mut story = Story { timeline: Some(path.timeline()), ..Story::default() };
    let Some((first, last)) = stretch(question) else { return Ok(story) };
    let catalogue = names(question, &mut story).await?;
    let mapped = catalogue::mapped(&catalogue);
    let relations = catalogue.databases.iter().flat_map(|database| &database.relations);
    story.known_bytes = relations.map(|relation| relation.bytes).fold(0, u64::saturating_add);
    let names = Names::new(catalogue);
    let wanted =
        Wanted { archive, path, numbers: first..=last, local: question.local, mapped, passes_sealed: question.passes_sealed };
    let events = Events::new(archive.segment_bytes, question.many_rows, names);
    let mut teller = Teller { question, events, story, next: first, found: Vec::new(), entered: None };
    let sources = indexes::each(&wanted, &mut |indexed| {
        teller.take(indexed.number, indexed.index.map_err(|error| error.to_string()));
        !teller.is_over()
    })
    .await?;
    let is_pending = teller.events.has_work();
    let Teller { mut story, found, events, .. } = teller;
    (story.sources, story.is_pending) = (sources, is_pending);
    Naming { question, names: events.into_names(), story: &mut story }.tell(found).await?;
    story.unnamed = story.events.iter().filter(|told| told.is_unnamed).count();
    Ok(story)
}

/// Puts events into words, with the names of their time.
struct Naming<'a, 'b> {
    question: &'a Question<'a>,
    names: Names,
    story: &'b mut Story,
}

impl Naming<'_, '_> {
    async fn tell(mut self, found: Vec<(Event, Timeline)>) -> Result<(), RepoError> {
        let later = later(self.question);
        let mut found = found.into_iter().peekable();
        // How many of the later catalogues are known.
        let mut merged = 0;
        for place in 0..=later.len() {
            let end = later.get(place).map(|manifest| manifest.stop_lsn);
            let mut unnamed = Vec::new();
            while let Some((event, timeline)) = found.next_if(|(event, _)| end.is_none_or(|end| event.lsn < end)) {
                if merged < place {
                    self.merge(later[place - 1]).await?;
                    merged = place;
                }
                let told = self.told(&event, timeline);
                if told.is_unnamed {
                    unnamed.push((self.story.events.len(), event, timeline));
                }
                self.story.events.push(told);
            }
            if let (Some(next), false) = (later.get(place), unnamed.is_empty()) {
                self.merge(next).await?;
                merged = place + 1;
                for (at, event, timeline) in unnamed {
                    self.story.events[at] = self.told(&event, timeline);
                }
            }
        }
        Ok(())
    }

    fn told(&self, event: &Event, timeline: Timeline) -> Told {
        let Question { archive, path, .. } = self.question;
        let name = path.segment(event.lsn.segment(archive.segment_bytes), archive.segment_bytes);
        Told { is_archived: archive.is_archived(name), ..Told::new(event, timeline, &self.names) }
    }

    async fn merge(&mut self, manifest: &Manifest) -> Result<(), RepoError> {
        match catalogue::of_snapshot(self.question.archive.cluster(), manifest).await {
            Ok(Some(catalogue)) => {
                self.names.merge(catalogue);
                self.story.names_from = Some(manifest.id.clone());
                Ok(())
            }
            Ok(None) => Ok(()),
            // Names are worth less than the story.
            Err(error) if error.is_damage() || error.is_newer_epoch() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Snapshots since the one with which reading begins, whose catalogues may give names; of very many some.
fn later<'a>(question: &Question<'a>) -> Vec<&'a Manifest> {
    const CATALOGUES: usize = 100;
    let Some(base) = base(question) else { return Vec::new() };
    let is_later = |m: &&Manifest| {
        m.system_identifier == base.system_identifier
            && m.stop_lsn > base.stop_lsn
            && m.catalogue.is_some()
            && question.path.contains(m.timeline, m.stop_lsn)
    };
    let mut later: Vec<&Manifest> = question.manifests.iter().filter(is_later).collect();
    later.sort_by_key(|manifest| manifest.stop_lsn);
    let step = later.len().div_ceil(CATALOGUES).max(1);
    // The newest is always among them.
    let skipped = later.len().saturating_sub(1) % step;
    later.into_iter().skip(skipped).step_by(step).collect()
}

/// First and last segment to read.
fn stretch(question: &Question<'_>) -> Option<(u64, u64)> {
    if let Some(numbers) = &question.numbers {
        return Some((*numbers.start(), *numbers.end()));
    }
    let Question { archive, path, .. } = question;
    let mut first_there = None;
    let mut last_there = None;
    for stretch in path.stretches() {
        let end = stretch.end.map_or(u64::MAX, |end| end.last_segment_before(archive.segment_bytes));
        for (first, last) in archive.numbers(stretch.timeline) {
            if first <= end {
                first_there = Some(first_there.map_or(first, |known: u64| known.min(first)));
                last_there = Some(last_there.map_or(0, |known: u64| known).max(last.min(end)));
            }
        }
    }
    let (first, last) = (first_there?, last_there?);
    let begin = base(question).map_or(first, |manifest| manifest.start_lsn.segment(archive.segment_bytes));
    Some((begin.clamp(first, last), last))
}

/// The newest snapshot before what is asked.
fn base<'a>(question: &Question<'a>) -> Option<&'a Manifest> {
    let on_path =
        |m: &&&Manifest| m.system_identifier == question.archive.system && question.path.contains(m.timeline, m.stop_lsn);
    let before = |m: &&&Manifest| match (question.from, question.since) {
        (Some(lsn), _) => m.start_lsn <= lsn,
        (None, Some(since)) => m.stop_time <= since,
        (None, None) => false,
    };
    let on_it: Vec<&Manifest> = question.manifests.iter().collect();
    on_it.iter().rev().filter(on_path).find(before).or_else(|| on_it.iter().find(|m| on_path(m))).copied()
}

async fn names(question: &Question<'_>, story: &mut Story) -> Result<crate::postgres::catalogue::Catalogue, RepoError> {
    let Some(base) = base(question) else { return Ok(Default::default()) };
    // A snapshot of an earlier lastgood has none; the next one may.
    let later = question.manifests.iter().filter(|m| m.system_identifier == base.system_identifier && m.id > base.id);
    for manifest in [base].into_iter().chain(later) {
        match catalogue::of_snapshot(question.archive.cluster(), manifest).await {
            Ok(Some(catalogue)) => {
                story.names_from = Some(manifest.id.clone());
                return Ok(catalogue);
            }
            Ok(None) => {}
            // Names are worth less than the story.
            Err(error) if error.is_damage() || error.is_newer_epoch() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Default::default())
}

struct Teller<'a> {
    question: &'a Question<'a>,
    events: Events,
    story: Story,
    /// The segment that should come next.
    next: u64,
    /// What is asked for, in order.
    found: Vec<(Event, Timeline)>,
    /// The timeline whose beginning was seen last.
    entered: Option<Timeline>,
}

impl Teller<'_> {
    fn take(&mut self, number: u64, index: Result<SegmentIndex, String>) {
        let archive = self.question.archive;
        if number > self.next {
            self.gap(self.next, number - 1, "not in the archive".into());
        }
        self.next = number + 1;
        let index = match index {
            Ok(index) => index,
            Err(reason) => return self.gap(number, number, reason),
        };
        self.story.segments += 1;
        self.count(&index);
        let ends_at = index.ends_at;
        // A record that could not be put together belongs to no event that could be told.
        let _ = self.events.add(&index);
        let fork = archive.ends_at_fork(self.question.path, number);
        for event in self.events.drain() {
            if fork.is_some_and(|fork| event.lsn >= fork) {
                continue;
            }
            let event = self.with_promotion(event);
            if !self.is_asked(event.target, event.time) {
                continue;
            }
            if self.found.len() >= EVENTS_MAX {
                self.story.is_cut = true;
                return;
            }
            let segment = self.question.path.segment(event.lsn.segment(archive.segment_bytes), archive.segment_bytes);
            self.found.push((event, segment.timeline));
        }
        // What the server still writes to ends somewhere, and so does a timeline.
        let is_whole =
            archive.on_path(self.question.path, number).is_some_and(|name| archive.is_archived(name)) && fork.is_none();
        if let Some(lsn) = ends_at.filter(|_| is_whole) {
            self.gap(number, number, format!("its WAL cannot be read on from {lsn}"));
        }
    }

    /// A server that is promoted after a PITR begins its timeline with the checkpoint of a shutdown.
    fn with_promotion(&mut self, event: Event) -> Event {
        // Before it come at most a few small records (`StartupXLOG`).
        const FIRST_BYTES: u64 = 8192;
        if let Happened::EndOfRecovery { timeline, .. } = event.what {
            self.entered = Some(timeline);
        }
        let mut begins = self.question.path.stretches().iter().filter_map(|stretch| Some((stretch.timeline, stretch.end?)));
        let left = begins.find(|(_, end)| *end <= event.lsn && event.lsn.0 - end.0 < FIRST_BYTES);
        let (Happened::Checkpoint { shutdown: true }, Some((previous_timeline, _))) = (&event.what, left) else { return event };
        let bytes = self.question.archive.segment_bytes;
        let timeline = self.question.path.segment(event.lsn.segment(bytes), bytes).timeline;
        if self.entered.replace(timeline) == Some(timeline) {
            return event;
        }
        Event { what: Happened::EndOfRecovery { timeline, previous_timeline }, ..event }
    }

    fn is_asked(&self, target: Lsn, time: Option<Timestamp>) -> bool {
        let Question { since, until, from, .. } = self.question;
        from.is_none_or(|from| target >= from)
            && time.is_none_or(|time| since.is_none_or(|since| time >= since) && until.is_none_or(|until| time <= until))
    }

    fn count(&mut self, index: &SegmentIndex) {
        let Question { since, until, .. } = self.question;
        let minute = |time: Timestamp| time.as_second().div_euclid(60);
        let story = &mut self.story;
        story.first_lsn = story.first_lsn.or(index.first_record);
        story.last_lsn = index.last_record.or(story.last_lsn);
        story.last_time = index.activity.latest.max(story.last_time);
        for (at, (commits, aborts)) in &index.activity.minutes {
            if since.is_some_and(|since| *at < minute(since)) || until.is_some_and(|until| *at > minute(until)) {
                continue;
            }
            let known = story.minutes.entry(*at).or_default();
            (known.0, known.1) = (known.0.saturating_add(*commits), known.1.saturating_add(*aborts));
            (story.commits, story.aborts) = (story.commits + u64::from(*commits), story.aborts + u64::from(*aborts));
        }
    }

    fn gap(&mut self, first: u64, last: u64, reason: String) {
        let name = |number| self.question.path.segment(number, self.question.archive.segment_bytes).to_string();
        if let Some(before) = self.story.gaps.last_mut()
            && before.reason == reason
            && before.to == name(first.saturating_sub(1))
        {
            before.to = name(last);
            return;
        }
        let (from, to) = (name(first), name(last));
        self.story.gaps.push(Gap { from, to, reason });
    }

    /// Commit times do not rise strictly, so some more is read behind the end.
    fn is_over(&self) -> bool {
        const SLACK_S: i64 = 300;
        let archive = self.question.archive;
        if self.question.to.is_some_and(|to| self.next > to.segment(archive.segment_bytes) + 2) {
            return true;
        }
        let behind = |until: Timestamp| self.story.last_time.is_some_and(|last| last.as_second() > until.as_second() + SLACK_S);
        self.story.is_cut || self.question.until.is_some_and(behind)
    }
}
