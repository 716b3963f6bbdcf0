//! Random histories against a small model: odd LSNs, several timelines, several systems under one name, pins, readers, damage, locks. After
//! every plan, what stays is whole; nothing that is locked goes, and everything goes in the end.
//!
//! `LASTGOOD_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use lastgood::config::Retention;
use lastgood::postgres::history::History;
use lastgood::postgres::lsn::{Lsn, SystemId, Timeline};
use lastgood::postgres::wal::name::SegmentName;
use lastgood::repo::audit::Who;
use lastgood::repo::keep::{Keep, Pin};
use lastgood::repo::locks::Ends;
use lastgood::timeline::listing::Runs;
use lastgood::upkeep::expire::plan::{self, Plan};
use lastgood::upkeep::expire::view::{self, Lost, Pack, Reader, Snapshot, Stored, View, Wal};

use crate::property::dice::Dice;

const ROUNDS: u64 = 3000;
const SEGMENT: u64 = 16 << 20;

/// A timeline as it was lived.
#[derive(Clone)]
struct Lived {
    path: History,
    text: String,
    /// Where the server is.
    at: u64,
    end: Timestamp,
}

struct Maker {
    dice: Dice,
    now: Timestamp,
    ids: u32,
    view: View,
    /// Packs by snapshot.
    packs: BTreeMap<String, BTreeSet<String>>,
    histories: Vec<SystemId>,
}

impl Maker {
    fn new(seed: u64) -> Maker {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let view = View {
            now,
            store_now: now,
            locks: None,
            hidden: Vec::new(),
            snapshots: Vec::new(),
            lost: Vec::new(),
            ghosts: Vec::new(),
            dim_ghosts: Vec::new(),
            packs: Vec::new(),
            newest: None,
            wal: Vec::new(),
            readers: Vec::new(),
            pins: BTreeMap::new(),
            alerts: Vec::new(),
            accepted: BTreeSet::new(),
        };
        Maker { dice: Dice::new(seed), now, ids: 0, view, packs: BTreeMap::new(), histories: Vec::new() }
    }

    /// One life of the cluster: it writes, takes snapshots, goes back and forks.
    fn live(&mut self, system: SystemId, is_current: bool) {
        self.histories.push(system);
        let begin = self.dice.below(300) as u64 * SEGMENT;
        let first = Lived { path: History::first(Timeline(1)), text: String::new(), at: begin + 1, end: self.now };
        let (mut lived, mut on) = (vec![first], 0);
        let mut runs = Runs::default();
        for _ in 0..10 + self.dice.below(30) {
            self.now += SignedDuration::from_hours(1 + self.dice.below(40) as i64);
            let way = 1 + self.dice.below(4 * SEGMENT as usize) as u64;
            let before = lived[on].at;
            lived[on].at += way;
            lived[on].end = self.now;
            let timeline = lived[on].path.timeline();
            // A gap, now and then: an archive that was lost.
            if !self.dice.chance(3) {
                runs.add(timeline, before / SEGMENT, (lived[on].at - 1) / SEGMENT);
            }
            if self.dice.chance(50) {
                self.snapshot(system, &mut lived[on], &mut runs);
            } else if self.dice.chance(15) {
                let from = self.dice.below(lived.len());
                let next = self.fork(&lived[from], lived.len() as u32 + 1, begin, &mut runs);
                lived.push(next);
                on = lived.len() - 1;
            }
        }
        let unknown = self.dice.chance(10);
        let path = |one: &Lived| (one.path.timeline(), (!unknown || one.text.is_empty()).then(|| one.path.clone()));
        let paths: BTreeMap<_, _> = lived.iter().map(path).collect();
        let newest = paths.iter().rev().find(|(_, path)| path.is_some()).map(|(timeline, _)| *timeline);
        let ends = lived.iter().map(|one| (one.path.timeline(), one.end)).collect();
        self.view.wal.push(Wal {
            system,
            segment_bytes: SEGMENT,
            is_current,
            runs,
            stored: Vec::new(),
            gone: Runs::default(),
            paths,
            newest,
            ends,
        });
    }

