//! Noticing: what passes through the archive and looks like a mistake, and telling somebody at once.
//!
//! - [`rules`]: which events raise an alert. [`tripwire`]: reads the WAL that was archived since the last look, judges its events by the rules, and writes an alert for each
//!   that meets one, once.
//! - [`forks`]: timelines that left transactions of their parent behind.
//! - [`unreachable`]: a standby that cannot fetch WAL.
//! - [`deliver`]: runs the alert command and calls the webhook.
//!
//! Nothing here may slow or fail archiving: `archive-push` only leaves a note, and a process of its own looks.

pub mod deliver;
pub mod forks;
pub mod rules;
pub mod tripwire;
pub mod unreachable;
