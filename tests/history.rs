//! Random histories of clusters, against the truth: whatever happened, what the archive promises is what one server really was.
//!
//! `LASTGOOD_SEED` repeats a history, `LASTGOOD_HISTORIES` says how many are played.

mod decisions;
mod facts;
mod judge;
mod recovery;
mod soak;
mod stage;
mod story;
mod truth;

use crate::property::dice::Dice;
use story::{Act, Operation, Play, story};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// Plays a story; what was told, and what went wrong.
async fn play(operations: &[Operation], is_orderly: bool) -> (Play, Result<(), String>) {
    let mut play = Play::new(is_orderly).await;
    let verdict = play.run(operations).await;
    (play, verdict)
}

/// A verdict without its numbers and times.
fn kind(problem: &str) -> String {
    problem.chars().filter(|c| c.is_ascii_lowercase() || *c == ' ').collect()
}

/// The shortest story that still goes wrong in the same way, as far as leaving out finds it.
async fn shortened(mut operations: Vec<Operation>, is_orderly: bool, problem: &str) -> Vec<Operation> {
    let mut portion = operations.len() / 2;
    while portion > 0 {
        let mut at = 0;
        while at < operations.len() {
            let mut fewer = operations.clone();
            fewer.drain(at..(at + portion).min(fewer.len()));
            match play(&fewer, is_orderly).await.1 {
                Err(other) if kind(&other) == kind(problem) => operations = fewer,
                _ => at += portion,
            }
        }
        portion /= 2;
    }
    operations
}

/// The suite plays the same histories each time, so that it says of a change what that did; `make soak` plays others.
fn first_seed() -> u64 {
    match number("LASTGOOD_FRESH") {
        Some(_) => u64::from_str_radix(&lastgood::clock::random_hex(5), 16).unwrap(),
        None => 18_000_000,
    }
}

/// Plays many histories; the first that goes wrong is made short and shown.
async fn histories(acts: &[(Act, usize)], is_orderly: bool, count: u64) {
    let fixed = number("LASTGOOD_SEED");
    let base = first_seed();
    let count = number("LASTGOOD_HISTORIES").unwrap_or(count);
    let seeds = fixed.map_or(base..base + count, |seed| seed..seed + 1);
    eprintln!("histories of the seeds {seeds:?}");
    let mut refused = 0;
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let length = 12 + dice.below(30);
        let operations = story(&mut dice, acts, length);
        let (played, verdict) = play(&operations, is_orderly).await;
        refused += played.refused;
        if let Err(problem) = verdict {
            let short = shortened(operations, is_orderly, &problem).await;
            let (played, last) = play(&short, is_orderly).await;
            let told: String = played.told.iter().map(|line| format!("  {line}\n")).collect();
            panic!("LASTGOOD_SEED={seed}: {problem}\nshortened: {}\n{told}", last.unwrap_err());
        }
    }
    eprintln!("{refused} files were refused");
}

/// Failovers, lagging standbys, archiving: everything is taken, and every promise holds.
#[tokio::test(flavor = "multi_thread")]
async fn orderly_histories_are_kept() {
    histories(story::ORDERLY, true, 200).await;
}

/// And with whatever can go wrong around them.
#[tokio::test(flavor = "multi_thread")]
async fn wild_histories_are_kept_apart() {
    histories(story::WILD, false, 500).await;
}

/// The same with releases, restores over servers, undos, `pg_resetwal`, and `wal_level = minimal` for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn wilder_histories_are_kept_apart() {
    histories(story::WILDER, false, 300).await;
}

/// Many more, over facts.
#[test]
fn decisions_keep_histories_apart() {
    let count = number("LASTGOOD_HISTORIES").unwrap_or(100_000);
    let base = number("LASTGOOD_SEED").unwrap_or_else(first_seed);
    eprintln!("histories over facts of the seeds {base} to {}", base + count);
    facts::play(base..base + count);
}
