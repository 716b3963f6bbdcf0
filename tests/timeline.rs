//! What happened when: events found in real WAL of every version.

mod command;
mod events;
mod histories;
mod matrix;
mod ordinary;
mod play;
mod reach;
mod rollups;
mod synthetic;
pub mod tripwire;
