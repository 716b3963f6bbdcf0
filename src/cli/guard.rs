//! Between a plan and its execution: asks a person, takes a code, and keeps the audit.

use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::task::JoinHandle;

use super::context::{Global, Place};
use super::{output, progress};
use crate::config::Config;
use crate::monitor::Monitor;
use crate::owner;
use crate::repo::audit::{self, Event, Head, Outcome, Who};
use crate::repo::report::Reference;
use crate::repo::repository::{Cluster, Repository};
use crate::restore::RestoreError;
use crate::restore::guard::{self, Approval, Brought, Care, Passed, Seal};
use crate::restore::replaced::Around;
use crate::upkeep::apart::apart;

/// How a guarded command is confirmed.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Confirm {
    /// The code of the plan, which was shown with it: for automations, good for 15 minutes
    #[arg(long, value_name = "CODE")]
    pub confirm: Option<String>,
    /// Accepted and worthless, so that a habit gets an explanation instead of a usage error.
    #[arg(long, short = 'y', hide = true)]
    pub yes: bool,
    /// Show the plan and its code, and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// One guarded operation.
pub struct Desk<'a> {
    pub operation: &'static str,
    cluster: &'a Cluster,
    who: Who,
    monitor: Arc<dyn Monitor>,
    json: bool,
    end: Mutex<End>,
}

/// What is known of the audit's end.
#[derive(Default)]
enum End {
    #[default]
    Unknown,
    Asked(JoinHandle<Option<Head>>),
    /// As this process left it.
    Left(Head),
}

