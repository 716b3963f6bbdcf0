//! What comes out: `results.json`, `table.md`, charts, and a table on the terminal.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::results::{Sample, Summary, summaries};
use crate::settings::Settings;

mod charts;
mod compare;
mod goals;
mod machine;
mod table;

pub use compare::compare;

/// Writes everything that was measured until now.
pub fn write(settings: &Settings, tools: &[(String, String, String)], samples: &[Sample]) -> Result<()> {
    std::fs::create_dir_all(&settings.out).with_context(|| format!("make {}", settings.out.display()))?;
    let summaries = summaries(samples);
    let (machine, goals) = (machine::describe(settings), goals::judge(&summaries));
    let tools_json: Vec<_> = tools
        .iter()
        .map(|(name, version, how)| serde_json::json!({ "name": name, "version": version, "settings": how }))
        .collect();
    let all = serde_json::json!({
        "taken": lastgood::clock::now(), "machine": machine, "size": settings.size_text, "rounds": settings.rounds,
        "tools": tools_json, "goals": goals, "summaries": summaries, "samples": samples,
    });
    std::fs::write(settings.out.join("results.json"), serde_json::to_string_pretty(&all)? + "\n")?;
    std::fs::write(settings.out.join("table.md"), page(settings, &machine, tools, &goals, &summaries)?)?;
    charts::draw(&settings.out, &summaries)
}

/// The same for the terminal.
pub fn show(samples: &[Sample]) {
    let summaries = summaries(samples);
    println!("\n{}\n\n{}", table::terminal(&summaries), goals::terminal(&goals::judge(&summaries)));
    print!("{}", table::failures(&summaries));
}

fn page(
    settings: &Settings,
    machine: &[(String, String)],
    tools: &[(String, String, String)],
    goals: &[goals::Goal],
    summaries: &[Summary],
) -> Result<String> {
    let mut text = String::from("# Measured side by side\n\nWritten by `make bench`; [how to read it](README.md).\n");
    writeln!(text, "\nA database of {}, {} rounds, medians with the least and the most.\n", settings.size_text, settings.rounds)?;
    for (name, value) in machine {
        writeln!(text, "- {name}: {value}")?;
    }
    text += "\n| tool | version | settings |\n|---|---|---|\n";
    for (name, version, how) in tools {
        writeln!(text, "| {name} | {version} | {how} |")?;
    }
    text += "\n## Goals\n\n";
    text += &goals::markdown(goals);
    text += &table::markdown(summaries);
    let failures = table::failures(summaries);
    if !failures.is_empty() {
        write!(text, "\n## What failed\n\n{failures}")?;
    }
    for file in charts::names(summaries) {
        writeln!(text, "\n![{file}]({file})")?;
    }
    Ok(text)
}
