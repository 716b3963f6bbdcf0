//! What things cost, counted without a clock: requests, allocations, bytes and instructions. Bounds have a margin over what was
//! counted when they were written; who crosses one has made something dearer.

pub mod allocations;
mod copied;
mod flight;
mod instructions;
mod push;
mod requests;