    /// A new timeline from somewhere on another one.
    fn fork(&mut self, from: &Lived, number: u32, begin: u64, runs: &mut Runs) -> Lived {
        let least = from.path.stretches().last().unwrap().begin.0.max(begin);
        let at = least + self.dice.next() % (from.at - least).max(1);
        let text = format!("{}{}\t{}\tno reason\n", from.text, from.path.timeline().0, Lsn(at));
        let timeline = Timeline(number);
        runs.add(timeline, at / SEGMENT, at / SEGMENT);
        Lived { path: History::parse(timeline, &text).unwrap(), text, at: at + 1, end: self.now }
    }

    fn snapshot(&mut self, system: SystemId, on: &mut Lived, runs: &mut Runs) {
        // `0/AB000028`: right behind the long header of a segment; on a border; or anywhere.
        let start = match self.dice.below(3) {
            0 => (on.at / SEGMENT) * SEGMENT + SEGMENT + 0x28,
            1 => (on.at / SEGMENT) * SEGMENT + SEGMENT,
            _ => on.at,
        };
        let stop = match self.dice.below(3) {
            0 => (start / SEGMENT + 1) * SEGMENT,
            _ => start + 1 + self.dice.next() % (3 * SEGMENT),
        };
        runs.add(on.path.timeline(), on.at / SEGMENT, stop / SEGMENT);
        on.at = stop + 1;
        self.ids += 1;
        let id = format!("{}-{:04}", self.now.strftime("%Y%m%dT%H%M%SZ"), self.ids);
        let mut packs: BTreeSet<String> = (0..self.dice.below(3)).map(|n| format!("{id}/d{n:06}")).collect();
        let parent = self.view.snapshots.iter().rev().find(|s| s.system == system && on.path.contains(s.timeline, s.stop_lsn));
        if let Some(parent) = parent.map(|parent| parent.id.clone()) {
            packs.extend(self.packs[&parent].iter().filter(|_| self.dice.chance(80)).cloned());
        }
        self.packs.insert(id.clone(), packs);
        let flaw = self.dice.chance(12).then(|| "a pack is missing".to_string());
        self.view.snapshots.push(Snapshot {
            id,
            system,
            timeline: on.path.timeline(),
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            stop_time: self.now,
            raw_bytes: 1000,
            flaw,
            packs: None,
            manifest: None,
            lock: None,
        });
    }

    /// Locks of all lengths on manifests, packs and segments, some of which have ended. An object that others took over may be locked
    /// for longer than the snapshot that wrote it, and one whose lock somebody lengthened for longer than anything.
    fn lock(&mut self) {
        let mut lock = |from: Timestamp| {
            let most = from + SignedDuration::from_hours(self.dice.below(1200) as i64);
            Some(Ends { least: most - SignedDuration::from_hours(2), most })
        };
        for snapshot in &mut self.view.snapshots {
            snapshot.lock = lock(snapshot.stop_time);
        }
        let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for pack in &mut self.view.packs {
            pack.lock = lock(begin);
        }
        for wal in &mut self.view.wal {
            for (timeline, first, last) in wal.runs.iter() {
                let stored = (first..=last).map(|number| Stored { timeline, number, bytes: 1, lock: lock(begin).unwrap() });
                wal.stored.extend(stored);
            }
        }
    }

    /// Manifests that are missing or damaged, and snapshots that an expiry has noted.
    fn lose(&mut self) {
        let mut left = Vec::new();
        for snapshot in std::mem::take(&mut self.view.snapshots) {
            let is_read = self.view.readers.iter().any(|reader| reader.snapshot == snapshot.id);
            if !self.dice.chance(8) || is_read {
                left.push(snapshot);
            } else if self.dice.chance(30) && snapshot.packs.is_some() {
                self.view.ghosts.push(snapshot);
            } else {
                let first = SegmentName::new(snapshot.timeline, snapshot.start_lsn.0 / SEGMENT, SEGMENT);
                let from = self.dice.chance(80).then_some(first);
                let unreadable = self.dice.chance(50).then(|| "damaged".to_string());
                self.view.lost.push(Lost { id: snapshot.id, unreadable, packs: snapshot.packs, from });
            }
        }
        self.view.snapshots = left;
    }

