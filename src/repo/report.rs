//! Reports: what a drill or a restore did, how long each part took, and what was found.
//!
//! # What
//! A document `reports/<id>`, written once. Ids begin with the time, so that the last ones stand at the end of a listing.
//!
//! # Who vouches for it
//! The entry of the audit that tells how it ended holds the SHA-256 of the report ([`Reference`]). The audit is a chain, and every
//! later snapshot's manifest remembers its end: who changes a report, or removes one that failed, must change all of that too.
//! `lastgood audit` compares.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::audit::Who;
use super::document::{self, Document, first_defect};
use super::object::{self, Sha};
use super::repository::Cluster;
use crate::clock;
use crate::config;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::storage::{Depth, list_all};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Tried in a scratch place, started and questioned.
    Drill,
    /// A real one; the server was started by somebody else, later.
    Restore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    Warning,
    Failure,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub level: Level,
    /// `target`, `pages`, `question` …
    pub subject: String,
    pub what: String,
}

/// A part of the work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub seconds: f64,
    /// Bytes restored, WAL replayed, pages read; 0 where that means nothing.
    pub bytes: u64,
    /// Files that were written; absent where that means nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub files: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The phase in which files are written.
pub const RESTORE: &str = "restore";
/// The phase from the start of the server until its target is reached.
pub const REPLAY: &str = "replay";

/// How much was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Databases that were opened.
    pub databases: u64,
    pub pages: u64,
    pub pages_there: u64,
    /// Tables and indexes that amcheck looked at.
    pub relations: u64,
    pub relations_there: u64,
    pub questions: u64,
    pub questions_configured: u64,
    /// Relations that were compared with what the snapshot knows.
    pub catalogued: u64,
    pub dumped_bytes: u64,
}

/// How long something was expected to take, and from how many measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Span {
    pub typical_s: f64,
    pub low_s: f64,
    pub high_s: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub id: String,
    pub kind: Kind,
    pub cluster: String,
    pub system_identifier: SystemId,
    /// The host's clock.
    pub began: Timestamp,
    pub ended: Timestamp,
    pub who: Who,
    /// What was asked for.
    pub target: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// SHA-256 of the snapshot's manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Sha>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// Where recovery was to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_lsn: Option<Lsn>,
    /// Where it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_to: Option<Lsn>,
    /// When the last transaction that was replayed ended, by the database's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<Timestamp>,
    /// Of the server that was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// The ceiling that it kept to, which tells nothing of how long a restore takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    pub phases: Vec<Phase>,
    /// Seconds until the data could be read: restore and replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_s: Option<f64>,
    /// Seconds between the last transaction and the beginning: at most so much would have been lost. Only for the newest moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_s: Option<f64>,
    #[serde(default)]
    pub checked: Checked,
    pub findings: Vec<Finding>,
    pub passed: bool,
    /// How long it was thought to take beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated: Option<Span>,
    pub written_by: String,
}

impl Document for Report {
    fn defect(&self) -> Option<String> {
        let mut times = [self.began, self.ended].into_iter().chain(self.last_transaction);
        let spans = self.estimated.iter().flat_map(|span| [span.typical_s, span.low_s, span.high_s]);
        let mut seconds = self.phases.iter().map(|phase| phase.seconds).chain(self.rto_s).chain(self.rpo_s).chain(spans);
        first_defect([
            (document::is_report_id(&self.id), "its id is no report's"),
            (config::is_cluster_name(&self.cluster), "its cluster has an impossible name"),
            (times.all(document::is_time), "its times are impossible"),
            (seconds.all(document::is_seconds), "its measurements are impossible"),
            (
                self.phases.iter().all(|phase| phase.bytes.max(phase.files) <= document::BYTES_MAX),
                "its measurements are impossible",
            ),
        ])
    }
}

/// A report, and the proof that it is the one that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub cluster: String,
    pub id: String,
    pub sha256: Sha,
}

