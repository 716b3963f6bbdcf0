//! One file on its way into the repository: read once, and hashed, compressed, sealed and understood in the same pass.

use std::fs;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::index;
use super::push::PushError;
use super::spool::{Acknowledgement, Last, Note, Spool};
use crate::clock;
use crate::lineage::fork::Fork;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use crate::postgres::wal::index::fold::{Fold, Folded};
use crate::postgres::wal::index::{MappedFiles, NoIndex, SegmentIndex};
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::postgres::wal::transaction::SegmentSummary;
use crate::repo::object::Sha;
use crate::repo::repository::Cluster;
use crate::repo::seal::Sealer;
use crate::repo::segment::{self, Stored};

#[derive(Debug, Clone)]
pub(super) struct Job {
    pub path: PathBuf,
    pub file: WalFile,
    pub system: SystemId,
    pub level: i32,
    /// Where mapped catalogs lie, for the index.
    pub mapped: Arc<MappedFiles>,
    /// Where the index goes; without a spool it is made when it is wanted.
    pub spool: Option<Spool>,
}

/// The digest of the segment before.
#[derive(Debug, Default)]
pub(super) enum Previous {
    #[default]
    Unknown,
    Known(Sha),
    /// It is being read at the same time.
    Coming(oneshot::Receiver<Sha>),
}

impl Previous {
    async fn known(self) -> Option<Sha> {
        match self {
            Previous::Unknown => None,
            Previous::Known(sha256) => Some(sha256),
            Previous::Coming(coming) => coming.await.ok(),
        }
    }
}

/// What goes along with a file.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub previous: Previous,
    /// Of a history file that comes for the first time.
    pub fork: Option<Fork>,
    /// Waits for this file's digest.
    pub tell: Option<oneshot::Sender<Sha>>,
}

/// What reading a file gave.
struct Content {
    encoded: segment::Encoded,
    summary: Option<serde_json::Value>,
    /// Of a segment that could be understood, with the length of segments.
    index: Option<(SegmentIndex, u64)>,
    problem: Option<String>,
}

impl Job {
    /// Stores the file, and keeps the index of a segment, which never fails a push. Answers its digest too.
    pub async fn run(&self, cluster: &Cluster, beside: Beside) -> Result<(Stored, Sha), PushError> {
        let job = self.clone();
        let as_it_was = fs::metadata(&self.path).map(|metadata| Acknowledgement::of(&metadata, ""));
        let sealer = cluster.vault().sealer(&cluster.layout().wal(self.system, &self.file));
        let scratch = segment::scratch(cluster);
        let read = match tokio::task::spawn_blocking(move || job.read(sealer, &scratch)).await {
            Ok(read) => read?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let sha256 = read.encoded.sha256;
        if let Some(waiting) = beside.tell {
            // Who waits for it may have given up.
            let _ = waiting.send(sha256);
        }
        if let (WalFile::Segment(segment), Some(spool), Ok(file)) = (self.file, &self.spool, as_it_was) {
            spool.set_read(&Last { segment, sha256, file });
        }
        let here = describe(sha256, read.summary.as_ref());
        let fork = beside.fork.and_then(|fork| serde_json::to_value(fork).ok());
        let said = segment::Said { previous: beside.previous.known().await, summary: read.summary.or(fork) };
        match segment::store(cluster, self.system, &self.file, read.encoded, said).await? {
            Stored::Different { there } => {
                let stored = segment::read_trailer(cluster, self.system, &self.file).await?;
                let there = describe(there, stored.summary.as_ref());
                Err(PushError::Conflict { name: self.file.to_string(), cluster: cluster.name().into(), there, here })
            }
            stored => {
                if let (WalFile::Segment(segment), Some(spool)) = (self.file, &self.spool) {
                    let kept = match (read.index, read.problem) {
                        (Some((index, segment_bytes)), _) => self.keep(cluster, segment, segment_bytes, &index, spool).await,
                        (None, problem) => Err(problem.unwrap_or_default()),
                    };
                    spool.note(Note::IndexProblem, kept.err().as_deref());
                }
                Ok((stored, sha256))
            }
        }
    }

    async fn keep(
        &self,
        cluster: &Cluster,
        segment: SegmentName,
        segment_bytes: u64,
        index: &SegmentIndex,
        spool: &Spool,
    ) -> Result<(), String> {
        let bytes = index.to_bytes().map_err(|error| format!("no index of {segment}: {error}"))?;
        if index.may_destroy() {
            // Until somebody has looked (see `timeline::tripwire`).
            spool.note(Note::Suspicion, Some(&segment.to_string()));
        }
        index::keep(cluster, self.system, segment_bytes, segment, &bytes, spool).await
    }

    /// Reads, hashes, compresses and seals in one pass; a segment is understood in the same.
    fn read(&self, sealer: Option<Sealer>, scratch: &[PathBuf]) -> Result<Content, PushError> {
        let failed = |source| PushError::Read { path: self.path.clone(), source };
        let source = fs::File::open(&self.path).map_err(failed)?;
        let WalFile::Segment(name) = self.file else {
            let encoded = segment::encode(source, self.level, sealer, scratch, &mut |_| {}).map_err(failed)?;
            return Ok(Content { encoded, summary: None, index: None, problem: None });
        };
        let header = checked_header(&self.path, name)?;
        // WAL that cannot be understood is stored all the same, even when trying to panics.
        let mut fold = Some(Fold::new(header.address, header.segment_bytes, MappedFiles::clone(&self.mapped)));
        let mut observe = |bytes: &[u8]| {
            if let Some(mut folding) = fold.take() {
                let fed = catch_unwind(AssertUnwindSafe(move || {
                    folding.feed(bytes);
                    folding
                }));
                fold = fed.ok();
            }
        };
        let encoded = segment::encode(source, self.level, sealer, scratch, &mut observe).map_err(failed)?;
        let folded = fold.and_then(|fold| catch_unwind(AssertUnwindSafe(|| fold.finish())).ok());
        Ok(match folded {
            None => {
                Content { encoded, summary: None, index: None, problem: Some(format!("no index of {name}: reading it failed")) }
            }
            Some(Folded { summary, index }) => {
                let problem = index.as_ref().err().map(|error: &NoIndex| format!("no index of {name}: {error}"));
                let index = index.ok().map(|index| (index, header.segment_bytes));
                Content { encoded, summary: serde_json::to_value(summary).ok(), index, problem }
            }
        })
    }
}

/// The header of a segment, which must be what its name says.
pub(super) fn checked_header(path: &Path, name: SegmentName) -> Result<SegmentHeader, PushError> {
    let failed = |source| PushError::Read { path: path.into(), source };
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut head = Vec::with_capacity(LONG_HEADER_BYTES);
    file.by_ref().take(LONG_HEADER_BYTES as u64).read_to_end(&mut head).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let refused = |source| PushError::Header { path: path.into(), source };
    let header = SegmentHeader::parse(&head).map_err(refused)?;
    header.check(name, bytes).map_err(refused)?;
    Ok(header)
}

/// A history in words: what a segment holds.
fn describe(sha256: Sha, summary: Option<&serde_json::Value>) -> String {
    let hash = &sha256.to_string()[..16];
    let summary = summary.and_then(|value| serde_json::from_value::<SegmentSummary>(value.clone()).ok());
    match summary {
        Some(SegmentSummary { commits, earliest: Some(from), latest: Some(to), .. }) => {
            format!("{hash}…, {commits} transactions from {} to {}", clock::seconds(from), clock::seconds(to))
        }
        _ => format!("{hash}…"),
    }
}
