//! `lastgood archive-push`

use std::path::PathBuf;

use super::alerts;
use super::context::Global;
use super::keys::{self, Need};
use super::{guard, places};
use crate::archive::push::{self, Request, Source};

/// Store one WAL file; PostgreSQL calls this as archive_command
///
/// Returns success only when the file is stored durably. Takes further segments along that are ready.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, in postgresql.conf:\n  archive_command = 'lastgood archive-push %p'")]
pub struct Args {
    /// The file, as PostgreSQL's %p
    path: PathBuf,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let keys = keys::keys(&config, Need::Write)?;
    let source = Source { storage: places::required(&config).await?, cluster_name: config.cluster.name.clone(), keys };
    let request = Request {
        path: args.path,
        from: std::env::current_dir()?,
        spool: config.archive.spool.clone(),
        push_ahead: config.archive.push_ahead,
        compression_level: config.archive.compression_level,
        allow_standby: config.archive.allow_archive_mode_always,
        who: guard::who(),
    };
    let outcome = push::push(&source, &request).await?;
    places::mark_behind(&config);
    if let Some(directory) = outcome.look_from.filter(|_| outcome.forked || config.tripwire.enabled != Some(false)) {
        alerts::start_look(global, &config, &directory);
    }
    // Silent on success: the server would write every line into its log.
    Ok(0)
}
