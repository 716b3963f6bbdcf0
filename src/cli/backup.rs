//! `lastgood backup`

use std::time::Duration;

use super::context::{self, Global, Place};
use super::keys::Need;
use super::quiet::Quiet;
use super::{error, moment, output, places, progress};
use crate::clock;
use crate::repo::manifest::{Manifest, Retired};
use crate::repo::seal::rotation;
use crate::snapshot::retire::Terms;
use crate::snapshot::take::{self, Request};
use crate::upkeep::apart::apart;

/// Take a snapshot: the first stores everything, each later one what changed
///
/// Runs on the database host while the server is up. Proves first that archiving works. Exits with 7 when pages in the
/// database are damaged; the snapshot is kept all the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood backup\n  lastgood backup --full --json")]
pub struct Args {
    /// Store everything anew instead of what changed
    #[arg(long)]
    full: bool,
    /// Read every file, also those whose size, times and inode prove them unchanged
    #[arg(long)]
    paranoid: bool,
    /// Let the server checkpoint at its own pace instead of at once
    #[arg(long)]
    spread_checkpoint: bool,
    #[command(flatten)]
    pub quiet: Quiet,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let place = Place::open_all(global, Need::Write).await?;
    let session = context::session(&place.config).await?;
    let config = &place.config;
    let request = Request {
        full: args.full,
        paranoid: args.paranoid,
        spread_checkpoint: args.spread_checkpoint,
        data_directory: config.postgres.data_directory.clone(),
        threads: context::threads(config.snapshot.threads),
        compression_level: config.snapshot.compression_level,
        archive_timeout: Duration::from_secs(config.snapshot.archive_timeout_s),
        retire: Terms { below_percent: config.retention.rewrite_below_percent, max_bytes: config.retention.rewrite_max_bytes },
        newest: place.newest(),
        kept: moment::kept(config, &session).await?,
        apart: apart(config),
    };
    let monitor = progress::monitor(global.json);
    if let Some(old) = rotation::outdated(place.repository.vault()).await? {
        monitor.warn(&old);
    }
    let began = clock::monotonic();
    let manifest = take::take(&place.cluster, &place.record, &session, &request, monitor.clone()).await?;
    places::mark_behind(config);
    let seconds = began.elapsed().as_secs_f64();
    for page in &manifest.damaged_pages {
        monitor.warn(&format!("page {} of {} is damaged in the database: its checksum does not hold", page.block, page.path));
    }
    drop(monitor);
    if global.json {
        output::json(&serde_json::json!({ "event": "result", "seconds": seconds, "snapshot": manifest }));
    } else {
        show(&manifest, seconds);
    }
    Ok(if manifest.damaged_pages.is_empty() { 0 } else { error::DAMAGE })
}

fn show(manifest: &Manifest, seconds: f64) {
    let totals = &manifest.totals;
    output::line(format!("snapshot {} is complete, after {}", manifest.id, output::duration(seconds)));
    output::line(format!(
        "  {} in {}; read {}, new {}, stored {}",
        output::bytes(totals.raw_bytes),
        output::count(totals.files, "file"),
        output::bytes(totals.read_bytes),
        output::bytes(totals.new_bytes),
        output::bytes(totals.stored_bytes)
    ));
    output::line(format!(
        "  consistent from {} ({}) on, timeline {}{}",
        output::time(manifest.stop_time),
        manifest.stop_lsn,
        manifest.timeline,
        manifest.parent.as_ref().map(|p| format!(", built on {p}")).unwrap_or_default()
    ));
    if let Some(retired) = &manifest.retired {
        show_retired(retired);
    }
    if !manifest.damaged_pages.is_empty() {
        output::line(format!(
            "  {} damaged in the database itself: keep older snapshots, and look at the named relations now",
            output::count(manifest.damaged_pages.len() as u64, "page")
        ));
    }
}

/// What became of packs whose snapshots are gone.
fn show_retired(retired: &Retired) {
    let size = |packs, bytes| format!("{} ({})", output::count(packs, "pack"), output::bytes(bytes));
    if retired.packs > 0 {
        output::line(format!(
            "  does without {} of snapshots that are gone; stored {} of them anew",
            size(retired.packs, retired.stored_bytes),
            output::bytes(retired.rewritten_bytes)
        ));
    }
    if retired.waiting_packs > 0 {
        let waiting = size(retired.waiting_packs, retired.waiting_bytes);
        output::line(format!("  {waiting} of them wait for another backup, because of rewrite_max_bytes"));
    }
}
