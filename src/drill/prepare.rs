//! What a drill is about to do: the snapshot, the moment, the plan of the restore, and whether this host can do it.

use std::path::PathBuf;
use std::time::Duration;

use super::server::available_memory;
use super::{DrillError, is_about_the_backup, is_damage, place};
use crate::clock;
use crate::config;
use crate::owner::{self, Ids};
use crate::postgres::control::Limits;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::programs;
use crate::postgres::quarantine::Quarantine;
use crate::postgres::scratch::{self, ScratchError};
use crate::postgres::settings::TargetAction;
use crate::repo::audit::Who;
use crate::repo::manifest::Manifest;
use crate::repo::record::History;
use crate::repo::report::{Kind, Report};
use crate::restore::RestoreError;
use crate::restore::base::Base;
use crate::restore::place::check_room;
use crate::restore::plan::{self, Plan, Request as Wish};
use crate::restore::replaced::Around;
use crate::timeline::archive::Archive;
use crate::timeline::estimate::{Estimate, Experience};
use crate::timeline::find::FindError;
use crate::timeline::target::Target;
use crate::timeline::windows::{self, Window};

/// Where to go.
#[derive(Debug, Clone)]
pub enum Wanted {
    Target(Target),
    /// Any moment of any window.
    Random,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub wanted: Wanted,
    /// From this snapshot and no other.
    pub snapshot: Option<String>,
    pub inclusive: bool,
    pub keep: bool,
    pub dump: bool,
}

/// What is needed of the surroundings.
pub struct Drill<'a> {
    pub around: Around<'a>,
    pub config: &'a config::Drill,
    pub who: Who,
    /// Of the configuration; perhaps a role of the server.
    pub role: Option<&'a str>,
    pub threads: usize,
    pub read_back: config::ReadBack,
}

/// A drill that can begin.
pub struct Prepared {
    pub plan: Plan,
    pub bin: PathBuf,
    pub version: String,
    pub user: Option<Ids>,
    pub quarantine: Quarantine,
    pub estimate: Option<Estimate>,
    /// The time that was asked for.
    pub time: Option<jiff::Timestamp>,
    pub is_latest: bool,
}

/// WAL that recovery keeps beside what it restores: PostgreSQL's default of `max_wal_size`, twice.
const WAL_ROOM_BYTES: u64 = 2 << 30;
/// Settings, log, and the WAL of the promoted server.
const OTHER_ROOM_BYTES: u64 = 128 << 20;
/// A server of unknown limits; the snapshot's `pg_control` tells the right ones.
const USUAL: Limits = Limits {
    wal_level: 1,
    max_connections: 100,
    max_worker_processes: 8,
    max_wal_senders: 10,
    max_prepared_transactions: 0,
    max_locks_per_transaction: 64,
};
/// Chances of a random moment to lie outside of what cannot be divided.
const DRAWS: u32 = 20;

