//! `lastgood recover`

mod after;
mod ask;
mod events;

use std::path::{Path, PathBuf};

use super::context::{self, Global, Place};
use super::restore as command;
use super::{Command, dispatch, estimate, output, parse};
use crate::clock;
use crate::postgres::postmaster;
use crate::restore::plan::Plan;
use crate::timeline::estimate::Estimate;
use crate::timeline::told::Told;

/// Ask what is gone, and bring it back: for a person at a terminal
///
/// Shows what happened, proposes to restore just before it beside the cluster or over it, starts the server, says when it stands at the
/// target, and what remains to be done. Each step is a command that it prints, with the same plan, the same guard and the same audit as
/// if you had typed it. Three answers lead from "a table is gone" to a server with the table in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lastgood recover\n  lastgood recover orders\n  lastgood recover orders since 9:30\n  \
    lastgood recover since 2h --beside /srv/restored")]
pub struct Args {
    /// What is gone, in words: names, kinds such as drop or delete, and since when ("since 9", "since 2h")
    #[arg(value_name = "WORDS")]
    words: Vec<String>,
    /// Where a copy beside the cluster goes [default: a new directory beside the cluster's]
    #[arg(long, value_name = "DIRECTORY")]
    beside: Option<PathBuf>,
}

/// There is nobody to ask.
#[derive(Debug, thiserror::Error)]
#[error(
    "recover asks a person at a terminal, and there is none (or --json asks for no questions); `lastgood timeline` shows what happened, and `lastgood restore --before ID` goes back to before it"
)]
pub struct NoTerminal;

/// A person stopped it.
#[derive(Debug, thiserror::Error)]
#[error("stopped; nothing more was done")]
pub struct Stopped;

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    if global.json || !ask::is_possible() {
        return Err(NoTerminal.into());
    }
    let words = if args.words.is_empty() {
        let question =
            "What is gone? A name, a kind such as drop or delete, since when (since 9, since 2h); Enter for the last day: ";
        ask::answer(question)?.split_whitespace().map(str::to_string).collect()
    } else {
        args.words.clone()
    };
    let wanted = events::Wanted::parse(&words, clock::now())?;
    let Some(event) = events::choose(global, &wanted).await? else {
        output::line("Nothing of that happened in the WAL that could be read. `lastgood timeline --all` shows everything.");
        return Ok(super::error::TARGET);
    };
    let config = global.configuration()?;
    let original = original(global).await?;
    let ways = Ways::propose(global, &event, &original, args.beside.as_deref()).await?;
    let is_over = ways.choose()?;
    if is_over {
        stopped(&original)?;
    }
    let (words, into) = if is_over { (&ways.over, &original) } else { (&ways.beside, &ways.place) };
    let code = perform(global, words).await?;
    if code != 0 {
        return Ok(code);
    }
    after::remains(global, &config, &event, into, is_over).await
}

/// The data directory of the cluster: as configured, as the server says, or as the newest snapshot knows it.
async fn original(global: &Global) -> anyhow::Result<PathBuf> {
    let config = global.configuration()?;
    if let Some(directory) = &config.postgres.data_directory {
        return Ok(directory.clone());
    }
    if let Ok(session) = context::session(&config).await
        && let Ok(facts) = session.facts().await
    {
        return Ok(facts.data_directory);
    }
    let place = Place::open_any(global).await?;
    let newest = place.manifests(false).await?.pop();
    let newest = newest.ok_or_else(|| anyhow::anyhow!("there is no snapshot to restore from"))?;
    Ok(PathBuf::from(newest.data_directory))
}

/// Prints a command and does it.
async fn perform(global: &Global, words: &[String]) -> anyhow::Result<u8> {
    output::line("");
    output::line(format!("$ lastgood {}", output::shell_words(words)));
    let command = parse(words)?;
    Box::pin(dispatch(global, command)).await
}

/// The two ways back, as commands.
struct Ways {
    beside: Vec<String>,
    over: Vec<String>,
    /// Where the copy goes.
    place: PathBuf,
    is_over_possible: bool,
}

impl Ways {
    async fn propose(global: &Global, event: &Told, original: &Path, beside: Option<&Path>) -> anyhow::Result<Ways> {
        let stamp = clock::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut name = original.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".recovered-{stamp}"));
        let place = beside.map_or_else(|| original.with_file_name(&name), Path::to_path_buf);
        let command = |into: &Path| -> Vec<String> {
            let into = into.display().to_string();
            ["restore", "--before", &event.id, "--target-action", "promote", "--start", "--into", &into].map(String::from).into()
        };
        let mut ways = Ways { beside: command(&place), over: command(original), place, is_over_possible: false };
        output::line("");
        match proposal(global, &ways.beside).await {
            Ok((plan, estimate)) => {
                output::line(format!(
                    "  1  beside: a copy in {}, with everything that was committed before it",
                    plan.into.display()
                ));
                describe(&plan, estimate.as_ref());
                output::entry("", "the cluster goes on as it is; look, and take back what is gone, or let the copy take over");
            }
            Err(error) => output::line(format!("  1  beside: a copy in {}: {error}", ways.place.display())),
        }
        match proposal(global, &ways.over).await {
            Ok((plan, estimate)) => {
                output::line(format!(
                    "  2  over: {} goes back as a whole, and what stands there now is moved aside",
                    plan.into.display()
                ));
                describe(&plan, estimate.as_ref());
                ways.is_over_possible = true;
            }
            Err(error) => output::line(format!("  2  over: not possible now: {error}")),
        }
        Ok(ways)
    }

    /// Whether over.
    fn choose(&self) -> anyhow::Result<bool> {
        loop {
            match ask::answer("Which? 1, 2, or q to stop: ")?.as_str() {
                "1" | "beside" => return Ok(false),
                "2" | "over" if self.is_over_possible => return Ok(true),
                "q" => return Err(Stopped.into()),
                _ => output::line("  1 or 2"),
            }
        }
    }
}

async fn proposal(global: &Global, words: &[String]) -> anyhow::Result<(Plan, Option<Estimate>)> {
    match parse(words)? {
        Command::Restore(args) => command::proposal(global, &args).await,
        _ => anyhow::bail!("a way back is a restore"),
    }
}

fn describe(plan: &Plan, estimate: Option<&Estimate>) {
    output::entry(
        "size",
        format!("{}, {} to replay", output::bytes(plan.bytes), output::count(plan.wal_segments, "WAL segment")),
    );
    output::entry("takes", estimate::words(estimate));
    if let Some(replaced) = &plan.replaced {
        command::show_loss(replaced.loss.as_ref(), "committed after it");
    }
}

/// Waits until nobody lives there; a living server is never touched.
fn stopped(original: &Path) -> anyhow::Result<()> {
    while let Some(living) = postmaster::living(original)? {
        let directory = output::shell_words(&[original.display().to_string()]);
        output::line("");
        output::line(format!("A server runs in {} ({living}). Stop it in another terminal:", original.display()));
        output::line(format!("  pg_ctl -D {directory} stop -m fast"));
        if ask::answer("Enter when it is stopped, q to stop here: ")? == "q" {
            return Err(Stopped.into());
        }
    }
    Ok(())
}
