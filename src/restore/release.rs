//! Declaring a cluster the one that its archive belongs to.
//!
//! A cluster that lastgood restored does not archive: two servers that write into one archive destroy it for both. When it shall take
//! over, somebody says so: it must have ended recovery on a timeline of its own; then archiving is allowed again. The other way
//! round, a server that goes on with an older timeline after an undo is released too: the timelines that left it behind are written
//! down as abandoned, and neither its WAL is refused nor are they followed by a restore.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::RestoreError;
use super::guard::{Approval, Care};
use super::loss::{self, Loss};
use super::mark;
use super::present;
use super::replaced::{self, Around, Replaced};
use super::salvage::{self, Saved, Unarchived};
use super::standing::{self, Occupant};
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::data_directory::RESTORED_MARK;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::settings::{self, UntilAdopted};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::object::Sha;
use crate::repo::record::{Abandoned, ClusterRecord, Successor};
use crate::repo::repository::Cluster;
use crate::timeline::archive::Archive;
use crate::timeline::latest::Followed;
use crate::timeline::tail;

/// What a release is about to do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub directory: PathBuf,
    pub cluster: String,
    pub system: SystemId,
    pub timeline: Timeline,
    /// It carries the mark of a restore.
    pub restored: bool,
    /// Settings that the restore gave it until now.
    pub until_adopted: Vec<UntilAdopted>,
    /// The timeline it came from goes on in the archive behind where it was left: it must be declared the successor.
    pub overtakes: Option<Left>,
    /// Timelines in the archive that parted from this one's path, with where: they are abandoned.
    pub leaves_behind: Vec<Left>,
    pub replaced: Replaced,
    /// What it wrote while it was not allowed to archive.
    pub unarchived: Unarchived,
    #[serde(skip)]
    pub archive: Archive,
}

/// A timeline that goes on in the archive without this cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Left {
    pub timeline: Timeline,
    /// Where the two parted.
    pub at: Lsn,
    /// What it holds since then.
    pub loss: Loss,
    /// It had been declared the successor.
    pub was_released: bool,
}

impl Plan {
    /// Nothing is destroyed, but the original is shut out: the code, or for production its name.
    pub fn care(&self) -> &Care {
        &self.replaced.care
    }

    /// The timelines that nobody follows after it, and where each parted.
    pub fn gives_up(&self) -> Vec<(Timeline, Lsn)> {
        self.overtakes.iter().chain(&self.leaves_behind).map(|left| (left.timeline, left.at)).collect()
    }

    pub fn is_needed(&self) -> bool {
        self.restored || self.overtakes.is_some() || !self.leaves_behind.is_empty()
    }
}

