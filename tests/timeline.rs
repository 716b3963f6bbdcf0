//! What happened when: events found in real WAL of every version.

mod command;
mod events;
mod matrix;
mod ordinary;
mod play;
mod rollups;
pub mod tripwire;
