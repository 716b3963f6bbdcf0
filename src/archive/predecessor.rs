//! The segment before the one that is pushed: its digest goes into the trailer, and the archive must not have another one.
//!
//! In the ordinary case this call's predecessor was stored by a call before, from the same data directory, and nothing is asked. Else
//! the archive is asked once. What cannot be known refuses nothing.

use std::path::Path;

use super::job::{Job, Previous, checked_header};
use super::push::PushError;
use super::spool::{Acknowledgement, Last, Spool};
use crate::lineage::chain;
use crate::lineage::compare::{self, Compared};
use crate::postgres::history::History;
use crate::postgres::wal::name::SegmentName;
use crate::repo::repository::Cluster;

/// Where to look.
pub(super) struct Before<'a> {
    pub cluster: &'a Cluster,
    pub spool: Option<&'a Spool>,
    /// The repository, as the spool's notes name it.
    pub identity: &'a str,
    pub data_directory: &'a Path,
}

impl Before<'_> {
    /// Refuses a segment whose predecessor here is another than the archive's.
    pub async fn of(&self, job: &Job, name: SegmentName) -> Result<Previous, PushError> {
        let segment_bytes = checked_header(&job.path, name)?.segment_bytes;
        let Some(before) = chain::predecessor(&self.path(name), name, segment_bytes) else { return Ok(Previous::Unknown) };
        let pg_wal = self.data_directory.join("pg_wal");
        let file = pg_wal.join(before.to_string());
        let noted = self.spool.and_then(Spool::last).filter(|last| last.segment == before && last.file.place == self.identity);
        // Once it was recycled, the note is all there is.
        let is_that = |last: &Last| match std::fs::metadata(&file) {
            Ok(metadata) => Acknowledgement::of(&metadata, self.identity) == last.file,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if let Some(last) = noted.filter(is_that) {
            return Ok(Previous::Known(last.sha256));
        }
        // One that waits to be archived is judged when it comes; nobody else has it from here.
        if pg_wal.join(format!("archive_status/{before}.ready")).exists() || !compare::is_segment(&file, before, job.system) {
            return Ok(Previous::Unknown);
        }
        match compare::whole(self.cluster, job.system, before, file).await {
            Ok(Compared::Same(here) | Compared::NotArchived(here)) => Ok(Previous::Known(here)),
            Ok(Compared::Differs { there, here }) => Err(PushError::Parted {
                name,
                before,
                cluster: self.cluster.name().into(),
                there: short(there),
                here: short(here),
            }),
            // What is damaged there, or was recycled here meanwhile, tells nothing.
            Err(error) if error.is_damage() || error.is_newer_epoch() || error.is_local() => Ok(Previous::Unknown),
            Err(error) => Err(error.into()),
        }
    }

    /// The server's own path; without its history file only its timeline is known.
    fn path(&self, name: SegmentName) -> History {
        let file = self.data_directory.join(format!("pg_wal/{}.history", name.timeline));
        let parsed = std::fs::read_to_string(file).ok().and_then(|text| History::parse(name.timeline, &text).ok());
        parsed.unwrap_or_else(|| History::first(name.timeline))
    }
}

fn short(sha256: crate::repo::object::Sha) -> String {
    format!("{}…", &sha256.to_string()[..16])
}
