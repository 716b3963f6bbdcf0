//! What we know of PostgreSQL 13 to 18. This room knows no repository.
//!
//! - [`lsn`]: positions, timelines, system identifiers.
//! - [`control`]: `pg_control`, the file that says what a data directory is.
//! - [`page`]: page headers and checksums.
//! - [`wal`]: file names, segment headers, records.
//! - [`history`]: timeline history files.
//! - [`data_directory`]: which files belong to a base backup, and which kind each is.
//! - [`postmaster`]: whether a server lives in a directory. [`sharing`]: whether another one has its files in the same tablespaces.
//! - [`apart`]: directories that belong to no cluster.
//! - [`session`]: the connection that starts and stops a base backup.
//! - [`settings`]: the server settings we read and the ones recovery needs. [`quiet`]: those with which a copy acts on nobody.
//!   [`settings_files`]: the files of a copy, made its own. [`startable`]: what a server lacks on this host.
//! - [`scratch`]: a throw-away server. [`quarantine`]: settings with which a drill looks at a copy.
//! - [`programs`]: where the programs of a major version are.

pub mod apart;
pub mod catalogue;
pub mod control;
pub mod data_directory;
pub mod history;
pub mod lsn;
pub mod mapped;
pub mod page;
pub mod postmaster;
pub mod programs;
pub mod quarantine;
pub mod quiet;
pub mod scratch;
pub mod session;
pub mod settings;
pub mod settings_files;
pub mod sharing;
pub mod standby;
pub mod startable;
pub mod wal;

/// The major versions that lastgood supports; `docs/architecture.md` says what each needs.
pub const SUPPORTED_MAJORS: std::ops::RangeInclusive<u32> = 13..=18;
