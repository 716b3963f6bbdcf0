//! What a restore is about to do, as a value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::RestoreError;
use super::base::{self, Base, Look, PassedOver};
use super::ground::{self, Exchanged};
use super::guard::Care;
use super::immediate;
use super::loss::{self, Loss};
use super::on_path;
use super::place::{self, Standing};
use super::replaced::{self, Around, Replaced};
use super::standby::Standby;
use super::standing::Occupant;
use super::switch;
use super::wal_place::{self, WalPlace};
use crate::postgres::apart;
use crate::postgres::control::Limits;
use crate::postgres::data_directory;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::settings::{RecoveryTarget, TargetAction};
use crate::postgres::wal::name::SegmentName;
use crate::repo::manifest::{Manifest, What};
use crate::repo::repository::Cluster;
use crate::timeline::archive::Archive;
use crate::timeline::find::{Found, Neighbour, Question};
use crate::timeline::inside;
use crate::timeline::tail::Tail;
use crate::timeline::target::Target;
use crate::timeline::told::Told;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub target: Target,
    /// The event that the target stands before or behind.
    pub event: Option<Told>,
    pub timeline: Option<Timeline>,
    pub inclusive: bool,
    /// Absent: pause, but promote at the end of the WAL.
    pub action: Option<TargetAction>,
    pub into: PathBuf,
    /// New places of tablespaces, by OID.
    pub tablespaces: Vec<(String, PathBuf)>,
    /// Places for all others: a directory below this one, named by OID.
    pub tablespaces_below: Option<PathBuf>,
    pub base: Base,
    /// A place of its own for the new `pg_wal`.
    pub wal_directory: Option<PathBuf>,
    /// It becomes a standby.
    pub standby: Option<Standby>,
}

/// One tablespace: where it was and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TablespacePlan {
    pub oid: String,
    #[serde(serialize_with = "super::path_text::serialize")]
    pub was: PathBuf,
    #[serde(serialize_with = "super::path_text::serialize")]
    pub into: PathBuf,
    pub standing: Standing,
}

#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub cluster: String,
    pub system_identifier: SystemId,
    pub major: u32,
    pub target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Told>,
    pub snapshot: String,
    pub snapshot_stop: Timestamp,
    /// Newer snapshots that would have been the beginning, and why they are not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
    /// What a person must know, and what keeps nobody from going on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    pub timeline: Timeline,
    /// Where recovery stops; absent at the end of the WAL or where the snapshot is consistent.
    pub stop_lsn: Option<Lsn>,
    pub inclusive: bool,
    pub recovery: &'static str,
    pub action: TargetAction,
    /// The last transaction that will be there, and the first that will not.
    pub last_transaction: Option<Moment>,
    pub first_lost: Option<Moment>,
    pub into: PathBuf,
    pub standing: Standing,
    /// Around the cluster that will be moved aside.
    pub replaced: Option<Replaced>,
    pub tablespaces: Vec<TablespacePlan>,
    /// Where `pg_wal` goes, where it has or had a place of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalPlace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby: Option<Standby>,
    /// Segments that are not archived whole and go into the new `pg_wal`.
    pub provided: Vec<SegmentName>,
    pub files: u64,
    pub bytes: u64,
    pub wal_segments: u64,
    pub damaged_pages: usize,
    /// What a person should know before it is done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Where other clusters with the same tablespaces may be: snapshots were taken there.
    #[serde(skip)]
    pub elsewhere: Vec<PathBuf>,
    /// The highest limits of the server that WAL on the path tells; see [`on_path`].
    pub limits: Limits,
    #[serde(skip)]
    pub found: Found,
    /// As the server is told.
    #[serde(skip)]
    pub recovery_target: RecoveryTarget,
    #[serde(skip)]
    pub archive: Archive,
}

#[derive(Debug, Clone, Serialize)]
pub struct Moment {
    pub time: Timestamp,
    pub lsn: Lsn,
    pub xid: Option<u32>,
}

impl From<&Neighbour> for Moment {
    fn from(neighbour: &Neighbour) -> Self {
        Moment { time: neighbour.time, lsn: neighbour.lsn, xid: neighbour.xid }
    }
}

impl Plan {
    pub fn manifest(&self) -> &Manifest {
        &self.found.snapshot
    }

