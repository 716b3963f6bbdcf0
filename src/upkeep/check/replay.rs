//! Whether replay leads from the snapshots to the end of the WAL, and whether it is decided which timeline that is.

use super::Findings;
use crate::repo::RepoError;
use crate::repo::repository::Cluster;
use crate::timeline::archive::Archive;
use crate::timeline::latest::Followed;
use crate::timeline::windows;

/// Marks in the WAL that stop replay before its end, and two timelines that both go on.
pub async fn replay(findings: &mut Findings, cluster: &Cluster) -> Result<(), RepoError> {
    let Some(record) = cluster.record().await? else { return Ok(()) };
    let Some(history) = record.current() else { return Ok(()) };
    let manifests: Vec<_> = cluster.manifests().await?.into_iter().filter_map(|(_, manifest)| manifest.ok()).collect();
    let mut archive = Archive::load(cluster, history.system_identifier, history.wal_segment_bytes.into()).await?;
    archive.decide(&record);
    let windows = windows::windows(&archive, &manifests).await?;
    for (window, stop) in windows.unsolved(&archive) {
        let what = format!("on timeline {} {stop}; nothing later can be restored", window.timeline);
        findings.fail("replay", what, "take a snapshot now: `lastgood backup`");
    }
    match archive.latest().await? {
        Followed::Undecided { parent, one, other } => {
            let what = format!("timeline {parent} was left by two servers, and both go on: {one}; {other}");
            let mend = "stop the wrong server, and run `lastgood release --data-directory` for the one that is the cluster";
            findings.fail("timelines", what, mend);
        }
        Followed::Timeline(timeline) => findings.ok("timelines", format!("a restore to latest follows timeline {timeline}")),
        Followed::Nothing => {}
    }
    Ok(())
}
