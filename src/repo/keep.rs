//! Pins by people: snapshots that stay whatever the retention says.
//!
//! `pins/<snapshot>/<number>` is written once; the highest number counts, so pinning again and unpinning are new objects.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::audit::Who;
use super::document::{self, Document, first_defect};
use super::object;
use super::repository::Cluster;
use crate::storage::{Depth, ObjectKey, list_all};

/// Numbers that others may take before we give up.
const TRIES: u32 = 20;

/// What somebody said of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// `false`: the pin was taken away.
    pub pinned: bool,
    /// For ever, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    pub at: Timestamp,
    pub who: Who,
}

impl Document for Keep {
    fn defect(&self) -> Option<String> {
        // The end is only compared: a person may write any.
        first_defect([(document::is_time(self.at), "its time is impossible")])
    }
}

impl Keep {
    /// Whether the snapshot must stay at that time.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.pinned && self.until.is_none_or(|until| until > now)
    }

    /// For people: how long, and why.
    pub fn describe(&self) -> String {
        let until = self.until.map(|until| format!(" until {}", crate::clock::seconds(until))).unwrap_or_default();
        let reason = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        format!("pinned by {}@{}{until}{reason}", self.who.user, self.who.host)
    }

    /// Writes it behind everything that was said before.
    pub async fn put(&self, cluster: &Cluster, snapshot: &str) -> Result<(), RepoError> {
        let mut tries = 0;
        loop {
            let prefix = format!("{}{snapshot}/", cluster.layout().keeps());
            let page = list_all(cluster.storage(), &prefix, Depth::All).await?;
            let number = page.objects.last().map_or(1, |last| number(&last.key).unwrap_or(0).saturating_add(1));
            match object::put_document(cluster.vault(), &cluster.layout().keep(snapshot, number), &object::to_json(self)).await {
                Ok(_) => return Ok(()),
                Err(RepoError::Conflict { .. }) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

fn number(key: &ObjectKey) -> Option<u32> {
    key.name().parse().ok()
}

/// What counts for a snapshot that was ever pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Pin {
    Said(Keep),
    /// What was said last cannot be read: it may be a pin, so it counts as one.
    Unreadable {
        pinned: bool,
        unreadable: String,
    },
}

impl Pin {
    /// Whether the snapshot must stay at that time.
    pub fn holds(&self, now: Timestamp) -> bool {
        match self {
            Pin::Said(keep) => keep.holds(now),
            Pin::Unreadable { pinned, .. } => *pinned,
        }
    }

    /// For people: how long, and why.
    pub fn describe(&self) -> String {
        match self {
            Pin::Said(keep) => keep.describe(),
            Pin::Unreadable { unreadable, .. } => {
                format!("taken for pinned, because what was said of it cannot be read ({unreadable}); pin or unpin it again")
            }
        }
    }
}

/// What counts for each snapshot that was ever pinned. One that cannot be read costs nothing but its own word.
pub async fn all(cluster: &Cluster) -> Result<BTreeMap<String, Pin>, RepoError> {
    let prefix = cluster.layout().keeps();
    let mut newest: BTreeMap<String, ObjectKey> = BTreeMap::new();
    for object in list_all(cluster.storage(), &prefix, Depth::All).await?.objects {
        let Some((snapshot, _)) = object.key.as_str()[prefix.len()..].split_once('/') else { continue };
        newest.insert(snapshot.to_string(), object.key.clone());
    }
    let mut pins = BTreeMap::new();
    for (snapshot, key) in newest {
        let read = object::get_document(cluster.vault(), &key).await;
        let pin = match read.and_then(|raw| object::from_json(&key, &raw)) {
            Ok(keep) => Pin::Said(keep),
            Err(error) if error.is_damage() || error.is_newer_epoch() => {
                Pin::Unreadable { pinned: true, unreadable: error.to_string() }
            }
            Err(error) => return Err(error),
        };
        pins.insert(snapshot, pin);
    }
    Ok(pins)
}
