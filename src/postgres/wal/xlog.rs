//! Records of the WAL itself: checkpoints, parameters, restore points, the end of a recovery.
//!
//! Source: `src/include/catalog/pg_control.h` (`CheckPoint`, `XLOG_*`), `src/include/access/xlog_internal.h`
//! (`xl_parameter_change`, `xl_restore_point`, `xl_end_of_recovery`).

use jiff::Timestamp;

use super::fields::Fields;
use super::manager;
use super::reader::Record;
use super::reference::main_data;
use super::transaction::timestamp;
use crate::postgres::control::Limits;
use crate::postgres::lsn::{Lsn, Timeline};

/// What the server's `wal_level` was, as a number of its enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLevel(pub u32);

impl WalLevel {
    /// Below `replica` changes are made that WAL does not hold.
    pub fn is_minimal(self) -> bool {
        self.0 == 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    Checkpoint {
        shutdown: bool,
        redo: Lsn,
        timeline: Timeline,
        previous_timeline: Timeline,
        time: Timestamp,
        /// Written since 17.
        wal_level: Option<WalLevel>,
    },
    /// `XLOG_CHECKPOINT_REDO`, since 17.
    CheckpointBegin {
        wal_level: WalLevel,
    },
    ParameterChange(Parameters),
    RestorePoint {
        time: Timestamp,
        name: String,
    },
    EndOfRecovery {
        time: Timestamp,
        timeline: Timeline,
        previous_timeline: Timeline,
        /// Written since 17.
        wal_level: Option<WalLevel>,
    },
    Switch,
    FullPageWrites {
        on: bool,
    },
}

/// `xl_parameter_change`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
    pub wal_level: WalLevel,
    pub wal_log_hints: bool,
    pub track_commit_timestamp: bool,
}

impl Parameters {
    /// Those that a hot standby must not be below.
    pub fn limits(&self) -> Limits {
        Limits {
            wal_level: self.wal_level.0,
            max_connections: self.max_connections,
            max_worker_processes: self.max_worker_processes,
            max_wal_senders: self.max_wal_senders,
            max_prepared_transactions: self.max_prepared_transactions,
            max_locks_per_transaction: self.max_locks_per_transaction,
        }
    }
}

/// `None` for images, and for what is none of these.
pub fn control(record: &Record) -> Option<Control> {
    if record.resource_manager != manager::XLOG {
        return None;
    }
    let knows_level = record.major >= 17;
    let main = || Some(Fields(main_data(record)?));
    match record.info & 0xF0 {
        0x00 => checkpoint(main()?, true, knows_level),
        0x10 => checkpoint(main()?, false, knows_level),
        0x40 => Some(Control::Switch),
        0x60 => parameters(main()?),
        0x70 => restore_point(main()?),
        0x80 => Some(Control::FullPageWrites { on: main()?.u8()? != 0 }),
        0x90 => end_of_recovery(main()?, knows_level),
        0xE0 if knows_level => Some(Control::CheckpointBegin { wal_level: WalLevel(main()?.u32()?) }),
        _ => None,
    }
}

fn checkpoint(mut main: Fields, shutdown: bool, knows_level: bool) -> Option<Control> {
    let redo = Lsn(main.u64()?);
    let (timeline, previous_timeline) = (Timeline(main.u32()?), Timeline(main.u32()?));
    let mut flags = Fields(main.bytes(8)?);
    flags.u32()?;
    let wal_level = if knows_level { Some(WalLevel(flags.u32()?)) } else { None };
    // From nextXid to oldestMultiDB and padding.
    main.bytes(40)?;
    // pg_time_t: whole seconds since 1970.
    let time = Timestamp::from_second(main.i64()?).ok()?;
    Some(Control::Checkpoint { shutdown, redo, timeline, previous_timeline, time, wal_level })
}

fn parameters(mut main: Fields) -> Option<Control> {
    Some(Control::ParameterChange(Parameters {
        max_connections: main.u32()?,
        max_worker_processes: main.u32()?,
        max_wal_senders: main.u32()?,
        max_prepared_transactions: main.u32()?,
        max_locks_per_transaction: main.u32()?,
        wal_level: WalLevel(main.u32()?),
        wal_log_hints: main.u8()? != 0,
        track_commit_timestamp: main.u8()? != 0,
    }))
}

fn restore_point(mut main: Fields) -> Option<Control> {
    let time = timestamp(main.bytes(8)?)?;
    // MAXFNAMELEN
    let name = main.bytes(64)?;
    let name = &name[..name.iter().position(|b| *b == 0)?];
    Some(Control::RestorePoint { time, name: String::from_utf8_lossy(name).into_owned() })
}

fn end_of_recovery(mut main: Fields, knows_level: bool) -> Option<Control> {
    let time = timestamp(main.bytes(8)?)?;
    let (timeline, previous_timeline) = (Timeline(main.u32()?), Timeline(main.u32()?));
    let wal_level = if knows_level { Some(WalLevel(main.u32()?)) } else { None };
    Some(Control::EndOfRecovery { time, timeline, previous_timeline, wal_level })
}
