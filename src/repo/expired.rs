//! Snapshots that were expired.
//!
//! `expired/<snapshot>` is written before the manifest is deleted, and holds it. While it stands, the packs below the snapshot's id
//! belong to an expiry: newer snapshots may need some of them. It goes when nothing of the snapshot is left. Where there was no
//! manifest to hold (a person gave the snapshot up, or an earlier note was lost), it says only that packs are left.
//!
//! `accepted/<snapshot>` says that a person looked at a snapshot that is much smaller than the one before, and found it right.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::audit::Who;
use super::document::{self, Document, first_defect};
use super::manifest::Manifest;
use super::object;
use super::repository::Cluster;
use crate::storage::{Depth, list_all};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    pub at: Timestamp,
    /// Why no rule kept it, for people.
    pub why: String,
    /// As it was, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Manifest>,
}

impl Document for Expired {
    fn defect(&self) -> Option<String> {
        first_defect([(document::is_time(self.at), "its time is impossible")])
            .or_else(|| self.manifest.as_ref().and_then(Document::defect))
    }
}

impl Expired {
    /// Of a snapshot whose manifest nobody has.
    pub fn of_packs(at: Timestamp, why: &str) -> Expired {
        Expired { at, why: why.into(), manifest: None }
    }

    /// Notes it. What an earlier try wrote says the same.
    pub async fn put(&self, cluster: &Cluster, id: &str) -> Result<(), RepoError> {
        let key = cluster.layout().expired(id);
        match object::put_document(cluster.vault(), &key, &object::to_json(self)).await {
            Ok(_) | Err(RepoError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub async fn read(cluster: &Cluster, id: &str) -> Result<Expired, RepoError> {
        let key = cluster.layout().expired(id);
        object::from_json(&key, &object::get_document(cluster.vault(), &key).await?)
    }
}

/// Ids of all snapshots that were expired and of which something is left.
pub async fn ids(cluster: &Cluster) -> Result<BTreeSet<String>, RepoError> {
    names(cluster, &cluster.layout().all_expired()).await
}

/// Snapshots whose small size a person accepted.
pub async fn accepted(cluster: &Cluster) -> Result<BTreeSet<String>, RepoError> {
    names(cluster, &cluster.layout().all_accepted()).await
}

pub async fn accept(cluster: &Cluster, id: &str, at: Timestamp, who: &Who) -> Result<(), RepoError> {
    let key = cluster.layout().accepted(id);
    let content = object::to_json(&serde_json::json!({ "at": at, "who": who }));
    match object::put_document(cluster.vault(), &key, &content).await {
        Ok(_) | Err(RepoError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn names(cluster: &Cluster, prefix: &str) -> Result<BTreeSet<String>, RepoError> {
    let page = list_all(cluster.storage(), prefix, Depth::All).await?;
    Ok(page.objects.iter().map(|object| object.key.name().to_string()).collect())
}
