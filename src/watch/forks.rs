//! Timelines that entered the archive although their parent had archived transactions beyond the fork, or archived them since.
//!
//! After a failover that lost something this is what was lost; with two servers that both go on it is the first sign. It does not ask
//! whether the cluster is production: nobody may find out a week later.

use std::sync::Arc;

use jiff::Timestamp;

use super::deliver;
use crate::clock;
use crate::config::Alert as Settings;
use crate::lineage::fork::Fork;
use crate::monitor::Monitor;
use crate::postgres::wal::transaction::Kind;
use crate::repo::RepoError;
use crate::repo::alert::{self, Alert};
use crate::timeline::archive::Archive;
use crate::timeline::{scan, told};

/// The rule's name in alerts.
pub const RULE: &str = "fork";

/// Raises an alert for each fork behind which its parent has transactions; once, whoever looks. Answers routes that failed.
pub async fn look(
    archive: &Archive,
    abandoned: &[crate::postgres::lsn::Timeline],
    settings: &Settings,
    host: &str,
    monitor: &Arc<dyn Monitor>,
) -> Result<Vec<String>, RepoError> {
    let known = alert::all(archive.cluster()).await?;
    let mut undelivered = Vec::new();
    for timeline in archive.timelines().into_iter().filter(|timeline| !abandoned.contains(timeline)) {
        let Some(path) = archive.path(timeline) else { continue };
        let fork = Fork::look(archive.cluster(), archive.system, &path, archive.segment_bytes).await?;
        let Some(fork) = fork.filter(|fork| fork.behind.is_some() && !abandoned.contains(&fork.parent)) else { continue };
        let mut alert = Alert {
            noticed: clock::now(),
            host: host.into(),
            system_identifier: archive.system,
            timeline: fork.parent,
            target: fork.at,
            event: told::id(fork.parent, fork.at),
            time: None,
            xid: 0,
            rule: RULE.into(),
            what: String::new(),
            restore: format!(
                "lastgood --cluster {} restore --to latest --timeline {} --into DIRECTORY",
                archive.cluster().name(),
                fork.parent.0
            ),
        };
        if known.contains_key(&alert.id()) {
            continue;
        }
        let Some((transactions, last)) = beyond(archive, &fork).await? else { continue };
        alert.time = last;
        alert.what = format!(
            "timeline {timeline} of cluster {} left timeline {} at {}, after which the archive has {} on timeline {}{} that timeline \
             {timeline} does not have",
            archive.cluster().name(),
            fork.parent,
            fork.at,
            transactions,
            fork.parent,
            last.map(|last| format!(", the last at {},", clock::seconds(last))).unwrap_or_default(),
        );
        if alert.raise(archive.cluster()).await? {
            monitor.warn(&alert.what);
            undelivered.extend(deliver::deliver(&alert, settings).await);
        }
    }
    Ok(undelivered)
}

/// Committed transactions of the parent beyond the fork in words, and when the last ended; `None` when there are none.
async fn beyond(archive: &Archive, fork: &Fork) -> Result<Option<(String, Option<Timestamp>)>, RepoError> {
    let Some(path) = archive.path(fork.parent) else { return Ok(Some(("transactions".into(), None))) };
    let number = fork.at.segment(archive.segment_bytes);
    let (mut count, mut last) = (0, None);
    let scanned = scan::segment(archive, &path, number, number, |event| {
        if matches!(event.kind, Kind::Commit { .. }) && event.lsn >= fork.at {
            count += 1;
            last = last.max(Some(event.time));
        }
        true
    });
    match scanned.await {
        Ok(()) if count == 0 => Ok(None),
        Ok(()) => Ok(Some((format!("{count} transaction{}", if count == 1 { "" } else { "s" }), last))),
        // A writer's key does not open segments, and a damaged one tells nothing.
        Err(error) if error.is_damage() || matches!(error, RepoError::WriterKey { .. }) => {
            Ok(Some(("an unknown number of transactions".into(), None)))
        }
        Err(error) => Err(error),
    }
}
