//! Leases: one backup at a time, whatever the hosts, their clocks, and their pauses.

#[path = "lease/gate.rs"]
mod gate;
#[path = "lease/hosts.rs"]
mod hosts;
#[path = "lease/late.rs"]
mod late;
#[path = "lease/race.rs"]
mod race;
#[path = "lease/store.rs"]
mod store;
