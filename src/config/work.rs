//! `[snapshot]`, `[archive]` and `[restore]`: how the main job works.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, invalid};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshot {
    /// zstd level, 1 to 19.
    pub compression_level: i32,
    /// Threads that read, hash and compress; one for each core, at most 8, when absent.
    pub threads: Option<usize>,
    /// How long to wait until the WAL that the snapshot needs is archived.
    pub archive_timeout_s: u64,
    /// `check` calls a last snapshot older than this an error.
    pub max_age_hours: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot { compression_level: 1, threads: None, archive_timeout_s: 300, max_age_hours: 26 }
    }
}

impl Snapshot {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_level("snapshot", self.compression_level)?;
        check_threads("snapshot", self.threads)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Archive {
    /// zstd level, 1 to 19.
    pub compression_level: i32,
    /// Where acknowledgements and prefetched segments lie; look-ahead is off when it cannot be written.
    pub spool: PathBuf,
    /// Further `.ready` segments that one push takes along; 0 turns it off.
    pub push_ahead: usize,
    /// Segments kept ready for recovery, as far as there is room (see `archive/ahead`); 0 turns it off.
    pub fetch_ahead: usize,
    /// Archive although `archive_mode = always` (a standby that archives too).
    pub allow_archive_mode_always: bool,
}

impl Default for Archive {
    fn default() -> Self {
        Archive {
            compression_level: 1,
            spool: PathBuf::from("/var/spool/lastgood"),
            push_ahead: 8,
            fetch_ahead: 16,
            allow_archive_mode_always: false,
        }
    }
}

impl Archive {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_level("archive", self.compression_level)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restore {
    /// Threads that decompress, check and write; one for each core, at most 8, when absent.
    pub threads: Option<usize>,
    pub read_back: ReadBack,
}

impl Restore {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_threads("restore", self.threads)
    }
}

/// What of a restored cluster is read back and compared with what was written (rule 38). Every byte was proven by its SHA-256 in the
/// very buffer that was written from; reading back is about the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadBack {
    Nothing,
    /// The beginning of each file, and a sixteenth of the rest.
    #[default]
    Sample,
    Everything,
}

fn check_level(section: &str, level: i32) -> Result<(), ConfigError> {
    if (1..=19).contains(&level) {
        return Ok(());
    }
    invalid(format!("[{section}] compression_level is {level}"), "use 1 (fast) to 19 (small)")
}

fn check_threads(section: &str, threads: Option<usize>) -> Result<(), ConfigError> {
    if threads != Some(0) {
        return Ok(());
    }
    invalid(format!("[{section}] threads is 0"), "use 1 or more, or leave it out for one per core")
}
