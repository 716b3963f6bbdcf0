//! The cluster that a plan would move aside: whose it is, what it holds that is nowhere else, and how much care it needs.

use std::path::Path;

use futures::StreamExt;
use serde::Serialize;

use super::RestoreError;
use super::guard::Care;
use super::loss::Loss;
use super::present::Present;
use super::salvage::{self, Unarchived};
use super::standing::Occupant;
use crate::postgres::apart::Apart;
use crate::postgres::lsn::SystemId;
use crate::repo::RepoError;
use crate::repo::record::ClusterRecord;
use crate::repo::repository::{Cluster, Repository};
use crate::storage::{Depth, list_all};
use crate::timeline::archive::Archive;
use crate::timeline::tail;

/// The label that needs most care.
pub use crate::repo::record::PRODUCTION;

/// Where a plan is made: the configured cluster, its label, and the repository with all others.
#[derive(Debug, Clone)]
pub struct Around<'a> {
    pub repository: &'a Repository,
    pub cluster: &'a Cluster,
    pub record: &'a ClusterRecord,
    /// From the configuration; the repository's record has one too.
    pub label: Option<&'a str>,
    /// Directories of ours on this host.
    pub apart: Vec<Apart>,
    /// The configured server's data directory.
    pub data_directory: Option<&'a Path>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Replaced {
    /// The name of the cluster in the repository; absent when the repository does not know it.
    pub owner: Option<String>,
    pub label: Option<String>,
    pub care: Care,
    /// WAL that only this directory has.
    pub unarchived: Unarchived,
    /// Why it is not archived first, where that is so.
    pub not_archived_because: Option<String>,
    /// Absent for a cluster of another system: then everything in it is.
    pub loss: Option<Loss>,
    /// Its history, or why it is not known; absent when the repository does not know its system.
    #[serde(skip)]
    pub present: Option<Result<Present, String>>,
    #[serde(skip)]
    pub archive: Option<Archive>,
}

/// Looks around the occupant of `into`. WAL of the system that is restored is added to `archive`, so that targets in it can be found.
pub async fn look(
    around: &Around<'_>,
    archive: &mut Archive,
    into: &Path,
    occupant: &Occupant,
) -> Result<Replaced, RestoreError> {
    let owner = match occupant.system() {
        Some(system) => owner(around, system).await?,
        None => None,
    };
    let mut replaced = Replaced {
        owner: owner.as_ref().map(|o| o.record.name.clone()),
        label: owner.as_ref().and_then(|o| o.label.clone()),
        care: care(around, occupant, owner.as_ref()),
        unarchived: Unarchived::default(),
        not_archived_because: None,
        loss: None,
        present: None,
        archive: None,
    };
    let Some(system) = occupant.system() else {
        replaced.not_archived_because = Some("pg_control cannot be read, so nobody can tell whose WAL it is".into());
        return Ok(replaced);
    };
    let pg_wal = into.join("pg_wal");
    let mut found = match tail::in_directory(&pg_wal, system) {
        Ok(found) => found,
        Err(error) => {
            let why = format!("{} cannot be read: {error}", pg_wal.display());
            (replaced.present, replaced.not_archived_because) = (Some(Err(why.clone())), Some(why));
            return Ok(replaced);
        }
    };
    let Some(owner) = owner else {
        replaced.not_archived_because = Some("the repository does not know this system".into());
        return Ok(replaced);
    };
    let own = match system == archive.system && owner.cluster.name() == archive.cluster().name() {
        true => archive.clone(),
        false => Archive::load(&owner.cluster, system, owner.segment_bytes).await?,
    };
    replaced.unarchived = salvage::find(&own, &mut found).await?;
    if let Some(control) = &occupant.control {
        replaced.present = Some(Present::of(&own, into, control.timeline, &found, &replaced.unarchived));
    }
    if occupant.unreleased {
        // Its future is not the original's (rule 29).
        replaced.not_archived_because = Some("the cluster was restored by lastgood and never released".into());
        return Ok(replaced);
    }
    if system == archive.system {
        archive.add_tails(found);
    }
    replaced.archive = Some(own);
    Ok(replaced)
}

struct Owner {
    cluster: Cluster,
    record: ClusterRecord,
    label: Option<String>,
    segment_bytes: u64,
}

/// The cluster of a system identifier: the configured one before all others.
async fn owner(around: &Around<'_>, system: SystemId) -> Result<Option<Owner>, RestoreError> {
    let own = |cluster: &Cluster, record: &ClusterRecord, label: Option<&str>| {
        let history = record.history(system)?;
        let segment_bytes = u64::from(history.wal_segment_bytes);
        let label = label.map(String::from).or(record.label.clone());
        Some(Owner { cluster: cluster.clone(), record: record.clone(), label, segment_bytes })
    };
    let configured = own(around.cluster, around.record, None).map(|mut owner| {
        // Either place may say production; neither may unsay it.
        if around.label == Some(PRODUCTION) || owner.label.is_none() {
            owner.label = around.label.map(String::from).or(owner.label);
        }
        owner
    });
    let mut candidates: Vec<Owner> = configured.into_iter().collect();
    let names = around.repository.clusters().await?;
    let others = names.into_iter().filter(|name| name != around.cluster.name());
    let read = |name: String| async move {
        let registered = around.repository.registered(&name).await;
        (name, registered)
    };
    let mut reads = futures::stream::iter(others).map(read).buffer_unordered(16);
    while let Some((name, read)) = reads.next().await {
        match read {
            Ok((cluster, record)) => candidates.extend(own(&cluster, &record, None)),
            // A folder without a record is what an interrupted `init` left; or the record was lost. Whether this cluster is that one, and
            // whether that one is production, nobody can tell then.
            Err(error) if matches!(error, RepoError::NoRecord { .. }) || error.is_damage() => {
                let cluster = around.repository.cluster(&name);
                let wal =
                    list_all(cluster.storage(), &cluster.layout().all_wal(), Depth::Folder).await.map_err(RepoError::from)?;
                if wal.folders.contains(&format!("{system}/")) {
                    return Err(error.into());
                }
            }
            Err(RepoError::NoCluster { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // One system under two names: the one that needs more care counts.
    let at = candidates.iter().position(|owner| owner.label.as_deref() == Some(PRODUCTION)).unwrap_or(0);
    Ok((at < candidates.len()).then(|| candidates.swap_remove(at)))
}

fn care(around: &Around<'_>, occupant: &Occupant, owner: Option<&Owner>) -> Care {
    let name = owner.map_or(around.cluster.name(), |owner| &owner.record.name).to_string();
    let why = if occupant.living.is_some() {
        "a server runs there"
    } else if occupant.control.is_none() {
        "its pg_control cannot be read, so nobody can tell what it was"
    } else if owner.is_some_and(|owner| owner.label.as_deref() == Some(PRODUCTION)) {
        "its system is labelled production"
    } else {
        return Care::Code;
    };
    Care::Production { name, why: why.into() }
}
