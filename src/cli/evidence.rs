//! `lastgood check --storage`: how the stores behaved, per operation and hour, from what every process of this host noted.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;

use super::output;
use crate::storage::measure::Cell;
use crate::storage::measure::history::{self, Hour};

/// Shows it all. There is nothing to fail: it is evidence, and `check` without `--storage` says what is wrong now.
pub fn show(spool: &Path, as_json: bool) -> anyhow::Result<u8> {
    let hours = history::load(spool).with_context(|| format!("read the measurements in {}", spool.display()))?;
    if as_json {
        for hour in &hours {
            for (operation, cell) in &hour.operations {
                output::json(&serde_json::json!({ "event": "storage", "place": hour.place, "hour": time(hour.begins),
                    "operation": operation, "calls": cell.calls, "failed": cell.failed(), "bytes": cell.bytes,
                    "errors": cell.errors, "last_words": cell.words, "p50_ms": ms(cell.quantile_us(0.5)),
                    "p95_ms": ms(cell.quantile_us(0.95)), "slowest_ms": ms(cell.slowest_us) }));
            }
        }
        return Ok(0);
    }
    if hours.is_empty() {
        output::line(format!("nothing is noted yet in {}; every command on this host notes its calls there", spool.display()));
        return Ok(0);
    }
    let mut places: BTreeMap<&str, Vec<&Hour>> = BTreeMap::new();
    for hour in &hours {
        places.entry(&hour.place).or_default().push(hour);
    }
    for (place, hours) in places {
        let (first, last) = (hours[0].begins, hours[hours.len() - 1].begins + 3600);
        output::line(format!("{place}, {} to {}", time(first), time(last)));
        output::line(heading("in all"));
        let mut all: BTreeMap<&str, Cell> = BTreeMap::new();
        for (operation, cell) in hours.iter().flat_map(|hour| &hour.operations) {
            all.entry(operation).or_default().merge(cell);
        }
        for (operation, cell) in &all {
            output::line(row("", operation, cell));
            for (kind, count) in &cell.errors {
                let words = cell.words.get(kind).map(|words| format!("; the last one: {words}")).unwrap_or_default();
                output::line(format!("    {count} {kind}{words}"));
            }
        }
        output::line(heading("by hour"));
        for hour in hours {
            for (operation, cell) in &hour.operations {
                output::line(row(&time(hour.begins), operation, cell));
            }
        }
    }
    Ok(0)
}

fn heading(what: &str) -> String {
    format!(
        "  {what:<22} {:<11} {:>8} {:>8} {:>10} {:>10} {:>10} {:>11}",
        "operation", "calls", "failed", "half in", "95 % in", "slowest", "bytes"
    )
}

fn row(at: &str, operation: &str, cell: &Cell) -> String {
    let bytes = if cell.bytes == 0 { "-".to_string() } else { output::bytes(cell.bytes) };
    let [half, most] = [0.5, 0.95].map(|share| short(cell.quantile_us(share)));
    format!(
        "  {at:<22} {operation:<11} {:>8} {:>8} {half:>10} {most:>10} {:>10} {bytes:>11}",
        cell.calls,
        cell.failed(),
        short(cell.slowest_us)
    )
}

fn time(begins: i64) -> String {
    Timestamp::from_second(begins).map(output::time).unwrap_or_default()
}

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

fn short(us: u64) -> String {
    match us {
        us if us < 10_000 => format!("{:.1} ms", ms(us)),
        us if us < 1_000_000 => format!("{:.0} ms", ms(us)),
        us => format!("{:.1} s", us as f64 / 1e6),
    }
}
