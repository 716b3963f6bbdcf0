//! Relation files made and truncated, mapped relations moved, and locks: records of the storage, relation map and standby managers.
//!
//! Source: `src/include/catalog/storage_xlog.h`, `src/include/utils/relmapper.h`, `src/backend/utils/cache/relmapper.c`
//! (`RelMapFile`), `src/include/storage/standbydefs.h`.

use super::fields::{Fields, u32_of};
use super::manager;
use super::reader::Record;
use super::reference::{RelFileLocator, main_data};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Create {
        locator: RelFileLocator,
        fork: u8,
    },
    Truncate {
        locator: RelFileLocator,
        blocks: u32,
        /// `SMGR_TRUNCATE_HEAP`, and of the visibility map `SMGR_TRUNCATE_VM`.
        heap: bool,
        visibility_map: bool,
    },
}

/// A record of the storage manager.
pub fn storage(record: &Record) -> Option<Storage> {
    if record.resource_manager != manager::STORAGE {
        return None;
    }
    let mut main = Fields(main_data(record)?);
    match record.info & 0xF0 {
        // XLOG_SMGR_CREATE
        0x10 => {
            let locator = RelFileLocator::of(main.bytes(12)?.try_into().ok()?);
            Some(Storage::Create { locator, fork: u8::try_from(main.u32()?).ok()? })
        }
        // XLOG_SMGR_TRUNCATE
        0x20 => {
            let blocks = main.u32()?;
            let locator = RelFileLocator::of(main.bytes(12)?.try_into().ok()?);
            let flags = main.u32()?;
            Some(Storage::Truncate { locator, blocks, heap: flags & 1 != 0, visibility_map: flags & 2 != 0 })
        }
        _ => None,
    }
}

/// An `AccessExclusiveLock` on a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    pub xid: u32,
    pub database: u32,
    pub relation: u32,
}

/// The locks of an `XLOG_STANDBY_LOCK`; empty for other records. `RUNNING_XACTS` repeats locks that are held, which is why the
/// order of locks tells nothing.
pub fn locks(record: &Record) -> Option<Vec<Lock>> {
    if record.resource_manager != manager::STANDBY || record.info & 0xF0 != 0x00 {
        return None;
    }
    let items = Fields(main_data(record)?).array::<12>(record.is_cut())?;
    let lock = |item: &[u8; 12]| Lock { xid: u32_of(item, 0), database: u32_of(item, 4), relation: u32_of(item, 8) };
    Some(items.iter().map(lock).collect())
}

/// The file numbers of a database's mapped relations (`pg_class`, `pg_type`, …) after an `XLOG_RELMAP_UPDATE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationMap {
    /// 0 for the map of shared relations.
    pub database: u32,
    pub tablespace: u32,
    /// Relation OID and file number.
    pub mappings: Vec<(u32, u32)>,
}

pub fn relation_map(record: &Record) -> Option<RelationMap> {
    if record.resource_manager != manager::RELATION_MAP || record.info & 0xF0 != 0x00 {
        return None;
    }
    let mut main = Fields(main_data(record)?);
    let (database, tablespace) = (main.u32()?, main.u32()?);
    // Length of the map, and its magic number.
    main.u64()?;
    let items = main.array::<8>(false)?;
    // RELMAPPER_FILEMAP_MAGIC's map holds 62 or 64; a count beyond was no map.
    let mappings = items.iter().take(64).map(|item| (u32_of(item, 0), u32_of(item, 4))).collect();
    Some(RelationMap { database, tablespace, mappings })
}

/// The oldest transaction that an `XLOG_RUNNING_XACTS` knows to run, or the next one when none does.
pub fn oldest_running(record: &Record) -> Option<u32> {
    if record.resource_manager != manager::STANDBY || record.info & 0xF0 != 0x10 {
        return None;
    }
    // Counts of transactions and subtransactions, whether those overflowed, and the next id.
    let mut main = Fields(main_data(record)?);
    main.bytes(16)?;
    main.u32()
}
