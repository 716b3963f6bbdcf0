//! WAL that was expired, as ranges of segments.
//!
//! `wal/<system>/gone/<number>` holds all that went so far; the highest number counts. It is written before the segments are
//! deleted: from then on nobody counts on them, and a roll-up that a slow push writes over some of them later proves nothing. A
//! server in recovery that asks for one of them is told so, instead of being told that the WAL ends there.

use serde::{Deserialize, Serialize};

use super::RepoError;
use super::document::{Document, first_defect};
use super::object;
use super::repository::Cluster;
use crate::postgres::lsn::{SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::storage::{Depth, ObjectKey, list_all};

/// From the first to the last, of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range(pub SegmentName, pub SegmentName);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    pub ranges: Vec<Range>,
    /// Why that is not known, if so: more may be gone than the ranges say.
    #[serde(skip)]
    pub unreadable: Option<String>,
}

impl Document for Gone {
    fn defect(&self) -> Option<String> {
        let is_range =
            |Range(first, last): &Range| first.timeline > Timeline(0) && first.timeline == last.timeline && first <= last;
        first_defect([(self.ranges.iter().all(is_range), "a range does not go from a segment to a later one of its timeline")])
    }
}

impl Gone {
    /// What is gone of one history; nothing when nothing was ever expired. Damage costs this knowledge alone: who reads it then
    /// trusts no roll-up, and lists what is there.
    pub async fn read(cluster: &Cluster, system: SystemId) -> Result<Gone, RepoError> {
        let Some(key) = last(cluster, system).await?.pop() else { return Ok(Gone::default()) };
        let read = object::get_document(cluster.vault(), &key).await;
        match read.and_then(|raw| object::from_json(&key, &raw)) {
            Ok(gone) => Ok(gone),
            Err(error) if error.is_damage() => Ok(Gone { ranges: Vec::new(), unreadable: Some(error.to_string()) }),
            Err(error) => Err(error),
        }
    }

    pub fn has(&self, name: SegmentName) -> bool {
        self.ranges.iter().any(|Range(first, last)| (*first..=*last).contains(&name))
    }

    /// Timeline and numbers of each range.
    pub fn numbers(&self, segment_bytes: u64) -> impl Iterator<Item = (Timeline, u64, u64)> {
        let number = move |name: &SegmentName| name.number(segment_bytes);
        self.ranges.iter().filter_map(move |Range(first, last)| Some((first.timeline, number(first)?, number(last)?)))
    }

    /// Writes it behind what was there, and removes that. Only the holder of the lease for backups does.
    pub async fn put(&self, cluster: &Cluster, system: SystemId) -> Result<(), RepoError> {
        let before = last(cluster, system).await?;
        let number = before.last().and_then(|key| key.name().parse::<u32>().ok()).unwrap_or(0).saturating_add(1);
        object::put_document(cluster.vault(), &cluster.layout().gone_number(system, number), &object::to_json(self)).await?;
        // What cannot be deleted now is passed over, and deleted next time.
        let _ = cluster.storage().delete(&before).await?;
        Ok(())
    }
}

async fn last(cluster: &Cluster, system: SystemId) -> Result<Vec<ObjectKey>, RepoError> {
    let page = list_all(cluster.storage(), &cluster.layout().gone(system), Depth::All).await?;
    Ok(page.objects.into_iter().map(|object| object.key).collect())
}
