//! `lastgood list`

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::context::{Global, Place};
use super::{estimate, output, places};
use crate::clock;
use crate::postgres::lsn::SystemId;
use crate::repo::keep::{self, Pin};
use crate::repo::manifest::Manifest;
use crate::timeline::archive::Archive;
use crate::timeline::estimate::{Estimate, Experience};
use crate::timeline::windows::{self, Window, Windows};

/// Show snapshots, and the windows of time to which a restore can go
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood list\n  lastgood list --json | jq '.histories[].windows'")]
pub struct Args {}

#[derive(Serialize)]
struct Listing {
    cluster: String,
    histories: Vec<HistoryListing>,
    unreadable: Vec<(String, String)>,
    /// Snapshots that somebody wants to keep.
    pins: BTreeMap<String, Pin>,
}

#[derive(Serialize)]
struct HistoryListing {
    system_identifier: SystemId,
    major: u32,
    wal_segments: u64,
    snapshots: Vec<Manifest>,
    #[serde(flatten)]
    windows: Windows,
    /// Of a restore to the end of each window, from its newest snapshot; absent where nothing was measured.
    estimates: Vec<Option<Estimate>>,
}

pub async fn run(global: &Global, _: Args) -> anyhow::Result<u8> {
    let place = Place::open_any(global).await?;
    let mut pins = keep::all(&place.cluster).await?;
    pins.retain(|_, pin| pin.holds(clock::now()));
    let (manifests, unreadable) = place.snapshots().await?;
    let mut listing = Listing { cluster: place.cluster.name().into(), histories: Vec::new(), unreadable, pins };
    let experience = Experience::load(&place.cluster).await?;
    for history in &place.record.histories {
        let system = history.system_identifier;
        let archive = Archive::load(&place.cluster, system, history.wal_segment_bytes.into()).await?;
        let windows = windows::windows(&archive, &manifests).await?;
        let snapshots = manifests.iter().filter(|m| m.system_identifier == system).cloned().collect();
        let estimates = windows.windows.iter().map(|window| estimate_of(window, &manifests, &experience)).collect();
        let (major, wal_segments) = (history.major, archive.count());
        listing.histories.push(HistoryListing { system_identifier: system, major, wal_segments, snapshots, windows, estimates });
    }
    places::warn_of_missed(&place, global.json);
    if global.json {
        output::json(&listing)
    } else {
        show(&listing)
    }
    Ok(0)
}

fn estimate_of(window: &Window, manifests: &[Manifest], experience: &Experience) -> Option<Estimate> {
    let newest = manifests.iter().rev().find(|manifest| window.snapshots.contains(&manifest.id))?;
    experience.estimate(newest.totals.raw_bytes, window.to_lsn.0.saturating_sub(newest.start_lsn.0))
}

fn show(listing: &Listing) {
    for history in &listing.histories {
        output::line(format!(
            "cluster {}, PostgreSQL {}, system {}: {}, {}",
            listing.cluster,
            history.major,
            history.system_identifier,
            output::count(history.snapshots.len() as u64, "snapshot"),
            output::count(history.wal_segments, "WAL segment")
        ));
        if history.snapshots.is_empty() {
            output::line("  no snapshot yet: nothing can be restored. `lastgood backup` takes one.");
            continue;
        }
        output::line(snapshots(&history.snapshots));
        for (id, pin) in listing.pins.iter().filter(|(id, _)| history.snapshots.iter().any(|m| m.id == **id)) {
            output::line(format!("  {id} is {}", pin.describe()));
        }
        show_windows(&history.windows, &history.estimates);
    }
    for (id, problem) in &listing.unreadable {
        output::line(format!("snapshot {id} cannot be read: {problem}"));
    }
}

fn snapshots(manifests: &[Manifest]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["snapshot", "restorable from (UTC)", "took", "raw", "new", "stored", "timeline", "WAL", "damage"]);
    for m in manifests {
        let took = m.stop_time.duration_since(m.start_time).as_secs_f64();
        let damage = match m.damaged_pages.len() {
            0 => "none".to_string(),
            count => output::count(count as u64, "page"),
        };
        table.add_row([
            m.id.clone(),
            output::time(m.stop_time),
            output::duration(took),
            output::bytes(m.totals.raw_bytes),
            output::bytes(m.totals.new_bytes),
            output::bytes(m.totals.stored_bytes),
            m.timeline.to_string(),
            format!("{} to {}", m.start_lsn, m.stop_lsn),
            damage,
        ]);
    }
    for column in 2..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn show_windows(windows: &Windows, estimates: &[Option<Estimate>]) {
    output::line("windows (any moment in them can be restored):");
    for (window, estimate) in windows.windows.iter().zip(estimates) {
        let length = window.to_time.duration_since(window.from_time).as_secs_f64().max(0.0);
        output::line(format!(
            "  {} to {}  ({}), timeline {}, {} to {}",
            output::exact_time(window.from_time),
            output::exact_time(window.to_time),
            output::duration(length),
            window.timeline,
            window.from_lsn,
            window.to_lsn
        ));
        output::line(format!("    a restore to its end takes {}", estimate::words(estimate.as_ref())));
        if let Some(missing) = &window.gap_at {
            output::line(format!(
                "  -- gap: segment {missing} is missing; nothing between here and the next window can be restored --"
            ));
        }
    }
    for (id, problem) in &windows.unusable {
        output::line(format!("  snapshot {id} cannot be restored: {problem}"));
    }
}
