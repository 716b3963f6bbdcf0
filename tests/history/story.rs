//! What happens: operations that a seed gives, played on the truth and on the program.
//!
//! An operation names what it is about by numbers that are taken modulo what there is, so a story from which some operations were taken out
//! is a story too: that is how a failing one is made short.

use lastgood::archive::push::{PushError, Pushed};
use lastgood::postgres::history::History;
use lastgood::postgres::lsn::{Lsn, Timeline};
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::restore::plan::Plan;
use lastgood::timeline::target::Target;
use lastgood::timeline::windows::Window;

use super::decisions::{Decisions, accepted};
use super::judge::{Judge, Verdict};
use super::stage::{Stage, Taken};
use super::truth::{Server, Truth};
use crate::property::dice::Dice;
use crate::support::wal_writer::SEGMENT;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A few transactions.
    Write,
    /// The segment is filled up to a few bytes, so that the next record crosses its end.
    Fill,
    Switch,
    /// `archive_command` for what waits: the oldest until one fails.
    Archive,
    /// The same for any one of them.
    ArchiveAny,
    Backup,
    /// A copy of the volume is put away.
    Image,
    /// It is put back.
    Rollback,
    /// It is started elsewhere, beside the original.
    Clone,
    Standby,
    Follow,
    /// A standby becomes a primary beside the old one; it may not see which timelines the archive has.
    Promote,
    /// The same after the old primary is gone.
    Failover,
    Reset,
    /// A server becomes a standby of another.
    Rejoin,
    /// A restore beside everything else, promoted.
    Restore,
    Release,
    /// A restore over a server, promoted.
    RestoreOver,
    /// The server that stood there is put back.
    Undo,
    Lose,
    Expire,
    /// `wal_level = minimal` for a moment.
    Minimal,
}

use Act::*;

/// What every cluster lives through, with one who decides.
pub const ORDERLY: &[(Act, usize)] =
    &[(Write, 30), (Fill, 8), (Switch, 12), (Archive, 30), (Backup, 8), (Standby, 4), (Follow, 10), (Failover, 4), (Expire, 2)];

/// Copies, rollbacks, rogue promotions, losses.
pub const WILD: &[(Act, usize)] = &[
    (Write, 28),
    (Fill, 8),
    (Switch, 10),
    (Archive, 24),
    (ArchiveAny, 6),
    (Backup, 8),
    (Image, 4),
    (Rollback, 4),
    (Clone, 2),
    (Standby, 4),
    (Follow, 8),
    (Promote, 3),
    (Failover, 2),
    (Rejoin, 2),
    (Restore, 4),
    (Lose, 1),
    (Expire, 2),
];

/// And what people do then, and what no WAL leads across.
pub const WILDER: &[(Act, usize)] = &[
    (Write, 28),
    (Fill, 8),
    (Switch, 10),
    (Archive, 24),
    (ArchiveAny, 6),
    (Backup, 8),
    (Image, 4),
    (Rollback, 4),
    (Clone, 2),
    (Standby, 4),
    (Follow, 8),
    (Promote, 3),
    (Failover, 2),
    (Reset, 1),
    (Rejoin, 2),
    (Restore, 4),
    (Release, 3),
    (RestoreOver, 2),
    (Undo, 1),
    (Lose, 1),
    (Expire, 2),
    (Minimal, 1),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub act: Act,
    pub on: usize,
    pub with: usize,
}

/// A story of `length` operations, after a beginning that all have.
pub fn story(dice: &mut Dice, acts: &[(Act, usize)], length: usize) -> Vec<Operation> {
    let all: usize = acts.iter().map(|(_, weight)| weight).sum();
    let mut operations = vec![Operation { act: Write, on: 0, with: 1 }, Operation { act: Backup, on: 0, with: 1 }];
    for _ in 0..length {
        let mut at = dice.below(all);
        let drawn = acts.iter().find(|(_, weight)| {
            let is_it = at < *weight;
            at = at.wrapping_sub(*weight);
            is_it
        });
        operations.push(Operation { act: drawn.unwrap().0, on: dice.below(1000), with: dice.below(1000) });
    }
    operations
}

