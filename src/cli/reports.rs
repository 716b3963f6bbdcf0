//! `lastgood drill --reports`: what drills and restores left behind, to be read.

use comfy_table::{Table, presets};

use super::context::{Global, Place};
use super::keys::Need;
use super::output;
use crate::repo::report::{self, Kind, Report};

/// As many as fill a screen.
const SHOWN: usize = 20;

/// All of them with `""`, else the one whose id begins so.
pub async fn run(global: &Global, wanted: &str) -> anyhow::Result<u8> {
    let place = Place::open_to(global, Need::Read).await?;
    let ids = report::ids(&place.cluster).await?;
    if wanted.is_empty() {
        let reports = report::newest(&place.cluster, SHOWN).await?;
        match global.json {
            true => reports.iter().for_each(|report| output::json(&serde_json::json!({ "event": "report", "report": report }))),
            false => list(&reports, ids.len()),
        }
        return Ok(0);
    }
    let found: Vec<&String> = ids.iter().filter(|id| id.starts_with(wanted)).collect();
    let [id] = found[..] else {
        anyhow::bail!(
            "{} begin with {wanted:?}; `lastgood drill --reports` lists them",
            output::count(found.len() as u64, "report")
        );
    };
    let report = Report::read(&place.cluster, id).await?;
    if global.json {
        output::json(&serde_json::json!({ "event": "report", "report": report }));
    } else {
        whole(&report);
    }
    Ok(0)
}

fn list(reports: &[Report], all: usize) {
    if all == 0 {
        output::line("no report yet: `lastgood drill` and every restore leave one");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // On a narrow terminal only what one looks for first.
    let is_wide = output::columns() == 0 || output::columns() >= 100;
    let shown = |row: [String; 6]| row.into_iter().enumerate().filter_map(move |(at, cell)| (at != 4 || is_wide).then_some(cell));
    table.set_header(shown(["report", "of a", "outcome", "readable", "newest lost", "target"].map(String::from)));
    let seconds = |seconds: Option<f64>| seconds.map_or("unknown".into(), output::duration);
    for report in reports {
        let readable = if report.kind == Kind::Drill { seconds(report.rto_s) } else { String::new() };
        let newest = report.rpo_s.map(output::duration).unwrap_or_default();
        table.add_row(shown([
            report.id.clone(),
            kind(report).into(),
            outcome(report),
            readable,
            newest,
            output::escaped(&report.target).into_owned(),
        ]));
    }
    output::block(table);
    if all > reports.len() {
        output::line(format!("these are the newest of {all}, without those that cannot be read"));
    }
    output::line("one of them whole: lastgood drill --reports ID");
}

fn kind(report: &Report) -> &'static str {
    match report.kind {
        Kind::Drill => "drill",
        Kind::Restore => "restore",
    }
}

fn outcome(report: &Report) -> String {
    match report.passed {
        true => "passed".into(),
        false => format!("FAILED ({})", report.failures().count()),
    }
}

fn whole(report: &Report) {
    let who = &report.who;
    output::line(format!("report {} of a {} of cluster {}", report.id, kind(report), report.cluster));
    let local = output::local_time(report.began).map(|local| format!(" ({local} here)")).unwrap_or_default();
    output::entry("began", format!("{}{local}, {}", output::time(report.began), output::ago(report.began)));
    output::entry("by", format!("{}@{}", who.user, who.host));
    output::entry("to", &report.target);
    if let Some(snapshot) = &report.snapshot {
        let timeline = report.timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
        output::entry("from", format!("snapshot {snapshot}{timeline}"));
    }
    if let Some(at) = report.replayed_to {
        let last = report.last_transaction.map(|last| format!(", the last transaction at {}", output::exact_time(last)));
        output::entry("replayed", format!("up to {at}{}", last.unwrap_or_default()));
    }
    if let Some(version) = &report.server_version {
        output::entry("server", format!("PostgreSQL {version}"));
    }
    super::drill::show(report, None);
}
