//! `lastgood reached`, and the start of a copy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::context::{self, Global};
use super::{error, output, progress};
use crate::config::Config;
use crate::postgres::programs;
use crate::restore::RestoreError;
use crate::restore::arrival::{self, Arrival};
use crate::restore::mark::{self, Mark};
use crate::restore::plan::Plan;
use crate::restore::start;

/// Say whether a restored server stands at its target
///
/// That it answers, or pauses, proves nothing: replay may pause short of the target. Asks the server that runs in the directory, as the
/// role of the configuration, and compares where it stands with where the restore was to lead.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lastgood reached --data-directory /srv/pg\n  lastgood reached --data-directory /srv/pg --wait"
)]
pub struct Args {
    /// The data directory that was restored
    #[arg(long, value_name = "DIRECTORY")]
    data_directory: PathBuf,
    /// Follow replay until it stands somewhere
    #[arg(long)]
    wait: bool,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let directory = std::path::absolute(&args.data_directory)?;
    let mark = read_mark(&directory)?;
    let connection = context::connection(&config).await?;
    let arrival = match args.wait {
        true => follow(&config, &directory, &mark, || false, global.json).await?,
        false => arrival::look(&directory, &mark, &connection).await,
    };
    Ok(tell(&directory, &arrival, global.json))
}

fn read_mark(directory: &Path) -> anyhow::Result<Mark> {
    let failed = |source| RestoreError::Io { doing: "look into", path: directory.into(), source };
    let mark = mark::read(directory).map_err(failed)?;
    Ok(mark.ok_or_else(|| RestoreError::NotACopy { path: directory.into() })?)
}

/// Starts what was restored and follows it.
pub async fn start(global: &Global, config: &Config, plan: &Plan) -> anyhow::Result<u8> {
    let configured = config.drill.as_ref().and_then(|drill| drill.programs.get(&plan.major.to_string()));
    let bin = programs::find(plan.major, configured.map(PathBuf::as_path))?;
    let mut started = start::start(&bin, &plan.into)?;
    if !global.json {
        output::entry("started", format!("process {}; what it says is in {}", started.pid(), started.log.display()));
    }
    let mark = read_mark(&plan.into)?;
    let arrival = follow(config, &plan.into, &mark, || started.lives(), global.json).await?;
    Ok(tell(&plan.into, &arrival, global.json))
}

async fn follow(
    config: &Config,
    directory: &Path,
    mark: &Mark,
    lives: impl FnMut() -> bool,
    json: bool,
) -> anyhow::Result<Arrival> {
    let connection = context::connection(config).await?;
    let stall = config.drill.as_ref().map_or(STALL, |drill| Duration::from_secs(drill.stall_s));
    let monitor = progress::monitor(json);
    monitor.phase("replay", 0);
    Ok(arrival::follow(directory, mark, &connection, stall, lives, &*monitor).await)
}

/// A recovery that shows no progress for so long is stuck, where the configuration says nothing.
const STALL: Duration = Duration::from_secs(300);

/// Says where it stands; answers the exit code.
fn tell(directory: &Path, arrival: &Arrival, json: bool) -> u8 {
    let code = match arrival {
        arrival if arrival.is_there() => 0,
        Arrival::Unknown { .. } => error::POSTGRES,
        _ => error::TARGET,
    };
    if json {
        output::json(
            &serde_json::json!({ "event": "reached", "directory": directory, "is_there": arrival.is_there(), "arrival": arrival }),
        );
        return code;
    }
    match arrival {
        Arrival::Paused { lsn, last_transaction } => {
            let last =
                last_transaction.map(|at| format!(", the last transaction of {}", output::exact_time(at))).unwrap_or_default();
            output::entry("reached", format!("the target: replay is paused at {lsn}{last}"));
            output::entry("", "SELECT pg_wal_replay_resume() ends recovery there and makes it writable");
        }
        Arrival::Promoted { timeline, prepared } => {
            output::entry("reached", format!("the target: recovery has ended, and it is writable on timeline {timeline}"));
            for one in prepared {
                let (owner, database) = (&one.owner, &one.database);
                let gid = one.gid.replace('\'', "''");
                output::entry(
                    "prepared",
                    format!(
                        "a transaction of {owner} in database {database} was prepared before the target and holds its locks: in that \
                         database, ROLLBACK PREPARED '{gid}' (or COMMIT PREPARED)"
                    ),
                );
            }
        }
        Arrival::ShutDown => output::entry("reached", "the target: it has shut down there, as it was told to"),
        Arrival::OnTheWay { lsn: Some(lsn) } => output::entry("NOT YET", format!("replay goes on: it has come to {lsn}")),
        Arrival::OnTheWay { lsn: None } => output::entry("NOT YET", "the server is starting: nobody may ask it yet"),
        Arrival::Short { lsn, why } => output::entry("SHORT", format!("it stands at {lsn}: {why}")),
        Arrival::Down { why } => output::entry("DOWN", why),
        Arrival::Unknown { why } => {
            output::entry("unknown", format!("the server runs, and could not be asked: {why}"));
            output::entry("", "run this as a user whom its pg_hba.conf lets in");
        }
    }
    code
}
