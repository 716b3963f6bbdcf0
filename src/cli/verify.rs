//! `lastgood verify`

use std::time::Duration;

use super::context::{self, Global, Place};
use super::quiet::{self, Quiet};
use super::{error, moment, output, places, progress};
use crate::monitor::Monitor;
use crate::repo::lease::{BACKUP, Exclusive};
use crate::repo::manifest::Manifest;
use crate::timeline::archive::Archive;
use crate::timeline::catalogue;
use crate::upkeep::reindex::{self, Bounds, Reindexed};
use crate::upkeep::rounds::{self, Budget};
use crate::upkeep::verify::{self, Report, Request};

/// Read everything that restores would need, and name what is damaged and what that costs
///
/// Exits with 7 when anything is damaged or missing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  lastgood verify\n  lastgood verify 20261121T010000Z-ab12 --quick\n  lastgood verify --budget 50GB\n  \
        lastgood verify --repair\n  lastgood verify --quick --reindex"
)]
pub struct Args {
    /// Only this snapshot (its id, or the beginning of it), and the WAL that follows it
    snapshot: Option<String>,
    /// Check existence and sizes only
    #[arg(long)]
    quick: bool,
    /// Also make the roll-ups of the WAL index that are missing, from the segments where nothing else has it
    #[arg(long, conflicts_with = "budget")]
    reindex: bool,
    /// Put sound copies from the mirrors in the place of what is damaged or missing
    ///
    /// A damaged object is deleted when a sound one, proven to the last byte, is at hand.
    #[arg(long, conflicts_with_all = ["quick", "budget"])]
    repair: bool,
    /// Read only so much, like 50GB or 30min, and go on from there the next time: what was never read, then what was read longest ago
    #[arg(long, value_name = "SIZE|TIME", value_parser = budget, conflicts_with_all = ["snapshot", "quick"])]
    budget: Option<Budget>,
    #[command(flatten)]
    pub quiet: Quiet,
}

/// Sizes in powers of ten or, with an `i`, of two.
fn budget(text: &str) -> Result<Budget, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at].parse().map_err(|_| "write it as 50GB or 30min")?;
    let size = |factor: u64| number.checked_mul(factor).map(Budget::Bytes);
    let time = |seconds: u64| number.checked_mul(seconds).map(|s| Budget::Time(Duration::from_secs(s)));
    let budget = match text[at..].trim_start() {
        "MB" => size(1_000_000),
        "GB" => size(1_000_000_000),
        "TB" => size(1_000_000_000_000),
        "MiB" => size(1 << 20),
        "GiB" => size(1 << 30),
        "TiB" => size(1 << 40),
        "s" => time(1),
        "min" => time(60),
        "h" => time(3600),
        _ => None,
    };
    budget.filter(|_| number > 0).ok_or_else(|| "use MB, GB, TB, MiB, GiB, TiB, s, min or h: 50GB, 30min".into())
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let place = Place::open(global).await?;
    if let Some(budget) = args.budget {
        return portion(&place, budget, global.json).await;
    }
    let mut manifests = place.cluster.manifests().await?;
    if let Some(wanted) = &args.snapshot {
        manifests.retain(|(id, _)| id.starts_with(wanted.as_str()));
        if manifests.is_empty() {
            return Err(crate::timeline::find::FindError::UnknownSnapshot { id: wanted.clone() }.into());
        }
    }
    let mut archives = Vec::new();
    for history in &place.record.histories {
        let mut archive = Archive::load(&place.cluster, history.system_identifier, history.wal_segment_bytes.into()).await?;
        archive.decide(&place.record);
        archives.push(archive);
    }
    let monitor = progress::monitor(global.json);
    let request = Request { quick: args.quick, threads: context::threads(place.config.restore.threads) };
    let newest = manifests.iter().rev().find_map(|(_, manifest)| manifest.as_ref().ok().cloned());
    let report = verify::verify(&place.cluster, &archives, manifests, &request, monitor.clone()).await?;
    let reindexed = match args.reindex {
        true => {
            // Nobody expires segments meanwhile: a roll-up says that they are there.
            let lease = Exclusive::take(&place.cluster, BACKUP, "reindex", "").await?;
            let done = roll_up(&place, &mut archives, newest, &*monitor).await;
            lease.release().await;
            Some(done?)
        }
        false => None,
    };
    drop(monitor);
    if global.json {
        output::json(&serde_json::json!({ "event": "result", "quick": args.quick, "report": report, "reindexed": reindexed }));
    } else {
        show(&report, args.quick);
        if let Some(reindexed) = reindexed {
            show_reindexed(&reindexed);
        }
    }
    if args.repair && !report.problems.is_empty() {
        return places::repair(&place, &report, global.json).await;
    }
    // Nothing to verify is no reason to be green (rule 60).
    let sound = report.problems.is_empty() && report.snapshots > 0;
    Ok(if sound { 0 } else { error::DAMAGE })
}

