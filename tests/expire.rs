//! Expiry: what goes is what no rule keeps, and everything that stays can be restored.

mod crash;
mod days;
mod guards;
mod model;
mod retire;
mod servers;
