//! What tests need around the crate.

pub mod garage;
pub mod s3;
pub mod world;
