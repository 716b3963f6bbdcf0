//! Indexes of segments on their way into roll-ups.
//!
//! A segment's index lies in the spool until its group is complete; whoever completes one writes the roll-up. Nothing here ever
//! fails a push: without a roll-up the segments themselves are read where the index is wanted, and `backup` and `verify --reindex`
//! make what is missing.

use super::spool::Spool;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::index::SegmentIndex;
use crate::postgres::wal::index::proof::Proof;
use crate::postgres::wal::name::SegmentName;
use crate::repo::repository::Cluster;
use crate::repo::rollup::{self, Group};

/// Groups up to this level are written by pushes. The next one would take more memory than a push shall.
const LEVEL_MAX: u8 = 2;
/// Indexes that are kept in the spool, for snapshots that want to know what changed: some 20 MiB.
const KEPT: u64 = 4096;

fn passes(group: &Group, indexes: &[Vec<u8>]) -> bool {
    let mut proof = Proof::new(group.timeline);
    indexes.iter().for_each(|raw| proof.add(SegmentIndex::parse(raw).ok().as_ref()));
    proof.holds()
}

/// Keeps the index of a segment that was just stored, and writes the roll-ups that it completes.
pub async fn keep(
    cluster: &Cluster,
    system: SystemId,
    segment_bytes: u64,
    segment: SegmentName,
    index: &[u8],
    spool: &Spool,
) -> Result<(), String> {
    let Some(number) = segment.number(segment_bytes) else { return Ok(()) };
    spool.keep_index(segment, index).map_err(|error| format!("the index of {segment} cannot be kept: {error}"))?;
    for level in 1..=LEVEL_MAX {
        let group = Group::of(segment.timeline, level, number);
        let names = || group.numbers().map(|number| SegmentName::new(group.timeline, number, segment_bytes));
        if !names().all(|name| spool.has_index(name)) {
            break;
        }
        let indexes: Option<Vec<Vec<u8>>> = names().map(|name| spool.index(name)).collect();
        let Some(indexes) = indexes else { break };
        // A key of a roll-up says that replay passes through.
        if !passes(&group, &indexes) {
            break;
        }
        let written = rollup::write(cluster, system, segment_bytes, &group, indexes.into_iter()).await;
        written.map_err(|error| format!("the roll-up that {segment} completes is not written: {error}"))?;
    }
    if number.is_multiple_of(rollup::FAN) {
        let is_old = |name: SegmentName| {
            name.timeline < segment.timeline || name.number(segment_bytes).is_none_or(|n| n.saturating_add(KEPT) < number)
        };
        spool.forget_indexes(is_old);
    }
    Ok(())
}