    /// The last segment that recovery needs; `None` where it goes to the end, wherever that is by then.
    pub fn last_segment(&self) -> Option<SegmentName> {
        let last = self.found.path.segment(self.found.last_segment, self.archive.segment_bytes);
        (self.found.recovery != RecoveryTarget::End).then_some(last)
    }

    pub fn care(&self) -> &Care {
        self.replaced.as_ref().map_or(&Care::Free, |replaced| &replaced.care)
    }

    /// A place of its own for the new `pg_wal`.
    pub fn wal_directory(&self) -> Option<&Path> {
        self.wal.as_ref().and_then(|wal| wal.into.as_deref())
    }

    /// Where the new cluster is built: in its place, or beside the one that it will replace.
    pub fn root(&self) -> PathBuf {
        if self.standing.occupant().is_some() { switch::staging(&self.into) } else { self.into.clone() }
    }
}

impl TablespacePlan {
    /// Where the new tablespace is built.
    pub fn root(&self) -> PathBuf {
        if self.standing == Standing::Tablespace { self.into.join("lastgood.new") } else { self.into.clone() }
    }
}

/// What the server does at the target.
fn action(request: &Request) -> TargetAction {
    let usual = if request.target == Target::Latest { TargetAction::Promote } else { TargetAction::Pause };
    request.action.unwrap_or(usual)
}

/// What is looked for in the archive.
pub fn question(request: &Request) -> Question<'_> {
    Question {
        target: &request.target,
        timeline: request.timeline,
        inclusive: request.inclusive,
        stop_at_end: action(request) != TargetAction::Promote,
    }
}

/// Decides everything and checks that it can be done; writes nothing (rule 35).
pub async fn plan(
    around: &Around<'_>,
    mut archive: Archive,
    manifests: &[Manifest],
    look: Option<JoinHandle<Look>>,
    request: &Request,
) -> Result<Plan, RestoreError> {
    let cluster = around.cluster;
    request.standby.as_ref().map_or(Ok(()), |standby| standby.check(&request.target))?;
    let standing = place::look(&request.into)?;
    ground::check(&request.into, &around.apart)?;
    let occupant = standing.occupant();
    let mut replaced = match occupant {
        Some(occupant) => Some(replaced::look(around, &mut archive, &request.into, occupant).await?),
        None => None,
    };
    let at_end = request.target == Target::Latest;
    let action = action(request);
    let question = question(request);
    let base::Chosen { found, passed_over, mut warnings } =
        base::choose(cluster, &archive, manifests, &question, look, &request.base).await?;
    let manifest = &found.snapshot;
    if let Some(replaced) = replaced.as_mut().filter(|_| occupant.and_then(Occupant::system) == Some(archive.system)) {
        replaced.loss = lost(replaced, &found).await?;
    }
    let elsewhere = elsewhere(around, manifests);
    let (tablespaces, wal) = places(around, request, manifest, occupant, &elsewhere)?;
    let standby = request.standby.as_ref().map(|standby| standby.following(&archive, &found.path));
    let target = request.target.to_string();
    let is_possible = async { Ok(inside::check(&archive, &found, &target).await?) };
    let recovery_target = async { Ok(immediate::target(&archive, &found).await?) };
    let (_, limits, _, sizes, recovery_target) = tokio::try_join!(
        is_possible,
        on_path::read(&archive, &found, &tablespaces),
        base::check_wal(&archive, &found),
        sizes(cluster, manifest),
        recovery_target,
    )?;
    if at_end {
        warnings.extend(base::gap(&archive, &found));
    }
    let first_segment = manifest.start_lsn.segment(archive.segment_bytes);
    let names = (first_segment..=found.last_segment).filter_map(|number| archive.on_path(&found.path, number));
    // A standby gets from its primary what is not archived: what the cluster that stood here wrote last need not be its primary's.
    let is_provided = |name: &SegmentName| standby.is_none() && archive.tail(*name).is_some();
    let provided: Vec<SegmentName> = names.filter(is_provided).collect();
    check_room(request, manifest, (&tablespaces, &sizes), wal.as_ref(), provided.len() as u64 * archive.segment_bytes)?;
    let reads_on = provided.iter().any(|name| matches!(archive.tail(*name), Some(Tail::File(_))));
    let (stop_lsn, inclusive, recovery) = stop(found.recovery, reads_on);
    Ok(Plan {
        cluster: cluster.name().into(),
        system_identifier: manifest.system_identifier,
        major: manifest.major,
        target: request.target.to_string(),
        event: request.event.clone(),
        snapshot: manifest.id.clone(),
        snapshot_stop: manifest.stop_time,
        passed_over,
        warnings,
        timeline: found.path.timeline(),
        stop_lsn,
        inclusive,
        recovery,
        action,
        last_transaction: found.before.as_ref().map(Moment::from),
        first_lost: found.after.as_ref().map(Moment::from),
        into: request.into.clone(),
        standing,
        replaced,
        tablespaces,
        wal,
        standby,
        provided,
        files: manifest.totals.files,
        bytes: manifest.totals.raw_bytes,
        wal_segments: (found.last_segment + 1).saturating_sub(first_segment),
        damaged_pages: manifest.damaged_pages.len(),
        notes: found.notes.clone(),
        elsewhere,
        limits,
        found,
        recovery_target,
        archive,
    })
}

