//! The snapshot that a restore begins with: the newest that leads to the target and of which everything is there.
//!
//! One that is proven to lack something is passed over, and the plan says so: whoever confirms the plan confirms that too. An error of
//! the store proves nothing and ends the plan; nothing is passed over that somebody named, and nothing in a drill, which is there to find
//! it. What is frozen is not lost: whether to wait for it or to take an older snapshot is for a person to say.

use futures::future::OptionFuture;
use jiff::Timestamp;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::RestoreError;
use super::plan::{self, Plan, Request};
use crate::postgres::lsn::Lsn;
use crate::postgres::settings::RecoveryTarget;
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;
use crate::repo::presence::{self, Lack, Presence};
use crate::repo::repository::Cluster;
use crate::timeline::archive::Archive;
use crate::timeline::candidates;
use crate::timeline::find::{self, FindError, Found, Question};
use crate::timeline::target::Target;

/// Which snapshots may be the beginning.
#[derive(Debug, Clone, Default)]
pub struct Base {
    /// This one (its id, or the beginning of it) and no other.
    pub snapshot: Option<String>,
    /// Whether one that is damaged gives way to an older one.
    pub may_pass_over: bool,
    /// Snapshots whose manifests cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
}

/// A snapshot that would have been the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    pub snapshot: String,
    pub why: String,
}

/// What was chosen.
#[derive(Debug)]
pub struct Chosen {
    pub found: Found,
    pub passed_over: Vec<PassedOver>,
    pub warnings: Vec<String>,
}

/// A look at one snapshot, before it is certain that it is the one.
#[derive(Debug)]
pub struct Look {
    snapshot: String,
    presence: Result<Presence, RepoError>,
}

impl Look {
    /// At the newest snapshot, from which most restores begin: the look takes as long as that at the WAL, and needs nothing of it.
    /// It begins at once, whoever waits for it.
    pub fn at_newest(cluster: &Cluster, manifests: &[Manifest]) -> Option<JoinHandle<Look>> {
        let (cluster, newest) = (cluster.clone(), manifests.last()?.clone());
        Some(tokio::spawn(async move {
            let presence = presence::of(&cluster, &newest).await;
            Look { snapshot: newest.id, presence }
        }))
    }
}

/// Finds the target from the newest snapshot that leads there and is whole.
pub async fn choose(
    cluster: &Cluster,
    archive: &Archive,
    manifests: &[Manifest],
    question: &Question<'_>,
    look: Option<JoinHandle<Look>>,
    base: &Base,
) -> Result<Chosen, RestoreError> {
    let mut candidates = match &base.snapshot {
        Some(id) => vec![named(cluster, manifests, base, id)?],
        None => manifests.to_vec(),
    };
    let is_named = base.snapshot.is_some() || matches!(question.target, Target::Snapshot(_));
    let mut look = OptionFuture::from(look).await.and_then(Result::ok);
    let (mut passed_over, mut refusal) = (Vec::new(), None);
    loop {
        let found = match find::find(archive, &candidates, question).await {
            Ok(found) => found,
            Err(FindError::Repo(error)) => return Err(error.into()),
            Err(error) => return Err(no_other(refusal, error)),
        };
        let id = found.snapshot.id.clone();
        let presence = match look.take().filter(|look| look.snapshot == id) {
            Some(look) => look.presence?,
            None => presence::of(cluster, &found.snapshot).await?,
        };
        match refused(cluster, archive, &presence)? {
            None => {
                if base.may_pass_over && !is_named {
                    let is_new =
                        |other: &PassedOver| passed_over.iter().all(|known: &PassedOver| known.snapshot != other.snapshot);
                    let all: Vec<_> = others(archive, manifests, &found, base).into_iter().filter(is_new).collect();
                    passed_over.extend(all);
                    passed_over.sort_by(|one: &PassedOver, other| other.snapshot.cmp(&one.snapshot));
                }
                return Ok(Chosen { found, passed_over, warnings: unknown(&presence).into_iter().collect() });
            }
            Some(missing) if base.may_pass_over && !is_named => {
                passed_over.push(PassedOver { snapshot: id.clone(), why: presence.problem().unwrap_or_default() });
                refusal.get_or_insert(missing);
                candidates.retain(|manifest| manifest.id != id);
            }
            Some(RestoreError::Missing { found, .. }) if is_named => {
                let hint = format!("; snapshot {id} was named, so no other was taken instead (`lastgood list` shows them)");
                return Err(RestoreError::Missing { found, hint });
            }
            Some(missing) => return Err(missing),
        }
    }
}

