//! What was measured: every sample, and medians over the rounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::measure::Measured;
use crate::proxy::Counts;

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    pub place: String,
    pub work: String,
    pub tool: String,
    pub round: usize,
    /// How often `measured` did the job: the number of segments, or 1.
    pub times: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the repository grew by.
    pub stored_bytes: u64,
    pub counts: Counts,
}

/// The rounds of one tool at one job.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub struct Summary {
    pub place: String,
    pub work: String,
    pub tool: String,
    pub times: usize,
    pub rounds: usize,
    pub wall_s: Spread,
    /// With what the file system wrote afterwards.
    pub durable_s: Spread,
    pub cpu_s: Spread,
    pub peak_bytes: u64,
    pub peak_process_bytes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub stored_bytes: u64,
    pub requests: BTreeMap<String, u64>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub errors: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => 0.0,
            count if count % 2 == 1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Spread { median, min: values.first().copied().unwrap_or(0.0), max: values.last().copied().unwrap_or(0.0) }
    }
}

/// In the order in which they were first measured.
pub fn summaries(samples: &[Sample]) -> Vec<Summary> {
    let mut keys: Vec<(&str, &str, &str)> = Vec::new();
    for sample in samples {
        let key = (sample.place.as_str(), sample.work.as_str(), sample.tool.as_str());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let of = |key: &(&str, &str, &str)| -> Vec<&Sample> {
        samples.iter().filter(|s| (s.place.as_str(), s.work.as_str(), s.tool.as_str()) == *key).collect()
    };
    keys.iter().map(|key| summary(&of(key))).collect()
}

fn summary(samples: &[&Sample]) -> Summary {
    let good: Vec<(&Sample, &Measured)> = samples.iter().filter_map(|s| Some((*s, s.measured.as_ref()?))).collect();
    let spread = |value: &dyn Fn(&Measured) -> f64| Spread::of(good.iter().map(|(_, m)| value(m)).collect());
    let middle = |value: &dyn Fn(&Sample, &Measured) -> u64| {
        Spread::of(good.iter().map(|(s, m)| value(s, m) as f64).collect()).median as u64
    };
    let most = |value: &dyn Fn(&Measured) -> u64| good.iter().map(|(_, m)| value(m)).max().unwrap_or(0);
    let first = samples[0];
    let kinds: std::collections::BTreeSet<&String> = good.iter().flat_map(|(s, _)| s.counts.requests.keys()).collect();
    let count = |kind: &String| middle(&|s: &Sample, _| s.counts.requests.get(kind).copied().unwrap_or(0));
    Summary {
        place: first.place.clone(),
        work: first.work.clone(),
        tool: first.tool.clone(),
        times: first.times,
        rounds: good.len(),
        wall_s: spread(&|m| m.wall_s),
        durable_s: spread(&|m| m.wall_s + m.sync_s),
        cpu_s: spread(&Measured::cpu_s),
        peak_bytes: most(&Measured::most_bytes),
        peak_process_bytes: most(&|m| m.peak_process_bytes),
        read_bytes: middle(&|_, m| m.read_bytes),
        written_bytes: middle(&|_, m| m.written_bytes),
        stored_bytes: middle(&|s, _| s.stored_bytes),
        requests: kinds.into_iter().map(|kind| (kind.clone(), count(kind))).collect(),
        bytes_up: middle(&|s, _| s.counts.bytes_up),
        bytes_down: middle(&|s, _| s.counts.bytes_down),
        errors: samples.iter().filter_map(|s| s.error.clone()).collect(),
    }
}
