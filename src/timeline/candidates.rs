//! Which timeline a question means, and which snapshots can answer it.

use super::archive::Archive;
use super::find::{FindError, Question};
use super::latest::Followed;
use super::target::Target;
use crate::postgres::history::History;
use crate::postgres::lsn::Timeline;
use crate::repo::manifest::Manifest;

/// The path of timelines that a question means.
pub(super) async fn path(archive: &Archive, manifests: &[Manifest], question: &Question<'_>) -> Result<History, FindError> {
    if !manifests.iter().any(|m| m.system_identifier == archive.system) {
        return Err(FindError::NoSnapshot);
    }
    let known = |timeline| FindError::UnknownTimeline { timeline, known: archive.timelines() };
    match (question.timeline, question.target) {
        (Some(timeline), _) => {
            let is_known = archive.timelines().contains(&timeline);
            archive.path(timeline).filter(|_| is_known).ok_or_else(|| known(timeline))
        }
        // A snapshot is consistent on its own timeline, whatever came later.
        (None, Target::Snapshot(id)) => {
            let snapshot = choose_by_id(manifests, id)?;
            archive.path(snapshot.timeline).ok_or_else(|| known(snapshot.timeline))
        }
        (None, target) => {
            let followed = archive.latest().await?;
            if let (Followed::Undecided { parent, one, other }, Target::Latest) = (followed, target) {
                return Err(FindError::Undecided { parent, one, other });
            }
            if *target == Target::Latest {
                lives_with_snapshot(archive, manifests)?;
            }
            newest_with_snapshot(archive, manifests)
        }
    }
}

fn holds(archive: &Archive, manifests: &[Manifest], path: &History) -> bool {
    manifests.iter().any(|m| m.system_identifier == archive.system && path.contains(m.timeline, m.stop_lsn))
}

/// The timeline on which the cluster lives must be one that a snapshot leads to: the end of an older one is not the latest.
fn lives_with_snapshot(archive: &Archive, manifests: &[Manifest]) -> Result<(), FindError> {
    let Some(path) = archive.newest() else { return Ok(()) };
    let timeline = path.timeline();
    let lives = !archive.numbers(timeline).is_empty() || archive.decisions().successors.contains(&timeline);
    match lives && !holds(archive, manifests, &path) {
        false => Ok(()),
        true => Err(FindError::NoCandidate {
            timeline,
            reason: "the cluster lives on it, and every snapshot was taken elsewhere; `lastgood backup` takes one, and --timeline goes to \
                     the end of an older timeline"
                .into(),
        }),
    }
}

/// The newest timeline on whose path a snapshot lies: a history file alone makes no target.
fn newest_with_snapshot(archive: &Archive, manifests: &[Manifest]) -> Result<History, FindError> {
    let followed = archive.newest().map(|path| path.timeline());
    let paths = followed.into_iter().chain(archive.followed()).filter_map(|timeline| archive.path(timeline));
    let newest = manifests.iter().map(|m| m.timeline).max().unwrap_or(Timeline(1));
    paths.into_iter().find(|path| holds(archive, manifests, path)).ok_or(FindError::NoCandidate {
        timeline: newest,
        reason: "no archived WAL belongs to it, or its history file is missing".into(),
    })
}

pub fn choose_by_id<'m>(manifests: &'m [Manifest], id: &str) -> Result<&'m Manifest, FindError> {
    let found: Vec<&Manifest> = manifests.iter().filter(|m| m.id.starts_with(id)).collect();
    match found.as_slice() {
        [] => Err(FindError::UnknownSnapshot { id: id.into() }),
        [one] => Ok(one),
        several => match several.iter().find(|m| m.id == id) {
            Some(exact) => Ok(exact),
            None => Err(FindError::AmbiguousSnapshot { id: id.into(), found: several.iter().map(|m| m.id.clone()).collect() }),
        },
    }
}

/// The last segment reached from a snapshot without a gap, when it has all that makes it consistent.
pub fn reached(archive: &Archive, path: &History, manifest: &Manifest) -> Result<u64, FindError> {
    let bytes = archive.segment_bytes;
    let missing = |number: u64| FindError::Incomplete { id: manifest.id.clone(), segment: path.segment(number, bytes) };
    let first = manifest.start_lsn.segment(bytes);
    let needed = manifest.last_segment.number(bytes).unwrap_or(first);
    let end = archive.contiguous_end(path, first).ok_or_else(|| missing(first))?;
    if end < needed { Err(missing(end + 1)) } else { Ok(end) }
}
