//! Snapshots whose manifest is missing although everything else of them was written.
//!
//! Pack table and WAL table are written just before the manifest. An id that has one of them and no manifest lost it, or its backup was
//! killed in its last moment: nobody can tell. It cannot be restored as it is, and nothing of it is deleted, because the
//! manifest may come back from a mirror or from an older version in the bucket.

use std::collections::BTreeSet;

use super::check::Findings;
use super::expire;
use crate::repo::gone::Gone;
use crate::repo::keep::{self, Pin};
use crate::repo::reach::{self, Ids};
use crate::repo::repository::{Cluster, RecordState};
use crate::repo::{RepoError, expired, lease};

/// What can be done about it.
pub const MEND: &str = "`lastgood verify --repair` brings it back from a mirror or from an older version in the bucket; when no \
    snapshot was lost (a backup that was killed), `lastgood expire --forget ID` removes what is left";

/// A snapshot without a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    pub snapshot: String,
    /// The key of the manifest that is missing.
    pub object: String,
    /// An expiry had noted it.
    pub is_noted: bool,
}

impl Orphan {
    /// For people, behind the manifest's key.
    pub fn describe(&self) -> String {
        match self.is_noted {
            true => "it is missing, and file lists are there: an expiry was broken off (the next `lastgood expire` ends it), or \
                     the manifest was lost (`lastgood verify --repair`)"
                .into(),
            false => format!("it is missing, and the rest of its snapshot is there; nothing of it is removed. {MEND}"),
        }
    }
}

/// All of them. A backup that runs is none.
pub async fn find(cluster: &Cluster) -> Result<Vec<Orphan>, RepoError> {
    let mut ids = Ids::list(cluster).await?.files;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // In this order, as a sweep looks: what is committed or expired between two looks is seen by one of them.
    let committed: BTreeSet<String> = cluster.snapshot_ids().await?.into_iter().collect();
    ids.retain(|id| !committed.contains(id));
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let at_work = lease::at_work(cluster).await?;
    let expires = at_work.iter().any(|work| work.beat.operation == expire::OPERATION);
    let living: BTreeSet<&str> = at_work.iter().map(|work| work.beat.snapshot.as_str()).collect();
    ids.retain(|id| !living.contains(id.as_str()));
    let expired = expired::ids(cluster).await?;
    let mut found = Vec::new();
    for snapshot in ids {
        let key = cluster.layout().manifest(&snapshot);
        let is_noted = expired.contains(&snapshot);
        if is_noted && expires {
            continue;
        }
        // A backup that ended between the looks.
        if reach::has_table(cluster, &snapshot).await? && cluster.storage().stat(&key).await?.is_none() {
            found.push(Orphan { snapshot, object: key.to_string(), is_noted });
        }
    }
    Ok(found)
}

/// Documents that cost little when they are damaged, and that nothing else would name.
pub async fn notes(findings: &mut Findings, cluster: &Cluster) -> Result<(), RepoError> {
    for (id, pin) in keep::all(cluster).await? {
        if let Pin::Unreadable { unreadable, .. } = pin {
            let mend = format!("say it again: `lastgood pin {id}` or `lastgood unpin {id}`");
            findings.warn("pins", format!("{unreadable}; snapshot {id} is taken for pinned"), mend);
        }
    }
    let histories = match cluster.record_state().await? {
        RecordState::Whole(record) | RecordState::Behind { older: Some(record), .. } => record.histories,
        _ => Vec::new(),
    };
    for history in histories {
        if let Some(unreadable) = Gone::read(cluster, history.system_identifier).await?.unreadable {
            let mend = "the next `lastgood expire` that removes WAL writes it again";
            findings.warn(
                "expired WAL",
                format!("{unreadable}; what was expired is not known, so roll-ups are not trusted"),
                mend,
            );
        }
    }
    Ok(())
}

/// A finding for each.
pub async fn check(findings: &mut Findings, cluster: &Cluster) -> Result<(), RepoError> {
    for orphan in find(cluster).await? {
        let what = format!("the manifest of {} is missing", orphan.snapshot);
        match orphan.is_noted {
            true => findings.warn(
                "snapshots",
                what,
                "an expiry was broken off: run `lastgood expire`, or look with `lastgood verify`",
            ),
            false => findings.fail("snapshots", what, MEND.replace("ID", &orphan.snapshot)),
        }
    }
    Ok(())
}