impl Report {
    /// One that begins now; it has passed nothing.
    pub fn begin(kind: Kind, cluster: &Cluster, system_identifier: SystemId, who: &Who, target: String) -> Report {
        let began = clock::now();
        Report {
            id: format!("{}-{}", began.strftime("%Y%m%dT%H%M%SZ"), clock::random_hex(8)),
            kind,
            cluster: cluster.name().into(),
            system_identifier,
            began,
            ended: began,
            who: who.clone(),
            target,
            snapshot: None,
            manifest: None,
            timeline: None,
            stop_lsn: None,
            replayed_to: None,
            last_transaction: None,
            server_version: None,
            bytes_per_s: None,
            phases: Vec::new(),
            rto_s: None,
            rpo_s: None,
            checked: Checked::default(),
            findings: Vec::new(),
            passed: false,
            estimated: None,
            written_by: concat!("lastgood ", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    pub fn find(&mut self, level: Level, subject: &str, what: impl Into<String>) {
        self.findings.push(Finding { level, subject: subject.into(), what: what.into() });
    }

    pub fn ok(&mut self, subject: &str, what: impl Into<String>) {
        self.find(Level::Ok, subject, what);
    }

    pub fn warn(&mut self, subject: &str, what: impl Into<String>) {
        self.find(Level::Warning, subject, what);
    }

    pub fn fail(&mut self, subject: &str, what: impl Into<String>) {
        self.find(Level::Failure, subject, what);
    }

    pub fn failures(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.level == Level::Failure)
    }

    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }

    /// Writes it. From here on it is what it is.
    pub async fn put(&self, cluster: &Cluster) -> Result<Reference, RepoError> {
        let raw = object::to_json(self);
        // The id is our own: nobody else writes there.
        object::put_own_document(cluster.vault(), &cluster.layout().report(&self.id), &raw).await?;
        Ok(Reference { cluster: self.cluster.clone(), id: self.id.clone(), sha256: Sha::of(&raw) })
    }

    pub async fn read(cluster: &Cluster, id: &str) -> Result<Report, RepoError> {
        let key = cluster.layout().report(id);
        object::from_json(&key, &object::get_document(cluster.vault(), &key).await?)
    }
}

impl Reference {
    /// Why the report is not the one that was written, if so.
    pub async fn problem(&self, cluster: &Cluster) -> Result<Option<String>, RepoError> {
        let key = cluster.layout().report(&self.id);
        match object::get_document(cluster.vault(), &key).await {
            Ok(raw) if Sha::of(&raw) == self.sha256 => Ok(None),
            Ok(_) => Ok(Some(format!("the report {key} was changed"))),
            Err(error) if error.is_not_found() => Ok(Some(format!("the report {key} is missing"))),
            Err(error) if error.is_damage() => Ok(Some(format!("the report {key} cannot be read: {error}"))),
            Err(error) if error.is_newer_epoch() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Ids of all reports, oldest first.
pub async fn ids(cluster: &Cluster) -> Result<Vec<String>, RepoError> {
    let page = list_all(cluster.storage(), &cluster.layout().reports(), Depth::All).await?;
    Ok(page.objects.iter().map(|object| object.key.name().to_string()).collect())
}

/// The newest reports, oldest first; what cannot be read is left out.
pub async fn newest(cluster: &Cluster, count: usize) -> Result<Vec<Report>, RepoError> {
    use futures::StreamExt;
    let ids = ids(cluster).await?;
    let last = ids[ids.len().saturating_sub(count)..].to_vec();
    let reads = futures::stream::iter(last).map(|id| async move { Report::read(cluster, &id).await }).buffered(8);
    let mut reports = Vec::new();
    for report in reads.collect::<Vec<_>>().await {
        match report {
            Ok(report) => reports.push(report),
            Err(error) if error.is_damage() || error.is_newer_epoch() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(reports)
}
