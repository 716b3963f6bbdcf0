//! What the repository is, and what each cluster in it is.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::postgres::lsn::SystemId;

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
    pub written: Timestamp,
}

impl ClusterRecord {
    /// The history that the cluster lives now.
    pub fn current(&self) -> Option<&History> {
        self.histories.last()
    }

    pub fn history(&self, system: SystemId) -> Option<&History> {
        self.histories.iter().find(|h| h.system_identifier == system)
    }
}