pub struct Play {
    pub truth: Truth,
    pub stage: Stage,
    /// What happened, in words.
    pub told: Vec<String>,
    pub refused: usize,
    decisions: Decisions,
    dice: Dice,
    is_orderly: bool,
}

impl Play {
    pub async fn new(is_orderly: bool) -> Play {
        let truth = Truth::new();
        let stage = Stage::new(&truth).await;
        Play { truth, stage, told: Vec::new(), refused: 0, decisions: Decisions::default(), dice: Dice::new(1), is_orderly }
    }

    /// Plays a story, and judges after each operation that can change a promise.
    pub async fn run(&mut self, story: &[Operation]) -> Verdict {
        for operation in story {
            let archived = self.step(*operation).await?;
            if archived {
                self.judge().await?;
            }
        }
        Ok(())
    }

    async fn judge(&mut self) -> Verdict {
        let judge = Judge::new(&self.truth, &self.stage).await;
        judge.promises(&mut self.dice).await?;
        self.latest(&judge).await
    }

    /// `latest` is the line that somebody chose, or one that nobody else lives beside.
    async fn latest(&self, judge: &Judge<'_>) -> Verdict {
        let found = judge.find(&Target::Latest, None, true).await;
        if self.is_orderly {
            self.follows_the_primary(judge, found.as_ref().map(|found| &found.path).map_err(ToString::to_string)).await?;
        }
        let Ok(found) = found else { return Ok(()) };
        self.decisions.judge(judge, &found.path, &self.stage.record().await)
    }

    /// Where one decides, `latest` is the primary's as soon as it has archived something.
    async fn follows_the_primary(&self, judge: &Judge<'_>, path: Result<&History, String>) -> Verdict {
        let Some(at) = self.pick(0, |server| server.writes() && !server.is_restored) else { return Ok(()) };
        let primary = &self.truth.servers[at];
        let is_archived = |name: &SegmentName| name.timeline.0 == primary.timeline();
        if self.stage.taken.is_empty() || !primary.ready.is_empty() || !judge.segments.keys().any(is_archived) {
            return Ok(());
        }
        let is_reached = judge.windows().await.iter().any(|window| window.timeline.0 == primary.timeline());
        match path {
            Ok(path) if *path == primary.path() => Ok(()),
            Ok(path) => Err(format!("latest follows timeline {} and the primary is on {}", path.timeline(), primary.timeline())),
            Err(_) if !is_reached => Ok(()),
            Err(error) => Err(format!("latest of an orderly cluster is refused: {error}")),
        }
    }

    fn tell(&mut self, words: String) {
        self.told.push(words);
    }

    /// One of the servers for which something is true.
    fn pick(&self, on: usize, fits: impl Fn(&Server) -> bool) -> Option<usize> {
        let all = &self.truth.servers;
        let fitting: Vec<usize> = (0..all.len()).filter(|at| fits(&all[*at])).collect();
        (!fitting.is_empty()).then(|| fitting[on % fitting.len()])
    }

    /// Answers whether the archive may have changed.
    async fn step(&mut self, Operation { act, on, with }: Operation) -> Result<bool, String> {
        match act {
            Write | Fill | Switch | Minimal | Reset => self.writes(act, on, with),
            Archive => return self.archive(on, false, with).await,
            ArchiveAny => return self.archive(on, true, with).await,
            Backup => return self.backup(on, with).await,
            Image | Rollback | Clone => self.volumes(act, on, with),
            Standby | Follow | Rejoin => self.standbys(act, on, with),
            Promote | Failover => self.promote(act, on, with).await,
            Restore => self.restore(on, with).await?,
            Release => return self.release(on).await,
            RestoreOver => return self.restore_over(on, with).await,
            Undo => self.undo(on),
            Lose => return self.lose(with).await,
            Expire => return self.expire(with).await,
        }
        Ok(false)
    }

