//! What is true: servers, what each wrote and has, and every state that any of them was ever in.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lastgood::postgres::history::History;
use lastgood::postgres::lsn::{SystemId, Timeline};
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::repo::object::Sha;

use crate::support::wal_writer::{NOOP, SEGMENT, WalWriter, Written, XLOG, lsn};

pub const MAJOR: u32 = 15;

/// What a server was after a record: all records that led there, in one number.
pub type State = u64;

pub fn state_after(before: State, lsn: u64, crc: u32) -> State {
    let mut hasher = DefaultHasher::new();
    (before, lsn, crc).hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub lsn: u64,
    pub end: u64,
    pub timeline: u32,
    /// The state that it leads to.
    pub state: State,
    /// When the transaction that it ends was committed.
    pub commit: Option<Timestamp>,
}

/// A server: what its data directory is. A copy of it is a copy of its disk.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where it lies; the copy of a disk that is put back lies where it was.
    pub place: usize,
    pub wal: WalWriter,
    pub records: Vec<Record>,
    pub begin: State,
    /// Lines of its history file: what was left, and where.
    pub left: Vec<(u32, u64)>,
    /// Done and not archived, as `archive_status` says.
    pub ready: Vec<WalFile>,
    /// What lies in `pg_wal` and may have to be archived.
    pub files: BTreeMap<String, Arc<Vec<u8>>>,
    /// Follows another server or an archive, and writes nothing.
    pub is_standby: bool,
    /// Was restored by lastgood and not released.
    pub is_restored: bool,
    /// Stopped for good.
    pub is_dead: bool,
}

impl Server {
    pub fn timeline(&self) -> u32 {
        self.wal.timeline
    }

    pub fn state(&self) -> State {
        self.records.last().map_or(self.begin, |record| record.state)
    }

    pub fn writes(&self) -> bool {
        !self.is_dead && !self.is_standby
    }

    /// Its history file.
    pub fn history_text(&self) -> String {
        self.left.iter().map(|(timeline, end)| format!("{timeline}\t{}\tno reason\n", lsn(*end))).collect()
    }

    pub fn path(&self) -> History {
        History::parse(Timeline(self.timeline()), &self.history_text()).unwrap()
    }

    /// The same server as it was after its first `count` records.
    pub fn cut(&self, count: usize) -> Server {
        let mut server = self.clone();
        server.records.truncate(count);
        if let Some(last) = server.records.last() {
            server.wal.cut(last.timeline, last.lsn, last.end);
            server.left.retain(|(timeline, _)| *timeline < last.timeline);
        }
        server.ready.clear();
        server.files.clear();
        server
    }
}

/// A segment that some server finished.
#[derive(Debug, Clone)]
pub struct Content {
    pub bytes: Arc<Vec<u8>>,
}

/// All servers, images of their disks, and what any of them ever was.
#[derive(Debug)]
pub struct Truth {
    pub now: Timestamp,
    pub servers: Vec<Server>,
    pub images: Vec<Server>,
    /// What servers were before something took their place.
    pub buried: Vec<Server>,
    /// Each state, with the timeline and the end of the record that led there.
    pub states: HashMap<State, (u32, u64)>,
    pub contents: HashMap<Sha, Content>,
    pub system: SystemId,
    next: u64,
    places: usize,
}

impl Truth {
    pub fn new() -> Truth {
        let system = SystemId(7_300_000_000_000_000_001);
        let wal = WalWriter::new(MAJOR, system, 1);
        let first = Server {
            place: 0,
            wal,
            records: Vec::new(),
            begin: state_after(0, 0, 0),
            left: Vec::new(),
            ready: Vec::new(),
            files: BTreeMap::new(),
            is_standby: false,
            is_restored: false,
            is_dead: false,
        };
        let mut truth = Truth {
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            states: HashMap::from([(first.begin, (1, 0))]),
            servers: vec![first],
            images: Vec::new(),
            buried: Vec::new(),
            contents: HashMap::new(),
            system,
            next: 0,
            places: 1,
        };
        truth.write(0, |wal, now| (wal.checkpoint(true, now), None));
        truth
    }

