//! Which segments of a hole are really missing, and not only on their way.
//!
//! A server hands over several segments at a time, and a later one may arrive first. Whoever lists the archive in that moment sees a
//! hole that closes by itself. So each segment is asked for by name; as long as what came after the hole has only just arrived, by the
//! store's clock, the hole is looked at again.

use std::time::Duration;

use super::archive::Archive;
use crate::clock;
use crate::postgres::lsn::Timeline;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::storage::ObjectKey;

/// A push that takes longer is no push of a segment that was begun before the one that arrived.
const ON_ITS_WAY: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Of a long hole, so many segments are asked for by name.
const ASKED: usize = 64;

/// The key of the segment `missing`, at which a window ends although more follows; `None` when it was only on its way.
pub async fn at_end(archive: &Archive, timeline: Timeline, missing: &str) -> Result<Option<String>, RepoError> {
    let first: Option<SegmentName> = missing.parse().ok();
    let end = first.and_then(|name| name.number(archive.segment_bytes)?.checked_sub(1));
    let path = archive.path(timeline);
    let resumes = path.zip(end).and_then(|(path, end)| archive.on_path(&path, archive.after_gap(&path, end)?));
    let (Some(first), Some(resumes)) = (first, resumes) else { return Ok(Some(missing.into())) };
    Ok(lasting(archive, vec![first], resumes).await?.first().map(|name| key(archive, *name).to_string()))
}

/// Those of `missing` that are proven missing; `resumes` is the first segment after them.
pub async fn lasting(archive: &Archive, missing: Vec<SegmentName>, resumes: SegmentName) -> Result<Vec<SegmentName>, RepoError> {
    let mut missing = missing;
    let began = clock::monotonic();
    loop {
        missing = absent(archive, missing).await?;
        if missing.is_empty() || missing.len() > ASKED || began.elapsed() > ON_ITS_WAY {
            return Ok(missing);
        }
        // How long ago it arrived, as far as the two clocks agree; a clock that is behind lets nobody wait for longer than that.
        let arrived = archive.cluster().storage().stat(&key(archive, resumes)).await?.map(|info| info.modified);
        let age = arrived.map(|at| clock::now().duration_since(at).as_secs());
        if age.is_none_or(|age| age > ON_ITS_WAY.as_secs() as i64) {
            return Ok(missing);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn absent(archive: &Archive, names: Vec<SegmentName>) -> Result<Vec<SegmentName>, RepoError> {
    let mut absent = Vec::new();
    for (at, name) in names.into_iter().enumerate() {
        if at >= ASKED || archive.cluster().storage().stat(&key(archive, name)).await?.is_none() {
            absent.push(name);
        }
    }
    Ok(absent)
}

fn key(archive: &Archive, name: SegmentName) -> ObjectKey {
    archive.cluster().layout().wal(archive.system, &WalFile::Segment(name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::postgres::lsn::SystemId;
    use crate::repo::repository::Repository;
    use crate::repo::seal::keys::Keys;
    use crate::storage::Storage;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::record::{Operation, Record};

    const SEGMENT_BYTES: u64 = 16 << 20;

    fn name(number: u64) -> SegmentName {
        SegmentName::new(Timeline(1), number, SEGMENT_BYTES)
    }

    /// Segments 1 and 3 are there.
    async fn archive() -> (Arc<Record<MemoryStorage>>, Archive) {
        let store = Arc::new(Record::new(MemoryStorage::new()));
        let (repository, _) = Repository::open_or_create(store.clone(), &Keys::default(), None).await.unwrap();
        let cluster = repository.cluster("shop");
        for number in [1, 3] {
            let key = cluster.layout().wal(SystemId(7), &WalFile::Segment(name(number)));
            store.create(&key, b"segment".to_vec().into()).await.unwrap();
        }
        let archive = Archive::load(&cluster, SystemId(7), SEGMENT_BYTES).await.unwrap();
        (store, archive)
    }

    #[tokio::test]
    async fn a_segment_that_arrives_after_the_next_one_was_never_missing() {
        let (store, archive) = archive().await;
        let wanted = key(&archive, name(2));
        let arrive = async {
            // Only after it was looked for in vain.
            let is_asked =
                || store.log().calls().iter().any(|call| call.operation == Operation::Stat && call.key == wanted.as_str());
            while !is_asked() {
                tokio::task::yield_now().await;
            }
            store.create(&wanted, b"segment".to_vec().into()).await.unwrap();
        };
        let (missing, ()) = tokio::join!(lasting(&archive, vec![name(2)], name(3)), arrive);
        assert_eq!(missing.unwrap(), []);
    }

    #[tokio::test]
    async fn what_nothing_follows_is_missing_at_once() {
        let (_, archive) = archive().await;
        assert_eq!(lasting(&archive, vec![name(2), name(5)], name(9)).await.unwrap(), [name(2), name(5)]);
    }
}
