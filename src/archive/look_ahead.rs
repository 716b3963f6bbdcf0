//! Further ready segments, stored at the same time as the one that PostgreSQL asks for.

use std::path::Path;

use tokio::sync::oneshot;

use super::job::{Beside, Job, Previous, checked_header};
use super::push::{PushError, metadata};
use super::spool::{Acknowledgement, Last, Spool};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::repository::Cluster;

/// What a batch needs.
#[derive(Clone)]
pub(super) struct Ahead {
    pub cluster: Cluster,
    /// The one that was asked for.
    pub first: Job,
    pub segment_bytes: u64,
    pub spool: Spool,
    pub identity: String,
}

impl Ahead {
    /// Pushes segments behind the first one, and leaves acknowledgements for the calls that will ask for them. Answers how many.
    ///
    /// Where the archive had the first one already (`at_once` is false), another writer may have gone on from there in another way: then
    /// they go one after the other, and the first that fails ends it, so that nothing is stored behind a segment that is not ours.
    pub async fn push(&self, names: Vec<SegmentName>, first: Last, at_once: bool) -> usize {
        let (mut before, mut previous) = (first.segment, Previous::Known(first.sha256));
        let (mut running, mut stored) = (tokio::task::JoinSet::new(), vec![first]);
        for name in names {
            let (tell, coming) = oneshot::channel();
            let known = if before.next(self.segment_bytes) == Some(name) { previous } else { Previous::Unknown };
            (before, previous) = (name, Previous::Coming(coming));
            let batch = self.clone();
            running.spawn(async move { batch.one(name, Beside { previous: known, tell: Some(tell), fork: None }).await });
            if at_once {
                continue;
            }
            match running.join_next().await {
                Some(Ok(Ok(Some(done)))) => stored.push(done),
                _ => break,
            }
        }
        while let Some(pushed) = running.join_next().await {
            stored.extend(pushed.ok().and_then(Result::ok).flatten());
        }
        stored.sort_unstable_by_key(|last| last.segment);
        // Up to the first that is missing: the call behind it asks the archive what stands before.
        let follows = |pair: &&[Last]| pair[0].segment.next(self.segment_bytes) == Some(pair[1].segment);
        self.spool.set_last(&stored[stored.windows(2).take_while(follows).count()]);
        stored.len() - 1
    }

    async fn one(&self, name: SegmentName, beside: Beside) -> Result<Option<Last>, PushError> {
        let path = self.first.path.parent().unwrap_or(Path::new(".")).join(name.to_string());
        let file = Acknowledgement::of(&metadata(&path)?, &self.identity);
        // Never under another system's name, whatever lies in pg_wal.
        if checked_header(&path, name)?.system_identifier != self.first.system {
            return Ok(None);
        }
        let job = Job { path, file: WalFile::Segment(name), ..self.first.clone() };
        let (_, sha256) = job.run(&self.cluster, beside).await?;
        Ok(self.spool.acknowledge(name, &file).is_ok().then_some(Last { segment: name, sha256, file }))
    }
}
