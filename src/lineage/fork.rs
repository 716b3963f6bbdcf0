//! What the parent of a timeline had archived beyond the fork when the timeline entered the archive.
//!
//! It stands in the trailer of the timeline's history file, where a segment has its summary. Later it tells whether the parent was
//! silent since: then the fork is a failover, and `latest` follows it. When the parent went on, somebody must decide.

use serde::{Deserialize, Serialize};

use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, SystemId, Timeline};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::object::{self, Sha};
use crate::repo::repository::Cluster;
use crate::repo::segment;

/// Where a timeline begins, and what it left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    pub parent: Timeline,
    pub at: Lsn,
    /// The parent's own whole segment that holds the fork; absent when the parent had not archived it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<Behind>,
}

/// An archived segment of which the part after the fork belongs to nobody who goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    pub segment: SegmentName,
    pub sha256: Sha,
}

impl Fork {
    /// Looks at what the archive has of the parent. `None` for a path without a parent.
    pub async fn look(
        cluster: &Cluster,
        system: SystemId,
        path: &History,
        segment_bytes: u64,
    ) -> Result<Option<Fork>, RepoError> {
        let Some((parent, at)) = path.stretches().iter().rev().nth(1).and_then(|s| Some((s.timeline, s.end?))) else {
            return Ok(None);
        };
        // At a border nothing of the segment before lies beyond the fork.
        if at.0 % segment_bytes == 0 {
            return Ok(Some(Fork { parent, at, behind: None }));
        }
        let segment = SegmentName::new(parent, at.segment(segment_bytes), segment_bytes);
        let there = match object::absent(segment::read_trailer(cluster, system, &WalFile::Segment(segment)).await) {
            Ok(found) => found.map(|trailer| trailer.sha256),
            // It is there, whatever its trailer says; this digest is that of no file.
            Err(error) if error.is_damage() || error.is_newer_epoch() => Some(Sha([0; 32])),
            Err(error) => return Err(error),
        };
        Ok(Some(Fork { parent, at, behind: there.map(|sha256| Behind { segment, sha256 }) }))
    }

    /// As it stands in a trailer; `None` where the writer did not look.
    pub fn of_trailer(summary: Option<&serde_json::Value>) -> Option<Fork> {
        serde_json::from_value(summary?.clone()).ok()
    }
}
