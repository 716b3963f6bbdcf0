//! Bar charts: the time of each tool, for the work that matters most.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::results::Summary;
use crate::settings::PLACES;

/// What gets a chart, and its title.
const CHARTS: [(&str, &str); 6] = [
    ("full", "Full snapshot"),
    ("restore", "Restore"),
    ("second-1%", "Snapshot after 1 % of the pages changed"),
    ("push", "Archiving 64 segments, a process each"),
    ("fetch-ahead", "Fetching 64 segments, with look-ahead"),
    ("recovery", "Recovering 64 segments"),
];
const OURS: RGBColor = RGBColor(0x1b, 0x7f, 0x5c);
const OTHERS: RGBColor = RGBColor(0xa9, 0xb4, 0xbf);
const INK: RGBColor = RGBColor(0x26, 0x2c, 0x33);
const WIDTH: u32 = 720;
const ROW: u32 = 26;
const HEAD: u32 = 44;
const LABELS: i32 = 190;

/// Charts that can be drawn from what was measured.
pub fn names(summaries: &[Summary]) -> Vec<String> {
    let drawn = CHARTS.iter().filter(|(work, _)| !rows(summaries, work).is_empty());
    drawn.map(|(work, _)| file_name(work)).collect()
}

fn file_name(work: &str) -> String {
    format!("{}.svg", work.replace('%', "pct"))
}

/// Draws them into `out`.
pub fn draw(out: &Path, summaries: &[Summary]) -> Result<()> {
    for (work, title) in CHARTS {
        let rows = rows(summaries, work);
        if !rows.is_empty() {
            // The library's errors are not thread-safe, so their words are taken.
            chart(&out.join(file_name(work)), title, &rows).map_err(|error| anyhow!("draw {work}: {error}"))?;
        }
    }
    Ok(())
}

fn rows<'a>(summaries: &'a [Summary], work: &str) -> Vec<&'a Summary> {
    let of = |place: &'static str| summaries.iter().filter(move |s| s.place == place && s.rounds > 0);
    PLACES.into_iter().flat_map(of).filter(|s| s.work == work).collect()
}

fn chart(path: &Path, title: &str, rows: &[&Summary]) -> Result<(), Box<dyn std::error::Error>> {
    let height = HEAD + ROW * rows.len() as u32 + 12;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
    area.draw(&Text::new(format!("{title}: seconds, least and most as a line; less is better"), (12, 14), text(15)))?;
    let longest = rows.iter().map(|s| s.wall_s.max).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let room = f64::from(WIDTH as i32 - LABELS - 90);
    let at = |seconds: f64| LABELS + (seconds / longest * room) as i32;
    for (number, row) in rows.iter().enumerate() {
        let top = (HEAD + ROW * number as u32) as i32;
        let middle = top + ROW as i32 / 2 - 2;
        let color = if row.tool == "lastgood" { OURS } else { OTHERS };
        area.draw(&Text::new(format!("{}, {}", row.place, row.tool), (12, top + 4), text(13)))?;
        area.draw(&Rectangle::new([(LABELS, top), (at(row.wall_s.median), top + ROW as i32 - 6)], color.filled()))?;
        area.draw(&PathElement::new([(at(row.wall_s.min), middle), (at(row.wall_s.max), middle)], INK.stroke_width(2)))?;
        area.draw(&Text::new(format!("{:.2}", row.wall_s.median), (at(row.wall_s.max) + 8, top + 4), text(13)))?;
    }
    area.present()?;
    Ok(())
}
