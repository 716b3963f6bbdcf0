//! `lastgood archive-get`

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::context::Global;
use super::keys::{self, Need};
use super::{alerts, error, output, places};
use crate::archive::ahead::{self, Ahead};
use crate::archive::get::{self, Got};
use crate::archive::inquiry::Desk;
use crate::archive::spool::Spool;
use crate::archive::standby;
use crate::clock;
use crate::config::Config;
use crate::postgres::control::ControlFile;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::header;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::object::Sha;
use crate::repo::repository::{Cluster, Repository};
use crate::repo::seal::Role;
use crate::repo::vault::Vault;
use crate::storage::Storage;
use crate::storage::pace::Pace;

/// Fetch one WAL file; PostgreSQL calls this as restore_command
///
/// Exits with 1 only when the archive provably does not have the file: recovery then ends. Every other failure exits with 126, so that
/// recovery stops instead of ending early; on a standby (standby.signal) with 75, after several tries and with an alert, so that the
/// standby lives, streams and asks again.
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
    /// The exit code of a call that fails.
    pub fn failure(&self) -> u8 {
        let file = self.name.parse::<WalFile>().ok();
        if standby::may_ask_again(Path::new("."), file.as_ref()) { error::ASK_AGAIN } else { error::COULD_NOT_TELL }
    }

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
    // PostgreSQL runs restore_command in the data directory.
    if args.goes_ahead() || !standby::is_standby(Path::new(".")) {
        return fetch(global, &args).await;
    }
    let (began, patience) = (clock::monotonic(), standby::patience(&args.name.parse()?));
    loop {
        match fetch(global, &args).await {
            Ok(code) => {
                note(global, &args).inspect(|(_, spool)| standby::answered(spool));
                return Ok(code);
            }
            Err(error) if began.elapsed() >= patience => {
                if let Some((config, spool)) = note(global, &args)
                    && let Some(since) = standby::failed(&spool, clock::now())
                {
                    alerts::start_unreachable(global, &config, since, &format!("{error:#}"));
                }
                return Err(error);
            }
            Err(_) => tokio::time::sleep(standby::PAUSE).await,
        }
    }
}

/// Where a standby remembers that it could not fetch. Where it cannot be written, its log alone tells it.
fn note(global: &Global, args: &Args) -> Option<(Config, Spool)> {
    let config = global.configuration().ok()?;
    let system = match args.system_identifier {
        Some(system) => SystemId(system),
        None => ControlFile::read(Path::new(".")).ok()?.system_identifier,
    };
    let root = args.spool.as_ref().unwrap_or(&config.archive.spool);
    let spool = Spool::open(root, &config.cluster.name, system, Path::new(".")).ok()?;
    Some((config, spool))
}

async fn fetch(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let file: WalFile = args.name.parse()?;
    // What lies in the spool needs no repository, no network and no key: only the system must be known.
    let mut source = None;
    let system = match args.system_identifier {
        Some(system) => SystemId(system),
        None => {
            let (opened, system) = Source::current(&config, args).await?;
            source = Some(opened);
            system
        }
    };
    // Who fetches ahead is a process of its own, and knows nothing of our pace.
    let ahead = config.archive.fetch_ahead > 0 && args.bytes_per_s.is_none();
    let root = args.spool.as_ref().unwrap_or(&config.archive.spool);
    let spool = ahead.then(|| Spool::open(root, &config.cluster.name, system, Path::new(".")).ok()).flatten();
    let desk = spool.map(|spool| Desk::new(spool, fingerprint(&config)));
    let call = Call { global, config: &config, args, system, desk: desk.as_ref() };
    if let Some(segment_bytes) = args.prefetch {
        call.keep_ready(file, segment_bytes).await?;
        return Ok(0);
    }
    let Some(destination) = &args.destination else { return Ok(error::COULD_NOT_TELL) };
    match call.have(file, destination, source).await? {
        Got::Fetched => Ok(0),
        Got::Absent => {
            output::complain(&format!("lastgood: {file} is not in the archive"));
            Ok(error::ABSENT)
        }
    }
}