    fn writes(&mut self, act: Act, on: usize, with: usize) {
        let Some(at) = self.pick(on, Server::writes) else { return };
        match act {
            Write => {
                for n in 0..1 + with % 3 {
                    self.truth.transaction(at, [8, 40, 40, 900, 9000][(with + n) % 5]);
                }
            }
            Fill => self.truth.fill(at, 60 + with as u64 % 100),
            Switch => self.truth.switch(at),
            Minimal => {
                self.truth.write(at, |wal, _| (wal.parameters(0), None));
                self.truth.transaction(at, 40);
                self.truth.write(at, |wal, _| (wal.parameters(1), None));
            }
            _ => {
                self.truth.write(at, |wal, now| (wal.reset(now), None));
            }
        }
        let server = &self.truth.servers[at];
        let words = format!("{act:?} on {at}: timeline {}, now at {}", server.timeline(), Lsn(server.wal.at));
        self.tell(words);
    }

    async fn archive(&mut self, on: usize, any: bool, with: usize) -> Result<bool, String> {
        let waits = |server: &Server| !server.is_dead && !server.is_standby && !server.is_restored && !server.ready.is_empty();
        let Some(at) = self.pick(on, waits) else { return Ok(false) };
        loop {
            let server = self.truth.servers[at].clone();
            let Some(file) = (if any { server.ready.get(with % server.ready.len()) } else { server.ready.first() }) else {
                break;
            };
            let file = *file;
            let stored = self.push(at, file).await?;
            if any || !stored {
                break;
            }
        }
        Ok(true)
    }

    /// One call of `archive_command`.
    async fn push(&mut self, at: usize, file: WalFile) -> Result<bool, String> {
        use PushError::{Abandoned, Conflict, NumberTaken, Parted, Rival};
        let server = self.truth.servers[at].clone();
        let archived = self.stage.segments(&self.truth).await;
        let pushed = self.stage.push(&server, file).await;
        self.tell(format!(
            "archive-push {file} of {at}: {}",
            pushed.as_ref().map_or_else(ToString::to_string, |p| format!("{p:?}"))
        ));
        match pushed {
            Ok(pushed) => {
                self.truth.servers[at].ready.retain(|other| *other != file);
                if matches!(pushed, Pushed::Stored { .. }) {
                    self.decisions.stored(&server, file, &archived);
                    accepted(&server, file, &archived)?;
                }
                Ok(true)
            }
            // A standby that lagged by whole segments takes over by a person's word.
            Err(Rival { .. }) if self.is_orderly && matches!(file, WalFile::History(_)) => {
                self.release_of(at).await?;
                self.stage
                    .push(&server, file)
                    .await
                    .map_err(|error| format!("{file} of {at} is released and refused: {error}"))?;
                self.decisions.stored(&server, file, &archived);
                self.truth.servers[at].ready.retain(|other| *other != file);
                Ok(true)
            }
            Err(Conflict { .. } | NumberTaken { .. } | Rival { .. } | Parted { .. } | Abandoned { .. }) if !self.is_orderly => {
                self.refused += 1;
                Ok(false)
            }
            Err(error) => Err(format!("{file} of server {at} is refused: {error}")),
        }
    }

    async fn backup(&mut self, on: usize, with: usize) -> Result<bool, String> {
        let Some(at) = self.pick(on, |server| server.writes() && !server.is_restored) else { return Ok(false) };
        self.truth.switch(at);
        let before = self.truth.servers[at].state();
        let start = self.truth.write(at, |wal, now| (wal.checkpoint(false, now), None)).lsn;
        for _ in 0..with % 3 {
            self.truth.transaction(at, 40);
        }
        let end = self.truth.write(at, |wal, _| (wal.backup_end(start), None));
        self.truth.switch(at);
        self.archive(at, false, 0).await.map(drop)?;
        // Not the one that was picked, when several wait.
        while let Some(file) = self.truth.servers[at].ready.first().copied() {
            if !self.push(at, file).await? {
                break;
            }
        }
        let server = self.truth.servers[at].clone();
        let numbers = start / SEGMENT..=(end.end - 1) / SEGMENT;
        let names = numbers.map(|number| WalFile::Segment(SegmentName::new(Timeline(server.timeline()), number, SEGMENT)));
        let names: Vec<WalFile> = names.collect();
        let is_proven = self.stage.proves(&server, &names).await;
        self.tell(format!(
            "backup of {at} from {} to {}: {}",
            Lsn(start),
            Lsn(end.end),
            if is_proven { "done" } else { "failed" }
        ));
        if is_proven {
            let taken = Taken { before, consistent: end.state };
            self.stage.commit(&self.truth, &server, (start, end.end), taken).await;
        }
        Ok(true)
    }

