//! What tests need around the crate.

pub mod garage;
pub mod loopback;
pub mod moto;
pub mod running;
pub mod s3;
pub mod wal_writer;
pub mod world;
