//! Every measurement as a row.

use std::fmt::Write;

use comfy_table::{Table, presets};

use crate::results::{Spread, Summary};
use crate::settings::PLACES;
use crate::tools::RIVALS;

const TITLES: [&str; 10] = [
    "work",
    "tool",
    "time (least – most)",
    "until flushed",
    "lastgood's time is … of it",
    "CPU s",
    "peak MiB",
    "read, written MB",
    "stored MB",
    "requests",
];

/// A table without lines between rows.
pub fn plain(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_header(titles.iter().copied());
    table
}

pub fn terminal(summaries: &[Summary]) -> Table {
    let titles: Vec<&str> = ["repository"].into_iter().chain(TITLES).collect();
    let mut table = plain(&titles);
    for place in PLACES {
        for summary in of_place(summaries, place) {
            table.add_row([place.to_string()].into_iter().chain(cells(summaries, summary)));
        }
    }
    table
}

pub fn markdown(summaries: &[Summary]) -> String {
    let mut text = String::new();
    for place in PLACES {
        let rows = of_place(summaries, place);
        if rows.is_empty() {
            continue;
        }
        // Writing into a string cannot fail.
        let _ = writeln!(text, "\n## {place}\n\n| {} |\n|{}", TITLES.join(" | "), "---|".repeat(TITLES.len()));
        for summary in rows {
            let _ = writeln!(text, "| {} |", cells(summaries, summary).join(" | "));
        }
    }
    text
}

/// Rows of one kind of repository, in the order of the work and of the tools.
fn of_place<'a>(summaries: &'a [Summary], place: &str) -> Vec<&'a Summary> {
    let mut works: Vec<&str> = Vec::new();
    for summary in summaries {
        if !works.contains(&summary.work.as_str()) {
            works.push(&summary.work);
        }
    }
    let position = |list: &[&str], word: &str| list.iter().position(|w| *w == word).unwrap_or(list.len());
    let mut rows: Vec<&Summary> = summaries.iter().filter(|s| s.place == place).collect();
    rows.sort_by_key(|s| (position(&works, &s.work), position(&RIVALS, &s.tool)));
    rows
}

fn cells(summaries: &[Summary], summary: &Summary) -> [String; 10] {
    let (work, tool) = (summary.work.clone(), summary.tool.clone());
    if summary.rounds == 0 {
        let mut cells: [String; 10] = Default::default();
        (cells[0], cells[1], cells[2]) = (work, tool, "failed, see below".into());
        return cells;
    }
    let ours = summaries.iter().find(|s| s.place == summary.place && s.work == work && s.tool == RIVALS[0] && s.rounds > 0);
    let share = ours.filter(|_| tool != RIVALS[0]).map(|ours| ours.wall_s.median / summary.wall_s.median);
    let megabytes = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    let requests: Vec<String> = summary.requests.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    [
        work,
        tool,
        time(&summary.wall_s, summary.times),
        each(summary.durable_s.median, summary.times),
        share.map_or("".into(), |share| format!("{share:.2}")),
        format!("{:.2}", summary.cpu_s.median),
        format!("{:.0}", summary.peak_bytes as f64 / f64::from(1 << 20)),
        format!("{}, {}", megabytes(summary.read_bytes), megabytes(summary.written_bytes)),
        if summary.stored_bytes == 0 { "".into() } else { format!("{:.1}", summary.stored_bytes as f64 / 1e6) },
        requests.join(", "),
    ]
}

/// What failed, and why: a line for each kind of failure.
pub fn failures(summaries: &[Summary]) -> String {
    let mut text = String::new();
    for summary in summaries {
        if let Some(error) = summary.errors.first() {
            let line = error.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', " ");
            let (place, work, tool, times) = (&summary.place, &summary.work, &summary.tool, summary.errors.len());
            // Writing into a string cannot fail.
            let _ = writeln!(text, "- {place}, {work}, {tool}, {times} times: {line}");
        }
    }
    text
}

/// Of one time: a segment, when there were many.
fn each(seconds: f64, times: usize) -> String {
    if times > 1 { format!("{:.1} ms each", seconds / times as f64 * 1000.0) } else { format!("{seconds:.2} s") }
}

pub fn time(spread: &Spread, times: usize) -> String {
    let bare = |seconds: f64| {
        let text = each(seconds, times);
        text.split(' ').next().unwrap_or_default().to_string()
    };
    format!("{} ({} – {})", each(spread.median, times), bare(spread.min), bare(spread.max))
}
