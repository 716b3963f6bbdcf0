//! What the tables held at every position of the WAL, and what a restore to a target has to bring.
//!
//! The positions come from PostgreSQL itself (`pg_walinspect`), not from the program under test.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::{Timestamp, ToSpan};
use lastgood::postgres::lsn::Lsn;

use super::dice::Dice;

/// The end of a transaction.
#[derive(Debug)]
pub struct Event {
    pub lsn: u64,
    pub time: Timestamp,
    pub xid: u32,
    pub is_commit: bool,
}

#[derive(Debug)]
pub struct Snapshot {
    pub id: String,
    pub stop_lsn: u64,
    pub stop_time: Timestamp,
}

#[derive(Debug)]
pub struct Model {
    /// Content after each committed transaction that changed the tables.
    pub contents: HashMap<u32, String>,
    /// Transactions of the second session; each wrote its id.
    pub noise: HashSet<u32>,
    /// Ids of subtransactions whose whole transaction was committed.
    pub subtransactions: Vec<u32>,
    /// In order of the WAL.
    pub events: Vec<Event>,
    /// Where records begin, in order.
    pub records: Vec<u64>,
    pub points: BTreeMap<String, Vec<u64>>,
    /// In the order they were taken.
    pub snapshots: Vec<Snapshot>,
    /// Content before the first transaction of the model.
    pub first: String,
}

#[derive(Debug)]
pub enum Wanted {
    /// All transactions whose end begins before this position, and no other.
    Everything {
        before: u64,
    },
    Refusal,
}

#[derive(Debug)]
pub struct Target {
    pub to: String,
    pub inclusive: bool,
    pub promote: bool,
    pub wanted: Wanted,
}

impl Target {
    pub fn args(&self) -> Vec<&str> {
        let mut args = vec!["--to", &self.to];
        if !self.inclusive {
            args.push("--exclusive");
        }
        if self.promote {
            args.extend(["--target-action", "promote"]);
        }
        args
    }
}

impl Model {
    /// Content of the tables, and of the second session's, with all that ended before `before`.
    pub fn contents(&self, before: u64) -> (String, String) {
        let commits = || self.events.iter().filter(|e| e.is_commit && e.lsn < before);
        let last = commits().rev().find_map(|e| self.contents.get(&e.xid)).unwrap_or(&self.first);
        let mut noise: Vec<u32> = commits().map(|e| e.xid).filter(|xid| self.noise.contains(xid)).collect();
        noise.sort_unstable();
        let noise: Vec<String> = noise.iter().map(u32::to_string).collect();
        (last.clone(), noise.join(" "))
    }

    fn begin(&self) -> &Snapshot {
        &self.snapshots[0]
    }

    fn at_lsn(&self, lsn: u64, inclusive: bool) -> Wanted {
        let first = self.records[self.records.partition_point(|record| *record < lsn)..].first();
        match first {
            _ if lsn < self.begin().stop_lsn => Wanted::Refusal,
            None => Wanted::Refusal,
            Some(record) => Wanted::Everything { before: record + u64::from(inclusive) },
        }
    }

    fn at_time(&self, time: Timestamp) -> Wanted {
        if time < self.begin().stop_time {
            return Wanted::Refusal;
        }
        let later = |event: &&Event| event.time > time && event.lsn >= self.begin().stop_lsn;
        // After the last one there is nothing to stop before: what the archive has is all there was at that time.
        let last = self.events.iter().map(|event| event.time).max();
        let at_the_end =
            if last.is_some_and(|last| time <= last) { Wanted::Everything { before: u64::MAX } } else { Wanted::Refusal };
        self.events.iter().find(later).map_or(at_the_end, |event| Wanted::Everything { before: event.lsn })
    }

    fn at_event(&self, event: &Event, inclusive: bool) -> Wanted {
        match event.lsn < self.begin().stop_lsn {
            true => Wanted::Refusal,
            false => Wanted::Everything { before: event.lsn + u64::from(inclusive) },
        }
    }

