//! Two runs beside each other: whether what they say of the same work lies within what their rounds differ by.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::goals;
use super::table::time;
use crate::results::{Spread, Summary};
use crate::settings::PLACES;

/// Medians that are no further apart than this agree although the rounds of each run were closer: rounds follow each other at once,
/// and know nothing of how a machine changes in an hour.
const NEAR: f64 = 0.05;

/// Compares the `results.json` of two runs, as a page of Markdown.
pub fn compare(one: &Path, other: &Path) -> Result<String> {
    let (one, other) = (summaries(one)?, summaries(other)?);
    let mut text = String::from(
        "# Two runs beside each other\n\nWritten by `side_by_side compare`; [how to read it](README.md). \
         Medians with the least and the most. Two runs agree where the spreads of their rounds overlap, or their medians are within 5 %.\n",
    );
    let (mut rows, mut agree) = (0, 0);
    let mut tables = String::new();
    for place in PLACES {
        let pairs: Vec<_> = one.iter().filter(|s| s.place == place).filter_map(|s| Some((s, same(&other, s)?))).collect();
        if pairs.is_empty() {
            continue;
        }
        writeln!(tables, "\n## {place}\n\n| work | tool | first run | second run | agree |\n|---|---|---|---|---|")?;
        for (first, second) in pairs {
            let is_same = agrees(&first.wall_s, &second.wall_s);
            (rows, agree) = (rows + 1, agree + usize::from(is_same));
            let (times, word) = (first.times, if is_same { "yes" } else { "no" });
            let (first_time, second_time) = (time(&first.wall_s, times), time(&second.wall_s, times));
            writeln!(tables, "| {} | {} | {first_time} | {second_time} | {word} |", first.work, first.tool)?;
        }
    }
    writeln!(
        text,
        "\n{agree} of {rows} times agree.\n\n## Goals\n\n| repository | goal | wanted | first run | second run |\n|---|---|---|---|---|"
    )?;
    let others = goals::judge(&other);
    for first in goals::judge(&one) {
        // One of the runs may have left out a repository.
        let Some(second) = others.iter().find(|other| (&other.place, &other.what) == (&first.place, &first.what)) else {
            continue;
        };
        let [place, what, wanted, value, met] = first.cells();
        let [.., value_again, met_again] = second.cells();
        writeln!(text, "| {place} | {what} | {wanted} | {value} {met} | {value_again} {met_again} |")?;
    }
    Ok(text + &tables)
}

fn summaries(path: &Path) -> Result<Vec<Summary>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let all: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(serde_json::from_value(all["summaries"].clone())?)
}

fn same<'a>(summaries: &'a [Summary], wanted: &Summary) -> Option<&'a Summary> {
    let key = |s: &Summary| (s.place.clone(), s.work.clone(), s.tool.clone());
    summaries.iter().find(|s| key(s) == key(wanted) && s.rounds > 0 && wanted.rounds > 0)
}

fn agrees(one: &Spread, other: &Spread) -> bool {
    let overlap = one.min <= other.max && other.min <= one.max;
    overlap || (one.median - other.median).abs() <= NEAR * one.median.max(other.median)
}
