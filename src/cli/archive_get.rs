//! `lastgood archive-get`

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::context::Global;
use super::keys::{self, Need};
use super::{error, places};
use crate::archive::ahead::{self, Ahead};
use crate::archive::get::{self, Got};
use crate::archive::spool::Spool;
use crate::config::Config;
use crate::postgres::control::ControlFile;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::header;
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
    /// Keep what follows the named segment ready in the spool while recovery moves; started by archive-get itself
    #[arg(long, hide = true, value_name = "SEGMENT_BYTES")]
    prefetch: Option<u64>,
}

impl Args {
    /// Whether this is the process that keeps the spool filled.
    pub fn goes_ahead(&self) -> bool {
        self.prefetch.is_some()
    }

    /// `None` for a length that no segment has.
    fn ahead(&self, config: &Config, segment: SegmentName, segment_bytes: u64) -> Option<Ahead> {
        let ahead = Ahead { segment, segment_bytes, count: config.archive.fetch_ahead, until: self.until };
        header::is_segment_length(segment_bytes).then_some(ahead)
    }
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let file: WalFile = args.name.parse()?;
    // What lies in the spool needs no repository, no network and no key: only the system must be known.
    let mut source = None;
    let system = match args.system_identifier {
        Some(system) => SystemId(system),
        None => {
            let (opened, system) = Source::current(&config, &args).await?;
            source = Some(opened);
            system
        }
    };
    // PostgreSQL runs restore_command in the data directory.
    // Who fetches ahead is a process of its own, and knows nothing of our pace.
    let ahead = config.archive.fetch_ahead > 0 && args.bytes_per_s.is_none();
    let root = args.spool.as_ref().unwrap_or(&config.archive.spool);
    let spool = ahead.then(|| Spool::open(root, &config.cluster.name, system, Path::new(".")).ok()).flatten();
    if let Some(segment_bytes) = args.prefetch {
        if let (WalFile::Segment(segment), Some(spool)) = (file, &spool)
            && let Some(ahead) = args.ahead(&config, segment, segment_bytes)
        {
            let source = Source::of(&config, &args).await?;
            ahead::follow(&source.cluster, system, ahead, spool, Path::new("."), terminated()).await;
        }
        return Ok(0);
    }
    let Some(destination) = &args.destination else { return Ok(error::COULD_NOT_TELL) };
    let starter = Starter { global, config: &config, args: &args, system, spool: spool.as_ref() };
    if let (WalFile::Segment(segment), Some(spool)) = (file, &spool) {
        starter.start_beside(segment, spool);
        if get::from_spool(spool, segment, destination).await? {
            return Ok(0);
        }
    }
    let source = match source {
        Some(source) => source,
        None => Source::of(&config, &args).await?,
    };
    let got = get::get(&source.cluster, system, file, destination, args.until, spool.as_ref()).await?;
    // The next call is another process.
    source.pace.rest().await;
    if got == Got::Absent {
        eprintln!("lastgood: {file} is not in the archive");
        return Ok(error::ABSENT);
    }
    if let WalFile::Segment(segment) = file {
        starter.start(segment, std::fs::metadata(destination).map_or(0, |found| found.len()));
    }
    Ok(0)
}

/// From where WAL is fetched.
struct Source {
    cluster: Cluster,
    pace: Arc<Pace<Arc<dyn Storage>>>,
}

impl Source {
    /// For a system that is known.
    async fn of(config: &Config, args: &Args) -> anyhow::Result<Source> {
        let pace = Arc::new(Pace::new(places::any(config).await?.0, args.bytes_per_s));
        let storage: Arc<dyn Storage> = pace.clone();
        let keys = keys::keys(config, Need::Read)?;
        // A reader's key file, or no encryption, needs nothing of the repository to be opened.
        let at_once = keys.is_empty() || keys.offline()?.is_some_and(|seal| seal.role() == Role::Reader);
        let cluster = if at_once {
            Cluster::unchecked(Vault::new(storage, keys.offline()?), &config.cluster.name)
        } else {
            Repository::open(storage, &keys).await?.cluster(&config.cluster.name)
        };
        Ok(Source { cluster, pace })
    }

    /// And which system the cluster is now.
    async fn current(config: &Config, args: &Args) -> anyhow::Result<(Source, SystemId)> {
        let pace = Arc::new(Pace::new(places::any(config).await?.0, args.bytes_per_s));
        let repository = Repository::open(pace.clone(), &keys::keys(config, Need::Read)?).await?;
        let (cluster, record) = repository.registered(&config.cluster.name).await?;
        let current = record.current().map(|history| history.system_identifier);
        let system = current.ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?;
        Ok((Source { cluster, pace }, system))
    }
}

/// PostgreSQL ends what its restore_command started when it shuts down.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => drop(terminated.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// Starts the process that fetches ahead.
struct Starter<'a> {
    global: &'a Global,
    config: &'a Config,
    args: &'a Args,
    system: SystemId,
    spool: Option<&'a Spool>,
}

impl Starter<'_> {
    /// Where the server says how long its segments are, what follows is fetched beside the first. A standby that waits for a segment asks
    /// for it again and again.
    fn start_beside(&self, segment: SegmentName, spool: &Spool) {
        if spool.end() != Some(segment)
            && let Ok(control) = ControlFile::read(Path::new("."))
        {
            self.start(segment, control.wal_segment_bytes.into());
        }
    }

    /// Fetches on in the background what follows `segment`, unless somebody does already, or it is known that nothing does. What fails
    /// here fails again, with its reason, when recovery asks.
    fn start(&self, segment: SegmentName, segment_bytes: u64) {
        let ahead = self.args.ahead(self.config, segment, segment_bytes);
        let (Some(spool), Some(ahead)) = (self.spool, ahead) else { return };
        if !ahead.is_worth_it(spool) {
            return;
        }
        // The process gets the lock as its standard input, and so holds it from before it is there until it ends.
        let Some(lock) = spool.lock_fetching() else { return };
        let Ok(words) = self.global.words(self.config) else { return };
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["archive-get", &self.args.name, "--system-identifier", &self.system.to_string()]);
        command.args(["--prefetch", &segment_bytes.to_string()]);
        if let Some(until) = self.args.until {
            command.args(["--until", &until.to_string()]);
        }
        if let Some(spool) = &self.args.spool {
            command.arg("--spool").arg(spool);
        }
        let _ = command.stdin(lock).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    }
}