    pub fn tick(&mut self) -> Timestamp {
        self.now += SignedDuration::from_secs(7);
        self.now
    }

    /// A server as it was in a state.
    pub fn in_state(&self, state: State) -> Option<Server> {
        let mut all = self.servers.iter().chain(&self.images).chain(&self.buried);
        all.find_map(|server| {
            let at = server.records.iter().position(|record| record.state == state)?;
            Some(server.cut(at + 1))
        })
    }

    pub fn new_place(&mut self) -> usize {
        self.places += 1;
        self.places - 1
    }

    /// Lets a server write a record; what that finishes becomes ready.
    pub fn write(
        &mut self,
        server: usize,
        record: impl FnOnce(&mut WalWriter, Timestamp) -> (Written, Option<Timestamp>),
    ) -> Record {
        let now = self.tick();
        let server = &mut self.servers[server];
        let before = server.wal.number();
        let (written, commit) = record(&mut server.wal, now);
        let state = state_after(server.state(), written.lsn, written.crc);
        let record = Record { lsn: written.lsn, end: written.end, timeline: server.wal.timeline, state, commit };
        server.records.push(record);
        self.states.insert(state, (record.timeline, record.end));
        let finished: Vec<u64> = (before..server.wal.number()).filter(|n| server.wal.segment(*n).is_some()).collect();
        for number in finished {
            let name = WalFile::Segment(server.wal.name(number));
            let bytes = server.wal.segment(number).unwrap().clone();
            self.contents.entry(Sha::of(&bytes)).or_insert_with(|| Content { bytes: bytes.clone() });
            server.files.insert(name.to_string(), bytes);
            if !server.is_restored {
                server.ready.push(name);
            }
        }
        record
    }

    /// A transaction that no other server ever writes.
    pub fn transaction(&mut self, server: usize, bytes: usize) -> Record {
        self.next += 1;
        let mut payload = self.next.to_le_bytes().to_vec();
        payload.resize(bytes.max(8), 0x5a);
        let xid = 700 + self.servers[server].records.len() as u32;
        self.write(server, |wal, _| (wal.append(XLOG, NOOP, xid, &payload), None));
        self.write(server, |wal, now| (wal.commit(xid, now), Some(now)))
    }

    /// Leaves `gap` bytes of the segment.
    pub fn fill(&mut self, server: usize, gap: u64) {
        let room = self.servers[server].wal.room();
        // Headers of pages take their part.
        let headers = (room / 8192 + 2) * 24;
        if room > gap + headers + 200 {
            let bytes = room - gap - headers;
            self.transaction(server, bytes as usize);
        }
    }

    pub fn switch(&mut self, server: usize) {
        if self.servers[server].wal.room() != SEGMENT {
            self.write(server, |wal, _| (wal.switch(), None));
        }
    }

    /// Ends recovery on a new timeline. `parent` is what recovery followed.
    pub fn promote(&mut self, at: usize, timeline: u32, parent: &[(u32, u64)], parent_timeline: u32) {
        let server = &mut self.servers[at];
        let end = server.wal.at;
        let mut left = parent.to_vec();
        left.push((parent_timeline, end));
        (server.is_standby, server.left) = (false, left);
        if !end.is_multiple_of(SEGMENT)
            && let Some(bytes) = server.wal.segment(end / SEGMENT)
        {
            let partial = WalFile::Partial(SegmentName::new(Timeline(parent_timeline), end / SEGMENT, SEGMENT));
            server.files.insert(partial.to_string(), bytes.clone());
            server.ready.push(partial);
        }
        let history = WalFile::History(Timeline(timeline));
        server.files.insert(history.to_string(), Arc::new(server.history_text().into_bytes()));
        server.ready.insert(0, history);
        if server.is_restored {
            server.ready.clear();
        }
        self.write(at, |wal, now| (wal.promote(timeline, now), None));
    }
}
