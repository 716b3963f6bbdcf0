//! Leases: who is at work on a cluster, on whatever host.
//!
//! # What
//! - An [`Exclusive`] lease is held by at most one process of all hosts: `leases/<resource>/<epoch>/…`. Who takes it opens a new
//!   epoch, so every earlier holder can see that its turn is over.
//! - A plain [`Lease`] says what somebody reads, and excludes nobody: `leases/<holder>/<beat>`.
//!
//! Objects are never changed, so a heartbeat is a new object, and the one before is deleted where that is allowed.
//!
//! # Staleness
//! Only the store's clock counts: the time of a beat against the time of something that was written just now ([`look`]).
//! Each beat says itself after how many seconds of silence its lease is stale, so that all hosts agree. A process of this host
//! that is gone, or a lease of this process that it gave up, is stale at once.
//!
//! # Why at most one holds
//! A taker first writes its claim and then looks; a holder writes a beat and then looks ([`exclusive`]). Of two, the one that looks
//! later sees the other, whatever the store knows of conditional writes: it needs only that listings show what was written.
//! Conditional creates make the answer quicker, not safer.
//!
//! # Fencing
//! Everything that a holder writes goes through [`fence`]: after a pause it asks before it writes.
//!
//! A store cannot refuse a write because of a lease: a process that is paused between the question and the write, inside one call, for
//! longer than two thirds of the lease, writes that one object late. A late pack is garbage that nothing refers to. Before a manifest is
//! written the question is always asked, and asked again behind it when the lease may have been taken meanwhile: a manifest whose
//! snapshot was swept is taken back (`snapshot/commit`).

mod beat;
pub mod exclusive;
pub mod fence;
pub mod look;
mod pin;

pub use beat::Beat;
pub use exclusive::Exclusive;
pub use look::{AtWork, at_work, is_held, standing};
pub use pin::Lease;

/// The resource that whoever writes a snapshot, or deletes from the repository, must hold.
pub const BACKUP: &str = "backup";
/// Beats for each length of a lease: with 15 minutes, one a minute.
const BEATS_PER_LEASE: u32 = 15;
