//! `lastgood init --rebuild`

use super::context::{self, Global};
use super::keys::{self, Need};
use super::{guard, output, places, progress};
use crate::clock;
use crate::config::Config;
use crate::postgres::session::Facts;
use crate::repo::audit::{self, Event, Outcome};
use crate::repo::rebuild::{self as of_repository, Origin};
use crate::repo::record::{History, RepositoryRecord};
use crate::repo::repository::{RecordState, Repository};
use crate::upkeep::rebuild::{self, Fork, Rebuilt};

/// Writes again what is missing of the two records on which everything else depends.
pub async fn run(global: &Global) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let keys = keys::keys(&config, Need::Read)?;
    let storage = context::storage(&config).await?;
    let mirrors = places::mirrors(&config, |_| true).await?;
    let of_place = of_repository::repository_record(&storage, &keys, &mirrors).await?;
    let repository = Repository::open(storage, &keys).await?;
    let cluster = repository.cluster(&config.cluster.name);
    let rebuilt = rebuild::cluster_record(&cluster, server(&config).await).await?;
    let others = others(&repository, cluster.name()).await?;
    if of_place.is_some() || rebuilt.is_some() {
        let what = match (&of_place, &rebuilt) {
            (Some(_), Some(_)) => "lastgood.json and the cluster's record were written again",
            (Some(_), None) => "lastgood.json was written again",
            _ => "the cluster's record was written again",
        };
        let event = Event::new("init", cluster.name(), Outcome::Done, what.into());
        if let Err(error) = audit::append(&cluster, &guard::who(), event).await {
            progress::monitor(global.json).warn(&format!("the audit could not be written: {error}"));
        }
    }
    match global.json {
        true => show_json(of_place.as_ref(), rebuilt.as_ref(), &others),
        false => show(repository.storage().place(), of_place.as_ref(), rebuilt.as_ref(), &others),
    }
    Ok(0)
}

/// What the server says it is, where one runs: it lives the newest history.
async fn server(config: &Config) -> Option<History> {
    Some(life(&context::session(config).await.ok()?.facts().await.ok()?))
}

/// The life that a server lives, registered now.
pub fn life(facts: &Facts) -> History {
    History {
        system_identifier: facts.system_identifier,
        major: facts.major(),
        catalog_version: facts.catalog_version,
        control_version: facts.control_version,
        block_bytes: facts.block_bytes,
        wal_segment_bytes: facts.wal_segment_bytes,
        data_checksums: facts.data_checksums,
        registered: clock::now(),
    }
}

/// Other clusters whose records are missing or damaged.
async fn others(repository: &Repository, own: &str) -> anyhow::Result<Vec<String>> {
    let mut others = Vec::new();
    for name in repository.clusters().await?.into_iter().filter(|name| name != own) {
        if !matches!(repository.cluster(&name).record_state().await?, RecordState::Whole(_)) {
            others.push(name);
        }
    }
    Ok(others)
}

fn show_json(of_place: Option<&(RepositoryRecord, Origin)>, rebuilt: Option<&Rebuilt>, others: &[String]) {
    let fork = |fork: &Fork| serde_json::json!({ "system_identifier": fork.system, "timeline": fork.timeline, "parent": fork.parent, "at": fork.at });
    let undecided: Vec<_> = rebuilt.iter().flat_map(|rebuilt| &rebuilt.undecided).map(fork).collect();
    output::json(&serde_json::json!({
        "event": "result",
        "repository": of_place.map(|(record, _)| &record.id),
        "new_id": of_place.is_some_and(|(_, origin)| *origin == Origin::New),
        "record": rebuilt.map(|rebuilt| &rebuilt.record),
        "unknown_systems": rebuilt.map(|rebuilt| &rebuilt.unknown),
        "undecided": undecided,
        "audit_problems": rebuilt.map(|rebuilt| rebuilt.audit_problems),
        "other_clusters": others,
    }));
}

fn show(place: &str, of_place: Option<&(RepositoryRecord, Origin)>, rebuilt: Option<&Rebuilt>, others: &[String]) {
    if let Some((record, origin)) = of_place {
        let from = match origin {
            Origin::Mirror(name) => format!("from the mirror {name}"),
            Origin::Keys => "its id is that of the keys".into(),
            Origin::New => "with a new id, because nothing holds the old one".into(),
        };
        output::line(format!("repository {place}: lastgood.json was written again, {from} ({})", record.id));
        if *origin == Origin::New {
            output::line("  a mirror that still has the old lastgood.json needs this one: copy the file there");
        }
    }
    if let Some(rebuilt) = rebuilt {
        tell(rebuilt);
    }
    if of_place.is_none() && rebuilt.is_none() {
        output::line("nothing is missing: lastgood.json and the cluster's record are whole");
    }
    for name in others {
        output::line(format!("the record of cluster {name} is missing or damaged too: lastgood --cluster {name} init --rebuild"));
    }
}

fn tell(rebuilt: &Rebuilt) {
    let record = &rebuilt.record;
    let snapshots = output::count(rebuilt.snapshots as u64, "snapshot");
    output::line(format!("cluster {}: record {} was written again, from {snapshots}", record.name, record.number));
    for history in &record.histories {
        output::line(format!("  system {}, PostgreSQL {}", history.system_identifier, history.major));
    }
    for system in &rebuilt.unknown {
        output::line(format!("  system {system} has WAL here and no snapshot: while its server runs, run this again"));
    }
    output::line("  its label was lost, so it counts as production until `lastgood init` writes another one");
    output::line(format!(
        "  decisions that the audit tells: {}, {}",
        output::count(record.successors.len() as u64, "released timeline"),
        output::count(record.abandoned.len() as u64, "abandoned timeline")
    ));
    if rebuilt.audit_problems > 0 {
        output::line("  the audit is not whole, so decisions may be missing: `lastgood audit`");
    }
    for fork in &rebuilt.undecided {
        output::line(format!(
            "  UNDECIDED: timeline {} left timeline {} at {}, both go on, and nothing tells which one counts; say it with `lastgood release`",
            fork.timeline, fork.parent, fork.at
        ));
    }
}
