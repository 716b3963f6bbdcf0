//! `lastgood check`

use std::path::PathBuf;
use std::time::Duration;

use super::context::{self, Global};
use super::keys::{self, Need};
use super::moment;
use super::output::{self, Colour, Part};
use super::quiet::{self, Quiet};
use super::{error, evidence, places};
use crate::archive::spool::Note;
use crate::config::Config;
use crate::repo::RepoError;
use crate::repo::repository::Repository;
use crate::storage::Fault;
use crate::upkeep::alarms::{self, Notes};
use crate::upkeep::check::{self, Finding, Findings, Level};
use crate::upkeep::{drills, exposure, orphans, protection, rebuild};
use crate::watch::deliver;

/// Prove the whole chain: server, role, settings, archiving, repository, age of the last snapshot
///
/// One line for each finding, with the mend. Exits with 9 when anything failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood check\n  lastgood check --json | jq 'select(.finding.level != \"ok\")'")]
pub struct Args {
    /// Do not switch a WAL segment and wait for it
    #[arg(long)]
    no_switch: bool,
    /// Look at the repository only: for hosts without the server, which drill, expire or mirror
    #[arg(long, conflicts_with = "no_switch")]
    no_server: bool,
    /// How long to wait for the segment
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// Only show how the stores behaved: calls, errors and latencies by operation and hour
    #[arg(long)]
    storage: bool,
    #[command(flatten)]
    pub quiet: Quiet,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    if args.storage {
        return evidence::show(&config.archive.spool, global.json);
    }
    let mut findings = Findings::default();
    let server = if args.no_server { None } else { server(&mut findings, &config).await };
    exposure::store(&mut findings, &config);
    exposure::secret_files(&mut findings, &config, default_credentials());
    exposure::spool(&mut findings, &config);
    let repository = match context::storage(&config).await {
        Ok(storage) => match keys::keys(&config, Need::Write) {
            Ok(keys) => Repository::open(storage, &keys).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    match repository {
        Ok(repository) => {
            let name = &config.cluster.name;
            check::encryption(&mut findings, &config, &repository).await?;
            check::repository(&mut findings, &**repository.storage(), &repository.cluster(name)).await;
            protection::check(&mut findings, &**repository.storage()).await;
            protection::snapshots(&mut findings, &repository.cluster(name)).await?;
            let cluster = match &server {
                Some(server) => check::registration(&mut findings, &repository, name, &server.facts).await?,
                None => None,
            };
            if let (Some(cluster), Some(server), false) = (&cluster, &server, args.no_switch) {
                let directory = config.postgres.data_directory.as_ref().unwrap_or(&server.facts.data_directory);
                let timeout = Duration::from_secs(args.timeout);
                check::archiving(&mut findings, cluster, server, &directory.join("pg_wal"), timeout).await;
            }
            places::check(&mut findings, &config, &repository).await;
            check::snapshots(&mut findings, &repository.cluster(name), config.snapshot.max_age_hours).await?;
            check::replay(&mut findings, &repository.cluster(name)).await?;
            check::presence(&mut findings, &repository.cluster(name)).await;
            check::windows(&mut findings, &repository.cluster(name), server.as_ref()).await;
            orphans::notes(&mut findings, &repository.cluster(name)).await?;
            rebuild::check(&mut findings, &repository.cluster(name)).await?;
            orphans::check(&mut findings, &repository.cluster(name)).await?;
            check::reading(&mut findings, &repository.cluster(name), config.verify.cycle_days).await?;
            let notes = match args.no_server {
                true => Notes { is_decided: true, undeliverable: deliver::problems(&config.alert).await, ..Notes::default() },
                false => notes(&config, &repository, server.as_ref()).await?,
            };
            alarms::alarms(&mut findings, &repository.cluster(name), &notes).await?;
            if let Some(drill) = &config.drill {
                drills::check(&mut findings, &repository.cluster(name), drill).await?;
            }
        }
        Err(error) => findings.fail("repository", error.to_string(), mend(&error)),
    }
    let worst = findings.worst();
    for finding in &findings.0 {
        if global.json {
            output::json(&serde_json::json!({ "event": "finding", "finding": finding }));
        } else {
            show(finding);
        }
    }
    if !global.json {
        output::line(verdict(&findings));
    }
    Ok(if worst == Level::Failure { error::CHECK_FAILED } else { 0 })
}

async fn server(findings: &mut Findings, config: &Config) -> Option<check::Server> {
    match context::session(config).await {
        Ok(session) => check::server(findings, config, session).await,
        Err(error) => {
            findings.fail("server", error.to_string(), "start it, or correct [postgres] host, port and user");
            None
        }
    }
}

/// What to do about a repository that does not open, where the message does not say it itself.
fn mend(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref::<RepoError>() {
        Some(RepoError::Storage(error)) => match error.fault {
            Fault::NoPlace => "mount it, or correct [repository] url; only for a new repository: lastgood init",
            Fault::Denied | Fault::ReadOnly => "this user needs to read and to create there",
            Fault::Credentials => "correct the credentials, or where they are looked for ([repository.s3])",
            Fault::Transient => "see that the store is up and can be reached from here",
            _ => "see the message",
        },
        _ => "see the message",
    }
}

/// The last line: after a page of findings nobody should have to count them.
fn verdict(findings: &Findings) -> String {
    let of = |level| findings.0.iter().filter(|finding| finding.level == level).count() as u64;
    match (of(Level::Failure), of(Level::Warning)) {
        (0, 0) => format!("verdict: all is well ({})", output::count(findings.0.len() as u64, "finding")),
        (0, warnings) => format!("verdict: nothing failed, {}", output::count(warnings, "warning")),
        (failures, warnings) => format!(
            "verdict: {}, {}; begin with the first, later ones often follow from it",
            output::count(failures, "failure"),
            output::count(warnings, "warning")
        ),
    }
}

/// What this host and its server say about finding mistakes.
async fn notes(config: &Config, repository: &Repository, server: Option<&check::Server>) -> anyhow::Result<Notes> {
    let record = repository.cluster(&config.cluster.name).record().await?;
    let label = config.cluster.label.clone().or(record.and_then(|record| record.label));
    let mut notes = Notes {
        is_on: config.tripwire.is_on(label.as_deref()),
        is_decided: config.tripwire.enabled.is_some() || label.is_some(),
        has_route: config.alert.is_configured(),
        undeliverable: deliver::problems(&config.alert).await,
        archive_timeout_s: server.map(|server| server.facts.archive_timeout_s),
        ..Notes::default()
    };
    let Some(server) = server else { return Ok(notes) };
    let directory = config.postgres.data_directory.as_ref().unwrap_or(&server.facts.data_directory);
    if let Some(spool) = moment::spool(config, server.facts.system_identifier, Some(directory)) {
        (notes.index_problem, notes.alert_problem) = (spool.noted(Note::IndexProblem), spool.noted(Note::AlertProblem));
    }
    Ok(notes)
}

/// Where the AWS chain looks when nothing is configured; nowhere when the environment holds the keys.
fn default_credentials() -> Option<PathBuf> {
    if std::env::var_os("AWS_ACCESS_KEY_ID").is_some() {
        return None;
    }
    let named = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".aws/credentials")))
}

fn show(finding: &Finding) {
    let mark = match finding.level {
        Level::Ok => Part::Plain("ok     "),
        Level::Warning => Part::In(Colour::Yellow, "WARNING"),
        Level::Failure => Part::In(Colour::Red, "FAILED "),
    };
    if finding.level == Level::Warning {
        quiet::warned();
    }
    let colour = (finding.level == Level::Failure).then_some(Colour::Red);
    output::finding(mark, &format!("{:<15}", finding.subject), &finding.what, colour);
    if !finding.mend.is_empty() {
        output::line(format!("        {:<15} -> {}", "", finding.mend));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_counts_what_is_not_well() {
        let mut findings = Findings::default();
        findings.ok("server", "it runs");
        assert_eq!(verdict(&findings), "verdict: all is well (1 finding)");
        findings.warn("versions", "none", "turn them on");
        assert_eq!(verdict(&findings), "verdict: nothing failed, 1 warning");
        findings.fail("archiving", "it does not", "see the log");
        findings.fail("snapshots", "none", "take one");
        assert!(verdict(&findings).starts_with("verdict: 2 failures, 1 warning; begin with the first"));
    }
}
