//! What remains after a restore, and doing it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{Stopped, ask, perform};
use crate::cli::context::Global;
use crate::cli::keys::Need;
use crate::cli::{context, output};
use crate::config::Config;
use crate::owner::Ids;
use crate::postgres::{postmaster, programs, scratch};
use crate::repo::alert;
use crate::restore::{mark, start};
use crate::timeline::told::Told;

/// What is done from "take over" to normal operation.
const STEPS: &str = "release it, restart it, take a snapshot, check, acknowledge the alerts";

/// Shows the list and does what is asked for. The copy in `into` runs.
pub async fn remains(global: &Global, config: &Config, event: &Told, into: &Path, is_over: bool) -> anyhow::Result<u8> {
    let directory = output::shell_words(&[into.display().to_string()]);
    output::line("");
    output::line("What remains:");
    let at = postmaster::reached_at(into);
    let psql = at.as_ref().map_or("psql".into(), |(host, port)| format!("psql -h {host} -p {port}"));
    output::line(format!("  1  look at it: {psql}"));
    if is_over {
        output::line(format!("  2  it is wrong: lastgood undo --into {directory} puts the old one back"));
    } else {
        let dump = at.map_or("pg_dump".into(), |(host, port)| format!("pg_dump -h {host} -p {port}"));
        let database = event.database.as_deref().unwrap_or("DATABASE");
        let database = output::shell_words(&[database.to_string()]);
        output::line(format!("  2  take a table back: {dump} -t TABLE {database} | psql {database}"));
        output::line("     (rows into a table that is still there: lastgood's guide restore.md, \"Bring the rows back\")");
    }
    output::line(format!("  3  it is right, and takes over: {STEPS}"));
    match ask::answer("3 to let it take over, Enter to leave it as it is: ")?.as_str() {
        "3" => take_over(global, config, into, is_over).await,
        _ => {
            output::line("");
            output::line(format!("It is left as it is. Later: lastgood release --data-directory {directory}"));
            if !is_over {
                output::line(format!("or, when it is of no more use: pg_ctl -D {directory} stop, and remove the directory"));
            }
            Ok(0)
        }
    }
}

async fn take_over(global: &Global, config: &Config, into: &Path, is_over: bool) -> anyhow::Result<u8> {
    let directory = into.display().to_string();
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    if !is_over {
        wait_for_the_original(into)?;
    }
    let released = perform(global, &words(&["release", "--data-directory", &directory])).await?;
    if released != 0 {
        return Ok(released);
    }
    restart(config, into).await?;
    for step in [&["backup"][..], &["check"]] {
        let code = perform(global, &words(step)).await?;
        // A finding of `check` is for the person to read, and stops nothing.
        if code != 0 && step[0] == "backup" {
            return Ok(code);
        }
    }
    acknowledge(global).await?;
    output::line("");
    output::line(
        "Standbys of the old server follow another timeline now: build them anew with lastgood restore, or with pg_rewind.",
    );
    output::line("Done. `lastgood check` says what is left to do.");
    Ok(0)
}

/// Two servers must not be the same cluster: the one that the copy came from is stopped first.
fn wait_for_the_original(into: &Path) -> anyhow::Result<()> {
    let Some(mark) = mark::read(into)? else { return Ok(()) };
    let Some(original) = mark.original.map(PathBuf::from) else { return Ok(()) };
    while original.exists()
        && let Some(living) = postmaster::living(&original)?
    {
        let directory = output::shell_words(&[original.display().to_string()]);
        output::line(format!("The original still runs in {} ({living}). Stop it in another terminal:", original.display()));
        output::line(format!("  pg_ctl -D {directory} stop -m fast"));
        if ask::answer("Enter when it is stopped, q to stop here: ")? == "q" {
            return Err(Stopped.into());
        }
    }
    Ok(())
}

/// As the directory's owner: archiving needs a restart.
async fn restart(config: &Config, into: &Path) -> anyhow::Result<()> {
    let major: u32 = std::fs::read_to_string(into.join("PG_VERSION"))?.trim().parse()?;
    let configured = config.drill.as_ref().and_then(|drill| drill.programs.get(&major.to_string()));
    let bin = programs::find(major, configured.map(PathBuf::as_path))?;
    let user: Option<Ids> = start::user(into)?;
    output::line("");
    output::line(format!("$ pg_ctl -D {} restart", output::shell_words(&[into.display().to_string()])));
    let log = into.join(crate::postgres::data_directory::START_LOG);
    let mut command = scratch::program(&bin, "pg_ctl", user);
    command.arg("-D").arg(into).arg("-l").arg(&log).args(["-w", "-m", "fast", "restart"]);
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    anyhow::ensure!(done.success(), "the server could not be restarted; look into {}", log.display());
    Ok(())
}

/// Closes the alerts, so that expiry goes on.
async fn acknowledge(global: &Global) -> anyhow::Result<()> {
    let place = context::Place::open_to(global, Need::Write).await?;
    if alert::open(&place.cluster).await?.is_empty() {
        return Ok(());
    }
    let words = ["alerts", "--acknowledge", "all", "--reason", "recovered with lastgood recover"].map(String::from);
    perform(global, &words).await?;
    Ok(())
}