    fn volumes(&mut self, act: Act, on: usize, with: usize) {
        match act {
            Image => {
                let Some(at) = self.pick(on, |server| !server.is_dead) else { return };
                self.tell(format!("image {} of {at}", self.truth.images.len()));
                self.truth.images.push(self.truth.servers[at].clone());
            }
            Rollback | Clone if self.truth.images.is_empty() => {}
            Rollback => {
                let image = self.truth.images[with % self.truth.images.len()].clone();
                let place = image.place;
                if let Some(at) = self.truth.servers.iter().position(|server| server.place == place) {
                    self.tell(format!("the volume of {at} goes back to {}", Lsn(image.wal.at)));
                    let before = std::mem::replace(&mut self.truth.servers[at], image);
                    self.truth.buried.push(before);
                }
            }
            _ => {
                let mut image = self.truth.images[with % self.truth.images.len()].clone();
                image.place = self.truth.new_place();
                self.tell(format!("{} is a clone that was at {}", self.truth.servers.len(), Lsn(image.wal.at)));
                self.truth.servers.push(image);
            }
        }
    }

    fn standbys(&mut self, act: Act, on: usize, with: usize) {
        match act {
            Standby => {
                let Some(at) = self.pick(on, |server| server.writes() && !server.is_restored) else { return };
                let mut standby = self.truth.servers[at].cut(self.truth.servers[at].records.len());
                (standby.is_standby, standby.place) = (true, self.truth.new_place());
                self.tell(format!("{} is a standby of {at}", self.truth.servers.len()));
                self.truth.servers.push(standby);
            }
            Follow => {
                let Some(at) = self.pick(on, |server| server.is_standby && !server.is_dead) else { return };
                let standby = &self.truth.servers[at];
                let count = standby.records.len();
                let leads = |server: &Server| {
                    server.writes() && server.records.len() > count && server.records[count - 1].state == standby.state()
                };
                let Some(upstream) = self.pick(with, leads) else { return };
                let most = self.truth.servers[upstream].records.len();
                let mut followed = self.truth.servers[upstream].cut(count + 1 + with % (most - count));
                (followed.place, followed.is_standby) = (standby.place, true);
                self.tell(format!("{at} follows {upstream} to {}", Lsn(followed.wal.at)));
                self.truth.servers[at] = followed;
            }
            _ => {
                let Some(to) = self.pick(with, |server| server.writes() && !server.is_restored) else { return };
                let Some(at) = self.pick(on, |server| server.place != self.truth.servers[to].place) else { return };
                let mut joined = self.truth.servers[to].cut(self.truth.servers[to].records.len());
                (joined.place, joined.is_standby) = (self.truth.servers[at].place, true);
                self.tell(format!("{at} joins {to} as a standby"));
                let before = std::mem::replace(&mut self.truth.servers[at], joined);
                self.truth.buried.push(before);
            }
        }
    }

    /// A number that is free as far as the server sees: it asks the archive for one history file after the other.
    async fn free_timeline(&self, after: u32, sees: bool) -> u32 {
        let mut number = after + 1;
        while sees && self.stage.has(&self.truth, WalFile::History(Timeline(number))).await {
            number += 1;
        }
        number
    }