impl<'a> Desk<'a> {
    pub fn new(operation: &'static str, place: &'a Place, global: &Global) -> Desk<'a> {
        Desk::of(operation, &place.cluster, global)
    }

    pub fn of(operation: &'static str, cluster: &'a Cluster, global: &Global) -> Desk<'a> {
        Desk { operation, cluster, who: who(), monitor: progress::monitor(global.json), json: global.json, end: Mutex::default() }
    }

    /// Looks for the end of the audit while other things are asked; without it, the first entry looks.
    pub fn learn_end(&self) {
        let cluster = self.cluster.clone();
        let look = tokio::spawn(async move { audit::head(&cluster).await.ok() });
        *self.end() = End::Asked(look);
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the code of a plan is bound to: all of the plan, the repository, the configuration, and this host.
    pub fn seal(&self, plan: &impl Serialize, place: &Place) -> Seal {
        self.seal_of(plan, &place.repository, &place.config)
    }

    /// The same where no cluster is open yet.
    pub fn seal_of(&self, plan: &impl Serialize, repository: &Repository, config: &Config) -> Seal {
        let repository = repository.record().id.clone();
        let settings = (&config.path, &config.cluster.name, &config.cluster.label, &config.repository.url);
        Seal::of(&(self.operation, plan, repository, settings), &this_host())
    }

    /// Lets the guard judge; a refusal enters the audit.
    pub async fn pass(&self, path: &Path, care: &Care, seal: &Seal, confirm: &Confirm) -> anyhow::Result<Approval> {
        let mut brought = Brought { code: confirm.confirm.clone(), typed: None };
        if brought.code.is_none() && *care != Care::Free && !confirm.yes {
            brought.typed = self.ask(care);
        }
        let verb = match self.operation {
            "release" => "released",
            "init" => "registered in this way",
            _ => "moved aside",
        };
        match guard::pass(path, verb, care, seal, &brought) {
            Ok(approval) => Ok(approval),
            Err(error) => Err(self.refused(error, brought.code).await),
        }
    }

    /// Whether somebody has seen a plan: by its code, given or typed.
    pub fn has_seen(&self, seal: &Seal, code: Option<&str>) -> anyhow::Result<bool> {
        match code.map(str::to_string).or_else(|| self.ask(&Care::Code)) {
            Some(code) => Ok(seal.check(&code, crate::clock::now()).map(|()| true)?),
            None => Ok(false),
        }
    }

    /// What a person types at a terminal; nothing that comes from anywhere else.
    fn ask(&self, care: &Care) -> Option<String> {
        if self.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        // What was typed before the question was shown answers another one.
        rustix::termios::tcflush(std::io::stdin(), rustix::termios::QueueSelector::IFlush).ok()?;
        match care {
            Care::Free => return None,
            Care::Code => output::ask("Type the code of this plan to go on, anything else to stop: "),
            Care::Production { name, .. } => {
                let verb = match self.operation {
                    "release" => "release it",
                    "undo" => "put the old one in its place",
                    "init" => "change what the name stands for",
                    _ => "move it aside",
                };
                let what = format!("This is production. Type the name of the cluster ({name}) to {verb}, anything else to stop.");
                output::complain(&what);
                output::ask("name: ");
            }
        }
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).ok()?;
        Some(line.trim_end_matches(['\n', '\r']).to_string())
    }

    /// Tells a person where things stand.
    pub fn note(&self, text: &str) {
        self.monitor.note(text);
    }

    /// Notes a refusal and hands the error on.
    pub async fn refused(&self, error: RestoreError, code: Option<String>) -> anyhow::Error {
        let event = Event { code, ..self.event(Outcome::Refused, error.to_string()) };
        self.append(event).await;
        error.into()
    }

    /// Notes that it begins; answers the number of the entry.
    pub async fn attempted(&self, plan: &impl Serialize, approval: &Approval, code: &str) -> Option<u64> {
        let confirmed = Some(approval.how().words().to_string());
        let code = (approval.how() != Passed::NotNeeded).then(|| code.to_string());
        let plan = serde_json::to_value(plan).ok();
        self.append(Event { confirmed, code, plan, ..self.event(Outcome::Attempted, String::new()) }).await
    }

    /// Notes how it ended, and hands the result on.
    pub async fn ended<T>(
        &self,
        attempt: Option<u64>,
        result: Result<T, RestoreError>,
        detail: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<T> {
        self.ended_with(attempt, result, None, detail).await
    }

    /// The same, with the report that was written about it, if it could be.
    pub async fn ended_with<T>(
        &self,
        attempt: Option<u64>,
        result: Result<T, RestoreError>,
        report: Option<Reference>,
        detail: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<T> {
        let (outcome, detail) = match &result {
            Ok(done) => (Outcome::Done, detail(done)),
            Err(error) if is_refusal(error) => (Outcome::Refused, error.to_string()),
            Err(error) => (Outcome::Failed, error.to_string()),
        };
        self.append(Event { attempt, report, ..self.event(outcome, detail) }).await;
        Ok(result?)
    }

    /// Notes how a drill ended.
    pub async fn reported(&self, attempt: Option<u64>, report: Option<Reference>, passed: bool, detail: String) {
        let outcome = if passed { Outcome::Done } else { Outcome::Failed };
        self.append(Event { attempt, report, ..self.event(outcome, detail) }).await;
    }

    /// Notes that something without a plan begins.
    pub async fn begins(&self) -> Option<u64> {
        self.append(self.event(Outcome::Attempted, String::new())).await
    }

    /// Notes how that ended, and hands the result on.
    pub async fn ends<T>(&self, attempt: Option<u64>, result: anyhow::Result<T>) -> anyhow::Result<T> {
        let (outcome, detail) = match &result {
            Ok(_) => (Outcome::Done, String::new()),
            Err(error) => (Outcome::Failed, format!("{error:#}")),
        };
        self.append(Event { attempt, ..self.event(outcome, detail) }).await;
        result
    }

    fn event(&self, outcome: Outcome, detail: String) -> Event {
        Event::new(self.operation, self.cluster.name(), outcome, detail)
    }

    /// An audit that cannot be written must not keep data from coming back.
    async fn append(&self, event: Event) -> Option<u64> {
        let known = std::mem::take(&mut *self.end());
        let end = match known {
            End::Unknown => None,
            // One that came to nothing is made again.
            End::Asked(look) => look.await.ok().flatten(),
            End::Left(head) => Some(head),
        };
        match audit::append_behind(self.cluster, &self.who, event, end).await {
            Ok(head) => {
                *self.end() = End::Left(head);
                Some(head.number)
            }
            Err(error) => {
                self.monitor.warn(&format!("the audit could not be written: {error}"));
                None
            }
        }
    }
}

/// Turned away before anything was changed.
pub fn is_refusal(error: &RestoreError) -> bool {
    use RestoreError::*;
    matches!(
        error,
        Place { .. }
            | NoRoom { .. }
            | Unconfirmed { .. }
            | Code { .. }
            | Typed { .. }
            | Living { .. }
            | Changed { .. }
            | Release { .. }
    )
}

/// Where a guarded operation looks.
pub fn around(place: &Place) -> Around<'_> {
    let (repository, cluster, record) = (&place.repository, &place.cluster, &place.record);
    Around {
        repository,
        cluster,
        record,
        label: place.config.cluster.label.as_deref(),
        apart: apart(&place.config),
        data_directory: place.config.postgres.data_directory.as_deref(),
    }
}

/// Shows how a plan passes the guard; the code on a short line, so that no terminal breaks it.
pub fn show(care: &Care, code: &str) {
    match care {
        Care::Free => return,
        Care::Code => output::entry("confirm", format!("--confirm {code}")),
        Care::Production { name, why } => {
            output::entry("PRODUCTION", why);
            output::entry("confirm", format!("type the name {name:?} at a terminal, or pass"));
            output::entry("", format!("--confirm {code}"));
        }
    }
    output::entry("", "(good for 15 minutes, and only while nothing changes)");
}

/// Who runs this program.
pub fn who() -> Who {
    Who {
        user: owner::user_name(rustix::process::getuid().as_raw()),
        on_behalf_of: std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty()),
        host: host(),
        pid: std::process::id(),
        terminal: std::io::stdin().is_terminal(),
    }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Host names are given twice; machine ids are not, but containers may lack one.
fn this_host() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    format!("{} {}", host(), id.trim())
}
