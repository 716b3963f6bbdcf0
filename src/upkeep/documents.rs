//! Everything in a repository that no restore needs, and that costs something else when it is damaged: each object is proven by its own
//! bytes ([`proof`]).

use futures::StreamExt;

use crate::postgres::lsn::SystemId;
use crate::repo::proof;
use crate::repo::repository::Cluster;
use crate::repo::{RepoError, rollup};
use crate::storage::{Depth, ObjectInfo};

/// Objects that are read at a time.
const AT_ONCE: usize = 16;

/// Objects of one kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Where they are.
    pub prefix: String,
    /// What damage to one of them costs, for people.
    pub cost: &'static str,
    /// Deleted or replaced in the ordinary course of things, so that damage passes by itself.
    pub is_brief: bool,
}

/// All kinds of one cluster, for these histories of it.
pub fn kinds(cluster: &Cluster, systems: impl Iterator<Item = SystemId>) -> Vec<Kind> {
    let layout = cluster.layout();
    let kind = |prefix: String, cost| Kind { prefix, cost, is_brief: false };
    let mut kinds = vec![
        kind(layout.records(), "costs the knowledge of which servers the cluster had; no restore begins without it"),
        kind(layout.keeps(), "costs a pin of a person: expiry may not know that the snapshot shall stay"),
        kind(layout.all_expired(), "costs the knowledge of why a snapshot was expired; no restore"),
        kind(layout.all_accepted(), "costs the word of a person that a small snapshot is right; no restore"),
        kind(layout.reports(), "costs the report of a drill or restore; no restore"),
        kind(layout.alerts(), "costs an alert; no restore"),
        kind(layout.verified(), "costs the knowledge of what was read when: it is read again; no restore"),
        kind(layout.locks(), "costs the knowledge of which objects are locked for longer; no restore"),
        Kind { is_brief: true, ..kind(layout.leases(), "costs the knowledge of who is at work, until it is stale; no restore") },
    ];
    for system in systems {
        kinds.push(kind(layout.gone(system), "costs the knowledge of which WAL was expired"));
        kinds.push(kind(layout.backups(system), "costs no restore"));
        kinds.push(kind(layout.partials(system), "costs the end of a timeline that was left"));
        kinds.push(kind(layout.torn(system), "costs the end of the WAL of a server that broke"));
        let rollups = rollup::LEVELS.map(|level| layout.rollups(system, level));
        kinds.extend(rollups.map(|prefix| kind(prefix, "costs speed: what it says is read from the segments; no restore")));
    }
    kinds
}

/// Proves all objects of a kind, a page at a time; answers how many bytes there are, and hands damage to `found`: the key, and what.
pub async fn prove(cluster: &Cluster, kind: &Kind, found: &mut (dyn FnMut(String, RepoError) + Send)) -> Result<u64, RepoError> {
    let (mut after, mut bytes) = (None::<String>, 0);
    loop {
        let page = cluster.storage().list(&kind.prefix, after.as_deref(), Depth::All).await?;
        after = page.objects.last().map(|object| object.key.to_string());
        bytes += page.objects.iter().map(|object| object.bytes).sum::<u64>();
        let prove = |object: ObjectInfo| async move {
            let proven = proof::prove(cluster.vault(), &object.key).await;
            (object.key, proven)
        };
        let mut proofs = futures::stream::iter(page.objects).map(prove).buffered(AT_ONCE);
        while let Some((key, proven)) = proofs.next().await {
            match proven {
                Ok(_) => {}
                // Replaced or expired since it was listed.
                Err(error) if error.is_not_found() && cluster.storage().stat(&key).await?.is_none() => {}
                Err(error) if error.is_damage() || error.is_frozen() || error.is_newer_epoch() => found(key.to_string(), error),
                Err(error) => return Err(error),
            }
        }
        if !page.more || after.is_none() {
            return Ok(bytes);
        }
    }
}
