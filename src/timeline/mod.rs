//! What can be reached: the WAL in the archive, the windows it makes with the snapshots, and the record a target means.
//!
//! - [`archive`]: which segments and histories there are, as runs without gaps. [`listing`]: from which keys that is known.
//! - [`indexes`]: what the records of segments did, in order, from wherever it is known.
//! - [`scan`]: the events of a segment.
//! - [`tail`]: ends of WAL that are no whole archived segments.
//! - [`gaps`]: which segments of a hole are missing, and not on their way.
//! - [`windows`]: the stretches of time to which a restore can go.
//! - [`target`]: what a person types after `--to`.
//! - [`before`]: which event a person means. [`story`]: what happened in a stretch of time; [`told`]: an event in words.
//! - [`events`]: what happened, from the indexes of segments. [`classify`]: what a transaction did. [`catalogue`]: names for
//!   numbers.
//! - [`estimate`]: how long a restore will take, from how long others took.
//! - [`inside`]: targets in the middle of what cannot be divided.
//! - [`reach`]: how far replay goes from a snapshot. [`latest`]: which timeline `latest` means. [`elsewhere`]: a time that lies on
//!   several timelines.
//! - [`find`]: from a target to a snapshot, a path of timelines and an exact position.
//!
//! Every target becomes an LSN, exclusive or inclusive, by reading the WAL that decides it. Two reasons: recovery to a time
//! that no later transaction follows ends with FATAL after all the work, and commit times do not rise strictly with LSN, so
//! only a position says the same to a person, to the plan, and to the server (rules 39, 42, 43).

pub mod archive;
pub mod before;
pub mod candidates;
pub mod catalogue;
pub mod classify;
mod elsewhere;
pub mod estimate;
pub mod events;
pub mod find;
mod find_error;
pub mod gaps;
pub mod indexes;
pub mod inside;
pub mod latest;
pub mod listing;
pub mod reach;
pub mod scan;
pub mod story;
pub mod tail;
pub mod target;
pub mod told;
pub mod windows;
