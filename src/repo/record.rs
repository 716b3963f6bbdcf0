//! What the repository is, and what each cluster in it is.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::document::{self, Document, first_defect};
use crate::config;
use crate::postgres::lsn::{SystemId, Timeline};

/// The label that needs most care.
pub const PRODUCTION: &str = "production";

/// `lastgood.json`: plain JSON, so that a person or another tool sees at once what this place is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRecord {
    /// Always `lastgood`.
    pub repository: String,
    pub format: u64,
    /// The oldest format version that a reader must know.
    pub minimum_reader: u64,
    pub id: String,
    pub created: Timestamp,
    /// How everything but this object is sealed: `none`, or the cipher.
    pub seal: String,
    /// Of a sealed repository: tells its keys from those of every other, see `seal::keyring`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Whether the store keeps two writers of one key apart; found out by trying, when the repository was made.
    pub conditional_create: bool,
}

/// One life of a cluster under its name: from `initdb` or `pg_upgrade` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub system_identifier: SystemId,
    pub major: u32,
    pub catalog_version: u32,
    pub control_version: u32,
    pub block_bytes: u32,
    pub wal_segment_bytes: u32,
    pub data_checksums: bool,
    pub registered: Timestamp,
}

impl Document for RepositoryRecord {
    fn defect(&self) -> Option<String> {
        let is_hex = |text: &str| text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        first_defect([
            (is_hex(&self.id), "its id is none"),
            (self.key_id.as_deref().is_none_or(is_hex), "its key_id is none"),
            (document::is_time(self.created), "its time is impossible"),
        ])
    }
}

impl History {
    fn makes_sense(&self) -> bool {
        (1..1000).contains(&self.major)
            && document::is_block_length(self.block_bytes)
            && document::is_segment_length(self.wal_segment_bytes)
            && document::is_time(self.registered)
    }
}

impl Document for ClusterRecord {
    fn defect(&self) -> Option<String> {
        let mut timelines =
            self.abandoned.iter().flat_map(|a| [a.timeline, a.by]).chain(self.successors.iter().map(|s| s.timeline));
        let times = self.abandoned.iter().map(|a| a.at).chain(self.successors.iter().map(|s| s.at));
        first_defect([
            (config::is_cluster_name(&self.name), "its name is no cluster's"),
            // Keys have eight digits, and the next must have them too.
            (self.number < 99_999_999, "its number is impossible"),
            (!self.histories.is_empty(), "it has no history"),
            (
                self.histories.iter().all(History::makes_sense),
                "a history has an impossible major, block_bytes, wal_segment_bytes or time",
            ),
            (timelines.all(|timeline| timeline > Timeline(0)), "it names timeline 0"),
            (times.chain([self.written]).all(document::is_time), "its times are impossible"),
        ])
    }
}

/// A cluster. Records are numbered; the highest counts. Each holds all that came before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub format: u64,
    pub number: u32,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Oldest first; never empty.
    pub histories: Vec<History>,
    /// Timelines that were left for another by decision: a restore does not follow them by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abandoned: Vec<Abandoned>,
    /// Timelines that were declared to go on although their parent's WAL went further.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub successors: Vec<Successor>,
    pub written: Timestamp,
    /// Why this is not the newest record, if so: that one is damaged. What only it said is lost, so the label is then [`PRODUCTION`].
    #[serde(skip)]
    pub behind: Option<String>,
}

/// A timeline that was declared the one that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Successor {
    pub system_identifier: SystemId,
    pub timeline: Timeline,
    pub at: Timestamp,
}

/// A timeline that nobody continues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    pub system_identifier: SystemId,
    pub timeline: Timeline,
    pub at: Timestamp,
    /// The timeline that goes on instead.
    pub by: Timeline,
}

impl ClusterRecord {
    /// The history that the cluster lives now.
    pub fn current(&self) -> Option<&History> {
        self.histories.last()
    }

    /// Timelines of a system that nobody continues.
    pub fn abandoned(&self, system: SystemId) -> Vec<Timeline> {
        self.abandoned.iter().filter(|a| a.system_identifier == system).map(|a| a.timeline).collect()
    }

    pub fn is_successor(&self, system: SystemId, timeline: Timeline) -> bool {
        self.successors.iter().any(|s| (s.system_identifier, s.timeline) == (system, timeline))
    }

    pub fn history(&self, system: SystemId) -> Option<&History> {
        self.histories.iter().find(|h| h.system_identifier == system)
    }
}
