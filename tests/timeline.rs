//! What happened when: events found in real WAL of every version.

mod command;
mod events;
mod ordinary;
mod play;
