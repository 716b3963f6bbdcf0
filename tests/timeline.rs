//! What happened when: events found in real WAL of every version.

mod events;
mod ordinary;
mod play;