/// Makes what is missing of the WAL index, for every history of the cluster.
async fn roll_up(
    place: &Place,
    archives: &mut [Archive],
    newest: Option<Manifest>,
    monitor: &dyn Monitor,
) -> anyhow::Result<Reindexed> {
    let catalogue = match &newest {
        // Without it, mapped catalogs are looked for where initdb put them.
        Some(manifest) => catalogue::of_snapshot(&place.cluster, manifest).await.ok().flatten().unwrap_or_default(),
        None => Default::default(),
    };
    let mapped = catalogue::mapped(&catalogue);
    let mut all = Reindexed::default();
    for archive in archives {
        let spool = moment::spool(&place.config, archive.system, place.config.postgres.data_directory.as_ref());
        let local = |name| spool.as_ref().and_then(|spool| spool.index(name));
        let done = reindex::reindex(archive, &local, mapped.clone(), Bounds::NONE, monitor).await?;
        all.written += done.written;
        all.read += done.read;
        all.without += done.without;
        all.left += done.left;
    }
    Ok(all)
}

fn show_reindexed(done: &Reindexed) {
    output::line(format!(
        "WAL index: {} written, {} read for it",
        output::count(done.written, "roll-up"),
        output::count(done.read, "segment")
    ));
    if done.without > 0 {
        output::line(format!("  {} cannot be understood and have no index", output::count(done.without, "segment")));
    }
    if done.left > 0 {
        output::line(format!("  {} cannot be made, because segments are damaged", output::count(done.left, "roll-up")));
    }
}

/// Reads a portion of everything.
async fn portion(place: &Place, budget: Budget, json: bool) -> anyhow::Result<u8> {
    let monitor = progress::monitor(json);
    let threads = context::threads(place.config.restore.threads);
    let report = rounds::run(&place.cluster, &place.record, budget, threads, &*monitor).await?;
    drop(monitor);
    if json {
        output::json(&serde_json::json!({ "event": "result", "portion": report }));
    } else {
        for (object, what) in &report.problems {
            output::line(format!("DAMAGED {object}: {what}"));
        }
        let oldest = report.oldest.map(|at| format!("; what waits longest waits since {}", output::time(at))).unwrap_or_default();
        output::line(format!(
            "read {} of {} ({}), {} never read yet{oldest}: {}",
            report.units_read,
            output::count(report.units, "unit"),
            output::bytes(report.bytes),
            report.never_read,
            if report.problems.is_empty() { "all sound" } else { "`lastgood verify` says what the damage costs" }
        ));
    }
    Ok(if report.problems.is_empty() && report.units > 0 { 0 } else { error::DAMAGE })
}

fn show(report: &Report, quick: bool) {
    for problem in &report.problems {
        output::line(format!("DAMAGED {}: {}", problem.object, problem.what));
        for snapshot in &problem.snapshots {
            output::line(format!("  costs snapshot {snapshot}"));
        }
        for window in &problem.windows {
            output::line(format!("  breaks the window {window}"));
        }
    }
    for warning in &report.warnings {
        quiet::warned();
        output::line(format!("warning: {warning}"));
    }
    if report.snapshots == 0 {
        output::line("there is no snapshot, so nothing can be restored; `lastgood backup` takes one");
        return;
    }
    let how = if quick { "listed" } else { "read and proven" };
    output::line(format!(
        "{}, {} ({}), {} {how}: {}",
        output::count(report.snapshots as u64, "snapshot"),
        output::count(report.frames, "frame"),
        output::bytes(report.bytes),
        output::count(report.segments, "WAL segment"),
        match report.problems.len() {
            0 => "all sound".to_string(),
            1 => "1 object is damaged or missing".to_string(),
            count => format!("{count} objects are damaged or missing"),
        }
    ));
}
