//! What can be restored: the age of the newest snapshot, and whether everything is read again.

use super::Findings;
use crate::clock;
use crate::repo::manifest::Manifest;
use crate::repo::presence::{self, Presence};
use crate::repo::repository::Cluster;
use crate::repo::verified::Verified;
use crate::repo::{RepoError, lease};

/// A time further in the future than this is no skew of clocks.
const AHEAD_MAX: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// Whether everything was read again in time; only where that is configured.
pub async fn reading(findings: &mut Findings, cluster: &Cluster, cycle_days: Option<u32>) -> Result<(), RepoError> {
    let Some(days) = cycle_days else { return Ok(()) };
    let mend = "run `lastgood verify --budget` often enough, or with more; see why its schedule did not run";
    let verified = match Verified::read(cluster).await {
        Err(error) if error.is_damage() => {
            findings.fail("reading", error.to_string(), "the next `lastgood verify --budget` begins anew");
            return Ok(());
        }
        verified => verified?,
    };
    let Some(verified) = verified else {
        findings.fail("reading", "nothing was ever read again by `lastgood verify --budget`", mend);
        return Ok(());
    };
    let Some(oldest) = verified.oldest else { return Ok(()) };
    let age = clock::now().duration_since(oldest).as_hours();
    let what = format!("the object that waits longest was read {} days ago", age / 24);
    match age > 24 * i64::from(days) {
        true => findings.fail("reading", format!("{what}, and [verify] cycle_days is {days}"), mend),
        false => findings.ok("reading", what),
    }
    Ok(())
}

/// Whether everything is there that the newest snapshots need.
pub async fn presence(findings: &mut Findings, cluster: &Cluster) {
    // An error of the store says nothing of what is there.
    if let Err(error) = look(findings, cluster).await {
        findings.fail("presence", format!("what is there of the snapshots is unknown: {error}"), "see the message");
    }
}

async fn look(findings: &mut Findings, cluster: &Cluster) -> Result<(), RepoError> {
    let readable = cluster.manifests().await?.into_iter().filter_map(|(_, manifest)| manifest.ok());
    let manifests: Vec<Manifest> = readable.collect();
    let newest = &manifests[manifests.len().saturating_sub(presence::NEWEST)..];
    let all = presence::of_all(cluster, newest).await?;
    let whole = all.iter().rev().find(|presence| presence.is_whole());
    for presence in all.iter().rev() {
        if let Some(problem) = presence.problem() {
            findings.fail(
                "presence",
                format!("{} cannot be restored: {problem}", presence.snapshot),
                mend(cluster, presence, whole),
            );
        }
        for lack in &presence.harmless {
            let what = format!("{}: {}: what happened before it is told in numbers, without names", lack.key, lack.what);
            findings.warn("presence", what, "no restore needs it; the next snapshot has its own");
        }
        if let (Some(first), None) = (presence.unknown.first(), presence.problem()) {
            let what = format!("whether {} can be restored is unknown: {}: {}", presence.snapshot, first.key, first.what);
            findings.warn("presence", what, "run `lastgood verify`");
        }
    }
    if !all.is_empty() && all.iter().all(Presence::is_whole) {
        let which =
            if all.len() == 1 { "the snapshot needs".to_string() } else { format!("the newest {} snapshots need", all.len()) };
        findings.ok("presence", format!("everything is there that {which}"));
    }
    Ok(())
}

fn mend(cluster: &Cluster, presence: &Presence, whole: Option<&Presence>) -> String {
    if let (true, Some(first)) = (presence.lacks.is_empty(), presence.frozen.first()) {
        return presence::thaw(cluster.storage().place(), &first.key);
    }
    let until = match whole {
        Some(whole) => format!("a restore begins with {} instead", whole.snapshot),
        None => "until then none of the newest snapshots can be restored".into(),
    };
    format!(
        "take a new snapshot (`lastgood backup`); {until}. A mirror may have what is missing (`lastgood verify --repair`); find out who \
         deleted it"
    )
}

/// The age of the last snapshot, and leases of snapshots that run.
pub async fn snapshots(findings: &mut Findings, cluster: &Cluster, max_age_hours: u64) -> Result<(), RepoError> {
    let manifests = cluster.manifests().await?;
    for (id, manifest) in &manifests {
        if let Err(error) = manifest {
            findings.fail("snapshots", format!("{id} cannot be read: {error}"), "run `lastgood verify`");
        }
    }
    match manifests.iter().rev().find_map(|(_, manifest)| manifest.as_ref().ok()) {
        None => findings.fail("snapshots", "there is none: nothing can be restored", "run `lastgood backup`"),
        Some(newest) => {
            let hours = clock::now().duration_since(newest.stop_time).as_hours();
            let what = format!("the newest is {} ({hours} h old)", newest.id);
            let is_ahead = newest.stop_time > clock::now() + AHEAD_MAX;
            if is_ahead {
                findings.fail(
                    "snapshots",
                    format!(
                        "the newest is {}, whose time lies {} h in the future: the database's clock ran ahead",
                        newest.id, -hours
                    ),
                    "set the clock right and run `lastgood backup`: the next snapshot has a true time",
                );
            } else if hours >= max_age_hours as i64 {
                findings.fail(
                    "snapshots",
                    what,
                    format!("it should not be older than {max_age_hours} h: see why the schedule did not run"),
                );
            } else if newest.damaged_pages.is_empty() {
                findings.ok("snapshots", what);
            } else {
                let what = format!("{what} and holds {} pages damaged in the database", newest.damaged_pages.len());
                findings.fail("snapshots", what, "keep older snapshots, and mend the relations that `lastgood backup` named");
            }
        }
    }
    for work in lease::at_work(cluster).await? {
        findings.ok(if work.is_left() { "kept" } else { "at work" }, work.describe());
    }
    Ok(())
}