    /// A random target, and what it has to bring.
    pub fn target(&self, dice: &mut Dice) -> Target {
        let inclusive = dice.chance(50);
        // Mostly commits that changed the tables: subtransactions that were rolled back are many, and change nothing.
        let kind = match dice.below(10) {
            0..6 => |model: &Model, event: &Event| model.contents.contains_key(&event.xid),
            6..8 => |model: &Model, event: &Event| model.noise.contains(&event.xid),
            _ => |_: &Model, _: &Event| true,
        };
        let events: Vec<&Event> = self.events.iter().filter(|event| kind(self, event)).collect();
        let event = if events.is_empty() { &self.events[0] } else { events[dice.below(events.len())] };
        let kind = dice.below(16);
        let (to, wanted) = match kind {
            0..4 => (event.xid.to_string(), self.at_event(event, inclusive)),
            4..6 => (event.time.to_string(), self.at_time(event.time)),
            6 => {
                let time = event.time - 1.microsecond();
                (time.to_string(), self.at_time(time))
            }
            7 => {
                let (from, to) =
                    (self.begin().stop_time.as_microsecond(), self.events[self.events.len() - 1].time.as_microsecond());
                let time = Timestamp::from_microsecond(from + dice.below((to - from) as usize) as i64).unwrap();
                (time.to_string(), self.at_time(time))
            }
            8 => (lsn(event.lsn), self.at_lsn(event.lsn, inclusive)),
            9 => {
                let record = self.records[dice.below(self.records.len())] + dice.below(2) as u64;
                (lsn(record), self.at_lsn(record, inclusive))
            }
            10..12 => {
                let (name, at) = self.points.iter().nth(dice.below(self.points.len())).unwrap();
                let reachable: Vec<&u64> = at.iter().filter(|at| **at >= self.begin().stop_lsn).collect();
                let wanted = match reachable.as_slice() {
                    [one] => Wanted::Everything { before: *one + 1 },
                    // None, or several: nobody can tell which is meant.
                    _ => Wanted::Refusal,
                };
                (format!("name:{name}"), wanted)
            }
            12 => {
                let snapshot = dice.pick(&self.snapshots);
                (snapshot.id.clone(), Wanted::Everything { before: snapshot.stop_lsn })
            }
            13 => ("latest".into(), Wanted::Everything { before: u64::MAX }),
            14 => self.unreachable(dice),
            _ if self.subtransactions.is_empty() => ("no such point".into(), Wanted::Refusal),
            _ => (dice.pick(&self.subtransactions).to_string(), Wanted::Refusal),
        };
        // A transaction id and an LSN have a side before them; with `--exclusive`, everything else is refused.
        let has_side = matches!(kind, 0..4 | 8 | 9);
        let inclusive = inclusive || !has_side && dice.chance(90);
        let wanted = if inclusive || has_side { wanted } else { Wanted::Refusal };
        Target { to, inclusive, promote: dice.chance(25), wanted }
    }

    fn unreachable(&self, dice: &mut Dice) -> (String, Wanted) {
        let last_time = self.events.iter().map(|e| e.time).max().unwrap();
        let to = match dice.below(6) {
            0 => (last_time + 240.hours()).to_string(),
            1 => (self.begin().stop_time - 1.microsecond()).to_string(),
            2 => lsn(self.records[self.records.len() - 1] + 1),
            3 => lsn(self.begin().stop_lsn - 1),
            4 => (self.events.iter().map(|e| e.xid).max().unwrap() + 1000).to_string(),
            _ => "name:there is no such point".into(),
        };
        (to, Wanted::Refusal)
    }

    pub fn summary(&self) -> String {
        format!(
            "{} records, {} ends of transactions, {} of them in the model, {} restore points, {} snapshots",
            self.records.len(),
            self.events.len(),
            self.contents.len(),
            self.points.len(),
            self.snapshots.len()
        )
    }
}

fn lsn(position: u64) -> String {
    Lsn(position).to_string()
}
