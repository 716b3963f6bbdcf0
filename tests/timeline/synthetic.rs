//! WAL made by hand: small servers that write records, fork, forget and are archived in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use lastgood::postgres::lsn::{Lsn, SystemId, Timeline};
use lastgood::postgres::wal::index::MappedFiles;
use lastgood::postgres::wal::index::fold::Fold;
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::postgres::wal::reader::{PAGE_BYTES, RECORD_HEADER_BYTES};
use lastgood::repo::manifest::Manifest;
use lastgood::repo::repository::Cluster;
use lastgood::repo::segment::{self, Said, Stored};
use lastgood::repo::vault::Vault;
use lastgood::storage::memory::MemoryStorage;

pub const SEGMENT: u64 = 1 << 20;
pub const SYSTEM: SystemId = SystemId(7_000_000_000_000_000_001);
const MAGIC_15: u16 = 0xD110;
/// Seconds from 1970 to 2000.
const EPOCH_S: i64 = 946_684_800;

/// What was written, as the writer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub lsn: Lsn,
    /// Of a commit.
    pub commit: Option<Timestamp>,
    pub minimal: bool,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub timeline: Timeline,
    pub text: String,
    at: u64,
    previous: u64,
    xid: u32,
    /// Microseconds since 1970.
    pub clock: i64,
    pub segments: BTreeMap<SegmentName, Vec<u8>>,
    pub written: Vec<Written>,
}

impl Server {
    pub fn new() -> Server {
        let mut server = Server {
            timeline: Timeline(1),
            text: String::new(),
            // Where a group of segments begins that can be rolled up.
            at: 16 * SEGMENT,
            previous: 15 * SEGMENT + 40,
            xid: 700,
            clock: 1_760_000_000_000_000,
            segments: BTreeMap::new(),
            written: Vec::new(),
        };
        server.checkpoint();
        server
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.clock).unwrap()
    }

    /// Where the next record will begin, at the earliest.
    pub fn position(&self) -> Lsn {
        Lsn(self.at.next_multiple_of(8))
    }

    fn since_2000(&self) -> [u8; 8] {
        (self.clock - EPOCH_S * 1_000_000).to_le_bytes()
    }

    fn page_header(&mut self, remaining: u32) {
        let first = self.at.is_multiple_of(SEGMENT);
        let flags = u16::from(remaining > 0) | if first { 2 } else { 0 };
        let mut header = Vec::new();
        header.extend(MAGIC_15.to_le_bytes());
        header.extend(flags.to_le_bytes());
        header.extend(self.timeline.0.to_le_bytes());
        header.extend(self.at.to_le_bytes());
        header.extend(remaining.to_le_bytes());
        header.extend([0; 4]);
        if first {
            header.extend(SYSTEM.0.to_le_bytes());
            header.extend((SEGMENT as u32).to_le_bytes());
            header.extend((PAGE_BYTES as u32).to_le_bytes());
        }
        self.raw(&header);
    }

    fn raw(&mut self, bytes: &[u8]) {
        let name = SegmentName::new(self.timeline, self.at / SEGMENT, SEGMENT);
        let place = (self.at % SEGMENT) as usize;
        let segment = self.segments.entry(name).or_insert_with(|| vec![0; SEGMENT as usize]);
        segment[place..place + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len() as u64;
    }

    fn record(&mut self, manager: u8, info: u8, xid: u32, main: &[u8]) -> Lsn {
        let mut payload = Vec::new();
        match main.len() {
            0 => {}
            1..=255 => payload.extend([0xFF, main.len() as u8]),
            _ => {
                payload.push(0xFE);
                payload.extend((main.len() as u32).to_le_bytes());
            }
        }
        payload.extend(main);
        self.at = self.at.next_multiple_of(8);
        if self.at.is_multiple_of(PAGE_BYTES as u64) {
            self.page_header(0);
        }
        let lsn = self.at;
        let mut record = Vec::new();
        record.extend(((RECORD_HEADER_BYTES + payload.len()) as u32).to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&payload), &record);
        record.extend(crc.to_le_bytes());
        record.extend(payload);
        let mut rest = &record[..];
        loop {
            let room = (PAGE_BYTES as u64 - self.at % PAGE_BYTES as u64) as usize;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.raw(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
            self.page_header(rest.len() as u32);
        }
        self.previous = lsn;
        self.written.push(Written { lsn: Lsn(lsn), commit: None, minimal: false });
        Lsn(lsn)
    }

    pub fn commit(&mut self) -> Lsn {
        self.xid += 1;
        let lsn = self.record(1, 0, self.xid, &self.since_2000());
        self.written.last_mut().unwrap().commit = Some(self.now());
        lsn
    }

    /// A record that means nothing, of this length.
    pub fn fill(&mut self, bytes: usize) -> Lsn {
        self.record(0, 0x20, 0, &vec![0xA5; bytes])
    }

    pub fn checkpoint(&mut self) -> Lsn {
        let mut main = Vec::new();
        main.extend(self.at.to_le_bytes());
        main.extend(self.timeline.0.to_le_bytes());
        main.extend(self.timeline.0.to_le_bytes());
        main.extend([0; 48]);
        main.extend((self.clock / 1_000_000).to_le_bytes());
        self.record(0, 0x10, 0, &main)
    }

    /// `wal_level` changes to this number.
    pub fn wal_level(&mut self, level: u32) -> Lsn {
        let mut main = Vec::new();
        [100u32, 8, 10, 0, 64, level].iter().for_each(|number| main.extend(number.to_le_bytes()));
        main.extend([0, 0]);
        let lsn = self.record(0, 0x60, 0, &main);
        self.written.last_mut().unwrap().minimal = level == 0;
        lsn
    }

    pub fn switch(&mut self) -> Lsn {
        let lsn = self.record(0, 0x40, 0, &[]);
        self.at = self.at.next_multiple_of(SEGMENT);
        lsn
    }

    /// The server as it was when it had written what begins before `lsn`: a volume that was rolled back, or a copy.
    pub fn back_to(&self, lsn: Lsn) -> Server {
        let mut server = self.clone();
        server.written.retain(|written| written.lsn < lsn);
        server.previous = server.written.last().unwrap().lsn.0;
        server.at = lsn.0;
        let number = lsn.segment(SEGMENT);
        // A record never begins behind a page header that was not written with it.
        let page = lsn.0 - lsn.0 % PAGE_BYTES as u64;
        let header = if page.is_multiple_of(SEGMENT) { 40 } else { 24 };
        if lsn.0 == page + header {
            server.at = page;
        }
        server.segments.retain(|name, _| name.number(SEGMENT).unwrap() <= number);
        if let Some(segment) = server.segments.get_mut(&SegmentName::new(self.timeline, number, SEGMENT)) {
            segment[(server.at % SEGMENT) as usize..].fill(0);
        }
        server
    }

    /// Ends recovery before the record at `lsn`, on another timeline.
    pub fn promote(&self, lsn: Lsn, timeline: Timeline) -> Server {
        let mut server = self.back_to(lsn);
        let number = server.at / SEGMENT;
        let own = server.segments.remove(&SegmentName::new(self.timeline, number, SEGMENT));
        server.segments.clear();
        if let Some(own) = own.filter(|_| !server.at.is_multiple_of(SEGMENT)) {
            server.segments.insert(SegmentName::new(timeline, number, SEGMENT), own);
        }
        let fork = Lsn(server.at);
        server.text = format!("{}{}\t{fork}\tno reason\n", self.text, self.timeline.0);
        server.timeline = timeline;
        let mut main = server.since_2000().to_vec();
        main.extend(timeline.0.to_le_bytes());
        main.extend(self.timeline.0.to_le_bytes());
        server.record(0, 0x90, 0, &main);
        server
    }
}

