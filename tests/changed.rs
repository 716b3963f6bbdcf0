//! Snapshots that read only what changed, held against snapshots that read everything; and the roll-ups that tell it.

pub mod content;
mod copies;
mod doubt;
mod property;
mod rollups;
mod rules;
mod versions;
mod workload;
