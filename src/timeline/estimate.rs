//! How long a restore will take, from how long others took.
//!
//! Only what was measured counts: drills measure restore and replay, real restores only the first. The typical value is the median of
//! what each measurement predicts, the range is from the lowest to the highest. Nothing measured: nothing is said.
//!
//! A restore moves bytes and makes files, and a million small files take longer than their bytes: each counts as [`FILE_BYTES`] more. What
//! was measured says nothing about what is much larger ([`REACH`]), in bytes or in files.

use serde::Serialize;
use tokio::task::JoinHandle;

use crate::repo::RepoError;
use crate::repo::report::{self, Kind, Report, Span};
use crate::repo::repository::Cluster;

/// So many reports count: hosts, stores and databases change.
const REPORTS: usize = 10;
/// Replay of less WAL than this is mostly the start of the server, and tells no speed.
const REPLAY_MIN_BYTES: u64 = 64 << 20;
/// What a file costs besides its bytes: making it, its owner and its mode take some 40 µs, in which so many bytes are written.
const FILE_BYTES: u64 = 16 << 10;
/// A measurement tells of what is up to so many times as large.
const REACH: u64 = 10;
/// Less than this is small, whatever was measured: bytes, and files.
const SMALL: (u64, u64) = (256 << 20, 10_000);
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
    restore: Restored,
    replay: Option<(u64, f64)>,
}

#[derive(Debug, Clone, Copy)]
struct Restored {
    bytes: u64,
    files: u64,
    seconds: f64,
}

impl Restored {
    /// How long so much takes, as far as this tells.
    fn predicts(&self, (bytes, files): (u64, u64)) -> Option<f64> {
        let reaches = |measured: u64, asked: u64, small: u64| asked <= measured.saturating_mul(REACH).max(small);
        if !reaches(self.bytes, bytes, SMALL.0) || !reaches(self.files, files, SMALL.1) {
            return None;
        }
        let work = |bytes: u64, files: u64| bytes as f64 + files as f64 * FILE_BYTES as f64;
        Some(self.seconds * work(bytes, files) / work(self.bytes, self.files))
    }
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
            let restore = report.phase(report::RESTORE).filter(|phase| phase.bytes > 0 && phase.seconds > 0.0)?;
            let restore = Restored { bytes: restore.bytes, files: restore.files, seconds: restore.seconds };
            // A replay that did not reach its target took as long as it took; that is no measurement.
            let replay = phase(report::REPLAY).filter(|_| report.replayed_to.is_some());
            Some(Measured { kind: report.kind, restore, replay })
        };
        Experience(reports.iter().filter(|report| report.bytes_per_s.is_none()).filter_map(measured).collect())
    }

    /// For so many bytes and files to restore and `wal_bytes` to replay; `None` when nothing of such a size was measured.
    pub fn estimate(&self, size: (u64, u64), wal_bytes: u64) -> Option<Estimate> {
        let telling: Vec<&Measured> = self.0.iter().filter(|m| m.restore.predicts(size).is_some()).collect();
        let restores: Vec<f64> = telling.iter().filter_map(|m| m.restore.predicts(size)).collect();
        let replays: Vec<f64> = self.0.iter().filter_map(|m| replay(m.replay?, wal_bytes)).collect();
        let drills = telling.iter().filter(|m| m.kind == Kind::Drill).count();
        Some(Estimate { restore: span(restores)?, replay: span(replays), drills, restores: telling.len() - drills })
    }
}

/// What one replay says about another.
fn replay((measured_bytes, seconds): (u64, f64), wal_bytes: u64) -> Option<f64> {
    if wal_bytes > measured_bytes.saturating_mul(REACH).max(REPLAY_MIN_BYTES) {
        return None;
    }
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

    fn measured(kind: Kind, (bytes, seconds): (u64, f64), replay: Option<(u64, f64)>) -> Measured {
        Measured { kind, restore: Restored { bytes, files: 0, seconds }, replay }
    }

    #[test]
    fn nothing_is_said_before_something_was_measured() {
        assert_eq!(Experience::default().estimate((1 << 30, 0), 0), None);
        let only_restores = Experience(vec![measured(Kind::Restore, (1 << 30, 10.0), None)]);
        let estimate = only_restores.estimate((2 << 30, 0), 1 << 30).unwrap();
        assert_eq!((estimate.restore.typical_s, estimate.replay, estimate.total()), (20.0, None, None));
        // A replay of a few records says nothing about one of gigabytes.
        let short = Experience(vec![measured(Kind::Drill, (1 << 30, 10.0), Some((1 << 20, 0.5)))]);
        assert_eq!(short.estimate((1 << 30, 0), 10 << 30).unwrap().replay, None);
        assert_eq!(short.estimate((1 << 30, 0), 2 << 20).unwrap().replay.unwrap().typical_s, 0.5);
    }

    #[test]
    fn the_range_holds_every_measurement() {
        let one = measured(Kind::Drill, (100 << 20, 1.0), Some((100 << 20, 2.0)));
        let two = measured(Kind::Drill, (100 << 20, 3.0), Some((200 << 20, 2.0)));
        let three = measured(Kind::Restore, (50 << 20, 1.0), None);
        let estimate = Experience(vec![one, two, three]).estimate((200 << 20, 0), 400 << 20).unwrap();
        assert_eq!((estimate.drills, estimate.restores), (2, 1));
        assert_eq!(estimate.restore, Span { typical_s: 4.0, low_s: 2.0, high_s: 6.0 });
        let replay = estimate.replay.unwrap();
        assert_eq!((replay.typical_s, replay.low_s, replay.high_s), (6.0, 4.0, 8.0));
        assert_eq!(estimate.total().unwrap().typical_s, 10.0);
    }

    #[test]
    fn a_million_files_take_longer_than_their_bytes_and_nobody_guesses_how_long() {
        let restored =
            |bytes, files, seconds| Measured { kind: Kind::Restore, restore: Restored { bytes, files, seconds }, replay: None };
        // What was told of a million files after one restore of few, and what they took: 2.7 s and 40.6 s.
        let few = Experience(vec![restored(1 << 30, 1_200, 2.5)]);
        assert_eq!(few.estimate((1 << 30, 1_000_000), 0), None, "such a number was never measured");
        let many = Experience(vec![restored(1 << 30, 1_000_000, 40.6)]);
        let estimate = many.estimate((1 << 30, 2_000_000), 0).unwrap().restore;
        assert!((70.0..85.0).contains(&estimate.typical_s), "{estimate:?}");
        assert!(many.estimate((1 << 30, 1_200), 0).unwrap().restore.typical_s < 5.0);
        // Nor such a length.
        assert_eq!(few.estimate((100 << 30, 1_200), 0), None);
        // What one of several does not reach, the others tell, and they alone are named.
        let both = Experience(vec![restored(1 << 30, 1_200, 2.5), restored(1 << 30, 1_000_000, 40.6)]);
        assert_eq!(both.estimate((1 << 30, 1_000_000), 0).unwrap().restores, 1);
    }
}
