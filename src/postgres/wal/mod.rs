//! Write-ahead log: file names, segment headers, and records.
//!
//! - [`name`]: every kind of file that the server archives. [`header`]: the first page of a segment.
//! - [`pages`]: cuts bytes into pages. [`reader`]: walks records across pages and segments. [`manager`]: who wrote one. [`reference`]: which blocks it changes, and
//!   where its parts lie. [`image`]: pages in it.
//! - Payloads: [`ended`] (commits and aborts), [`heap`], [`storage`] (files, locks, the relation map), [`database`] (and
//!   tablespaces), [`xlog`] (checkpoints, parameters, restore points).
//! - [`index`]: what the records of a segment did, small enough to be kept beside it.
//! - [`replay`]: what stops replay, and whether two segments follow one another.
//! - [`transaction`]: what a restore target can mean, and the summary of that for a segment.
//!
//! Everything here is pure: bytes in, values out. Whatever the bytes are, nothing panics and memory stays bounded.

pub mod database;
pub mod ended;
mod fields;
pub mod header;
pub mod heap;
pub mod image;
pub mod index;
pub mod manager;
pub mod name;
pub mod pages;
pub mod reader;
pub mod reference;
pub mod replay;
pub mod storage;
pub mod transaction;
pub mod xlog;
