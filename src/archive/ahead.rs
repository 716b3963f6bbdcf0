//! Look-ahead of recovery: one process that keeps the next segments ready in the spool for as long as recovery moves.
//!
//! Each `archive-get` leaves a note of what recovery asked for, and starts this process when none is at work. Its connections stay
//! open, so that a distant store costs a round trip for a segment, not a new connection for each. What does not lie in the spool it is
//! asked for, too ([`super::inquiry`]).
//!
//! # Invariants
//! - One process at a time: it holds the lock of [`Spool::lock_fetching`] for as long as it lives.
//! - What lies under a segment's name in the spool is whole and verified, and only what this start of the host put there is believed:
//!   nothing is flushed, so after a crash of the host it may be torn.
//! - It takes a bounded part of the disk, and leaves as much free.
//! - It says nothing: what fails here fails again, with its reason, when recovery asks for it.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::get::{self, GetError, Got};
use super::inquiry::{Desk, Inquiry};
use super::spool::Spool;
use crate::clock;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::repository::Cluster;

/// Bytes that look-ahead takes of the spool at most, whatever the size of a segment; one segment is always fetched ahead.
const ROOM_BYTES: u64 = 1 << 30;
/// Segments on their way at once. At 50 ms a segment of 16 MiB comes in about 0.1 s, and PostgreSQL replays one in 0.07.
const AT_ONCE: usize = 4;
/// Between two looks at what recovery asks for.
const LOOK: Duration = Duration::from_millis(10);
/// With everything ready and recovery silent for so long, nobody waits for this process; the next `archive-get` starts another.
const IDLE: Duration = Duration::from_secs(10);

/// At the archive's end, with recovery no further for so long. PostgreSQL asks a few times more there, one right after the other; a
/// standby that waits there asks every five seconds (`wal_retrieve_retry_interval`), which need not keep a process.
const LINGER: Duration = Duration::from_secs(3);

/// What to keep ready.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    /// What recovery has.
    pub segment: SegmentName,
    pub segment_bytes: u64,
    /// `[archive] fetch_ahead`: segments.
    pub count: usize,
    /// The last segment that recovery needs.
    pub until: Option<SegmentName>,
}

impl Ahead {
    /// Segments that are kept ready.
    pub fn window(&self) -> u64 {
        (self.count as u64).min(ROOM_BYTES / self.segment_bytes).max(1)
    }

    /// Whether there is something to fetch, as far as the last look at the archive's end tells.
    pub fn is_worth_it(&self, spool: &Spool) -> bool {
        let end = spool.end().filter(|end| end.timeline == self.segment.timeline);
        let distance = end.and_then(|end| end.number(self.segment_bytes)?.checked_sub(self.segment.number(self.segment_bytes)?));
        distance.is_none_or(|distance| distance == 0 || distance > self.window())
    }

    /// What to have ready when recovery has `at`, in order.
    fn wanted(&self, at: SegmentName) -> impl Iterator<Item = SegmentName> {
        let Ahead { segment_bytes, until, .. } = *self;
        let number = at.number(segment_bytes);
        let numbers = number.into_iter().flat_map(move |number| number + 1..=number + self.window());
        let names = numbers.map(move |number| SegmentName::new(at.timeline, number, segment_bytes));
        names.take_while(move |name| until.is_none_or(|until| name.position() <= until.position()))
    }
}

/// Why nothing more is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The archive ends, something failed, or others need the disk more.
    Absent,
    /// Recovery is over, and what was ready is removed.
    Over,
    /// Recovery has not moved for a while.
    Idle,
    /// Nothing is left that recovery needs.
    Until,
    /// Told to.
    BrokenOff,
}

/// Keeps the spool filled behind what recovery asks for, and answers what else it asks, until there is nothing more to do or
/// `broken_off` comes. `data_directory` tells when recovery is over.
pub async fn follow(
    cluster: &Cluster,
    system: SystemId,
    ahead: Ahead,
    desk: &Desk,
    data_directory: &Path,
    broken_off: impl Future<Output = ()>,
) -> End {
    let spool = desk.spool();
    spool.sweep_fetched();
    desk.sweep();
    spool.set_end(None);
    let progress = Progress::new(ahead.segment);
    let mut work = Work { cluster, system, ahead, desk, spool, progress, running: JoinSet::new() };
    let end = tokio::select! {
        end = work.keep_filled(data_directory) => end,
        () = broken_off => End::BrokenOff,
    };
    work.running.shutdown().await;
    desk.sweep();
    if end == End::Over {
        spool.forget_fetched(|_| true);
    }
    end
}

struct Work<'a> {
    cluster: &'a Cluster,
    system: SystemId,
    ahead: Ahead,
    desk: &'a Desk,
    spool: &'a Spool,
    progress: Progress,
    running: JoinSet<Done>,
}

/// What a task did.
enum Done {
    Fetched(SegmentName, Came),
    Answered(Inquiry, Option<Got>),
}

