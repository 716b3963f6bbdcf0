//! A cluster's record, written again from its snapshots, its WAL and the audit.
//!
//! # What comes from where
//! - Histories: from manifests, and from the server where there is one. An older record that can be read has those that it knew.
//! - Who goes on after which timeline (`abandoned`, `successors`): from the releases in the audit. Where a timeline left another one that
//!   went on, and nothing tells who was declared, it is undecided: nothing is written of it, and a person is asked.
//! - The label: nothing else holds it, so the cluster counts as production until somebody says otherwise.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::Findings;
use crate::clock;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::repo::audit::{self, Entry, Outcome};
use crate::repo::manifest::Manifest;
use crate::repo::record::{Abandoned, ClusterRecord, History, PRODUCTION, Successor};
use crate::repo::repository::{Cluster, RecordState};
use crate::repo::{FORMAT_VERSION, RepoError};
use crate::storage::{Depth, list_all};
use crate::timeline::archive::Archive;

/// What was written, and what a person must know.
#[derive(Debug, Clone)]
pub struct Rebuilt {
    pub record: ClusterRecord,
    pub snapshots: usize,
    /// Systems that have WAL here, and of which nothing tells what they are.
    pub unknown: Vec<SystemId>,
    /// Forks of which nothing tells who goes on.
    pub undecided: Vec<Fork>,
    /// The audit is not whole: decisions may be missing.
    pub audit_problems: usize,
}

/// A timeline that left another one, which went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    pub system: SystemId,
    pub timeline: Timeline,
    pub parent: Timeline,
    pub at: Lsn,
}

/// Whether anything lies there that a record would be about.
pub async fn has_objects(cluster: &Cluster) -> Result<bool, RepoError> {
    Ok(!cluster.snapshot_ids().await?.is_empty() || !systems(cluster).await?.is_empty())
}

/// Writes the record again where it is missing or damaged; `None` where it is whole. `server` is what a running server says it is.
pub async fn cluster_record(cluster: &Cluster, server: Option<History>) -> Result<Option<Rebuilt>, RepoError> {
    let (before, number) = match cluster.record_state().await? {
        RecordState::Whole(_) => return Ok(None),
        RecordState::Behind { older, number, .. } => (older, number),
        RecordState::Missing => (None, 0),
    };
    if !has_objects(cluster).await? {
        return Err(RepoError::NothingToRebuild { place: format!("{} of {}", cluster.name(), cluster.storage().place()) });
    }
    let manifests: Vec<Manifest> = cluster.manifests().await?.into_iter().filter_map(|(_, read)| read.ok()).collect();
    let mut histories = before.as_ref().map(|record| record.histories.clone()).unwrap_or_default();
    manifests.iter().for_each(|manifest| add(&mut histories, history_of(manifest)));
    let systems = systems(cluster).await?;
    // The server lives the last of them, if it is one of them.
    if let Some(server) = server.filter(|server| systems.contains(&server.system_identifier)) {
        add(&mut histories, server);
    }
    let is_known = |system: &SystemId| histories.iter().any(|known| known.system_identifier == *system);
    let unknown = systems.into_iter().filter(|system| !is_known(system)).collect();
    if histories.is_empty() {
        return Err(RepoError::UnknownSystems { cluster: cluster.name().into() });
    }
    let chain = audit::read(cluster, &[]).await?;
    let decided = decisions(&chain.entries, cluster.name());
    let record = ClusterRecord {
        format: FORMAT_VERSION.into(),
        number: number + 1,
        name: cluster.name().into(),
        label: Some(PRODUCTION.into()),
        histories,
        abandoned: merged(before.as_ref().map(|r| r.abandoned.clone()), decided.abandoned),
        successors: merged(before.map(|r| r.successors), decided.successors),
        written: clock::now(),
        behind: None,
    };
    let undecided = undecided(cluster, &record).await?;
    if !cluster.put_record(&record).await? {
        return Err(RepoError::Busy { what: format!("somebody else has just written a record of {}", cluster.name()) });
    }
    Ok(Some(Rebuilt { record, snapshots: manifests.len(), unknown, undecided, audit_problems: chain.problems.len() }))
}

/// What `check` says of a record that is missing or damaged.
pub async fn check(findings: &mut Findings, cluster: &Cluster) -> Result<(), RepoError> {
    if let RecordState::Behind { why, older, .. } = cluster.record_state().await? {
        let stands_in = if older.is_some() { "; an older one stands in, and the cluster counts as production" } else { "" };
        findings.fail("registration", format!("{why}{stands_in}"), "lastgood init --rebuild");
    }
    Ok(())
}

/// Systems that have WAL here.
async fn systems(cluster: &Cluster) -> Result<Vec<SystemId>, RepoError> {
    let page = list_all(cluster.storage(), &cluster.layout().all_wal(), Depth::Folder).await?;
    Ok(page.folders.iter().filter_map(|folder| folder.trim_end_matches('/').parse().ok().map(SystemId)).collect())
}

fn history_of(manifest: &Manifest) -> History {
    History {
        system_identifier: manifest.system_identifier,
        major: manifest.major,
        catalog_version: manifest.catalog_version,
        control_version: manifest.control_version,
        block_bytes: manifest.block_bytes,
        wal_segment_bytes: manifest.wal_segment_bytes,
        data_checksums: manifest.data_checksums,
        registered: manifest.start_time,
    }
}

