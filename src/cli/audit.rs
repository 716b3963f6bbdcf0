//! `lastgood audit`

use super::context::{Global, Place};
use super::{error, output};
use crate::repo::audit::{self, Entry, Outcome};

/// List what was done and attempted that could cost data, and prove that the list is whole
///
/// Every restore, undo, release, key change and refusal is an object that is written once and holds the hash of the one before.
/// Exits with 7 when an entry is missing or was changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood audit\n  lastgood audit --json | jq 'select(.entry.event.outcome == \"refused\")'")]
pub struct Args {
    /// Also show each entry's plan
    #[arg(long)]
    plans: bool,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let place = Place::open(global).await?;
    let mut remembered = Vec::new();
    for name in place.repository.clusters().await? {
        for (id, manifest) in place.repository.cluster(&name).manifests().await? {
            remembered.extend(manifest.ok().and_then(|manifest| Some((id, manifest.audit?))));
        }
    }
    let mut chain = audit::read(&place.cluster, &remembered).await?;
    for entry in &chain.entries {
        let Some(report) = &entry.event.report else { continue };
        if let Some(problem) = report.problem(&place.repository.cluster(&report.cluster)).await? {
            chain.problems.push((entry.number, format!("{problem}: it is not the one that this entry is about")));
        }
    }
    for entry in &chain.entries {
        if global.json {
            output::json(&serde_json::json!({ "event": "entry", "entry": entry }));
        } else {
            let ended = |other: &Entry| other.event.attempt == Some(entry.number);
            show(entry, args.plans, entry.event.outcome != Outcome::Attempted || chain.entries.iter().any(ended));
        }
    }
    if global.json {
        output::json(
            &serde_json::json!({ "event": "result", "entries": chain.entries.len(), "problems": chain.problems.iter().map(|(entry, what)| serde_json::json!({ "entry": entry, "what": what })).collect::<Vec<_>>() }),
        );
    } else {
        for (entry, problem) in &chain.problems {
            output::line(format!("DAMAGED entry {entry}: {problem}"));
        }
        if chain.problems.is_empty() {
            output::line(format!("{} entries, each vouched for by the next", chain.entries.len()));
        }
    }
    Ok(if chain.problems.is_empty() { 0 } else { error::DAMAGE })
}

fn show(entry: &Entry, plans: bool, has_ended: bool) {
    let (event, who) = (&entry.event, &entry.who);
    let behind = who.on_behalf_of.as_ref().map(|user| format!(" for {user}")).unwrap_or_default();
    let of = event.attempt.map(|number| format!(" (of {number})")).unwrap_or_default();
    let how = event.confirmed.as_ref().map(|how| format!(", confirmation: {how}")).unwrap_or_default();
    let code = event.code.as_ref().map(|code| format!(", code {code}")).unwrap_or_default();
    output::line(format!(
        "{:>5}  {}  {} {}{of}  cluster {}  by {}@{}{behind}{how}{code}",
        entry.number,
        output::time(entry.at),
        event.operation,
        event.outcome.word(),
        event.cluster,
        who.user,
        who.host
    ));
    if !has_ended {
        output::line("       no outcome was recorded: it was interrupted, or is still at work");
    }
    if let Some(where_to) = event.plan.as_ref().and_then(place_of) {
        output::line(format!("       {where_to}"));
    }
    if !event.detail.is_empty() {
        output::line(format!("       {}", event.detail));
    }
    if let Some(plan) = event.plan.as_ref().filter(|_| plans) {
        for line in serde_json::to_string_pretty(plan).unwrap_or_default().lines() {
            output::line(format!("       {line}"));
        }
    }
}

/// What a plan was about: where to, to which moment, from what. Plans are of several kinds and older than this program; what one does
/// not say is left out.
fn place_of(plan: &serde_json::Value) -> Option<String> {
    let of = |name: &str| plan[name].as_str().filter(|text| !text.is_empty());
    let parts = [("to", of("target")), ("into", of("into")), ("of", of("directory")), ("from snapshot", of("snapshot"))];
    let parts: Vec<String> = parts.into_iter().filter_map(|(word, value)| Some(format!("{word} {}", value?))).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}