impl Drill<'_> {
    /// A report that begins now.
    pub fn begin(&self, request: &Request) -> Report {
        let target = match &request.wanted {
            Wanted::Target(target) => target.to_string(),
            Wanted::Random => "a random moment".into(),
        };
        let system = self.history(&[], request).map_or(crate::postgres::lsn::SystemId(0), |history| history.system_identifier);
        let report = Report::begin(Kind::Drill, self.around.cluster, system, &self.who, target);
        Report { bytes_per_s: self.config.bytes_per_s, ..report }
    }

    /// Decides everything. `None` when the backup itself is why it cannot be done: the report says so.
    pub async fn prepare(
        &self,
        request: &Request,
        dir: Option<&place::Place>,
        report: &mut Report,
    ) -> Result<Option<Prepared>, DrillError> {
        let began = clock::monotonic();
        let prepared = self.choose(request, dir, report).await;
        report.phases.push(phase("plan", began.elapsed(), 0));
        match prepared {
            Ok(prepared) => Ok(prepared),
            Err(DrillError::Restore(error)) if is_about_the_backup(&error) => {
                report.fail("plan", error.to_string());
                Ok(None)
            }
            Err(DrillError::Repo(error)) if is_damage(&error) => {
                report.fail("plan", error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn choose(
        &self,
        request: &Request,
        dir: Option<&place::Place>,
        report: &mut Report,
    ) -> Result<Option<Prepared>, DrillError> {
        let cluster = self.around.cluster;
        let mut manifests = Vec::new();
        for (id, manifest) in cluster.manifests().await? {
            match manifest {
                Ok(manifest) => manifests.push(manifest),
                Err(error) => report.fail("snapshots", format!("snapshot {id} cannot be read: {error}")),
            }
        }
        let Some(history) = self.history(&manifests, request) else {
            report.fail("snapshots", "the cluster's record names no system");
            return Ok(None);
        };
        report.system_identifier = history.system_identifier;
        let mut archive = Archive::load(cluster, history.system_identifier, history.wal_segment_bytes.into()).await?;
        archive.decide(self.around.record);
        look_at_archive(&archive, report);
        let all = windows::windows(&archive, &manifests).await?;
        for (id, problem) in &all.unusable {
            report.fail("snapshots", format!("snapshot {id} cannot be restored: {problem}"));
        }
        if let Some(id) = &request.snapshot {
            manifests = vec![one(&manifests, id)?];
        }
        let plan = self.plan(request, (archive, &manifests), &all.windows, dir).await?;
        let manifest = plan.manifest().clone();
        report.snapshot = Some(manifest.id.clone());
        report.target = plan.target.clone();
        (report.timeline, report.stop_lsn) = (Some(plan.timeline), plan.stop_lsn);
        let key = cluster.layout().manifest(&manifest.id);
        let raw = crate::repo::object::get_document(cluster.vault(), &key).await?;
        report.manifest = Some(crate::repo::object::Sha::of(&raw));
        let is_latest = matches!(request.wanted, Wanted::Target(Target::Latest));
        if is_latest && let Some(resumes) = plan.archive.after_gap(&plan.found.path, plan.found.last_segment) {
            let bytes = plan.archive.segment_bytes;
            let missing = plan.found.path.segment(plan.found.last_segment + 1, bytes);
            let resumes = plan.found.path.segment(resumes, bytes);
            report.fail(
                "wal",
                format!("segment {missing} is missing, and the archive goes on at {resumes}: what is behind it is lost"),
            );
        }
        let time = if let Wanted::Target(Target::Time(time)) = &request.wanted { Some(*time) } else { None };
        let prepared = self.ready(plan, &manifest, time, is_latest).await?;
        report.server_version = Some(prepared.version.clone());
        report.estimated = prepared.estimate.as_ref().and_then(Estimate::total);
        Ok(Some(prepared))
    }

    /// A snapshot may belong to an older history of this name; everything else means the current one.
    fn history<'m>(&'m self, manifests: &[Manifest], request: &Request) -> Option<&'m History> {
        let id = match (&request.snapshot, &request.wanted) {
            (Some(id), _) | (None, Wanted::Target(Target::Snapshot(id))) => Some(id),
            _ => None,
        };
        let system = id.and_then(|id| manifests.iter().find(|m| m.id.starts_with(id.as_str()))).map(|m| m.system_identifier);
        let record = self.around.record;
        system.and_then(|system| record.history(system)).or(record.current())
    }

    async fn plan(
        &self,
        request: &Request,
        (archive, manifests): (Archive, &[Manifest]),
        windows: &[Window],
        dir: Option<&place::Place>,
    ) -> Result<Plan, DrillError> {
        let (into, below) = match dir {
            Some(place) => (place.data(), place.spaces()),
            // Only looked at.
            None => (self.config.directory.join(place::name()), self.config.directory.clone()),
        };
        let wish = |target: Target, timeline: Option<Timeline>| Wish {
            target,
            event: None,
            timeline,
            inclusive: request.inclusive,
            action: Some(TargetAction::Pause),
            into: into.clone(),
            tablespaces: Vec::new(),
            tablespaces_below: Some(below.clone()),
            // A drill is there to find what is damaged.
            base: Base::default(),
            wal_directory: None,
            standby: None,
        };
        let target = match &request.wanted {
            Wanted::Target(target) => target.clone(),
            Wanted::Random => {
                for _ in 0..DRAWS {
                    let (lsn, timeline) = draw(windows, manifests).ok_or(RestoreError::Find(FindError::NoSnapshot))?;
                    match plan::plan(&self.around, archive.clone(), manifests, None, &wish(Target::Lsn(lsn), Some(timeline)))
                        .await
                    {
                        Err(RestoreError::Find(FindError::Inside { .. })) => {}
                        planned => return Ok(planned?),
                    }
                }
                Target::Latest
            }
        };
        Ok(plan::plan(&self.around, archive, manifests, None, &wish(target, None)).await?)
    }

    /// Room, memory, programs, the user to run as.
    async fn ready(
        &self,
        plan: Plan,
        manifest: &Manifest,
        time: Option<jiff::Timestamp>,
        is_latest: bool,
    ) -> Result<Prepared, DrillError> {
        let segment_bytes = plan.archive.segment_bytes;
        let wal_bytes = plan.wal_segments * segment_bytes;
        check_room(&[(self.config.directory.clone(), plan.bytes + wal_bytes.min(WAL_ROOM_BYTES) + OTHER_ROOM_BYTES)])?;
        let quarantine = Quarantine {
            major: plan.major,
            limits: USUAL,
            shared_buffers_mib: self.config.shared_buffers_mib,
            preload: self.config.preload.clone(),
        };
        check_memory(&quarantine)?;
        let configured = self.config.programs.get(&plan.major.to_string()).map(PathBuf::as_path);
        let bin = programs::find(plan.major, configured)?;
        let version = programs::version(&bin).unwrap_or_default();
        let experience = Experience::load(self.around.cluster).await?;
        let estimate = experience.estimate((plan.bytes, plan.files), wal_bytes);
        Ok(Prepared { user: user(&manifest.owner)?, plan, bin, version, quarantine, estimate, time, is_latest })
    }
}

/// Who shall run the server: us, or when we are root the owner of the original, or `postgres`.
pub fn user(owner: &str) -> Result<Option<Ids>, ScratchError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    match owner::user(owner).filter(|ids| ids.uid != 0) {
        Some(ids) => Ok(Some(ids)),
        None => scratch::run_as("postgres"),
    }
}

