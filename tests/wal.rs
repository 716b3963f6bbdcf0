//! What we read of PostgreSQL's own files, against PostgreSQL's own tools: WAL records, pages, the control file.

mod control;
mod corpus;
mod damage;
mod index;
mod load;
mod pages;

use std::collections::HashMap;

use jiff::Timestamp;
use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::scratch::Stop;
use lastgood::postgres::wal::index::MappedFiles;
use lastgood::postgres::wal::index::fold::Fold;
use lastgood::postgres::wal::transaction::{Event, Kind};

use crate::support::world::World;
use load::Wal;

/// One line of pg_waldump: where the record begins, its transaction, and what it says of itself.
pub struct Dumped {
    lsn: Lsn,
    xid: u32,
    manager: String,
    description: String,
}

fn waldump(world: &World, wal: &Wal) -> Vec<Dumped> {
    let (first, last) = (wal.files.first().unwrap(), wal.files.last().unwrap());
    let mut command = world.server.command("pg_waldump");
    command.env("TZ", "UTC").arg("--path").arg(world.server.data().join("pg_wal"));
    let output = command.arg(first.0.to_string()).arg(last.0.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let field = |line: &str, from: &str, to: &str| {
        line.split_once(from).and_then(|(_, rest)| rest.split_once(to)).unwrap_or_else(|| panic!("{line}")).0.trim().to_string()
    };
    let parse = |line: &str| Dumped {
        lsn: field(line, "lsn: ", ",").parse().unwrap(),
        xid: field(line, "tx:", ",").parse().unwrap(),
        manager: field(line, "rmgr:", " len"),
        description: line.split_once("desc: ").unwrap().1.to_string(),
    };
    String::from_utf8_lossy(&output.stdout).lines().map(parse).collect()
}

/// The event that a line of pg_waldump stands for.
fn event(line: &Dumped) -> Option<Event> {
    let (word, rest) = line.description.split_once(' ')?;
    let lsn = line.lsn;
    if line.manager == "XLOG" && word == "RESTORE_POINT" {
        return Some(Event { lsn, time: Timestamp::UNIX_EPOCH, kind: Kind::RestorePoint { name: rest.into() } });
    }
    if line.manager != "Transaction" || !matches!(word, "COMMIT" | "COMMIT_PREPARED" | "ABORT" | "ABORT_PREPARED") {
        return None;
    }
    let (xid, rest) = match rest.split_once(": ") {
        Some((xid, rest)) if xid.bytes().all(|b| b.is_ascii_digit()) => (xid.parse().unwrap(), rest),
        _ => (line.xid, rest),
    };
    let time = format!("{}Z", rest.split_once(" UTC").unwrap().0).parse().unwrap();
    let kind = if word.starts_with("ABORT") {
        Kind::Abort { xid }
    } else {
        let list = rest.split_once("; subxacts:").map_or("", |(_, list)| list.split(';').next().unwrap());
        Kind::Commit { xid, subtransactions: list.split_whitespace().map(|xid| xid.parse().unwrap()).collect() }
    };
    Some(Event { lsn, time, kind })
}

/// Restore points: pg_waldump does not print their time.
fn without_time(mut event: Event) -> Event {
    if matches!(event.kind, Kind::RestorePoint { .. }) {
        event.time = Timestamp::UNIX_EPOCH;
    }
    event
}

/// A summary must not hide what its segment holds: what begins in it is counted, or the summary says that it is open.
fn check_summaries(wal: &Wal, events: &[Event]) {
    for (name, bytes) in &wal.files {
        let start = name.start(wal.segment_bytes).unwrap();
        let summarize = |pieces: usize| {
            let mut fold = Fold::new(start, wal.segment_bytes, MappedFiles::new());
            bytes.chunks(pieces).for_each(|piece| fold.feed(piece));
            fold.finish().summary
        };
        let summary = summarize(bytes.len());
        assert_eq!(summary, summarize(8191), "{name}: the pieces do not matter");
        assert_eq!(summary, summarize(100_003), "{name}: the pieces do not matter");
        let here: Vec<&Event> =
            events.iter().filter(|e| e.lsn.segment(wal.segment_bytes) == start.segment(wal.segment_bytes)).collect();
        let counted = summary.commits as usize + summary.aborts as usize + summary.restore_points.len();
        assert!(counted == here.len() || (summary.open && counted + 1 == here.len()), "{name}: {summary:?}, {}", here.len());
        for event in &here[..counted] {
            match &event.kind {
                Kind::RestorePoint { name } => assert!(summary.restore_points.contains(name)),
                Kind::Commit { xid, .. } | Kind::Abort { xid } => {
                    assert!((summary.lowest_xid..=summary.highest_xid).contains(&Some(*xid)), "{summary:?} {event:?}");
                    assert!((summary.earliest..=summary.latest).contains(&Some(event.time)), "{summary:?} {event:?}");
                }
            }
        }
    }
}

/// Every record is found where pg_waldump finds it, with the same transaction, and every end of a transaction and restore
/// point means the same: the base of rules 39 and 43.
async fn same_as_waldump(segment_megabytes: u32) {
    let segments = format!("--wal-segsize={segment_megabytes}");
    let mut world = World::bare(15, &[&segments], load::SETTINGS, None).await;
    world.start().await;
    let known = load::play(&world, u64::from(segment_megabytes) << 20).await;
    world.server.stop(Stop::Immediate);
    let wal = Wal::read(&world, &known);
    let dumped = waldump(&world, &wal);
    let (records, events) = wal.walk();
    for (ours, theirs) in records.iter().zip(&dumped) {
        assert_eq!((ours.lsn, ours.xid), (theirs.lsn, theirs.xid), "{} {}", theirs.manager, theirs.description);
        let manager = ["XLOG", "Transaction"].get(ours.manager as usize);
        assert!(manager.is_none_or(|manager| *manager == theirs.manager), "{} {}", theirs.manager, theirs.description);
    }
    assert_eq!(records.len(), dumped.len());
    let expected: Vec<Event> = dumped.iter().filter_map(event).collect();
    let found: Vec<Event> = events.iter().cloned().map(without_time).collect();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert!(wal.files.len() > 1 && found.len() > 200, "{} segments, {} events", wal.files.len(), found.len());
    check_summaries(&wal, &events);
    known.check(&events);
    index::same_blocks(&wal, &dumped);
    index::pieces_do_not_matter(&wal);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_those_of_pg_waldump_in_segments_of_1_mb() {
    same_as_waldump(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_those_of_pg_waldump_in_segments_of_16_mb() {
    same_as_waldump(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_those_of_pg_waldump_in_segments_of_64_mb() {
    same_as_waldump(64).await;
}

/// Where there is no pg_waldump: each transaction that the client knows is found once, with its id, its kind, and a time
/// between the client's looks at the server's clock.
async fn known_transactions(major: u32) {
    let mut world = World::bare(major, &["--wal-segsize=1"], load::SETTINGS, None).await;
    world.start().await;
    let known = load::play(&world, 1 << 20).await;
    world.server.stop(Stop::Immediate);
    let wal = Wal::read(&world, &known);
    let (_, events) = wal.walk();
    known.check(&events);
    check_summaries(&wal, &events);
    let mut ends: HashMap<u32, usize> = HashMap::new();
    events.iter().filter_map(Event::xid).for_each(|xid| *ends.entry(xid).or_default() += 1);
    let twice: Vec<_> = ends.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "transactions that ended more than once: {twice:?}");
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            known_transactions($major).await;
        }
    )*};
}

versions!(
    transactions_of_postgresql_13 13,
    transactions_of_postgresql_14 14,
    transactions_of_postgresql_15 15,
    transactions_of_postgresql_16 16,
    transactions_of_postgresql_17 17,
    transactions_of_postgresql_18 18
);
