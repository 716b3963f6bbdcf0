//! What people type. One file per command; each parses, asks the library, and shows.
//!
//! - [`context`]: from flags, environment and file to a repository and a server.
//! - [`keys`]: from configuration and environment to the keys of a repository.
//! - [`places`]: one repository or several, and what they were good for. [`evidence`]: how stores behaved.
//! - [`output`]: lines, tables, JSON; sizes and times for people.
//! - [`progress`]: bars on a terminal, lines in cron, events with `--json`.
//! - [`quiet`]: nothing is printed when all is well, for cron.
//! - [`guard`]: between a plan and its execution: asks a person, takes a code, keeps the audit.
//! - [`moment`]: which moment a person means.
//! - [`signals`]: what an interrupted command says.
//! - [`secrets`]: where secrets come from, and what keeps them from getting elsewhere.
//! - [`standby`]: what a restore says of a standby, and of where `pg_wal` goes.
//! - [`estimate`]: how long a restore will take, in words.
//! - [`paper`]: what a repository needs in a safe.
//! - [`reports`]: what drills and restores left behind.
//! - [`measure`]: what a real restore took. [`restored`]: what it did, and what to do next.
//! - [`error`]: every error's kind and exit code, in one place.

pub mod alerts;
pub mod archive_get;
pub mod archive_push;
pub mod audit;
pub mod backup;
pub mod check;
pub mod context;
pub mod demo;
pub mod drill;
pub mod error;
pub mod estimate;
pub mod evidence;
pub mod expire;
pub mod guard;
pub mod init;
pub mod key;
pub mod keys;
pub mod list;
pub mod measure;
pub mod mirror;
pub mod moment;
pub mod output;
pub mod paper;
pub mod pin;
pub mod places;
pub mod progress;
pub mod quiet;
pub mod reached;
pub mod rebuild;
pub mod recover;
pub mod reference;
pub mod release;
pub mod reports;
pub mod restore;
pub mod restored;
pub mod schedule;
pub mod secrets;
mod signals;
pub mod standby;
pub mod timeline;
pub mod undo;
pub mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use context::Global;
use quiet::Quiet;

/// Brings a PostgreSQL cluster back to its last good moment
///
/// Takes snapshots, archives WAL, verifies both, and restores to any moment in between without ever destroying what stands
/// in the way.
#[derive(Debug, Parser)]
#[command(name = "lastgood", version, max_term_width = 100)]
#[command(
    after_help = "Begin with `lastgood init`, then `lastgood check`. `lastgood demo` shows the whole job on a throw-away server.\n\
Exit codes: 0 done, 1 archive-get: not in the archive, 2 usage, 3 configuration, 4 repository, 5 refused, 6 target, 7 damage, \
8 PostgreSQL, 9 check failed, 10 other, 11 drill failed, 75 archive-get on a standby: could not tell, 126 archive-get: could not tell, \
128+N ended by signal N."
)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::Args),
    Check(check::Args),
    Backup(backup::Args),
    #[command(name = "archive-push")]
    ArchivePush(archive_push::Args),
    #[command(name = "archive-get")]
    ArchiveGet(archive_get::Args),
    List(list::Args),
    Mirror(mirror::Args),
    Timeline(timeline::Args),
    Alerts(alerts::Args),
    Restore(restore::Args),
    Recover(recover::Args),
    Reached(reached::Args),
    Undo(undo::Args),
    Release(release::Args),
    Audit(audit::Args),
    Verify(verify::Args),
    Drill(drill::Args),
    Expire(expire::Args),
    Pin(pin::Args),
    Unpin(pin::UnpinArgs),
    Key(key::Args),
    Schedule(schedule::Args),
    Demo(demo::Args),
    Completions(reference::CompletionArgs),
    Man(reference::ManArgs),
}

