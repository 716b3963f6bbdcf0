//! Real outages, replayed: what went wrong there ends differently here. See `docs/` for the promises.

mod edudip;
mod gentlent;
mod storage;