pub fn check_memory(quarantine: &Quarantine) -> Result<(), DrillError> {
    let needed = quarantine.memory_bytes();
    match available_memory() {
        Some(available) if available < needed => Err(DrillError::NoMemory { needed, available }),
        _ => Ok(()),
    }
}

pub fn phase(name: &str, took: Duration, bytes: u64) -> crate::repo::report::Phase {
    crate::repo::report::Phase { name: name.into(), seconds: took.as_secs_f64(), bytes, files: 0 }
}

/// Without its history file a timeline is not followed, and an older one would be taken for the newest.
fn look_at_archive(archive: &Archive, report: &mut Report) {
    for (name, problem) in &archive.unreadable {
        report.fail("wal", format!("the history file {name} is damaged: {problem}"));
    }
    for timeline in archive.followed().into_iter().filter(|timeline| archive.path(*timeline).is_none()) {
        report.fail(
            "wal",
            format!("the history file {timeline}.history is missing: nothing of timeline {timeline} can be restored"),
        );
    }
}

fn one(manifests: &[Manifest], id: &str) -> Result<Manifest, RestoreError> {
    let found: Vec<&Manifest> = manifests.iter().filter(|manifest| manifest.id.starts_with(id)).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(FindError::UnknownSnapshot { id: id.into() }.into()),
        several => {
            Err(FindError::AmbiguousSnapshot { id: id.into(), found: several.iter().map(|m| m.id.clone()).collect() }.into())
        }
    }
}

/// A position in a window, by the length of its WAL; of a window that one of the snapshots leads into.
fn draw(windows: &[Window], manifests: &[Manifest]) -> Option<(Lsn, Timeline)> {
    let mut stretches: Vec<(Lsn, u64, Timeline)> = Vec::new();
    for window in windows {
        let begins = manifests.iter().filter(|m| window.snapshots.contains(&m.id)).map(|m| m.stop_lsn);
        if let Some(begin) = begins.min() {
            stretches.push((begin, window.to_lsn.0.saturating_sub(begin.0) + 1, window.timeline));
        }
    }
    let all: u64 = stretches.iter().map(|(_, bytes, _)| bytes).sum();
    let mut at = (clock::random_fraction() * all as f64) as u64;
    for (begin, bytes, timeline) in stretches {
        if at < bytes {
            return Some((Lsn(begin.0 + at), timeline));
        }
        at -= bytes;
    }
    None
}
