//! placeholder
use anyhow::Result;

use crate::results::{Sample, summaries};
use crate::settings::Settings;

pub fn write(settings: &Settings, described: &[(String, String, String)], samples: &[Sample]) -> Result<()> {
    std::fs::create_dir_all(&settings.out)?;
    let all = serde_json::json!({ "tools": described, "samples": samples, "summaries": summaries(samples) });
    std::fs::write(settings.out.join("results.json"), serde_json::to_string_pretty(&all)?)?;
    Ok(())
}

pub fn show(_settings: &Settings, _samples: &[Sample]) {}