    fn finish(mut self) -> (View, Retention, BTreeMap<String, BTreeSet<String>>) {
        let names: BTreeSet<String> = self.packs.values().flatten().cloned().collect();
        let names: Vec<String> = names.into_iter().collect();
        for snapshot in &mut self.view.snapshots {
            let place = |name: &String| names.binary_search(name).unwrap() as u32;
            snapshot.packs = Some(self.packs[&snapshot.id].iter().map(place).collect());
            if self.dice.chance(8) {
                let until =
                    self.dice.chance(50).then(|| self.now + SignedDuration::from_hours(self.dice.below(200) as i64 - 100));
                let keep = Keep { pinned: true, until, reason: String::new(), at: self.now, who: Who::default() };
                let unreadable = || Pin::Unreadable { pinned: true, unreadable: "damaged".into() };
                let pin = if self.dice.chance(80) { Pin::Said(keep) } else { unreadable() };
                self.view.pins.insert(snapshot.id.clone(), pin);
            }
            if self.dice.chance(5) {
                self.view.readers.push(Reader { snapshot: snapshot.id.clone(), who: "a drill".into() });
            }
            // Rarely, a table that cannot be read.
            if self.dice.chance(2) {
                snapshot.packs = None;
                snapshot.flaw = Some("its pack table cannot be read".into());
            }
        }
        self.view.packs = names.into_iter().map(|name| Pack { name, bytes: 1, lock: None }).collect();
        self.lose();
        view::order(&mut self.view.snapshots, &self.histories);
        (self.view.now, self.view.store_now) = (self.now, self.now);
        if self.dice.chance(50) {
            self.lock();
        }
        let mut some = |most: usize, percent: usize| self.dice.chance(percent).then(|| 1 + self.dice.below(most) as u32);
        let rules = Retention {
            keep_last: some(5, 60),
            keep_days: some(10, 20),
            keep_daily: some(5, 20),
            keep_weekly: some(3, 20),
            keep_monthly: some(3, 10),
            keep_yearly: some(2, 10),
            window_days: some(12, 40),
            ..Retention::default()
        };
        (self.view, rules, self.packs)
    }
}

struct Model<'a> {
    view: &'a View,
    rules: &'a Retention,
    plan: &'a Plan,
    kept: BTreeSet<&'a str>,
    packs: &'a BTreeMap<String, BTreeSet<String>>,
}

