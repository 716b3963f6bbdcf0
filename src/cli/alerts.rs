//! `lastgood alerts`

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use super::context::{Global, Place};
use super::keys::Need;
use super::output::{self, Colour, Part};
use super::{guard, progress};
use crate::archive::spool::{Note, Spool};
use crate::clock;
use crate::config::Config;
use crate::postgres::control::ControlFile;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::repo::alert::{self, Acknowledgement, Alert};
use crate::repo::audit;
use crate::timeline::archive::Archive;
use crate::timeline::told;
use crate::watch::forks;
use crate::watch::tripwire::{self, Look, Seen};
use crate::watch::unreachable;

/// Show what the tripwire met in the WAL, and acknowledge it
///
/// While an alert is not acknowledged, `expire` removes nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lastgood alerts\n  lastgood alerts --acknowledge 1:0/48E06C0 --reason 'planned clean-up'\n  \
    lastgood alerts --acknowledge all --reason 'planned clean-up'\n  \
    lastgood alerts --json | jq 'select(.acknowledged | not)'"
)]
pub struct Args {
    /// The event of an alert, like 1:0/48E06C0, the alert's own id, its beginning, or all
    #[arg(long, value_name = "ID")]
    acknowledge: Option<String>,
    /// Why it is well, for those who ask later; it is needed
    #[arg(long, value_name = "TEXT", requires = "acknowledge")]
    reason: Option<String>,
    /// Show acknowledged ones too
    #[arg(long)]
    all: bool,
    /// Look at the WAL that was archived since the last look; started by archive-push itself
    #[arg(long, hide = true)]
    look: bool,
    /// Tell that a standby cannot fetch WAL since this second; started by archive-get itself
    #[arg(long, hide = true, value_name = "SECOND", requires = "why")]
    unreachable: Option<i64>,
    #[arg(long, hide = true, value_name = "TEXT", requires = "unreachable")]
    why: Option<String>,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    acknowledged: bool,
    /// Who looked, and what they say; absent where that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledgement: Option<Acknowledgement>,
    #[serde(flatten)]
    alert: Alert,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    if let (Some(since), Some(why)) = (args.unreachable, &args.why) {
        return unreachable(global, since, why).await;
    }
    let place = Place::open_to(global, Need::Write).await?;
    if args.look {
        return look(global, &place).await;
    }
    let known = alert::all(&place.cluster).await?;
    if let Some(wanted) = &args.acknowledge {
        let is_event = |id: &str| event_of(id).is_some_and(|event| event == *wanted);
        let matches = |id: &str| wanted == "all" || is_event(id) || id.starts_with(wanted.as_str());
        let open: Vec<&String> = known.iter().filter(|(id, done)| !**done && matches(id)).map(|(id, _)| id).collect();
        anyhow::ensure!(!open.is_empty(), "there is no open alert {wanted:?}; `lastgood alerts` lists them");
        anyhow::ensure!(
            wanted == "all" || open.len() == 1 || open.iter().all(|id| is_event(id)),
            "{} open alerts begin with {wanted:?}; write more of the id",
            open.len()
        );
        let reason = args.reason.as_deref().map(str::trim).unwrap_or_default();
        anyhow::ensure!(
            !reason.is_empty(),
            "an acknowledgement needs a reason: who reads it later must see why it was well; add --reason 'planned clean-up'"
        );
        let who = guard::who();
        let by = Acknowledgement { at: clock::now(), user: who.user.clone(), host: who.host.clone(), reason: reason.into() };
        for id in open {
            alert::acknowledge(&place.cluster, id, &by).await?;
            let detail = format!("acknowledged {}: {reason}", event_of(id).unwrap_or_else(|| id.clone()));
            let event = audit::Event::new("alerts", place.cluster.name(), audit::Outcome::Done, detail);
            audit::append(&place.cluster, &who, event).await?;
            if global.json {
                output::json(&serde_json::json!({ "event": "acknowledged", "id": id, "by": by }));
            } else {
                output::line(format!("acknowledged {id}"));
            }
        }
        return Ok(0);
    }
    let mut shown = 0;
    for (id, acknowledged) in known.into_iter().filter(|(_, done)| args.all || !done) {
        shown += 1;
        let alert = match alert::readable(&place.cluster, &id).await? {
            Ok(alert) => alert,
            Err(unreadable) => {
                tell_unreadable(&id, acknowledged, &unreadable, global.json);
                continue;
            }
        };
        let by = if acknowledged { alert::acknowledgement(&place.cluster, &id).await? } else { None };
        if global.json {
            output::json(&Shown { id, acknowledged, acknowledgement: by, alert });
        } else {
            show(&id, acknowledged, by.as_ref(), &alert);
        }
    }
    if shown == 0 && !global.json {
        output::line(if args.all { "no alert was ever raised" } else { "no alert is open" });
    }
    Ok(0)
}

/// That it was raised is known all the same, and of what event.
fn tell_unreadable(id: &str, acknowledged: bool, unreadable: &str, json: bool) {
    if json {
        output::json(&serde_json::json!({ "id": id, "acknowledged": acknowledged, "unreadable": unreadable }));
        return;
    }
    output::line(format!("an alert that cannot be read: {unreadable}"));
    output::entry("alert", id);
    if let Some(event) = event_of(id) {
        output::entry("undo it", format!("lastgood restore --before {event}"));
    }
    if !acknowledged {
        output::entry("was meant", format!("lastgood alerts --acknowledge {id} --reason TEXT"));
    }
}

/// The event of the alert with this id.
fn event_of(id: &str) -> Option<String> {
    let mut parts = id.split('-').skip(1);
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (timeline, target) = (number()?, number()?);
    Some(told::id(Timeline(timeline.try_into().ok()?), Lsn(target)))
}

