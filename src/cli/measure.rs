//! A real restore is measured too: what it took goes into a small report, beside what was thought.

use super::context::Place;
use super::{guard, progress};
use crate::clock;
use crate::repo::report::{Kind, Phase, RESTORE, Reference, Report};
use crate::repo::repository::Cluster;
use crate::restore::plan::Plan;
use crate::timeline::estimate::{Estimate, Experience};

/// One restore, before and after.
pub struct Restore {
    cluster: Cluster,
    report: Report,
    bytes: u64,
    files: u64,
    pub estimate: Option<Estimate>,
}

impl Restore {
    /// What is known beforehand.
    pub fn new(place: &Place, experience: &Experience, plan: &Plan) -> Restore {
        let estimate = experience.estimate((plan.bytes, plan.files), plan.wal_segments * plan.archive.segment_bytes);
        let mut report = Report::begin(Kind::Restore, &place.cluster, plan.system_identifier, &guard::who(), plan.target.clone());
        report.snapshot = Some(plan.snapshot.clone());
        (report.timeline, report.stop_lsn) = (Some(plan.timeline), plan.stop_lsn);
        report.estimated = estimate.as_ref().map(|estimate| estimate.restore);
        Restore { cluster: place.cluster.clone(), report, bytes: plan.bytes, files: plan.files, estimate }
    }

    /// Writes the report of a restore that was done; `None` where there is none, or nothing can be written.
    pub async fn report(mut self, is_done: bool, seconds: f64, json: bool) -> Option<Reference> {
        if !is_done {
            return None;
        }
        self.report.ended = clock::now();
        self.report.passed = true;
        self.report.phases.push(Phase { name: RESTORE.into(), seconds, bytes: self.bytes, files: self.files });
        match self.report.put(&self.cluster).await {
            Ok(reference) => Some(reference),
            Err(error) => {
                progress::monitor(json).warn(&format!("how long this took could not be kept: {error}"));
                None
            }
        }
    }
}