impl Model<'_> {
    fn is_kept(&self, snapshot: &Snapshot) -> bool {
        self.kept.contains(snapshot.id.as_str())
    }

    /// A segment that was there is there still.
    fn stays(&self, wal: &Wal, timeline: Timeline, number: u64, why: &str) {
        let goes = &self.plan.wal_plans.iter().find(|plan| plan.system == wal.system).unwrap().goes;
        if wal.runs.around(timeline, number).is_some() {
            assert!(goes.around(timeline, number).is_none(), "segment {number} of timeline {timeline:?} goes: {why}");
        }
    }

    /// All that recovery from a snapshot can read on a path.
    fn future_stays(&self, wal: &Wal, snapshot: &Snapshot, path: &History) {
        let last = wal.runs.of(path.timeline()).last().map_or(0, |run| run.1);
        for number in snapshot.start_lsn.0 / SEGMENT..=last {
            let name = path.segment(number, SEGMENT);
            self.stays(wal, name.timeline, number, &format!("{} leads to timeline {:?}", snapshot.id, path.timeline()));
        }
    }

    fn check(&self) {
        let good: Vec<&Snapshot> = self.view.snapshots.iter().filter(|s| s.flaw.is_none()).collect();
        let Some(newest) = good.last() else {
            assert!(!self.plan.refusals.is_empty());
            return;
        };
        assert!(self.is_kept(newest));
        let least = self.rules.keep_last.unwrap_or(1) as usize;
        assert!(good.iter().filter(|s| self.is_kept(s)).count() >= least.min(good.len()));
        for snapshot in &self.view.snapshots {
            let is_pinned = self.view.pins.get(&snapshot.id).is_some_and(|pin| pin.holds(self.view.now));
            let is_read = self.view.readers.iter().any(|reader| reader.snapshot == snapshot.id);
            assert!(self.is_kept(snapshot) || !(is_pinned || is_read), "{}", snapshot.id);
        }
        let going: BTreeSet<&str> = self.plan.going.iter().map(|pack| pack.name.as_str()).collect();
        for snapshot in self.view.snapshots.iter().filter(|s| self.is_kept(s)) {
            let lost: Vec<_> = self.packs[&snapshot.id].iter().filter(|pack| going.contains(pack.as_str())).collect();
            assert!(lost.is_empty(), "{} needs {lost:?}", snapshot.id);
        }
        self.lost(&going);
        for wal in &self.view.wal {
            self.wal(wal, &good, newest.stop_time);
        }
        self.locks();
    }

    /// A manifest that is lost costs nobody anything else, and may come back: nothing that its snapshot needs goes.
    fn lost(&self, going: &BTreeSet<&str>) {
        for lost in &self.view.lost {
            match lost.packs {
                Some(_) => assert!(self.packs[&lost.id].iter().all(|pack| !going.contains(pack.as_str())), "{}", lost.id),
                None => assert!(going.is_empty(), "the table of {} cannot be read", lost.id),
            }
            assert!(self.plan.notes.iter().any(|note| note.contains(&lost.id)), "{} is not named", lost.id);
            for wal in &self.view.wal {
                let from = lost.from.map_or(0, |name| name.number(SEGMENT).unwrap());
                for (timeline, first, last) in wal.runs.iter() {
                    for number in first.max(from)..=last {
                        self.stays(wal, timeline, number, &format!("{} may come back", lost.id));
                    }
                }
            }
        }
        for held in self.held() {
            assert!(self.packs[&held.id].iter().all(|pack| !going.contains(pack.as_str())), "{} is held", held.id);
        }
    }

    /// Noted as expired once, and wanted now.
    fn held(&self) -> impl Iterator<Item = &Snapshot> {
        self.view.ghosts.iter().filter(|ghost| !self.plan.leftovers.contains(&ghost.id))
    }

    /// What is locked is not tried, and waits; when no lock is left, everything goes that would go without locks.
    fn locks(&self) {
        let is_locked = |lock: Option<Ends>| lock.is_some_and(|lock| lock.most > self.view.store_now);
        for removed in &self.plan.removed {
            let snapshot = self.view.snapshots.iter().find(|snapshot| snapshot.id == removed.snapshot).unwrap();
            assert!(!is_locked(snapshot.lock), "the manifest of {} is locked", snapshot.id);
        }
        self.plan.going.iter().for_each(|pack| assert!(!is_locked(pack.lock), "{} is locked", pack.name));
        for (wal, planned) in self.view.wal.iter().zip(&self.plan.wal_plans) {
            let goes = |one: &&Stored| planned.goes.around(one.timeline, one.number).is_some();
            let tried = wal.stored.iter().filter(goes).find(|one| is_locked(Some(one.lock)));
            assert!(tried.is_none(), "{tried:?} is locked");
            assert!(planned.goes.iter().all(|(t, first, last)| (first..=last).all(|n| planned.gone.around(t, n).is_some())));
        }
        let end = View { store_now: Timestamp::MAX, ..self.view.clone() };
        let mut free = end.clone();
        free.snapshots.iter_mut().for_each(|snapshot| snapshot.lock = None);
        free.packs.iter_mut().for_each(|pack| pack.lock = None);
        free.wal.iter_mut().for_each(|wal| wal.stored.clear());
        let (end, free) = (plan::plan(&end, self.rules, false, &[]), plan::plan(&free, self.rules, false, &[]));
        assert_eq!((&end.removed, end.packs, end.packs_on_loan), (&free.removed, free.packs, free.packs_on_loan));
        assert!(end.locked.is_empty() && end.wal_plans.iter().zip(&free.wal_plans).all(|(one, two)| one.goes == two.goes));
        self.nothing_is_forgotten(&free);
    }

    /// What would go without locks goes, or waits for its own day, or for that of a snapshot.
    fn nothing_is_forgotten(&self, free: &Plan) {
        let is_locked = |lock: Ends| lock.most > self.view.store_now;
        let going: BTreeSet<&str> = self.plan.going.iter().map(|pack| pack.name.as_str()).collect();
        let waiting: Vec<&str> =
            self.plan.kept.iter().filter(|kept| kept.locked_until.is_some()).map(|kept| kept.snapshot.as_str()).collect();
        let (mut packs, mut segments) = (0, 0);
        for pack in free.going.iter().filter(|pack| !going.contains(pack.name.as_str())) {
            let lock = self.view.packs.iter().find(|other| other.name == pack.name).unwrap().lock.unwrap();
            // A snapshot whose table cannot be read may need any older pack.
            let unread = |id: &str| self.view.snapshots.iter().any(|s| s.id == id && s.packs.is_none());
            assert!(is_locked(lock) || waiting.iter().any(|id| *id >= pack.writer() || unread(id)), "{} is forgotten", pack.name);
            packs += u64::from(is_locked(lock));
        }
        for ((planned, free), wal) in self.plan.wal_plans.iter().zip(&free.wal_plans).zip(&self.view.wal) {
            for one in wal.stored.iter().filter(|one| free.goes.around(one.timeline, one.number).is_some()) {
                let goes = planned.goes.around(one.timeline, one.number).is_some();
                let is_needed = planned.needed.has(one.timeline, one.number);
                assert!(goes || is_needed || is_locked(one.lock), "{one:?} is forgotten");
                segments += u64::from(!goes && !is_needed);
            }
        }
        let unread = self.view.snapshots.iter().any(|snapshot| snapshot.packs.is_none());
        assert!(self.plan.locked_count().objects >= segments + if unread { 0 } else { packs }, "{:?}", self.plan.locked);
    }

    fn wal(&self, wal: &Wal, good: &[&Snapshot], newest: Timestamp) {
        let of_system = || self.view.snapshots.iter().filter(|s| s.system == wal.system && self.is_kept(s));
        for snapshot in of_system() {
            // Its own timeline's path may be unknown; then its segments lie on that timeline.
            let path = wal.paths[&snapshot.timeline].clone().unwrap_or(History::first(snapshot.timeline));
            for number in snapshot.start_lsn.0 / SEGMENT..=(snapshot.stop_lsn.0 - 1) / SEGMENT {
                self.stays(wal, path.segment(number, SEGMENT).timeline, number, &format!("{} starts there", snapshot.id));
            }
        }
        let since = self.rules.window_days.map(|days| newest - SignedDuration::from_hours(24 * i64::from(days)));
        for (timeline, path) in &wal.paths {
            let Some(path) = path else { continue };
            let on_path: Vec<&&Snapshot> =
                good.iter().filter(|s| s.system == wal.system && path.contains(s.timeline, s.stop_lsn)).collect();
            if let Some(since) = since.filter(|since| wal.ends[timeline] >= *since || wal.newest == Some(*timeline)) {
                // Every moment since then is reached from a snapshot before it.
                let before = on_path.iter().rposition(|s| s.stop_time < since).unwrap_or(0);
                for snapshot in on_path.iter().skip(before) {
                    assert!(self.is_kept(snapshot), "{} is needed for moments of timeline {timeline:?}", snapshot.id);
                    self.future_stays(wal, snapshot, path);
                }
            }
            if wal.is_current
                && wal.newest == Some(*timeline)
                && let Some(last) = on_path.last()
            {
                assert!(self.is_kept(last), "{} is the last on the server's timeline", last.id);
                self.future_stays(wal, last, path);
            }
            for snapshot in on_path.into_iter().filter(|s| self.is_kept(s)) {
                let is_read = self.view.readers.iter().any(|reader| reader.snapshot == snapshot.id);
                // Without a window, from the oldest that a rule wants: pins and neighbours are let out by the model.
                let by_rule = since.is_none()
                    && self.rules.keep_last.is_some_and(|n| good.iter().rev().take(n as usize).any(|s| s.id == snapshot.id));
                if is_read || by_rule {
                    self.future_stays(wal, snapshot, path);
                }
            }
        }
        // What is older than everything that stays, goes.
        let goes = &self.plan.wal_plans.iter().find(|plan| plan.system == wal.system).unwrap().goes;
        let lost = self.view.lost.iter().map(|lost| lost.from.map_or(0, |name| name.number(SEGMENT).unwrap()));
        let held = self.held().filter(|held| held.system == wal.system);
        let oldest = of_system().chain(held).map(|s| s.start_lsn.0 / SEGMENT).min();
        let oldest = oldest.map(|oldest| lost.chain([oldest]).min().unwrap_or(oldest));
        if let Some(oldest) = oldest.filter(|_| self.rules.is_configured() && wal.paths.values().all(Option::is_some)) {
            for (timeline, first, last) in wal.runs.iter() {
                let waits = |number: &u64| {
                    let is_it = |one: &&Stored| (one.timeline, one.number) == (timeline, *number);
                    wal.stored.iter().find(is_it).is_some_and(|one| one.lock.most > self.view.store_now)
                };
                let old = (first..=last).filter(|number| *number < oldest && !waits(number));
                assert!(
                    old.into_iter().all(|number| goes.around(timeline, number).is_some()),
                    "timeline {timeline:?} from {first}"
                );
            }
        }
    }
}

