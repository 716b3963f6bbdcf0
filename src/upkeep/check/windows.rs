//! Whether WAL is missing in or after the newest window, and what can still close the gap.

use std::path::Path;

use super::{Findings, Server};
use crate::postgres::history::History;
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;
use crate::repo::repository::Cluster;
use crate::timeline::archive::Archive;
use crate::timeline::windows::{self, Window};
use crate::timeline::{gaps, tail};

/// Segments at hand that are named.
const NAMED: usize = 8;

/// The newest window of the current history, and what the server says of its archiving.
pub async fn windows(findings: &mut Findings, cluster: &Cluster, server: Option<&Server>) {
    if let Err(error) = look(findings, cluster, server).await {
        findings.fail("windows", format!("which WAL there is, is unknown: {error}"), "see the message");
    }
}

async fn look(findings: &mut Findings, cluster: &Cluster, server: Option<&Server>) -> Result<(), RepoError> {
    let Some(record) = cluster.record().await? else { return Ok(()) };
    let Some(history) = record.current() else { return Ok(()) };
    let system = history.system_identifier;
    let server = server.filter(|server| server.facts.system_identifier == system);
    // Before the listing, so that what it says was archived must be there.
    let archived = match server {
        Some(server) => server.session.archiver().await.ok().and_then(|state| state.last_archived?.parse().ok()),
        None => None,
    };
    let mut archive = Archive::load(cluster, system, history.wal_segment_bytes.into()).await?;
    archive.decide(&record);
    let manifests: Vec<Manifest> = cluster.manifests().await?.into_iter().filter_map(|(_, manifest)| manifest.ok()).collect();
    let all = windows::windows(&archive, &manifests).await?;
    for (name, problem) in &archive.unreadable {
        let mend = "no restore follows this timeline without it; `lastgood verify --repair` takes it from a mirror";
        findings.fail("windows", format!("the history file {name} is damaged: {problem}"), mend);
    }
    for (snapshot, problem) in &all.unusable {
        findings.fail("windows", format!("{snapshot} cannot be restored: {problem}"), "see `lastgood list`");
    }
    let Some(newest) = all.windows.iter().max_by_key(|window| (window.timeline, window.to_lsn)) else { return Ok(()) };
    let Some(path) = archive.path(newest.timeline) else { return Ok(()) };
    let gap = match gap(&archive, &path, newest).await? {
        Some(gap) => Some(gap),
        None => behind(&archive, &path, newest, archived).await?,
    };
    match gap {
        None => findings.ok("windows", format!("the newest window has no gap, and ends at {}", newest.to_lsn)),
        Some(gap) => gap.report(findings, &archive, newest, server.map(|server| server.pg_wal.as_path())),
    }
    Ok(())
}

/// Segments that are missing.
struct Gap {
    missing: Vec<SegmentName>,
    /// What is there although they are not.
    follows: String,
}

async fn gap(archive: &Archive, path: &History, window: &Window) -> Result<Option<Gap>, RepoError> {
    let Some(first) = window.gap_at.as_ref().and_then(|name| name.parse::<SegmentName>().ok()) else { return Ok(None) };
    let Some(number) = first.number(archive.segment_bytes) else { return Ok(None) };
    let Some(resumes) = number.checked_sub(1).and_then(|end| archive.after_gap(path, end)) else { return Ok(None) };
    let missing: Vec<SegmentName> = (number..resumes).map(|number| path.segment(number, archive.segment_bytes)).collect();
    let missing = gaps::lasting(archive, missing, path.segment(resumes, archive.segment_bytes)).await?;
    let follows = archive.on_path(path, resumes).map(|name| format!("the archive goes on at {name}")).unwrap_or_default();
    Ok((!missing.is_empty()).then_some(Gap { missing, follows }))
}

/// What the server says it has archived, and is not there: it was told success by whatever took the segment.
async fn behind(
    archive: &Archive,
    path: &History,
    window: &Window,
    archived: Option<SegmentName>,
) -> Result<Option<Gap>, RepoError> {
    let Some(archived) = archived.filter(|name| name.timeline == path.timeline()) else { return Ok(None) };
    let first = window.from_lsn.last_segment_before(archive.segment_bytes);
    let (Some(end), Some(last)) = (archive.contiguous_end(path, first), archived.number(archive.segment_bytes)) else {
        return Ok(None);
    };
    let missing: Vec<SegmentName> = (end + 1..=last).map(|number| path.segment(number, archive.segment_bytes)).collect();
    let missing = gaps::lasting(archive, missing, archived).await?;
    let follows = format!("the server says that it archived all up to {archived}");
    Ok((!missing.is_empty()).then_some(Gap { missing, follows }))
}

impl Gap {
    fn report(&self, findings: &mut Findings, archive: &Archive, window: &Window, pg_wal: Option<&Path>) {
        let (first, count) = (self.missing[0], self.missing.len());
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        let what = format!(
            "WAL is missing: {first}{more}, and {}: nothing after {} ({}) can be restored",
            self.follows, window.to_time, window.to_lsn
        );
        findings.fail("windows", what, self.mend(archive, pg_wal));
    }

    /// A server keeps whole segments for a while, also one that received them from a primary that died before it archived them; they are
    /// marked done there, and nobody will archive them by itself.
    fn mend(&self, archive: &Archive, pg_wal: Option<&Path>) -> String {
        let others = "else look in pg_wal of the other servers of this cluster; then take a new snapshot (`lastgood backup`), from which a \
                      new window begins";
        let Some(pg_wal) = pg_wal else {
            return format!(
                "look in pg_wal of every server of this cluster for them, and archive them with `lastgood archive-push`; {others}"
            );
        };
        let there = match tail::in_directory(pg_wal, archive.system) {
            Ok(found) => found.segments,
            Err(error) => {
                return format!("{} cannot be read ({error}): run this as the server's user; {others}", pg_wal.display());
            }
        };
        let at_hand: Vec<&SegmentName> = self.missing.iter().filter(|name| there.contains_key(name)).collect();
        if at_hand.is_empty() {
            return format!("{} has none of them; {others}", pg_wal.display());
        }
        let named: Vec<String> = at_hand.iter().take(NAMED).map(|name| format!("pg_wal/{name}")).collect();
        let directory = pg_wal.parent().unwrap_or(pg_wal).display();
        format!(
            "{} of {} lie whole in {}: as the server's user, cd {directory} and run `lastgood archive-push FILE` for each of {}{}; {others}",
            at_hand.len(),
            self.missing.len(),
            pg_wal.display(),
            named.join(", "),
            if at_hand.len() > NAMED { ", …" } else { "" }
        )
    }
}
