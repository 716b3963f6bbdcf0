//! One repository or several: which are opened for what, and what each was good for.

use std::sync::{Arc, Mutex, PoisonError};

use super::context::Place;
use super::keys::{Need, keys};
use super::{error, output, progress};
use crate::archive::behind;
use crate::config::{Config, Mirror};
use crate::repo::copies::RULES;
use crate::repo::layout::is_passing;
use crate::repo::repository::Repository;
use crate::storage::measure::{Log, history};
use crate::storage::several::{Duty, Served, Several};
use crate::storage::{Storage, open};
use crate::upkeep::check::Findings;
use crate::upkeep::mirrors;
use crate::upkeep::protection;
use crate::upkeep::repair::{self, Outcome};
use crate::upkeep::verify::Report;

/// `--repo`: a repository alone. The name or place of a mirror brings that mirror's settings along.
pub fn choose(config: &mut Config, chosen: &str) {
    let same = |url: &str| url.trim_end_matches('/') == chosen.trim_end_matches('/');
    // Commands that write command lines for the server repeat what was given to them.
    if same(&config.repository.url) {
        return;
    }
    match config.mirror.iter().find(|mirror| mirror.name == chosen || same(&mirror.url)) {
        Some(mirror) => (config.repository.url, config.repository.s3) = (mirror.url.clone(), mirror.s3.clone()),
        None => config.repository.url = chosen.into(),
    }
    config.mirror.clear();
}

/// The first repository alone.
pub async fn first(config: &Config) -> anyhow::Result<Arc<dyn Storage>> {
    let log = Log::default();
    let storage = open::open(&config.repository, is_passing, &log).await?;
    remember(config, storage.place(), log);
    Ok(storage)
}

/// A mirror alone.
pub async fn mirror(config: &Config, mirror: &Mirror) -> anyhow::Result<Arc<dyn Storage>> {
    let log = Log::default();
    let storage = open::open_mirror(mirror, is_passing, &log).await?;
    remember(config, storage.place(), log);
    Ok(storage)
}

/// The mirrors that are `wanted`, by name.
pub async fn mirrors(config: &Config, wanted: impl Fn(&Mirror) -> bool) -> anyhow::Result<Vec<(String, Arc<dyn Storage>)>> {
    let mut opened = Vec::new();
    for found in config.mirror.iter().filter(|mirror| wanted(mirror)) {
        opened.push((found.name.clone(), mirror(config, found).await?));
    }
    Ok(opened)
}

/// Whichever is sound and quick, object by object.
pub async fn any(config: &Config) -> anyhow::Result<(Arc<dyn Storage>, Option<Arc<Several>>)> {
    let mirrors = mirrors(config, |_| true).await?;
    let first = first(config).await?;
    if mirrors.is_empty() {
        return Ok((first, None));
    }
    let several = Arc::new(Several::new(first, mirrors, Duty::Read, RULES));
    Ok((several.clone(), Some(several)))
}

/// All that must have what is written.
pub async fn required(config: &Config) -> anyhow::Result<Arc<dyn Storage>> {
    let mirrors = mirrors(config, |mirror| mirror.required).await?;
    let first = first(config).await?;
    if mirrors.is_empty() {
        return Ok(first);
    }
    Ok(Arc::new(Several::new(first, mirrors, Duty::Write, RULES)))
}

/// Something was stored that the mirrors without `required` do not have yet.
pub fn mark_behind(config: &Config) {
    for mirror in config.mirror.iter().filter(|mirror| !mirror.required) {
        behind::Note::of(&config.archive.spool, &mirror.name).mark();
    }
}

/// A place that could not be listed may have more than what is seen.
pub fn warn_of_missed(place: &Place, json: bool) {
    let Some(several) = &place.several else { return };
    for served in several.served() {
        if let Some(why) = &served.excluded {
            progress::monitor(json).warn(&format!("the mirror {} is left out: {why}", name(&served)));
        } else if served.missed {
            let why = served.last_failure.map(|failure| format!(" ({failure})")).unwrap_or_default();
            let what = format!("{} could not be listed{why}: newer snapshots and WAL that only it has are not seen", served.name);
            progress::monitor(json).warn(&what);
        }
    }
}