fn ids(plan: &Plan) -> BTreeSet<&str> {
    plan.kept.iter().map(|kept| kept.snapshot.as_str()).collect()
}

#[test]
fn whatever_happened_before_what_stays_is_whole() {
    let seed: u64 = std::env::var("LASTGOOD_SEED").map_or(0x6570_1972, |text| text.parse().unwrap());
    let (mut snapshots, mut segments, mut packs, mut waiting) = (0, 0, 0, 0);
    for round in 0..ROUNDS {
        let mut maker = Maker::new(seed.wrapping_add(round));
        let lives = 1 + maker.dice.below(3) as u64;
        for life in 0..lives {
            maker.live(SystemId(900 - life), life + 1 == lives);
        }
        let (view, rules, needs) = maker.finish();
        let plan = plan::plan(&view, &rules, false, &[]);
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Model { view: &view, rules: &rules, plan: &plan, kept: ids(&plan), packs: &needs }.check();
        }));
        assert!(checked.is_ok(), "seed {} with {rules:?}", seed.wrapping_add(round));
        if !rules.is_configured() {
            assert!(plan.is_empty());
            continue;
        }
        // A damaged snapshot more or less changes nothing for the good ones.
        let mut only_good = view.clone();
        only_good.snapshots.retain(|s| s.flaw.is_none());
        only_good.readers.retain(|reader| only_good.snapshots.iter().any(|s| s.id == reader.snapshot));
        let other = plan::plan(&only_good, &rules, false, &[]);
        let goods: BTreeSet<&str> = only_good.snapshots.iter().map(|s| s.id.as_str()).collect();
        let kept: BTreeSet<&str> = ids(&plan).intersection(&goods).copied().collect();
        assert_eq!(kept, ids(&other), "seed {}", seed.wrapping_add(round));
        snapshots += plan.removed.len();
        segments += plan.wal_plans.iter().map(|wal| wal.goes.count()).sum::<u64>();
        packs += plan.going.len();
        waiting += plan.locked_count().objects;
    }
    assert!(
        snapshots > 1000 && segments > 10_000 && packs > 500 && waiting > 10_000,
        "{snapshots} snapshots, {segments} segments, {packs} packs went, {waiting} objects waited"
    );
}
