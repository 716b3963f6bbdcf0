//! How long a restore will take, from how long others took.
//!
//! Only what was measured counts: drills measure restore and replay, real restores only the first. The typical value is the median of
//! what each measurement predicts, the range is from the lowest to the highest. Nothing measured: nothing is said.

use serde::Serialize;
use tokio::task::JoinHandle;

use crate::repo::RepoError;
use crate::repo::report::{self, Kind, Report, Span};
use crate::repo::repository::Cluster;

/// So many reports count: hosts, stores and databases change.
const REPORTS: usize = 10;
/// Replay of less WAL than this is mostly the start of the server, and tells no speed.
const REPLAY_MIN_BYTES: u64 = 64 << 20;
/// Two measurements are never so close that the third could not differ by this.
const SPREAD: f64 = 0.15;
/// One measurement tells no range; so much more or less it may be.
const SPREAD_OF_ONE: f64 = 0.4;

/// What is expected of one restore.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    pub restore: Span,
    /// Absent when no drill has replayed enough WAL to tell.
    pub replay: Option<Span>,
    pub drills: usize,
    pub restores: usize,
}

impl Estimate {
    /// Until the data can be read.
    pub fn total(&self) -> Option<Span> {
        let (one, two) = (self.restore, self.replay?);
        Some(Span { typical_s: one.typical_s + two.typical_s, low_s: one.low_s + two.low_s, high_s: one.high_s + two.high_s })
    }
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    kind: Kind,
    restore: (u64, f64),
    replay: Option<(u64, f64)>,
}

/// What was measured so far.
#[derive(Debug, Clone, Default)]
pub struct Experience(Vec<Measured>);

impl Experience {
    pub async fn load(cluster: &Cluster) -> Result<Experience, RepoError> {
        Ok(Experience::of(&report::newest(cluster, REPORTS).await?))
    }

    /// The same, begun at once, whoever waits for it.
    pub fn ask(cluster: &Cluster) -> JoinHandle<Result<Experience, RepoError>> {
        let cluster = cluster.clone();
        tokio::spawn(async move { Experience::load(&cluster).await })
    }

    pub fn of(reports: &[Report]) -> Experience {
        let measured = |report: &Report| {
            let phase = |name: &str| report.phase(name).map(|phase| (phase.bytes, phase.seconds));
            let restore = phase(report::RESTORE).filter(|(bytes, seconds)| *bytes > 0 && *seconds > 0.0)?;
            // A replay that did not reach its target took as long as it took; that is no measurement.
            let replay = phase(report::REPLAY).filter(|_| report.replayed_to.is_some());
            Some(Measured { kind: report.kind, restore, replay })
        };
        Experience(reports.iter().filter(|report| report.bytes_per_s.is_none()).filter_map(measured).collect())
    }

    /// For `bytes` to restore and `wal_bytes` to replay; `None` when nothing was measured.
    pub fn estimate(&self, bytes: u64, wal_bytes: u64) -> Option<Estimate> {
        let restores: Vec<f64> = self.0.iter().map(|m| bytes as f64 * m.restore.1 / m.restore.0 as f64).collect();
        let replays: Vec<f64> = self.0.iter().filter_map(|m| replay(m.replay?, wal_bytes)).collect();
        let drills = self.0.iter().filter(|m| m.kind == Kind::Drill).count();
        Some(Estimate { restore: span(restores)?, replay: span(replays), drills, restores: self.0.len() - drills })
    }
}

/// What one replay says about another.
fn replay((measured_bytes, seconds): (u64, f64), wal_bytes: u64) -> Option<f64> {
    if measured_bytes >= REPLAY_MIN_BYTES {
        return Some(wal_bytes as f64 * seconds / measured_bytes as f64);
    }
    // A short one is as long as another short one.
    (wal_bytes < REPLAY_MIN_BYTES).then_some(seconds)
}

fn span(mut predicted: Vec<f64>) -> Option<Span> {
    predicted.sort_by(f64::total_cmp);
    let (low, high) = (*predicted.first()?, *predicted.last()?);
    let typical_s = (predicted[(predicted.len() - 1) / 2] + predicted[predicted.len() / 2]) / 2.0;
    let spread = if predicted.len() == 1 { SPREAD_OF_ONE } else { SPREAD };
    Some(Span { typical_s, low_s: low.min(typical_s * (1.0 - spread)), high_s: high.max(typical_s * (1.0 + spread)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(kind: Kind, restore: (u64, f64), replay: Option<(u64, f64)>) -> Measured {
        Measured { kind, restore, replay }
    }

    #[test]
    fn nothing_is_said_before_something_was_measured() {
        assert_eq!(Experience::default().estimate(1 << 30, 0), None);
        let only_restores = Experience(vec![measured(Kind::Restore, (1 << 30, 10.0), None)]);
        let estimate = only_restores.estimate(2 << 30, 1 << 30).unwrap();
        assert_eq!((estimate.restore.typical_s, estimate.replay, estimate.total()), (20.0, None, None));
        // A replay of a few records says nothing about one of gigabytes.
        let short = Experience(vec![measured(Kind::Drill, (1 << 30, 10.0), Some((1 << 20, 0.5)))]);
        assert_eq!(short.estimate(1 << 30, 10 << 30).unwrap().replay, None);
        assert_eq!(short.estimate(1 << 30, 2 << 20).unwrap().replay.unwrap().typical_s, 0.5);
    }

    #[test]
    fn the_range_holds_every_measurement() {
        let one = measured(Kind::Drill, (100 << 20, 1.0), Some((100 << 20, 2.0)));
        let two = measured(Kind::Drill, (100 << 20, 3.0), Some((200 << 20, 2.0)));
        let three = measured(Kind::Restore, (50 << 20, 1.0), None);
        let estimate = Experience(vec![one, two, three]).estimate(200 << 20, 400 << 20).unwrap();
        assert_eq!((estimate.drills, estimate.restores), (2, 1));
        assert_eq!(estimate.restore, Span { typical_s: 4.0, low_s: 2.0, high_s: 6.0 });
        let replay = estimate.replay.unwrap();
        assert_eq!((replay.typical_s, replay.low_s, replay.high_s), (6.0, 4.0, 8.0));
        assert_eq!(estimate.total().unwrap().typical_s, 10.0);
    }
}