    async fn promote(&mut self, act: Act, on: usize, with: usize) {
        let Some(at) = self.pick(on, |server| server.is_standby && !server.is_dead && !server.is_restored) else { return };
        if act == Failover {
            let state = self.truth.servers[at].state();
            let follows = |server: &Server| server.writes() && server.records.iter().any(|record| record.state == state);
            if !self.truth.servers.iter().any(follows) {
                return;
            }
            self.truth.servers.iter_mut().filter(|server| follows(server)).for_each(|server| server.is_dead = true);
        }
        let (left, parent) = (self.truth.servers[at].left.clone(), self.truth.servers[at].timeline());
        let timeline = self.free_timeline(parent, act == Failover || !with.is_multiple_of(4)).await;
        self.truth.promote(at, timeline, &left, parent);
        self.tell(format!(
            "{act:?}: {at} goes on as timeline {timeline} from {}",
            Lsn(self.truth.servers[at].left.last().unwrap().1)
        ));
    }

    /// Some moment that the archive promises, and the server that would come of it.
    async fn some_moment(&mut self, with: usize) -> Result<Option<(Server, String)>, String> {
        let judge = Judge::new(&self.truth, &self.stage).await;
        let windows = judge.windows().await;
        if windows.is_empty() {
            return Ok(None);
        }
        let window = &windows[with % windows.len()];
        if judge.ends_with_its_parent(window) {
            return Ok(None);
        }
        let at = window.from_lsn.0 + (with as u64 * 7919) % (window.to_lsn.0 - window.from_lsn.0 + 1);
        let found = judge.find(&Target::Lsn(Lsn(at)), Some(window.timeline), true).await;
        let found = found.map_err(|error| format!("{} of timeline {} is refused: {error}", Lsn(at), window.timeline))?;
        let (state, ..) = judge.follow(&found)?;
        let mut server = self.truth.in_state(state).ok_or("the state is true and no server's")?;
        server.left = found.path.stretches().iter().filter_map(|s| Some((s.timeline.0, s.end?.0))).collect();
        let words = format!("{} on timeline {}", Lsn(at), window.timeline);
        (server.is_restored, server.is_standby) = (true, true);
        server.wal.timeline = found.path.timeline().0;
        // Behind a fork that lies after it, PostgreSQL writes a history file that nobody can follow.
        let is_before_a_fork = server.left.last().is_some_and(|(_, fork)| server.wal.at < *fork);
        Ok((!is_before_a_fork).then_some((server, words)))
    }

    async fn restore(&mut self, _on: usize, with: usize) -> Verdict {
        let Some((mut server, words)) = self.some_moment(with).await? else { return Ok(()) };
        server.place = self.truth.new_place();
        self.truth.servers.push(server);
        self.end_recovery(self.truth.servers.len() - 1, words, with).await;
        Ok(())
    }

    /// A restored server is promoted. Its parent is the timeline that recovery was told to follow.
    async fn end_recovery(&mut self, at: usize, words: String, with: usize) {
        let (left, parent) = (self.truth.servers[at].left.clone(), self.truth.servers[at].timeline());
        let timeline = self.free_timeline(parent, !with.is_multiple_of(5)).await;
        self.truth.promote(at, timeline, &left, parent);
        self.tell(format!("{at} is restored to {words}, and goes on as timeline {timeline}"));
    }

    async fn release(&mut self, on: usize) -> Result<bool, String> {
        let Some(at) = self.pick(on, |server| server.writes()) else { return Ok(false) };
        self.release_of(at).await?;
        Ok(true)
    }

    async fn release_of(&mut self, at: usize) -> Verdict {
        let archived = self.stage.segments(&self.truth).await;
        let released = self.stage.release(&self.truth, &self.truth.servers[at]).await;
        self.tell(format!("release of {at}: {released:?}"));
        if released.is_ok() {
            let server = &mut self.truth.servers[at];
            server.is_restored = false;
            let history = WalFile::History(Timeline(server.timeline()));
            let server = server.clone();
            if self.stage.has(&self.truth, history).await {
                self.decisions.stored(&server, history, &archived);
            }
            self.decisions.chosen = Some(server.path());
        }
        Ok(())
    }