/// Looks; writes nothing. The server may run.
pub async fn plan(around: &Around<'_>, mut archive: Archive, directory: &Path) -> Result<Plan, RestoreError> {
    let refuse = |problem: &str, mend| Err(RestoreError::Release { path: directory.into(), problem: problem.into(), mend });
    if !standing::is_cluster(directory) {
        return refuse("it holds no cluster", "name the data directory");
    }
    let occupant: Occupant = standing::look(directory)?;
    let Some(control) = &occupant.control else { return refuse("its pg_control cannot be read", "look at the directory") };
    if control.system_identifier != archive.system {
        return refuse("it belongs to another system than the cluster in the repository", "name the right --cluster");
    }
    if directory.join("recovery.signal").exists() || directory.join("standby.signal").exists() {
        return refuse(
            "it is still in recovery",
            "let it reach its target and promote it (SELECT pg_promote()), then release it",
        );
    }
    let looked = |source| RestoreError::Io { doing: "look into", path: directory.into(), source };
    let mark = mark::read(directory).map_err(looked)?;
    let restored = mark.is_some();
    let timeline = present::timeline_of(directory, control.timeline).map_err(looked)?;
    let unarchived = own_wal(&archive, directory, timeline, occupant.living.is_some()).await?;
    if !is_the_archives(&archive, directory, timeline).await? {
        return refuse(
            "the archive has another timeline of the same number, which a server that took over began",
            "restore again, so that the copy is promoted to a number that is free, then release that one; or give this one a [cluster] \
             name of its own, and run `lastgood init` and `lastgood backup`",
        );
    }
    // As the archive has it, before what lies in the directory is added.
    let followed = match archive.latest().await? {
        Followed::Timeline(followed) => Some(followed),
        Followed::Nothing | Followed::Undecided { .. } => None,
    };
    let mut replaced = replaced::look(around, &mut archive, directory, &occupant).await?;
    // A server that runs is the usual case here, and none will be touched.
    if occupant.living.is_some()
        && matches!(&replaced.care, Care::Production { .. })
        && replaced.label.as_deref() != Some(replaced::PRODUCTION)
    {
        replaced.care = Care::Code;
    }
    let path = match archive.path(timeline) {
        Some(path) => path,
        None => match present::own_history(directory, timeline) {
            Ok(Some(path)) => path,
            Ok(None) => return refuse("its pg_wal has no history file of its timeline", "look into its pg_wal"),
            Err(why) => return refuse(&format!("its history file tells nothing: {why}"), "look into its pg_wal"),
        },
    };
    let others = archive.followed().into_iter().filter(|other| path.left(*other).is_none());
    let forks: Vec<_> = others.filter_map(|other| Some((other, archive.path(other)?.fork(&path)?))).collect();
    let mut left = Vec::new();
    for (other, fork) in forks {
        left.push(parted(&archive, around.record, other, fork).await?);
    }
    // First the one that a restore follows now.
    left.sort_by_key(|left: &Left| followed != Some(left.timeline));
    let overtakes = match around.record.is_successor(archive.system, timeline) {
        true => None,
        false => overtaken(&archive, &path, followed, restored).await?,
    };
    let overtakes = match overtakes {
        Some((parent, fork)) => Some(parted(&archive, around.record, parent, fork).await?),
        None => None,
    };
    let (cluster, directory, system) = (around.cluster.name().into(), directory.into(), archive.system);
    let until_adopted = mark.map(|mark| mark.until_adopted).unwrap_or_default();
    Ok(Plan {
        directory,
        cluster,
        system,
        timeline,
        restored,
        until_adopted,
        overtakes,
        leaves_behind: left,
        replaced,
        unarchived,
        archive,
    })
}

/// The timeline on the path that goes on without this cluster, and where it was left: before all others the one that a restore to
/// `latest` follows now, which is the living one even when nothing of it is archived behind the fork yet.
async fn overtaken(
    archive: &Archive,
    path: &History,
    followed: Option<Timeline>,
    restored: bool,
) -> Result<Option<(Timeline, Lsn)>, RestoreError> {
    let is_taken_for_it = followed == Some(path.timeline());
    let mut found = None;
    for parent in path.stretches().iter().rev().skip(1) {
        let Some(fork) = parent.end else { continue };
        if followed == Some(parent.timeline) {
            return Ok(Some((parent.timeline, fork)));
        }
        let last = fork.last_segment_before(archive.segment_bytes);
        let name = |number| SegmentName::new(parent.timeline, number, archive.segment_bytes);
        // A failover leaves the rest of the fork's segment behind, which needs no decision.
        let counts_rest = restored || !is_taken_for_it;
        let goes_on = archive.is_archived(name(last + 1)) || (counts_rest && ends_behind(archive, name(last), fork).await?);
        if goes_on && found.is_none() {
            found = Some((parent.timeline, fork));
        }
    }
    Ok(found)
}

/// Whether a segment of the archive holds a record from a position on.
async fn ends_behind(archive: &Archive, name: SegmentName, fork: Lsn) -> Result<bool, RestoreError> {
    let (Some(number), Some(path)) = (name.number(archive.segment_bytes), archive.path(name.timeline)) else { return Ok(false) };
    let summaries = archive.summaries(&path, [number]).await?;
    Ok(summaries.into_iter().find_map(|(_, summary)| summary?.last_record) >= Some(fork))
}