/// Of what decides where something is looked for, and how. Where the file with it lies does not.
fn fingerprint(config: &Config) -> String {
    let config = Config { path: None, ..config.clone() };
    Sha::of(format!("{config:?}").as_bytes()).to_string()
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

/// One call of the program.
struct Call<'a> {
    global: &'a Global,
    config: &'a Config,
    args: &'a Args,
    system: SystemId,
    /// In the spool of the data directory, if there is one.
    desk: Option<&'a Desk>,
}

impl Call<'_> {
    /// Is the process that fetches ahead.
    async fn keep_ready(&self, file: WalFile, segment_bytes: u64) -> anyhow::Result<()> {
        if let (WalFile::Segment(segment), Some(desk)) = (file, self.desk)
            && let Some(ahead) = self.args.ahead(self.config, segment, segment_bytes)
        {
            let source = Source::of(self.config, self.args).await?;
            ahead::follow(&source.cluster, self.system, ahead, desk, Path::new("."), terminated()).await;
        }
        Ok(())
    }

    /// From the spool, from whoever fetches ahead, or from `source`, which may be open already.
    async fn have(&self, file: WalFile, destination: &Path, source: Option<Source>) -> anyhow::Result<Got> {
        let mut is_started = false;
        if let (WalFile::Segment(segment), Some(spool)) = (file, self.spool()) {
            is_started = self.start_beside(segment, spool);
            if get::from_spool(spool, segment, destination).await? {
                return Ok(Got::Fetched);
            }
        }
        // Who was only just started has no connections yet.
        if let Some(desk) = self.desk.filter(|_| !is_started)
            && let Some(answered) = desk.ask(file, destination).await
        {
            return Ok(answered);
        }
        let source = match source {
            Some(source) => source,
            None => Source::of(self.config, self.args).await?,
        };
        let got = get::get(&source.cluster, self.system, file, destination, self.args.until, self.spool()).await?;
        // The next call is another process.
        source.pace.rest().await;
        if let (WalFile::Segment(segment), Got::Fetched) = (file, got) {
            self.start(segment, std::fs::metadata(destination).map_or(0, |found| found.len()));
        }
        Ok(got)
    }

    fn spool(&self) -> Option<&Spool> {
        self.desk.map(Desk::spool)
    }

    /// Where the server says how long its segments are, what follows is fetched beside the first. A standby that waits for a segment asks
    /// for it again and again.
    fn start_beside(&self, segment: SegmentName, spool: &Spool) -> bool {
        if spool.end() == Some(segment) {
            return false;
        }
        ControlFile::read(Path::new(".")).is_ok_and(|control| self.start(segment, control.wal_segment_bytes.into()))
    }

    /// Fetches on in the background what follows `segment`, unless somebody does already, or it is known that nothing does. What fails
    /// here fails again, with its reason, when recovery asks. Says whether it was started.
    fn start(&self, segment: SegmentName, segment_bytes: u64) -> bool {
        let ahead = self.args.ahead(self.config, segment, segment_bytes);
        let (Some(spool), Some(ahead)) = (self.spool(), ahead) else { return false };
        if !ahead.is_worth_it(spool) {
            return false;
        }
        // The process gets the lock as its standard input, and so holds it from before it is there until it ends.
        let Some(lock) = spool.lock_fetching() else { return false };
        let Ok(words) = self.global.words(self.config) else { return false };
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["archive-get", &self.args.name, "--system-identifier", &self.system.to_string()]);
        command.args(["--prefetch", &segment_bytes.to_string()]);
        if let Some(until) = self.args.until {
            command.args(["--until", &until.to_string()]);
        }
        if let Some(spool) = &self.args.spool {
            command.arg("--spool").arg(spool);
        }
        command.stdin(lock).stdout(Stdio::null()).stderr(Stdio::null()).spawn().is_ok()
    }
}