impl Command {
    /// Of the commands that cron runs.
    fn quiet(&self) -> Quiet {
        match self {
            Command::Backup(args) => args.quiet,
            Command::Check(args) => args.quiet,
            Command::Drill(args) => args.quiet,
            Command::Expire(args) => args.quiet,
            Command::Mirror(args) => args.quiet,
            Command::Verify(args) => args.quiet,
            _ => Quiet::default(),
        }
    }
}

/// Parses, runs, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            // PostgreSQL takes small codes of restore_command for "not in the archive", and ends recovery (rule 30).
            let is_get = error.use_stderr() && std::env::args_os().any(|word| word == "archive-get");
            return ExitCode::from(if is_get { error::COULD_NOT_TELL } else { error.exit_code() as u8 });
        }
    };
    secrets::protect(&args.command);
    args.command.quiet().begin();
    start_log();
    let json = args.global.json;
    let failed_get = match &args.command {
        Command::ArchiveGet(get) => Some(get.failure()),
        _ => None,
    };
    let ran = std::panic::catch_unwind(|| run(args));
    match ran.unwrap_or_else(|_| Err(anyhow::anyhow!("lastgood failed in a way it should not; please report what is said above")))
    {
        Ok(code) => {
            if code != 0 {
                quiet::release();
            }
            ExitCode::from(code)
        }
        Err(error) => {
            let code = failed_get.unwrap_or_else(|| error::exit_code(&error));
            output::error(&error, code, json);
            ExitCode::from(code)
        }
    }
}

/// Diagnostics for developers, off unless `LASTGOOD_LOG` asks for them.
fn start_log() {
    let Ok(filter) = std::env::var("LASTGOOD_LOG") else { return };
    let filter = tracing_subscriber::EnvFilter::new(filter);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

fn run(args: Args) -> anyhow::Result<u8> {
    // A push is a new process for each segment: it starts no threads that it does not need.
    let mut builder = match &args.command {
        Command::ArchivePush(_) => tokio::runtime::Builder::new_current_thread(),
        Command::ArchiveGet(args) if !args.goes_ahead() => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    signals::watch(&args.command);
    let runtime = builder.enable_all().build()?;
    let global = args.global;
    let outcome = runtime.block_on(dispatch(&global, args.command));
    places::save_measurements();
    // Threads that read for an operation that was given up end by themselves; nobody waits for them.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(global: &Global, command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Init(args) => init::run(global, args).await,
        Command::Check(args) => check::run(global, args).await,
        Command::Backup(args) => backup::run(global, args).await,
        Command::ArchivePush(args) => archive_push::run(global, args).await,
        Command::ArchiveGet(args) => archive_get::run(global, args).await,
        Command::List(args) => list::run(global, args).await,
        Command::Mirror(args) => mirror::run(global, args).await,
        Command::Alerts(args) => alerts::run(global, args).await,
        Command::Timeline(args) => timeline::run(global, args).await,
        Command::Restore(args) => restore::run(global, args).await,
        Command::Recover(args) => recover::run(global, args).await,
        Command::Reached(args) => reached::run(global, args).await,
        Command::Undo(args) => undo::run(global, args).await,
        Command::Release(args) => release::run(global, args).await,
        Command::Audit(args) => audit::run(global, args).await,
        Command::Verify(args) => verify::run(global, args).await,
        Command::Drill(args) => drill::run(global, args).await,
        Command::Expire(args) => expire::run(global, args).await,
        Command::Pin(args) => pin::run(global, args).await,
        Command::Unpin(args) => pin::unpin(global, args).await,
        Command::Key(args) => key::run(global, args).await,
        Command::Schedule(args) => schedule::run(global, args),
        Command::Demo(args) => demo::run(global, args).await,
        Command::Completions(args) => reference::completions(args),
        Command::Man(args) => reference::man(args),
    }
}

/// A command as somebody would type it, without the program's name and its general options.
fn parse(words: &[String]) -> anyhow::Result<Command> {
    let words = std::iter::once("lastgood").chain(words.iter().map(String::as_str));
    Ok(Args::try_parse_from(words)?.command)
}