/// What the cluster that stands there has beyond the target.
async fn lost(replaced: &Replaced, found: &Found) -> Result<Option<Loss>, RestoreError> {
    Ok(match &replaced.present {
        Some(Ok(present)) => Some(loss::count(found, present).await?),
        Some(Err(why)) => Some(Loss::unknown(why.clone())),
        None => None,
    })
}

/// Where recovery stops, and that in words; `reads_on` when it goes through WAL that is not archived.
fn stop(recovery: RecoveryTarget, reads_on: bool) -> (Option<Lsn>, bool, &'static str) {
    match recovery {
        RecoveryTarget::End if reads_on => {
            (None, true, "to the end of the WAL of what stands there: nothing that was committed is taken back")
        }
        RecoveryTarget::End => (None, true, "to the end of the archived WAL"),
        RecoveryTarget::Immediate => (None, true, "to where the snapshot is consistent"),
        RecoveryTarget::Lsn { lsn, inclusive: true } => (Some(lsn), true, "up to and including the record at the target"),
        RecoveryTarget::Lsn { lsn, inclusive: false } => (Some(lsn), false, "up to just before the record at the target"),
    }
}

/// Bytes in each tablespace, from the file lists; they are read only where there are tablespaces.
async fn sizes(cluster: &Cluster, manifest: &Manifest) -> Result<BTreeMap<String, u64>, RestoreError> {
    let mut sizes = BTreeMap::new();
    if manifest.tablespaces.is_empty() {
        return Ok(sizes);
    }
    for index in 0..manifest.file_lists.len() {
        for line in manifest.files(cluster, index).await? {
            let oid = line.path.strip_prefix("pg_tblspc/").and_then(|rest| rest.split('/').next());
            if let (Some(oid), What::File { bytes, .. }) = (oid, &line.what) {
                *sizes.entry(oid.to_string()).or_default() += bytes;
            }
        }
    }
    Ok(sizes)
}

/// The mapping of tablespaces, with each place looked at.
fn tablespaces(manifest: &Manifest, request: &Request, replaced: Option<&Occupant>) -> Result<Vec<TablespacePlan>, RestoreError> {
    let known: Vec<String> = manifest.tablespaces.iter().map(|t| t.oid.clone()).collect();
    if let Some((oid, _)) = request.tablespaces.iter().find(|(oid, _)| !known.contains(oid)) {
        return Err(RestoreError::UnknownTablespace { oid: oid.clone(), snapshot: manifest.id.clone(), known });
    }
    if let Some(below) = request.tablespaces_below.as_ref().filter(|dir| !dir.is_dir()) {
        let problem = "this directory for tablespaces does not exist".into();
        return Err(RestoreError::Place { path: below.clone(), problem, mend: "make it first" });
    }
    let again = |(at, (oid, _)): (usize, &(String, PathBuf))| request.tablespaces[..at].iter().any(|(other, _)| other == oid);
    if let Some((oid, _)) = request.tablespaces.iter().enumerate().find(|one| again(*one)).map(|(_, one)| one) {
        return Err(RestoreError::TwoPlaces { oid: oid.clone() });
    }
    let mut plans = Vec::new();
    for link in &manifest.tablespaces {
        let mapped = request.tablespaces.iter().find(|(oid, _)| *oid == link.oid).map(|(_, path)| path.clone());
        let below = request.tablespaces_below.as_ref().map(|dir| dir.join(&link.oid));
        let into = mapped.or(below).unwrap_or_else(|| link.place());
        // A path that leads through links to a directory that is exchanged means that directory.
        let real = apart::real(&into);
        let into = if replaced.is_some_and(|occupant| occupant.tablespaces.contains(&real)) { real } else { into };
        let standing = match place::look_tablespace(&into, replaced) {
            Ok(standing) => standing,
            Err(RestoreError::Place { path, problem, .. }) => {
                let mend = "give it another place with --tablespace OID=PATH or --tablespaces-below DIR";
                return Err(RestoreError::Place { path, problem: format!("tablespace {}: {problem}", link.oid), mend });
            }
            Err(error) => return Err(error),
        };
        plans.push(TablespacePlan { oid: link.oid.clone(), was: link.place(), into, standing });
    }
    Ok(plans)
}