/// The last that is said of a system counts, in its place.
fn add(histories: &mut Vec<History>, history: History) {
    match histories.iter_mut().find(|known| known.system_identifier == history.system_identifier) {
        Some(known) => *known = History { registered: known.registered, ..history },
        None => histories.push(history),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Decisions {
    abandoned: Vec<Abandoned>,
    successors: Vec<Successor>,
}

/// What the audit holds of a release's plan.
#[derive(Deserialize)]
struct Released {
    system: SystemId,
    timeline: Timeline,
    #[serde(default)]
    leaves_behind: Vec<LeftBehind>,
}

#[derive(Deserialize)]
struct LeftBehind {
    timeline: Timeline,
}

/// Every release that was done, in order, as it was written into the record.
fn decisions(entries: &[Entry], cluster: &str) -> Decisions {
    let attempts: BTreeMap<u64, &Entry> = entries.iter().map(|entry| (entry.number, entry)).collect();
    let mut decided = Decisions::default();
    for entry in entries {
        let event = &entry.event;
        if event.operation != "release" || event.cluster != cluster || event.outcome != Outcome::Done {
            continue;
        }
        let plan = event.attempt.and_then(|attempt| attempts.get(&attempt)?.event.plan.clone());
        let Some(released) = plan.and_then(|plan| serde_json::from_value::<Released>(plan).ok()) else { continue };
        let Released { system: system_identifier, timeline, leaves_behind } = released;
        decided.abandoned.retain(|left| (left.system_identifier, left.timeline) != (system_identifier, timeline));
        for left in leaves_behind {
            let left = Abandoned { system_identifier, timeline: left.timeline, at: entry.at, by: timeline };
            decided.abandoned.push(left);
        }
        decided.successors.push(Successor { system_identifier, timeline, at: entry.at });
    }
    decided
}

/// What an older record knew, and what the audit adds.
fn merged<T: Timelined>(before: Option<Vec<T>>, audit: Vec<T>) -> Vec<T> {
    let mut all = before.unwrap_or_default();
    for one in audit {
        if all.iter().all(|known| known.whose() != one.whose()) {
            all.push(one);
        }
    }
    all
}

trait Timelined {
    fn whose(&self) -> (SystemId, Timeline);
}

impl Timelined for Abandoned {
    fn whose(&self) -> (SystemId, Timeline) {
        (self.system_identifier, self.timeline)
    }
}

impl Timelined for Successor {
    fn whose(&self) -> (SystemId, Timeline) {
        (self.system_identifier, self.timeline)
    }
}

/// Timelines whose parent goes on in the archive behind where they left it, and of which the record says nothing.
async fn undecided(cluster: &Cluster, record: &ClusterRecord) -> Result<Vec<Fork>, RepoError> {
    let mut forks = Vec::new();
    for history in &record.histories {
        let (system, bytes) = (history.system_identifier, u64::from(history.wal_segment_bytes));
        let archive = Archive::load(cluster, system, bytes).await?;
        for timeline in archive.timelines() {
            let Some(path) = archive.path(timeline) else { continue };
            let Some(parent) = path.stretches().iter().rev().nth(1) else { continue };
            let Some(at) = parent.end else { continue };
            let next = SegmentName::new(parent.timeline, at.last_segment_before(bytes) + 1, bytes);
            let is_decided = record.is_successor(system, timeline)
                || record.abandoned(system).iter().any(|left| [timeline, parent.timeline].contains(left));
            if archive.is_archived(next) && !is_decided {
                forks.push(Fork { system, timeline, parent: parent.timeline, at });
            }
        }
    }
    Ok(forks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::audit::{Event, Who};
    use crate::repo::object::Sha;

    fn entry(number: u64, event: Event) -> Entry {
        let at = jiff::Timestamp::from_second(number as i64).unwrap();
        Entry { number, previous: Sha([0; 32]), at, who: Who::default(), event, written_by: "lastgood".into() }
    }

    #[test]
    fn releases_that_were_done_are_decisions_and_nothing_else_is() {
        let attempted = |number, plan| {
            let event = Event::new("release", "shop", Outcome::Attempted, String::new());
            entry(number, Event { plan: Some(plan), ..event })
        };
        let ended = |number, attempt, outcome, cluster| {
            entry(number, Event { attempt: Some(attempt), ..Event::new("release", cluster, outcome, String::new()) })
        };
        let plan = |timeline: u32, left: &[u32]| {
            let left: Vec<_> = left.iter().map(|timeline| serde_json::json!({ "timeline": timeline, "at": "0/1" })).collect();
            serde_json::json!({ "system": "7", "timeline": timeline, "leaves_behind": left, "directory": "/x" })
        };
        let entries = [
            attempted(1, plan(2, &[])),
            ended(2, 1, Outcome::Done, "shop"),
            attempted(3, plan(3, &[])),
            ended(4, 3, Outcome::Failed, "shop"),
            attempted(5, plan(1, &[2])),
            ended(6, 5, Outcome::Done, "shop"),
            attempted(7, plan(9, &[])),
            ended(8, 7, Outcome::Done, "other"),
            attempted(9, plan(10, &[])),
        ];
        let decided = decisions(&entries, "shop");
        assert_eq!(decided.successors.iter().map(|s| s.timeline.0).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(decided.abandoned.iter().map(|a| (a.timeline.0, a.by.0)).collect::<Vec<_>>(), [(2, 1)]);
        // What is taken up again is abandoned no more.
        let back = [entries.to_vec(), vec![attempted(10, plan(2, &[1])), ended(11, 10, Outcome::Done, "shop")]].concat();
        let decided = decisions(&back, "shop");
        assert_eq!(decided.abandoned.iter().map(|a| (a.timeline.0, a.by.0)).collect::<Vec<_>>(), [(1, 2)]);
    }
}