/// The one that somebody wants.
fn named(cluster: &Cluster, manifests: &[Manifest], base: &Base, id: &str) -> Result<Manifest, RestoreError> {
    match (candidates::choose_by_id(manifests, id), base.unreadable.iter().find(|(other, _)| other.starts_with(id))) {
        (Ok(manifest), _) => Ok(manifest.clone()),
        (Err(FindError::UnknownSnapshot { .. }), Some((id, problem))) => {
            let key = cluster.layout().manifest(id).to_string();
            Err(RestoreError::Missing { found: vec![(key, problem.clone())], hint: String::new() })
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Why the one that was looked at first cannot be restored, and that there is no other.
fn no_other(refusal: Option<RestoreError>, error: FindError) -> RestoreError {
    match refusal {
        Some(RestoreError::Missing { found, .. }) => {
            RestoreError::Missing { found, hint: format!("; no other snapshot leads there: {error}") }
        }
        _ => error.into(),
    }
}

/// Why no restore can begin with this snapshot, from what was proven; an error where another snapshot would not help or only a person
/// can say.
fn refused(cluster: &Cluster, archive: &Archive, presence: &Presence) -> Result<Option<RestoreError>, RestoreError> {
    let sealed = presence.packs.iter().map(|pack| cluster.layout().pack(&pack.name)).find(|key| !cluster.vault().can_open(key));
    if let Some(key) = sealed {
        return Err(RepoError::WriterKey { key }.into());
    }
    // A segment may be at hand although it is not archived.
    let is_at_hand = |lack: &&Lack| {
        let name = lack.key.rsplit('/').next().and_then(|name| name.parse::<SegmentName>().ok());
        name.is_some_and(|name| archive.tail(name).is_some())
    };
    let lacks = presence.lacks.iter().filter(|lack| !is_at_hand(lack));
    let found: Vec<_> = lacks.map(|lack| (lack.key.clone(), lack.what.clone())).collect();
    if !found.is_empty() {
        return Ok(Some(RestoreError::Missing { found, hint: String::new() }));
    }
    match presence.frozen.first() {
        None => Ok(None),
        Some(first) => Err(RestoreError::Frozen {
            snapshot: presence.snapshot.clone(),
            count: presence.frozen.len(),
            key: first.key.clone(),
            class: first.class,
            mend: presence::thaw(cluster.storage().place(), &first.key),
        }),
    }
}

fn unknown(presence: &Presence) -> Option<String> {
    let first = presence.unknown.first()?;
    let more = presence.unknown.len() - 1;
    let more = if more > 0 { format!(" (and of {more} more objects)") } else { String::new() };
    Some(format!("whether {} can be read is unknown: {}{more}", first.key, first.what))
}

/// Newer snapshots that lie before the target and were no candidates: their manifests cannot be read, or their WAL is not all there.
fn others(archive: &Archive, manifests: &[Manifest], found: &Found, base: &Base) -> Vec<PassedOver> {
    let stop = match found.recovery {
        RecoveryTarget::Lsn { lsn, .. } => lsn,
        RecoveryTarget::Immediate => found.snapshot.stop_lsn,
        RecoveryTarget::End => Lsn(u64::MAX),
    };
    let is_between = |m: &&Manifest| {
        m.system_identifier == archive.system
            && found.path.contains(m.timeline, m.stop_lsn)
            && m.stop_lsn > found.snapshot.stop_lsn
            && m.stop_lsn <= stop
    };
    let incomplete = manifests.iter().filter(is_between).filter_map(|manifest| {
        let why = candidates::reached(archive, &found.path, manifest).err()?.to_string();
        Some(PassedOver { snapshot: manifest.id.clone(), why })
    });
    let is_later = |id: &str| found.after.as_ref().zip(begun(id)).is_some_and(|(after, begun)| begun > after.time);
    let unread = base.unreadable.iter().filter(|(id, _)| *id > found.snapshot.id && !is_later(id));
    incomplete.chain(unread.map(|(id, why)| PassedOver { snapshot: id.clone(), why: why.clone() })).collect()
}

/// When a snapshot began, as its id says.
fn begun(id: &str) -> Option<Timestamp> {
    let parsed = jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", id.split('-').next()?).ok()?;
    Some(parsed.to_datetime().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// The snapshot to begin with instead of the plan's, which was found damaged since; `None` where there is none, or it cannot be found out.
pub async fn next(plan: &Plan, manifests: &[Manifest], request: &Request, damage: &RepoError) -> Option<String> {
    let cluster = plan.archive.cluster();
    let damaged = match damage {
        RepoError::Damaged { key, .. } => key.to_string(),
        RepoError::Storage(error) => error.key.clone(),
        _ => String::new(),
    };
    let mut others = Vec::new();
    for manifest in manifests.iter().rev().filter(|m| m.id != plan.snapshot).take(presence::NEWEST) {
        // One that shares the damaged pack is no way out.
        let packs = manifest.packs(cluster).await.unwrap_or_default();
        if packs.iter().all(|pack| cluster.layout().pack(&pack.name).as_str() != damaged) {
            others.push(manifest.clone());
        }
    }
    others.reverse();
    let base = Base { may_pass_over: true, ..Base::default() };
    let chosen = choose(cluster, &plan.archive, &others, &plan::question(request), None, &base).await.ok()?;
    Some(chosen.found.snapshot.id)
}

/// Every segment of the way must be there itself: the key of a roll-up, which a listing of the archive believes, outlives them.
pub async fn check_wal(archive: &Archive, found: &Found) -> Result<(), RestoreError> {
    let first = found.snapshot.start_lsn.segment(archive.segment_bytes);
    let names = (first..=found.last_segment).filter_map(|number| archive.on_path(&found.path, number));
    let names: Vec<SegmentName> = names.filter(|name| archive.tail(*name).is_none()).collect();
    let missing = presence::missing_segments(archive.cluster(), archive.system, &names).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let found = missing.into_iter().map(|lack| (lack.key, lack.what)).collect();
    Err(RestoreError::Missing { found, hint: "; a moment before this segment can be restored".into() })
}

/// What a restore to the newest moment does not reach, because WAL is missing.
pub fn gap(archive: &Archive, found: &Found) -> Option<String> {
    let resumes = archive.after_gap(&found.path, found.last_segment)?;
    let missing = found.path.segment(found.last_segment + 1, archive.segment_bytes);
    if archive.gone().has(missing) {
        return None;
    }
    let resumes = archive.on_path(&found.path, resumes)?;
    Some(format!("segment {missing} is missing, and the archive goes on at {resumes}: what is after it is not restored"))
}
