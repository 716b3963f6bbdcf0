//! Alerts: what the tripwire met in the WAL, kept until somebody acknowledges it.
//!
//! `alerts/<id>/alert` is written once; `alerts/<id>/acknowledged` closes it. An alert is never deleted by whoever may only write.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::document::{self, Document, first_defect};
use super::object;
use super::repository::Cluster;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::storage::{Created, Depth, list_all};

/// Something destructive passed through the archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// When it was noticed, by the clock of the host that archives.
    pub noticed: Timestamp,
    pub host: String,
    pub system_identifier: SystemId,
    pub timeline: Timeline,
    /// Where recovery must stop, exclusive, to be just before it.
    pub target: Lsn,
    /// The id that `timeline` shows and `restore --before` takes.
    pub event: String,
    /// When it was committed; absent where no record tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    pub xid: u32,
    /// The rule that it met, as the configuration calls it.
    pub rule: String,
    /// What happened, for people.
    pub what: String,
    /// The command that brings back the moment before it.
    pub restore: String,
}

impl Document for Alert {
    fn defect(&self) -> Option<String> {
        first_defect([
            (document::is_time(self.noticed) && self.time.is_none_or(document::is_time), "its times are impossible"),
            (document::is_lsn(self.target), "its target is impossible"),
            (self.timeline > Timeline(0), "its timeline is 0"),
            (is_plain(&self.event), "its event is none"),
        ])
    }
}

/// Whether text says nothing to a shell.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.len() < 1000 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=,+@".contains(&b))
}

/// Who has seen an alert, and what they say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Acknowledgement {
    pub at: Timestamp,
    pub user: String,
    pub host: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Document for Acknowledgement {
    fn defect(&self) -> Option<String> {
        first_defect([(document::is_time(self.at), "its time is impossible")])
    }
}

impl Alert {
    /// One for each event and rule, whoever notices it.
    pub fn id(&self) -> String {
        format!("{}-{}-{:016X}-{}", self.system_identifier, self.timeline, self.target.0, self.rule)
    }

    /// The command that brings back the moment before it, to be copied. Whoever may write into the store has written the one in it, so
    /// that is taken only if it is a restore of ours and nothing else.
    pub fn command(&self) -> String {
        let words: Vec<&str> = self.restore.split(' ').collect();
        let is_restore = matches!(words[..], ["lastgood", "restore", ..] | ["lastgood", "--cluster", _, "restore", ..]);
        match is_restore && is_plain(&self.restore.replace(' ', "")) {
            true => self.restore.clone(),
            false => format!("lastgood restore --before {} --into DIRECTORY", self.event),
        }
    }

    /// Writes it; `false` when it was there: the event was noticed before.
    pub async fn raise(&self, cluster: &Cluster) -> Result<bool, RepoError> {
        let key = cluster.layout().alert(&self.id());
        match object::put_document(cluster.vault(), &key, &object::to_json(self)).await {
            Ok(created) => Ok(created == Created::New),
            // Another host, or another moment, told the same event in other words.
            Err(RepoError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub async fn read(cluster: &Cluster, id: &str) -> Result<Alert, RepoError> {
        let key = cluster.layout().alert(id);
        object::from_json(&key, &object::get_document(cluster.vault(), &key).await?)
    }
}

/// Ids of all alerts, oldest names first, and whether each was acknowledged.
pub async fn all(cluster: &Cluster) -> Result<BTreeMap<String, bool>, RepoError> {
    let prefix = cluster.layout().alerts();
    let mut ids = BTreeMap::new();
    for object in list_all(cluster.storage(), &prefix, Depth::All).await?.objects {
        let Some((id, name)) = object.key.as_str()[prefix.len()..].split_once('/') else { continue };
        *ids.entry(id.to_string()).or_insert(false) |= name == "acknowledged";
    }
    Ok(ids)
}

/// An alert's id, and the alert or why it cannot be read.
pub type Readable = (String, Result<Alert, String>);

/// Alerts that nobody acknowledged, those that cannot be read among them. While there are any, nothing may be expired (rule 53).
pub async fn open(cluster: &Cluster) -> Result<Vec<Readable>, RepoError> {
    let mut open = Vec::new();
    for (id, _) in all(cluster).await?.into_iter().filter(|(_, is_acknowledged)| !is_acknowledged) {
        let alert = readable(cluster, &id).await?;
        open.push((id, alert));
    }
    Ok(open)
}

/// An alert that is damaged costs its words, and nothing else: that it was raised is known by its name.
pub async fn readable(cluster: &Cluster, id: &str) -> Result<Result<Alert, String>, RepoError> {
    match Alert::read(cluster, id).await {
        Ok(alert) => Ok(Ok(alert)),
        Err(error) if error.is_damage() || error.is_newer_epoch() => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Who closed an alert; `None` where that cannot be read.
pub async fn acknowledgement(cluster: &Cluster, id: &str) -> Result<Option<Acknowledgement>, RepoError> {
    let key = cluster.layout().acknowledgement(id);
    match object::get_document(cluster.vault(), &key).await.and_then(|raw| object::from_json(&key, &raw)) {
        Ok(by) => Ok(Some(by)),
        Err(error) if error.is_damage() || error.is_newer_epoch() || error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Closes an alert; who was first stays the one who did.
pub async fn acknowledge(cluster: &Cluster, id: &str, by: &Acknowledgement) -> Result<(), RepoError> {
    let key = cluster.layout().acknowledgement(id);
    match object::put_document(cluster.vault(), &key, &object::to_json(by)).await {
        Ok(_) | Err(RepoError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_restore_of_ours_is_a_command_to_copy() {
        let said = |restore: &str| {
            let alert = serde_json::json!({ "noticed": "2026-11-21T00:00:00Z", "host": "h", "system_identifier": "7", "timeline": 1,
                "target": "0/1", "event": "e", "xid": 7, "rule": "drop", "what": "w", "restore": restore });
            serde_json::from_value::<Alert>(alert).unwrap().command()
        };
        for ours in [
            "lastgood --cluster shop restore --before 1-5F00 --into DIRECTORY",
            "lastgood --cluster shop restore --to latest --timeline 1 --into DIRECTORY",
        ] {
            assert_eq!(said(ours), ours);
        }
        for bad in [
            "",
            "rm -rf /",
            "lastgood restore; rm -rf x",
            "lastgood expire",
            "lastgood restore --into $(x)",
            "lastgood restore\nrm",
        ] {
            assert_eq!(said(bad), "lastgood restore --before e --into DIRECTORY", "{bad}");
        }
    }
}