/// Whether the archive knows nothing else under the number of this timeline.
async fn is_the_archives(archive: &Archive, directory: &Path, timeline: Timeline) -> Result<bool, RestoreError> {
    if !archive.has_history(timeline) {
        return Ok(true);
    }
    let own = fs::read(directory.join(format!("pg_wal/{timeline}.history"))).unwrap_or_default();
    let file = WalFile::History(timeline);
    let there = crate::repo::segment::read_trailer(archive.cluster(), archive.system, &file).await?;
    Ok(there.sha256 == Sha::of(&own))
}

async fn parted(archive: &Archive, record: &ClusterRecord, timeline: Timeline, at: Lsn) -> Result<Left, RestoreError> {
    let loss = match archive.path(timeline) {
        Some(path) => loss::after(archive, &path, at, false).await?,
        None => Loss::default(),
    };
    Ok(Left { timeline, at, loss, was_released: record.is_successor(archive.system, timeline) })
}

/// What the cluster has written on its own timeline and is not archived. The segment that a living server is filling is its own to
/// archive.
async fn own_wal(archive: &Archive, directory: &Path, timeline: Timeline, living: bool) -> Result<Unarchived, RestoreError> {
    let failed = |source| RestoreError::Io { doing: "look into", path: directory.into(), source };
    let mut found = tail::in_directory(&directory.join("pg_wal"), archive.system).map_err(failed)?;
    found.segments.retain(|name, _| name.timeline == timeline);
    found.histories.retain(|other, _| *other == timeline);
    let mut unarchived = salvage::find(archive, &mut found).await?;
    unarchived.torn = unarchived.torn.filter(|_| !living);
    Ok(unarchived)
}

/// Releases as planned: the record first, so that nothing is archived that the record forbids. Then its history file and what it has
/// written since: with archiving off, the server has not marked them as ready.
pub async fn execute(cluster: &Cluster, plan: &Plan, _approval: &Approval, monitor: &dyn Monitor) -> Result<Saved, RestoreError> {
    declare(cluster, plan).await?;
    let saved = salvage::save(cluster, &plan.archive, &plan.directory.join("pg_wal"), &plan.unarchived, monitor).await;
    let failed = |source| RestoreError::Io { doing: "release", path: plan.directory.clone(), source };
    if plan.restored {
        settings::end_recovery(&plan.directory, &plan.until_adopted).map_err(failed)?;
        fs::remove_file(plan.directory.join(RESTORED_MARK)).map_err(failed)?;
        crate::durable::sync_directory(&plan.directory).map_err(failed)?;
    }
    Ok(saved)
}

/// Writes into the cluster's record who goes on and who does not.
async fn declare(cluster: &Cluster, plan: &Plan) -> Result<(), RestoreError> {
    let (system_identifier, at) = (plan.system, clock::now());
    loop {
        let Some(before) = cluster.record().await? else { return Ok(()) };
        // What is taken up again is abandoned no more.
        let of_plan = |a: &Abandoned| a.system_identifier == system_identifier && a.timeline == plan.timeline;
        let mut abandoned: Vec<Abandoned> = before.abandoned.iter().filter(|a| !of_plan(a)).cloned().collect();
        for Left { timeline, .. } in &plan.leaves_behind {
            if !before.abandoned(system_identifier).contains(timeline) {
                abandoned.push(Abandoned { system_identifier, timeline: *timeline, at, by: plan.timeline });
            }
        }
        let mut successors = before.successors.clone();
        if !before.is_successor(system_identifier, plan.timeline) {
            successors.push(Successor { system_identifier, timeline: plan.timeline, at });
        }
        let record = ClusterRecord { number: before.number + 1, written: at, abandoned, successors, ..before };
        if cluster.put_record(&record).await? {
            return Ok(());
        }
    }
}
