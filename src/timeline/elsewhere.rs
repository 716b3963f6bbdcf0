//! A time that lies on several timelines: after a restore to an earlier moment, what the timeline that was left did until then.

use jiff::Timestamp;

use super::archive::Archive;
use super::find::{FindError, Found};
use super::reach::Reach;
use super::scan;
use crate::clock;
use crate::postgres::history::History;
use crate::postgres::lsn::Lsn;
use crate::postgres::settings::RecoveryTarget;
use crate::repo::manifest::Manifest;

/// Segments behind a fork in which the first transaction is looked for.
const LOOK_AHEAD: u64 = 64;

/// A note for each timeline that parted from the path that was found, and had gone on by that time.
pub async fn notes(archive: &Archive, manifests: &[Manifest], time: Timestamp, found: &Found) -> Result<Vec<String>, FindError> {
    let stop = match found.recovery {
        RecoveryTarget::Lsn { lsn, .. } => lsn,
        RecoveryTarget::Immediate => found.snapshot.stop_lsn,
        RecoveryTarget::End => Lsn(u64::MAX),
    };
    let mut notes = Vec::new();
    for timeline in archive.timelines() {
        let Some(path) = archive.path(timeline) else { continue };
        let Some(fork) = parting(&found.path, &path) else { continue };
        // Before the fork both are the same.
        if stop < fork {
            continue;
        }
        let on_path = |m: &&Manifest| m.system_identifier == archive.system && path.contains(m.timeline, m.stop_lsn);
        let before = |m: &&Manifest| m.stop_time <= time;
        let Some(snapshot) = manifests.iter().filter(on_path).rfind(before) else { continue };
        // What cannot be restored is no way out.
        let Ok(reach) = Reach::of(archive, &path, snapshot).await else { continue };
        let end = reach.end(archive, &path, snapshot).await?;
        let until = reach.known_until(archive, &end, snapshot, manifests.iter().filter(on_path));
        match first_behind(archive, &path, fork, &reach).await? {
            Some(first) if first <= time && time <= until => notes.push(format!(
                "timeline {timeline} held this time too: it parted at {fork}, and its first transaction after that ended at {}; to restore that one: --timeline {:X}",
                clock::seconds(first),
                timeline.0
            )),
            _ => {}
        }
    }
    Ok(notes)
}

/// Where another path left ours, or ours left it.
fn parting(ours: &History, other: &History) -> Option<Lsn> {
    ours.fork(other).or_else(|| ours.left(other.timeline())?)
}

/// When the first transaction ended on a path from a position on.
async fn first_behind(archive: &Archive, path: &History, fork: Lsn, reach: &Reach) -> Result<Option<Timestamp>, FindError> {
    let number = fork.segment(archive.segment_bytes);
    let mut first = None;
    for number in number..=reach.end.min(number + LOOK_AHEAD) {
        scan::segment(archive, path, number, reach.end, |event| {
            if event.lsn >= fork && reach.limit.is_none_or(|limit| event.lsn < limit) && event.xid().is_some() {
                first = first.or(Some(event.time));
            }
            first.is_none()
        })
        .await?;
        if first.is_some() {
            break;
        }
    }
    Ok(first)
}
