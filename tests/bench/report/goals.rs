//! The goals of issue 4, and whether they are met: ratios of medians of one run.

use std::fmt::Write;

use serde::Serialize;

use crate::results::Summary;
use crate::settings::PLACES;
use crate::tools::RIVALS;

const MIB: f64 = (1 << 20) as f64;
/// Recovery that takes this much longer than with `cp` still counts as limited by PostgreSQL.
const AS_FAST: f64 = 1.1;

/// One goal on one kind of repository.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    pub place: String,
    pub what: String,
    /// What was wished for, in words.
    pub wanted: String,
    /// What came out, in the same terms; absent when something of it was not measured.
    pub value: Option<f64>,
    pub met: Option<bool>,
}

/// Judges everything that was measured.
pub fn judge(summaries: &[Summary]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for place in PLACES {
        if summaries.iter().any(|s| s.place == place) {
            goals.extend(of_place(&Measurements { summaries, place }));
        }
    }
    goals
}

/// What was measured on one kind of repository.
struct Measurements<'a> {
    summaries: &'a [Summary],
    place: &'a str,
}

impl<'a> Measurements<'a> {
    fn of(&self, work: &str, tool: &str) -> Option<&'a Summary> {
        let wanted = |s: &&Summary| s.place == self.place && s.work == work && s.tool == tool && s.rounds > 0;
        self.summaries.iter().find(wanted)
    }

    fn wall(&self, work: &str, tool: &str) -> Option<f64> {
        self.of(work, tool).map(|s| s.wall_s.median)
    }

    fn cpu(&self, work: &str, tool: &str) -> Option<f64> {
        self.of(work, tool).map(|s| s.cpu_s.median)
    }

    /// How many times as fast as another tool we are.
    fn faster(&self, work: &str, than: &str) -> Option<f64> {
        Some(self.wall(work, than)? / self.wall(work, RIVALS[0])?)
    }

    fn at_least(&self, what: String, bound: f64, value: Option<f64>) -> Goal {
        self.goal(what, format!("≥ {bound}"), value, value.map(|value| value >= bound))
    }

    fn at_most(&self, what: String, bound: f64, value: Option<f64>) -> Goal {
        self.goal(what, format!("≤ {bound}"), value, value.map(|value| value <= bound))
    }

    fn goal(&self, what: String, wanted: String, value: Option<f64>, met: Option<bool>) -> Goal {
        Goal { place: self.place.into(), what, wanted, value, met }
    }
}

fn of_place(m: &Measurements<'_>) -> Vec<Goal> {
    let [ours, pgbackrest, walrus] = RIVALS;
    let mut goals = Vec::new();
    let faster_than_pgbackrest = [1.4, 2.0, 3.0][PLACES.iter().position(|place| *place == m.place).unwrap_or(0)];
    let what = |tool: &str| format!("full: as fast as {tool}, times");
    goals.push(m.at_least(what(pgbackrest), faster_than_pgbackrest, m.faster("full", pgbackrest)));
    if m.place != "distant" {
        goals.push(m.at_least(what(walrus), 1.0, m.faster("full", walrus)));
    }
    if m.place == "directory" {
        let share = m.cpu("full", ours).zip(m.cpu("full", "limit")).map(|(ours, limit)| ours / limit);
        goals.push(m.at_most("full: CPU time against the limit, times".into(), 1.15, share));
    }
    let best = m.wall("restore", pgbackrest).into_iter().chain(m.wall("restore", walrus)).reduce(f64::min);
    let restore = best.zip(m.wall("restore", ours)).map(|(best, ours)| best / ours);
    goals.push(m.at_least("restore: as fast as the best of them, times".into(), 1.3, restore));
    let over = m.wall("second-0", ours).zip(m.wall("second-0", "start/stop")).map(|(ours, own)| ours - own);
    goals.push(m.at_most("second after 0 changes: over PostgreSQL's start and stop, s".into(), 1.5, over));
    let what = format!("second after 1 %: as fast as {pgbackrest}, times");
    goals.push(m.at_least(what, 2.0, m.faster("second-1%", pgbackrest)));
    if m.place == "directory" {
        let wall = m.wall("push", ours).zip(m.wall("push", walrus)).map(|(ours, theirs)| ours / theirs);
        let cpu = m.cpu("push", ours).zip(m.cpu("push", walrus)).map(|(ours, theirs)| ours / theirs);
        goals.push(m.at_most(format!("push: time against {walrus}, times"), 0.6, wall));
        goals.push(m.at_most(format!("push: CPU time against {walrus}, times"), 0.6, cpu));
    }
    let recovery = m.wall("recovery", ours).zip(m.wall("recovery", "cp")).map(|(ours, cp)| ours / cp);
    goals.push(m.at_most("recovery: time against PostgreSQL with cp, times".into(), AS_FAST, recovery));
    let peak = m.summaries.iter().filter(|s| s.place == m.place && s.tool == ours && s.rounds > 0).map(|s| s.peak_bytes).max();
    goals.push(m.at_most("peak memory everywhere, MiB".into(), 256.0, peak.map(|bytes| bytes as f64 / MIB)));
    let push = m.of("push", ours).map(|s| s.peak_process_bytes as f64 / MIB);
    goals.push(m.at_most("peak memory of a push, MiB".into(), 16.0, push));
    goals
}

impl Goal {
    pub fn cells(&self) -> [String; 5] {
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "not met",
            None => "not measured",
        };
        let value = self.value.map_or("".into(), |value| format!("{value:.2}"));
        [self.place.clone(), self.what.clone(), self.wanted.clone(), value, met.into()]
    }
}

const TITLES: [&str; 5] = ["repository", "goal", "wanted", "measured", ""];

pub fn markdown(goals: &[Goal]) -> String {
    let mut text = format!("| {} |\n|---|---|---|---|---|\n", TITLES.join(" | "));
    for goal in goals {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "| {} |", goal.cells().join(" | "));
    }
    text
}

pub fn terminal(goals: &[Goal]) -> comfy_table::Table {
    let mut table = super::table::plain(&TITLES);
    for goal in goals {
        table.add_row(goal.cells());
    }
    table
}
