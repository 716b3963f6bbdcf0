//! Damage must not spread: whatever object is lost, what does not need it is restorable, also after every command.

mod fixture;
mod records;
mod spread;
mod sweep;
