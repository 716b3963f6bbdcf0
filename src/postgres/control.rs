//! `global/pg_control`: what a data directory is, as the server last wrote it.
//!
//! Source: `src/include/catalog/pg_control.h`, `ControlFileData`, versions 13 to 18. The head of the struct is the same in all
//! of them. The part that describes the layout of the data follows members that differ, so it is found by its own mark: the
//! `floatFormat` member, which always holds 1234567.0. The CRC at the end proves that the right place was found.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::lsn::{Lsn, SystemId, Timeline};

/// `PG_CONTROL_FILE_SIZE`: the file is always written at this size.
pub const FILE_BYTES: usize = 8192;
/// `FLOATFORMAT_VALUE`.
const FLOAT_FORMAT: f64 = 1_234_567.0;
/// A position that no server reaches, behind a page header (`XRecOffIsValid`).
pub const NOWHERE: Lsn = Lsn(0xFFFF_FFFF_FFFF_E028);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("read {path}: {source}; is this a PostgreSQL data directory, and may this user read it?")]
    Read { path: std::path::PathBuf, source: std::io::Error },
    #[error("pg_control is {bytes} bytes long, too short to be one")]
    Short { bytes: usize },
    #[error("pg_control has version {version}, which none of PostgreSQL 13 to 18 writes")]
    Version { version: u32 },
    #[error("the checksum of pg_control is wrong")]
    Checksum,
}

/// `DBState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Starting,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

impl State {
    pub fn words(self) -> &'static str {
        match self {
            State::Starting => "starting up",
            State::ShutDown => "shut down cleanly",
            State::ShutDownInRecovery => "shut down in recovery",
            State::ShuttingDown => "shutting down",
            State::InCrashRecovery => "in crash recovery",
            State::InArchiveRecovery => "in archive recovery",
            State::InProduction => "in production",
        }
    }

    fn from_raw(raw: u32) -> Option<State> {
        use State::*;
        let states = [Starting, ShutDown, ShutDownInRecovery, ShuttingDown, InCrashRecovery, InArchiveRecovery, InProduction];
        states.get(raw as usize).copied()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    pub system_identifier: SystemId,
    /// `pg_control_version`: 1300 for PostgreSQL 13 to 16, 1700, 1800.
    pub control_version: u32,
    pub catalog_version: u32,
    pub state: State,
    /// When the file was last written.
    pub written: Timestamp,
    pub checkpoint: Lsn,
    pub redo: Lsn,
    pub timeline: Timeline,
    pub block_bytes: u32,
    /// Blocks in one segment file of a relation; 131,072 (1 GiB) unless built otherwise.
    pub blocks_per_file: u32,
    pub wal_segment_bytes: u32,
    /// 0: pages carry no checksums.
    pub data_checksum_version: u32,
    pub limits: Limits,
}

/// Settings of the server that wrote the WAL. One that replays it must not be below any of them, or it is no hot standby.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// 0 minimal, 1 replica, 2 logical.
    pub wal_level: u32,
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
}

impl Limits {
    /// The higher of both, one by one.
    pub fn or_higher(self, other: Limits) -> Limits {
        Limits {
            wal_level: self.wal_level.max(other.wal_level),
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self.max_prepared_transactions.max(other.max_prepared_transactions),
            max_locks_per_transaction: self.max_locks_per_transaction.max(other.max_locks_per_transaction),
        }
    }

    /// They stand right before `floatFormat`, in all versions: from `wal_level` on eight words, of which the second and the eighth are
    /// booleans, then `maxAlign`.
    fn before(bytes: &[u8], float: usize) -> Limits {
        let word = |back: usize| u32_at(bytes, float - back);
        Limits {
            wal_level: word(36),
            max_connections: word(28),
            max_worker_processes: word(24),
            max_wal_senders: word(20),
            max_prepared_transactions: word(16),
            max_locks_per_transaction: word(12),
        }
    }
}

impl ControlFile {
    pub fn read(data_directory: &Path) -> Result<ControlFile, ControlError> {
        let path = data_directory.join("global/pg_control");
        let bytes = std::fs::read(&path).map_err(|source| ControlError::Read { path, source })?;
        Self::parse(&bytes)
    }

    /// Reads until the checksum holds: the server may be writing. The same bad bytes twice are an error (rule 11).
    pub fn read_bytes_stable(data_directory: &Path) -> Result<(ControlFile, Vec<u8>), ControlError> {
        let path = data_directory.join("global/pg_control");
        let mut before: Option<Vec<u8>> = None;
        loop {
            let bytes = std::fs::read(&path).map_err(|source| ControlError::Read { path: path.clone(), source })?;
            match Self::parse(&bytes) {
                Ok(control) => return Ok((control, bytes)),
                Err(error) if before.as_ref() == Some(&bytes) => return Err(error),
                Err(_) => before = Some(bytes),
            }
        }
    }

    /// The same file with a checkpoint that leads nowhere, for a server that must begin where its `backup_label` says. PostgreSQL takes
    /// the checkpoint from the label where there is one (`InitWalRecovery` in `xlogrecovery.c`), and puts it into the file; without the
    /// label it finds no checkpoint and does not start, where it would begin too late and with a mixture of pages otherwise.
    pub fn leading_nowhere(bytes: &[u8]) -> Result<Vec<u8>, ControlError> {
        Self::parse(bytes)?;
        let (_, crc_at) = members(bytes)?;
        let mut bytes = bytes.to_vec();
        bytes[32..40].copy_from_slice(&NOWHERE.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlError> {
        let (float, crc_at) = members(bytes)?;
        let control_version = u32_at(bytes, 8);
        if crc32c::crc32c(&bytes[..crc_at]) != u32_at(bytes, crc_at) {
            return Err(ControlError::Checksum);
        }
        Ok(ControlFile {
            system_identifier: SystemId(u64_at(bytes, 0)),
            control_version,
            catalog_version: u32_at(bytes, 12),
            state: State::from_raw(u32_at(bytes, 16)).ok_or(ControlError::Checksum)?,
            written: Timestamp::from_second(u64_at(bytes, 24) as i64).unwrap_or(Timestamp::UNIX_EPOCH),
            checkpoint: Lsn(u64_at(bytes, 32)),
            redo: Lsn(u64_at(bytes, 40)),
            timeline: Timeline(u32_at(bytes, 48)),
            block_bytes: u32_at(bytes, float + 8),
            blocks_per_file: u32_at(bytes, float + 12),
            wal_segment_bytes: u32_at(bytes, float + 20),
            data_checksum_version: u32_at(bytes, float + 44),
            limits: Limits::before(bytes, float),
        })
    }
}

/// Where `floatFormat` and the CRC stand.
fn members(bytes: &[u8]) -> Result<(usize, usize), ControlError> {
    if bytes.len() < 512 {
        return Err(ControlError::Short { bytes: bytes.len() });
    }
    let control_version = u32_at(bytes, 8);
    if !matches!(control_version, 1300 | 1700 | 1800) {
        return Err(ControlError::Version { version: control_version });
    }
    let float = (56..400).step_by(8).find(|at| f64::from_bits(u64_at(bytes, *at)) == FLOAT_FORMAT);
    let float = float.ok_or(ControlError::Checksum)?;
    // float8ByVal, data_checksum_version, from 18 default_char_signedness, a nonce of 32 bytes, the CRC.
    Ok((float, float + if control_version >= 1800 { 84 } else { 80 }))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