pub fn cluster() -> (Cluster, Arc<MemoryStorage>) {
    let memory = Arc::new(MemoryStorage::new());
    (Cluster::unchecked(Vault::new(memory.clone(), None), "shop"), memory)
}

/// Stores a segment as a push does.
pub async fn archive(cluster: &Cluster, name: SegmentName, bytes: &[u8]) -> Stored {
    let mut fold = Fold::new(name.start(SEGMENT).unwrap(), SEGMENT, MappedFiles::new());
    fold.feed(bytes);
    let summary = serde_json::to_value(fold.finish().summary).unwrap();
    let encoded = segment::encode(bytes, 1, None, &[], &mut |_| {}).unwrap();
    segment::store(cluster, SYSTEM, &WalFile::Segment(name), encoded, Said { previous: None, summary: Some(summary) })
        .await
        .unwrap()
}

pub async fn archive_history(cluster: &Cluster, server: &Server) {
    let encoded = segment::encode(server.text.as_bytes(), 1, None, &[], &mut |_| {}).unwrap();
    segment::store(cluster, SYSTEM, &WalFile::History(server.timeline), encoded, Said::default()).await.unwrap();
}

/// What a snapshot between two positions leaves, without its files.
pub fn manifest(server: &Server, number: usize, (start_lsn, stop_lsn): (Lsn, Lsn), stop_time: Timestamp) -> Manifest {
    let name = |number| SegmentName::new(server.timeline, number, SEGMENT);
    let part = serde_json::json!({ "raw_bytes": 0, "sha256": "0".repeat(64) });
    let value = serde_json::json!({
        "format": 1, "id": format!("20261201T0000{number:02}Z-{number:04x}"), "cluster": "shop", "system_identifier": SYSTEM,
        "major": 15, "version": "15", "control_version": 1300, "catalog_version": 1, "block_bytes": 8192,
        "blocks_per_file": 131072, "wal_segment_bytes": SEGMENT, "data_checksums": true, "timeline": server.timeline,
        "start_lsn": start_lsn, "stop_lsn": stop_lsn, "start_time": stop_time, "stop_time": stop_time, "listed_ns": 0,
        "from_standby": false, "backup_label": "", "tablespaces": [], "data_directory": "/none", "owner": "postgres",
        "group": "postgres", "mode": 448, "file_lists": [], "pack_table": part, "wal_table": part,
        "first_segment": name(start_lsn.segment(SEGMENT)), "last_segment": name(stop_lsn.last_segment_before(SEGMENT)),
        "totals": { "files": 0, "raw_bytes": 0, "new_bytes": 0, "stored_bytes": 0, "read_bytes": 0 },
        "root": "0".repeat(64), "written_by": "a test"
    });
    serde_json::from_value(value).unwrap()
}