impl Work<'_> {
    async fn keep_filled(&mut self, data_directory: &Path) -> End {
        let was_recovering = is_recovering(data_directory);
        loop {
            if was_recovering && !is_recovering(data_directory) {
                return End::Over;
            }
            if let Some(asked) = self.spool.asked() {
                self.progress.follow(asked);
            }
            self.answer_all();
            self.fetch_all();
            if self.running.is_empty()
                && let Some(end) = self.progress.end(self.ahead)
            {
                return end;
            }
            tokio::select! {
                Some(done) = self.running.join_next() => match done {
                    Ok(done) => self.note(done),
                    // It panicked: nobody knows what it left.
                    Err(_) => self.progress.has_failed = true,
                },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn answer_all(&mut self) {
        for inquiry in self.desk.pending() {
            if self.progress.answering.contains(&inquiry) {
                continue;
            }
            if !self.has_room() {
                inquiry.refuse();
                continue;
            }
            self.progress.answering.insert(inquiry.clone());
            let (cluster, system, spool) = (self.cluster.clone(), self.system, self.spool.clone());
            self.running.spawn(async move {
                let got = inquiry.answer(&cluster, system, &spool).await;
                Done::Answered(inquiry, got)
            });
        }
    }

    /// As much as look-ahead takes is left to others.
    fn has_room(&self) -> bool {
        self.spool.free_bytes() >= self.ahead.window() * self.ahead.segment_bytes
    }

    fn fetch_all(&mut self) {
        let Work { ahead, spool, .. } = *self;
        while !self.progress.has_failed && self.progress.coming.len() < AT_ONCE {
            let is_there = |name: &SegmentName| self.progress.ended_at.is_none_or(|ended_at| *name < ended_at);
            let is_needed = |name: &SegmentName| self.progress.is_new(*name) && !spool.fetched(*name).exists();
            let Some(name) = ahead.wanted(self.progress.at).take_while(is_there).find(is_needed) else { break };
            if !self.has_room() {
                self.progress.has_failed = true;
                break;
            }
            self.progress.coming.insert(name);
            self.running.spawn(fetch(self.cluster.clone(), self.system, name, spool.clone()));
        }
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Fetched(name, came) => {
                // Several are asked for at once, and what lies behind the end may answer first.
                if came == Came::Absent && self.spool.end().is_none_or(|end| name < end) {
                    self.spool.set_end(Some(name));
                }
                self.progress.came(name, came);
            }
            Done::Answered(inquiry, got) => {
                self.progress.answering.remove(&inquiry);
                if let (WalFile::Segment(name), Some(Got::Fetched)) = (inquiry.file, got)
                    && self.progress.ended_at.is_some_and(|ended_at| name >= ended_at)
                {
                    self.spool.set_end(None);
                    self.progress.goes_on();
                }
            }
        }
    }
}

/// Where recovery is, and what was fetched for it.
struct Progress {
    at: SegmentName,
    moved: Instant,
    coming: BTreeSet<SegmentName>,
    /// Fetched by this process. Recovery may have taken it before it is seen that it asked for it.
    had: BTreeSet<SegmentName>,
    /// The first that is absent.
    ended_at: Option<SegmentName>,
    /// Something failed, or there is no room: the next call may have more luck with another process.
    has_failed: bool,
    /// Questions that are being answered.
    answering: BTreeSet<Inquiry>,
}

impl Progress {
    fn new(at: SegmentName) -> Progress {
        let (coming, had, answering) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Progress { at, moved: clock::monotonic(), coming, had, ended_at: None, has_failed: false, answering }
    }

    fn follow(&mut self, asked: SegmentName) {
        if asked == self.at {
            return;
        }
        // Recovery that begins anew takes again what it took before.
        let goes_on = asked > self.at;
        self.had.retain(|name| goes_on && *name > asked);
        (self.at, self.moved) = (asked, clock::monotonic());
    }

    fn is_new(&self, name: SegmentName) -> bool {
        !self.coming.contains(&name) && !self.had.contains(&name)
    }

    fn came(&mut self, name: SegmentName, came: Came) {
        self.coming.remove(&name);
        self.had.insert(name);
        match came {
            Came::Whole => {}
            Came::Absent => self.ended_at = Some(self.ended_at.map_or(name, |ended_at| ended_at.min(name))),
            Came::Failed => self.has_failed = true,
        }
    }

    /// What was absent is there now.
    fn goes_on(&mut self) {
        self.ended_at = None;
        let at = self.at;
        self.had.retain(|name| *name <= at);
    }

    /// Whether there is nothing more to do, when nothing is on its way.
    fn end(&self, ahead: Ahead) -> Option<End> {
        let silent = self.moved.elapsed();
        if self.has_failed {
            return Some(End::Absent);
        }
        if self.ended_at.is_some() {
            return (silent > LINGER).then_some(End::Absent);
        }
        if ahead.until.is_some_and(|until| self.at.position() >= until.position()) {
            return (silent > LINGER).then_some(End::Until);
        }
        (silent > IDLE).then_some(End::Idle)
    }
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Whole,
    Absent,
    Failed,
}

async fn fetch(cluster: Cluster, system: SystemId, name: SegmentName, spool: Spool) -> Done {
    let fetched = get::fetch_to(&cluster, system, WalFile::Segment(name), &spool.fetched(name), spool.coming(name)).await;
    let came = match fetched {
        Ok(()) => Came::Whole,
        Err(GetError::Repo(error)) if error.is_not_found() => Came::Absent,
        Err(_) => Came::Failed,
    };
    Done::Fetched(name, came)
}

/// A server asks for WAL as long as one of its signal files is there. Of whoever else asks (`pg_rewind`, a person), nobody knows when it
/// is over.
fn is_recovering(data_directory: &Path) -> bool {
    ["recovery.signal", "standby.signal"].iter().any(|name| data_directory.join(name).exists())
}
