//! What can be restored: the age of the newest snapshot, and whether everything is read again.

use super::Findings;
use crate::clock;
use crate::repo::repository::Cluster;
use crate::repo::verified::Verified;
use crate::repo::{RepoError, lease};

/// A time further in the future than this is no skew of clocks.
const AHEAD_MAX: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// Whether everything was read again in time; only where that is configured.
pub async fn reading(findings: &mut Findings, cluster: &Cluster, cycle_days: Option<u32>) -> Result<(), RepoError> {
    let Some(days) = cycle_days else { return Ok(()) };
    let mend = "run `lastgood verify --budget` often enough, or with more; see why its schedule did not run";
    let Some(verified) = Verified::read(cluster).await? else {
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
        findings.ok("at work", work.describe());
    }
    Ok(())
}