/// Where the tablespaces go: apart from each other and from everything else, and used by no other cluster.
fn places(
    around: &Around<'_>,
    request: &Request,
    manifest: &Manifest,
    replaced: Option<&Occupant>,
    elsewhere: &[PathBuf],
) -> Result<(Vec<TablespacePlan>, Option<WalPlace>), RestoreError> {
    let tablespaces = tablespaces(manifest, request, replaced)?;
    check_apart(&request.into, &tablespaces)?;
    tablespaces.iter().try_for_each(|tablespace| ground::check(&tablespace.into, &around.apart))?;
    check_shared(&request.into, &tablespaces, manifest, elsewhere)?;
    let all: Vec<&Path> = [&request.into].into_iter().chain(tablespaces.iter().map(|t| &t.into)).map(PathBuf::as_path).collect();
    let wal = wal_place::plan(request.wal_directory.as_deref(), manifest, replaced, &all, &around.apart)?;
    Ok((tablespaces, wal))
}

/// Room for everything, on each file system.
fn check_room(
    request: &Request,
    manifest: &Manifest,
    (tablespaces, sizes): (&[TablespacePlan], &BTreeMap<String, u64>),
    wal: Option<&WalPlace>,
    wal_bytes: u64,
) -> Result<(), RestoreError> {
    let in_tablespaces: u64 = sizes.values().sum();
    let wal_place = wal.and_then(|wal| wal.into.as_ref()).unwrap_or(&request.into);
    let mut needs = vec![(request.into.clone(), manifest.totals.raw_bytes.saturating_sub(in_tablespaces))];
    needs.push((wal_place.clone(), wal_bytes));
    needs.extend(tablespaces.iter().map(|t| (t.into.clone(), sizes.get(&t.oid).copied().unwrap_or(0))));
    place::check_room(&needs)
}

/// Data directories of which the snapshots and the configuration tell.
fn elsewhere(around: &Around<'_>, manifests: &[Manifest]) -> Vec<PathBuf> {
    let taken = manifests.iter().map(|manifest| PathBuf::from(&manifest.data_directory));
    let mut all: Vec<PathBuf> = taken.chain(around.data_directory.map(PathBuf::from)).collect();
    all.sort();
    all.dedup();
    all
}

/// The directory in a tablespace that belongs to a snapshot's cluster.
pub fn own_directory(manifest: &Manifest) -> String {
    data_directory::own_directory(manifest.major, manifest.catalog_version)
}

/// Whether no other cluster uses the tablespaces that will be exchanged.
pub fn check_shared(
    into: &Path,
    tablespaces: &[TablespacePlan],
    manifest: &Manifest,
    elsewhere: &[PathBuf],
) -> Result<(), RestoreError> {
    let exchanged = tablespaces.iter().filter(|tablespace| tablespace.standing == Standing::Tablespace);
    let locations: Vec<PathBuf> = exchanged.map(|tablespace| tablespace.into.clone()).collect();
    ground::check_shared(&Exchanged {
        dirs: &[into],
        locations: &locations,
        own: &own_directory(manifest),
        known: elsewhere,
        is_original: apart::real(Path::new(&manifest.data_directory)) == apart::real(into),
    })
}

/// No place may lie in another (rule 35).
fn check_apart(into: &Path, tablespaces: &[TablespacePlan]) -> Result<(), RestoreError> {
    let places: Vec<&Path> = [into].into_iter().chain(tablespaces.iter().map(|t| t.into.as_path())).collect();
    for (index, place) in places.iter().enumerate() {
        let overlap = places[..index].iter().find(|other| place.starts_with(other) || other.starts_with(place));
        if let Some(other) = overlap {
            let problem = format!("overlaps with {}", other.display());
            return Err(RestoreError::Place { path: place.to_path_buf(), problem, mend: "choose places apart from each other" });
        }
    }
    Ok(())
}