fn name(served: &Served) -> String {
    format!("{} ({})", served.name, served.place)
}

/// Which place served how much.
pub fn tell_served(place: &Place, json: bool) {
    let Some(several) = &place.several else { return };
    let all = several.served();
    if json {
        output::json(&serde_json::json!({ "event": "served", "places": all }));
        return;
    }
    for served in all {
        let mut text =
            format!("from {}: {} in {}", name(&served), output::bytes(served.bytes), output::count(served.reads, "read"));
        if served.instead > 0 {
            text.push_str(&format!(", {} of them for what is damaged elsewhere (see lastgood verify --repair)", served.instead));
        }
        if served.overtaken > 0 {
            text.push_str(&format!("; it was too slow {}", output::count(served.overtaken, "time")));
        }
        if served.failures > 0 {
            text.push_str(&format!("; {}", output::count(served.failures, "failure")));
            text.push_str(&served.last_failure.map(|failure| format!(", the last one: {failure}")).unwrap_or_default());
        }
        output::line(format!("  {text}"));
    }
}

/// Repairs what `verify` found, and says what became of each.
pub async fn repair(place: &Place, report: &Report, json: bool) -> anyhow::Result<u8> {
    let mut others = Vec::new();
    for (name, storage) in mirrors(&place.config, |_| true).await? {
        match Repository::open(storage, &keys(&place.config, Need::Read)?).await {
            Ok(other) if other.record().id == place.repository.record().id => others.push((name, other.vault().clone())),
            Ok(_) => progress::monitor(json).warn(&format!("the mirror {name} is another repository, and is left out")),
            Err(error) => progress::monitor(json).warn(&format!("the mirror {name} is left out: {error}")),
        }
    }
    let objects: Vec<String> = report.problems.iter().map(|problem| problem.object.clone()).collect();
    let outcomes = repair::repair(&place.cluster, &others, &objects).await?;
    let mut is_whole = true;
    for (object, outcome) in outcomes {
        is_whole &= matches!(outcome, Outcome::Repaired { .. });
        if json {
            output::json(&serde_json::json!({ "event": "repair", "object": object, "outcome": outcome }));
            continue;
        }
        output::line(match outcome {
            Outcome::Repaired { from } => format!("repaired {object}, from {from}"),
            Outcome::Sound => format!("left     {object}: it is sound itself"),
            Outcome::Left { why } => format!("left     {object}: {why}"),
        });
    }
    Ok(if is_whole { 0 } else { error::DAMAGE })
}

/// What `check` says of each mirror.
pub async fn check(findings: &mut Findings, config: &Config, repository: &Repository) {
    for found in &config.mirror {
        let note = behind::Note::of(&config.archive.spool, &found.name);
        let look = mirrors::Mirror {
            name: &found.name,
            required: found.required,
            behind_since: note.since().filter(|_| !found.required),
            max_age_hours: config.snapshot.max_age_hours,
        };
        match mirror(config, found).await {
            Ok(storage) => {
                protection::check(findings, &*storage).await;
                mirrors::mirror(findings, repository, &config.cluster.name, &look, storage).await;
            }
            Err(error) => findings.fail("mirror", format!("{}: {error:#}", found.name), "correct its url under [[mirror]]"),
        }
    }
}

/// Stores that this process opened: their spool, place and log.
static MEASURED: Mutex<Vec<(std::path::PathBuf, String, Log)>> = Mutex::new(Vec::new());

fn remember(config: &Config, place: &str, log: Log) {
    let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    measured.push((config.archive.spool.clone(), place.into(), log));
}

/// Adds what this process measured to what is kept. Only evidence is lost where that fails.
pub fn save_measurements() {
    for (spool, place, log) in MEASURED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        if let Err(error) = history::save(&spool, &place, log.take()) {
            tracing::debug!(%error, "measurements are not kept");
        }
    }
}
