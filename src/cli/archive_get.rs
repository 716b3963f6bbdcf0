//! `lastgood archive-get`

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::context::Global;
use super::keys::{self, Need};
use super::{error, places};
use crate::archive::get::{self, Got};
use crate::archive::spool::Spool;
use crate::config::Config;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::repository::{Cluster, Repository};
use crate::repo::seal::Role;
use crate::repo::vault::Vault;
use crate::storage::Storage;
use crate::storage::pace::Pace;

/// Fetch one WAL file; PostgreSQL calls this as restore_command
///
/// Exits with 1 only when the archive provably does not have the file: recovery then ends. Every other failure exits with
/// 126, so that recovery stops instead of ending early.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, in postgresql.conf of a standby:\n  restore_command = 'lastgood archive-get %f \"%p\"'")]
pub struct Args {
    /// The name, as PostgreSQL's %f
    name: String,
    /// Where to put it, as PostgreSQL's %p
    #[arg(required_unless_present = "prefetch")]
    destination: Option<PathBuf>,
    /// Which history of the cluster; the current one when absent
    #[arg(long, value_name = "ID")]
    system_identifier: Option<u64>,
    /// Where prefetched segments lie, instead of the configured place
    #[arg(long, hide = true, value_name = "DIRECTORY")]
    spool: Option<PathBuf>,
    /// The last segment that recovery needs. It reads ahead: what lies behind this and cannot be had is not there, and no failure
    #[arg(long, value_name = "SEGMENT")]
    until: Option<SegmentName>,
    /// Read no faster than this, and nothing ahead
    #[arg(long, hide = true, value_name = "BYTES")]
    bytes_per_s: Option<u64>,
    /// Fetch what follows the named segment into the spool; started by archive-get itself
    #[arg(long, hide = true, value_name = "SEGMENT_BYTES")]
    prefetch: Option<u64>,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let file: WalFile = args.name.parse()?;
    let pace = Arc::new(Pace::new(places::any(&config).await?.0, args.bytes_per_s));
    let storage: Arc<dyn Storage> = pace.clone();
    let keys = keys::keys(&config, Need::Read)?;
    // A reader's key file, or no encryption, needs nothing of the repository to be opened.
    let at_once = keys.is_empty() || keys.offline()?.is_some_and(|seal| seal.role() == Role::Reader);
    let (cluster, system) = match args.system_identifier {
        Some(system) if at_once => {
            (Cluster::unchecked(Vault::new(storage, keys.offline()?), &config.cluster.name), SystemId(system))
        }
        Some(system) => (Repository::open(storage, &keys).await?.cluster(&config.cluster.name), SystemId(system)),
        None => {
            let (cluster, record) = Repository::open(storage, &keys).await?.registered(&config.cluster.name).await?;
            let current = record.current().map(|history| history.system_identifier);
            (cluster, current.ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?)
        }
    };
    // PostgreSQL runs restore_command in the data directory.
    // Who fetches ahead is a process of its own, and knows nothing of our pace.
    let ahead = config.archive.fetch_ahead > 0 && args.bytes_per_s.is_none();
    let spool = ahead
        .then(|| Spool::open(args.spool.as_ref().unwrap_or(&config.archive.spool), cluster.name(), system, Path::new(".")).ok())
        .flatten();
    if let Some(segment_bytes) = args.prefetch {
        if let (WalFile::Segment(segment), Some(spool)) = (file, &spool) {
            get::prefetch(&cluster, system, segment, segment_bytes, config.archive.fetch_ahead, spool).await;
        }
        return Ok(0);
    }
    let Some(destination) = args.destination else { return Ok(error::COULD_NOT_TELL) };
    let got = get::get(&cluster, system, file, &destination, args.until, spool.as_ref()).await?;
    // The next call is another process.
    pace.rest().await;
    if got == Got::Absent {
        eprintln!("lastgood: {file} is not in the archive");
        return Ok(error::ABSENT);
    }
    if let (WalFile::Segment(_), Some(_)) = (file, &spool) {
        let bytes = std::fs::metadata(&destination).map(|m| m.len()).unwrap_or(0);
        start_prefetch(global, &config, (&args.name, args.spool.as_deref()), system, bytes);
    }
    Ok(0)
}

/// Fetches on in the background, so that recovery finds the next segments ready. What fails here fails again, with its
/// reason, when recovery asks.
fn start_prefetch(global: &Global, config: &Config, (name, spool): (&str, Option<&Path>), system: SystemId, segment_bytes: u64) {
    let Ok(words) = global.words(config) else { return };
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["archive-get", name, "--system-identifier", &system.to_string()]);
    command.args(["--prefetch", &segment_bytes.to_string()]);
    if let Some(spool) = spool {
        command.arg("--spool").arg(spool);
    }
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
}
