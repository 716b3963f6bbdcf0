//! What this machine could do at best: the same bytes through the same arithmetic, and nothing else.

use std::path::Path;

use anyhow::Result;

use super::{Ahead, Ground, Tool};
use crate::measure::Step;

pub const HOW: &str = "read, SHA-256 and zstd level 1 in frames of 128 KiB on all cores, and nothing is stored; back: \
                       decompress, SHA-256, write, and nothing is flushed";

pub struct Limit(pub Ground);

impl Limit {
    fn step<const N: usize>(&self, args: [&str; N]) -> Step {
        Step::new(&self.0.settings.harness, ["limit".to_string()].into_iter().chain(args.map(str::to_string)))
    }

    fn pack(&self) -> String {
        self.0.home.join("pack").display().to_string()
    }
}

impl Tool for Limit {
    fn name(&self) -> &'static str {
        "limit"
    }

    fn prepare(&self) -> Result<Vec<Step>> {
        Ok(vec![self.step(["pack", &self.0.data.display().to_string(), &self.pack()])])
    }

    fn backup(&self, full: bool) -> Option<Step> {
        full.then(|| self.step(["full", &self.0.data.display().to_string()]))
    }

    fn restore(&self, into: &Path) -> Option<Step> {
        Some(self.step(["restore", &self.pack(), &into.display().to_string()]))
    }

    fn restores_whole(&self) -> bool {
        false
    }

    fn verify(&self) -> Option<Step> {
        None
    }

    fn push(&self, _: &Path, _: &str, _: Ahead) -> Option<Step> {
        None
    }

    fn fetch(&self, _: &Path, _: &str, _: &str, _: Ahead) -> Option<Step> {
        None
    }
}
