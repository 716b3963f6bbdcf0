//! Write-ahead log: file names, segment headers, and records.
//!
//! [`name`] knows every kind of file that the server archives. [`header`] reads the first page of a segment.
//! [`reader`] walks records across pages and segments. [`transaction`] reads the payloads that a restore target can
//! mean: commits, aborts and restore points.

pub mod header;
pub mod name;
pub mod reader;
pub mod transaction;