fn show(id: &str, acknowledged: bool, by: Option<&Acknowledgement>, alert: &Alert) {
    match acknowledged {
        true => output::line(&alert.what),
        false => output::parts(&[Part::In(Colour::Red, &alert.what)]),
    }
    output::entry("rule", format!("{}{}", alert.rule, if acknowledged { ", acknowledged" } else { "" }));
    output::entry("alert", id);
    output::entry("noticed", format!("{} by {}", output::time(alert.noticed), alert.host));
    output::entry("undo it", alert.command());
    if let Some(Acknowledgement { at, user, host, reason }) = by {
        let reason = if reason.is_empty() { "without a reason" } else { reason };
        output::entry("was meant", format!("{} by {user} on {host}: {reason}", output::time(*at)));
    }
    if !acknowledged {
        output::entry("was meant", format!("lastgood alerts --acknowledge {} --reason TEXT", alert.event));
    }
}

/// Looks until nothing suspicious is left: a push that came meanwhile found this process at work and started none.
async fn look(global: &Global, place: &Place) -> anyhow::Result<u8> {
    let history = place.record.current().ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?;
    let system = history.system_identifier;
    look_at_forks(global, place, (system, history.wal_segment_bytes.into())).await?;
    if !place.config.tripwire.is_on(place.config.cluster.label.as_deref().or(place.record.label.as_deref())) {
        return Ok(0);
    }
    // PostgreSQL runs archive_command, which starts us, in the data directory.
    let spool = Spool::existing(&place.config.archive.spool, place.cluster.name(), system, Path::new("."))?;
    let Some(_lock) = spool.lock_watching() else { return Ok(0) };
    while let Some(suspicion) = spool.noted(Note::Suspicion) {
        let seen = look_once(global, place, (system, history.wal_segment_bytes.into()), &spool, &suspicion).await?;
        if !seen.undelivered.is_empty() {
            spool.note(Note::AlertProblem, Some(&seen.undelivered.join("; ")));
        } else if !seen.raised.is_empty() {
            spool.note(Note::AlertProblem, None);
        }
        let is_newer = spool.noted(Note::Suspicion).is_some_and(|now| now != suspicion);
        if !is_newer && !seen.is_pending {
            spool.note(Note::Suspicion, None);
        }
        if !is_newer {
            break;
        }
    }
    Ok(0)
}

/// Tells that a standby, in whose data directory this runs, cannot fetch WAL. No repository is opened: it cannot be reached.
async fn unreachable(global: &Global, since: i64, why: &str) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let since = jiff::Timestamp::from_second(since)?;
    let failed = unreachable::tell(&config.cluster.name, &guard::who().host, since, why, &config.alert).await;
    if !failed.is_empty() {
        let system = ControlFile::read(Path::new("."))?.system_identifier;
        let spool = Spool::existing(&config.archive.spool, &config.cluster.name, system, Path::new("."))?;
        spool.note(Note::AlertProblem, Some(&failed.join("; ")));
    }
    Ok(0)
}

/// Starts telling it in the background: a program that hangs must not keep a standby from asking again.
pub fn start_unreachable(global: &Global, config: &Config, since: jiff::Timestamp, why: &str) {
    let Ok(words) = global.words(config) else { return };
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["alerts", "--unreachable", &since.as_second().to_string(), "--why", why]);
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
}

/// Where a timeline and its parent may both go on.
async fn look_at_forks(global: &Global, place: &Place, (system, segment_bytes): (SystemId, u64)) -> anyhow::Result<()> {
    let spool = Spool::existing(&place.config.archive.spool, place.cluster.name(), system, Path::new("."))?;
    let Some(noted) = spool.noted(Note::Fork) else { return Ok(()) };
    let Some(_lock) = spool.lock_watching() else { return Ok(()) };
    let archive = Archive::load(&place.cluster, system, segment_bytes).await?;
    let (abandoned, monitor) = (place.record.abandoned(system), progress::monitor(global.json));
    let failed = forks::look(&archive, &abandoned, &place.config.alert, &guard::who().host, &monitor).await?;
    if !failed.is_empty() {
        spool.note(Note::AlertProblem, Some(&failed.join("; ")));
    }
    if spool.noted(Note::Fork).as_ref() == Some(&noted) {
        spool.note(Note::Fork, None);
    }
    Ok(())
}

async fn look_once(
    global: &Global,
    place: &Place,
    (system, segment_bytes): (SystemId, u64),
    spool: &Spool,
    suspicion: &str,
) -> anyhow::Result<Seen> {
    let manifests: Vec<_> = place.manifests(true).await?.into_iter().filter(|m| m.system_identifier == system).collect();
    let mut archive = Archive::load(&place.cluster, system, segment_bytes).await?;
    archive.decide(&place.record);
    let watched = spool.noted(Note::Watched).or_else(|| Some(suspicion.into())).and_then(|name| name.parse::<SegmentName>().ok());
    let monitor = progress::monitor(global.json);
    let asked = Look {
        archive: &archive,
        manifests: &manifests,
        watched,
        local: &|name| spool.index(name),
        rules: &place.config.tripwire,
        settings: &place.config.alert,
        host: guard::who().host,
    };
    let seen = tripwire::look(&asked, &monitor).await?;
    spool.note(Note::Watched, Some(suspicion));
    Ok(seen)
}

/// Starts a look in the background. It is started again by the next push while the note stands, so what fails here is not lost.
pub fn start_look(global: &Global, config: &Config, data_directory: &PathBuf) {
    let Ok(words) = global.words(config) else { return };
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["alerts", "--look"]).current_dir(data_directory);
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
}
