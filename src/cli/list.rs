//! `lastgood list`

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::context::{Global, Place};
use super::{estimate, output, places};
use crate::clock;
use crate::postgres::lsn::{SystemId, Timeline};
use crate::repo::keep::{self, Pin};
use crate::repo::manifest::Manifest;
use crate::repo::presence::{self, Presence};
use crate::timeline::archive::Archive;
use crate::timeline::estimate::{Estimate, Experience};
use crate::timeline::latest::Followed;
use crate::timeline::windows::{self, Window, Windows};

/// Fewer columns of a terminal cannot hold the whole table.
const WIDE: usize = 150;

/// Show snapshots, and the windows of time to which a restore can go
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood list\n  lastgood list --json | jq '.histories[].windows'")]
pub struct Args {}

#[derive(Serialize)]
struct Listing {
    cluster: String,
    histories: Vec<HistoryListing>,
    unreadable: Vec<(String, String)>,
    /// Whether everything is there that the newest snapshots need; of older ones it is not known.
    presence: Vec<Presence>,
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
    /// What `latest` means; absent in a history that the cluster lives no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    latest: Option<Followed>,
    /// Timelines that were given up for others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    abandoned: Vec<Timeline>,
}

pub async fn run(global: &Global, _: Args) -> anyhow::Result<u8> {
    let place = Place::open_any(global).await?;
    let mut pins = keep::all(&place.cluster).await?;
    pins.retain(|_, pin| pin.holds(clock::now()));
    let (manifests, unreadable) = place.snapshots().await?;
    let newest = &manifests[manifests.len().saturating_sub(presence::NEWEST)..];
    let presence = presence::of_all(&place.cluster, newest).await?;
    let problems: Vec<(String, String)> = presence.iter().filter_map(|p| Some((p.snapshot.clone(), p.problem()?))).collect();
    let is_whole = |m: &&Manifest| problems.iter().all(|(id, _)| *id != m.id);
    let whole: Vec<Manifest> = manifests.iter().filter(is_whole).cloned().collect();
    let mut listing = Listing { cluster: place.cluster.name().into(), histories: Vec::new(), unreadable, presence, pins };
    let experience = Experience::load(&place.cluster).await?;
    for history in &place.record.histories {
        let system = history.system_identifier;
        let mut archive = Archive::load(&place.cluster, system, history.wal_segment_bytes.into()).await?;
        archive.decide(&place.record);
        // Nothing is promised from a snapshot that lacks something.
        let mut windows = windows::windows(&archive, &whole).await?;
        let snapshots: Vec<Manifest> = manifests.iter().filter(|m| m.system_identifier == system).cloned().collect();
        let is_here = |(id, _): &&(String, String)| snapshots.iter().any(|m| m.id == *id);
        windows.unusable.extend(problems.iter().filter(is_here).cloned());
        let estimates = windows.windows.iter().map(|window| estimate_of(window, &manifests, &experience)).collect();
        let (major, wal_segments) = (history.major, archive.count());
        let is_current = place.record.current().is_some_and(|current| current.system_identifier == system);
        let latest = if is_current { Some(archive.latest().await?) } else { None };
        let abandoned = archive.decisions().abandoned.clone();
        let system_identifier = system;
        listing.histories.push(HistoryListing {
            system_identifier,
            major,
            wal_segments,
            snapshots,
            windows,
            estimates,
            latest,
            abandoned,
        });
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
    let size = (newest.totals.raw_bytes, newest.totals.files);
    experience.estimate(size, window.to_lsn.0.saturating_sub(newest.start_lsn.0))
}

fn show(listing: &Listing) {
    for history in &listing.histories {
        output::sentence(
            0,
            format!(
                "cluster {}, PostgreSQL {}, system {}: {}, {}",
                listing.cluster,
                history.major,
                history.system_identifier,
                output::count(history.snapshots.len() as u64, "snapshot"),
                output::count(history.wal_segments, "WAL segment")
            ),
        );
        if history.snapshots.is_empty() {
            output::line("  no snapshot yet: nothing can be restored. `lastgood backup` takes one.");
            continue;
        }
        // What can be restored is what is looked for; of what, comes after it.
        show_windows(history);
        show_latest(history);
        output::block(snapshots(&history.snapshots, &listing.presence, output::columns()));
        for (id, pin) in listing.pins.iter().filter(|(id, _)| history.snapshots.iter().any(|m| m.id == **id)) {
            output::line(format!("  {id} is {}", pin.describe()));
        }
    }
    for (id, problem) in &listing.unreadable {
        output::line(format!("snapshot {id} cannot be read: {problem}"));
    }
}

/// In less than [`WIDE`] columns only what one chooses by; 0 columns are a file or a pipe, which may be wide.
fn snapshots(manifests: &[Manifest], presence: &[Presence], columns: usize) -> Table {
    let is_wide = columns == 0 || columns >= WIDE;
    let row = |m: &Manifest| {
        let took = output::duration(m.stop_time.duration_since(m.start_time).as_secs_f64());
        [
            m.id.clone(),
            output::time(m.stop_time),
            output::ago(m.stop_time),
            took,
            output::bytes(m.totals.raw_bytes),
            output::bytes(m.totals.new_bytes),
            output::bytes(m.totals.stored_bytes),
            m.timeline.to_string(),
            format!("{} to {}", m.start_lsn, m.stop_lsn),
            damage(m, presence.iter().find(|p| p.snapshot == m.id)),
        ]
    };
    let names = ["snapshot", "restorable from (UTC)", "that is", "took", "raw", "new", "stored", "timeline", "WAL", "damage"];
    let shown = [true, is_wide, true, is_wide, true, is_wide, true, is_wide, is_wide, true];
    let of = |cells: [String; 10]| cells.into_iter().zip(shown).filter_map(|(cell, shown)| shown.then_some(cell));
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(of(names.map(String::from)));
    for manifest in manifests {
        table.add_row(of(row(manifest)));
    }
    for (number, (_, name)) in shown.iter().zip(names).filter(|(shown, _)| **shown).enumerate() {
        if let (Some(column), "that is" | "took" | "raw" | "new" | "stored") = (table.column_mut(number), name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// What is wrong with a snapshot, as far as it was asked.
fn damage(manifest: &Manifest, presence: Option<&Presence>) -> String {
    let pages = manifest.damaged_pages.len() as u64;
    let mut words = Vec::new();
    if pages > 0 {
        words.push(output::count(pages, "page"));
    }
    match presence {
        Some(presence) if presence.lacks.is_empty() && presence.frozen.is_empty() => {
            words.extend((!presence.unknown.is_empty()).then(|| "unknown".to_string()));
        }
        Some(presence) => {
            let (lacks, frozen) = (presence.lacks.len() as u64, presence.frozen.len() as u64);
            words.extend((lacks > 0).then(|| format!("{} missing", output::count(lacks, "object"))));
            words.extend((frozen > 0).then(|| format!("{} frozen", output::count(frozen, "object"))));
        }
        None => words.push("unknown".into()),
    }
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

fn show_windows(history: &HistoryListing) {
    let HistoryListing { windows, estimates, .. } = history;
    if windows.windows.is_empty() {
        output::line("no window: nothing can be restored");
    } else {
        output::line("windows (any moment in them can be restored):");
    }
    for (window, estimate) in windows.windows.iter().zip(estimates) {
        let length = window.to_time.duration_since(window.from_time).as_secs_f64().max(0.0);
        let (from, to) = (output::exact_time(window.from_time), output::exact_time(window.to_time));
        output::line(format!("  {from} to {to}  ({})", output::duration(length)));
        let local = output::local_time(window.to_time).map(|local| format!(", {local} here")).unwrap_or_default();
        output::line(format!("    its end was {}{local}", output::ago(window.to_time)));
        output::line(format!("    timeline {}, {} to {}", window.timeline, window.from_lsn, window.to_lsn));
        output::sentence(4, format!("a restore to its end takes {}", estimate::words(estimate.as_ref())));
        show_end(history, window);
        if let Some(missing) = &window.gap_at {
            output::sentence(
                2,
                format!("-- gap: segment {missing} is missing; nothing between here and the next window can be restored --"),
            );
        }
    }
    for (id, problem) in &windows.unusable {
        output::sentence(2, format!("snapshot {id} cannot be restored: {problem}"));
    }
}

/// What is known of the end of a window, and of its timeline.
fn show_end(history: &HistoryListing, window: &Window) {
    if let Some(last) = window.last_transaction.filter(|last| *last < window.to_time) {
        output::sentence(4, format!("no transaction after {} is known", output::exact_time(last)));
    }
    if history.abandoned.contains(&window.timeline) {
        let how = format!("--timeline {:X}", window.timeline.0);
        output::line(format!("    timeline {} was abandoned: a restore goes there only with {how}", window.timeline));
    }
    if let Some(stop) = &window.stop {
        output::sentence(2, format!("-- {stop}; what is later can be restored only from a later snapshot --"));
    }
}

/// What a restore to `latest` does, where that is not plain.
fn show_latest(history: &HistoryListing) {
    let timelines = history.windows.windows.iter().map(|window| window.timeline);
    match &history.latest {
        Some(Followed::Undecided { parent, one, other }) => output::line(format!(
            "latest is not decided: timeline {parent} was left by two servers, and both go on: {one}; {other}. \
             `lastgood release` says which one is the cluster"
        )),
        Some(Followed::Timeline(latest)) if timelines.clone().any(|timeline| timeline != *latest) => {
            output::line(format!("latest follows timeline {latest}"));
        }
        _ => {}
    }
}
