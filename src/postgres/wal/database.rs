//! Databases and tablespaces made and dropped.
//!
//! Source: `src/include/commands/dbcommands_xlog.h` (15 added a second way to create), `src/include/commands/tablespace.h`.

use super::fields::{Fields, u32_of};
use super::manager;
use super::reader::Record;
use super::reference::main_data;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseChange {
    /// By copying files, which no block reference tells, or (`logged`) block by block.
    Create { database: u32, tablespace: u32, logged: bool },
    /// The files in these tablespaces are removed, whatever becomes of the transaction.
    Drop { database: u32, tablespaces: Vec<u32> },
}

pub fn database(record: &Record) -> Option<DatabaseChange> {
    if record.resource_manager != manager::DATABASE {
        return None;
    }
    let mut main = Fields(main_data(record)?);
    let database = main.u32()?;
    match (record.info & 0xF0, record.major >= 15) {
        (0x00, _) => Some(DatabaseChange::Create { database, tablespace: main.u32()?, logged: false }),
        (0x10, true) => Some(DatabaseChange::Create { database, tablespace: main.u32()?, logged: true }),
        (0x20, true) | (0x10, false) => {
            let tablespaces = main.array::<4>(record.is_cut())?.iter().map(|item| u32_of(item, 0)).collect();
            Some(DatabaseChange::Drop { database, tablespaces })
        }
        _ => None,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TablespaceChange {
    Create { oid: u32, location: String },
    Drop { oid: u32 },
}

pub fn tablespace(record: &Record) -> Option<TablespaceChange> {
    if record.resource_manager != manager::TABLESPACE {
        return None;
    }
    let mut main = Fields(main_data(record)?);
    let oid = main.u32()?;
    match record.info & 0xF0 {
        // XLOG_TBLSPC_CREATE
        0x00 => {
            let location = main.0.split(|byte| *byte == 0).next()?;
            Some(TablespaceChange::Create { oid, location: String::from_utf8_lossy(location).into_owned() })
        }
        // XLOG_TBLSPC_DROP
        0x10 => Some(TablespaceChange::Drop { oid }),
        _ => None,
    }
}