    async fn expire(&mut self, with: usize) -> Result<bool, String> {
        let before = Judge::new(&self.truth, &self.stage).await.windows().await;
        let expired = self.stage.expire(1 + with as u32 % 3).await;
        self.tell(format!("expire: {expired:?}"));
        let judge = Judge::new(&self.truth, &self.stage).await;
        let (kept, after) = (self.stage.manifests().await, judge.windows().await);
        for window in before {
            let Some(id) = window.snapshots.iter().find(|id| kept.iter().any(|manifest| manifest.id == **id)) else { continue };
            let still = |other: &Window| {
                other.timeline == window.timeline && other.snapshots.contains(id) && other.to_lsn >= window.to_lsn
            };
            if !after.iter().any(still) {
                return Err(format!("expire took the window of timeline {} to {} from {id}", window.timeline, window.to_lsn));
            }
        }
        Ok(true)
    }

    async fn restore_over(&mut self, on: usize, with: usize) -> Result<bool, String> {
        let Some(at) = self.pick(on, |server| server.writes() && !server.is_restored) else { return Ok(false) };
        let Some((mut server, words)) = self.some_moment(with).await? else { return Ok(false) };
        let before = self.truth.servers[at].clone();
        let target = (Target::Lsn(Lsn(server.records.last().unwrap().lsn)), Timeline(server.timeline()));
        let plan = self.stage.plan_over(&self.truth, &before, target).await;
        self.tell(format!(
            "restore over {at} to {words}: {:?}",
            plan.as_ref().map(|plan| plan.replaced.as_ref().map(|r| r.loss.clone()))
        ));
        let Ok(plan) = plan else { return Ok(false) };
        self.judge_loss(&before, &server, &plan)?;
        self.stage.salvage(&before, &plan).await;
        server.place = before.place;
        let mut aside = std::mem::replace(&mut self.truth.servers[at], server);
        aside.ready.clear();
        self.truth.buried.push(aside);
        self.end_recovery(at, words, with).await;
        Ok(true)
    }

    /// What is said to be lost is what the server had committed and the copy does not have.
    fn judge_loss(&self, server: &Server, copy: &Server, plan: &Plan) -> Verdict {
        let Some(loss) = plan.replaced.as_ref().and_then(|replaced| replaced.loss.as_ref()) else { return Ok(()) };
        let both = server.records.iter().zip(&copy.records).take_while(|(one, two)| one.state == two.state).count();
        let lost = server.records[both..].iter().filter(|record| record.commit.is_some()).count() as u64;
        match (loss.transactions, loss.at_least) {
            _ if loss.unknown.is_some() => Ok(()),
            (said, false) if said != lost => Err(format!("LOST says {said}, and {lost} are")),
            (said, true) if said > lost => Err(format!("LOST says at least {said}, and {lost} are")),
            _ => Ok(()),
        }
    }

    fn undo(&mut self, on: usize) {
        let places: Vec<usize> = self.truth.servers.iter().map(|server| server.place).collect();
        let aside: Vec<usize> =
            (0..self.truth.buried.len()).filter(|at| places.contains(&self.truth.buried[*at].place)).collect();
        if aside.is_empty() {
            return;
        }
        let back = self.truth.buried[aside[on % aside.len()]].clone();
        let Some(at) = places.iter().position(|place| *place == back.place) else { return };
        self.tell(format!("undo: {at} is what it was, at {} of timeline {}", Lsn(back.wal.at), back.timeline()));
        let before = std::mem::replace(&mut self.truth.servers[at], back);
        self.truth.buried.push(before);
    }

    async fn lose(&mut self, with: usize) -> Result<bool, String> {
        let objects = self.stage.objects(&self.truth).await;
        if objects.is_empty() {
            return Ok(false);
        }
        let key = &objects[with % objects.len()];
        self.tell(format!("{key} is lost"));
        use lastgood::storage::Storage;
        self.stage.storage.delete(std::slice::from_ref(key)).await.unwrap();
        Ok(true)
    }
}
