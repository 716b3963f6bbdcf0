//! Rows: what heap records did to them, and what rows of `pg_class`, `pg_database`, `pg_namespace` and `pg_attribute` they hold.
//!
//! Source: `src/include/access/heapam_xlog.h`, `src/include/access/htup_details.h`, `src/include/catalog/pg_class.h`, `pg_database.h`,
//! `pg_namespace.h`, `src/backend/catalog/heap.c` (whose columns up to the ones that are read here are of fixed length).

use super::fields::Fields;
use super::reader::Record;
use super::reference::{self, Block, Layout};
use super::{image, manager};

/// `FirstLowInvalidHeapAttributeNumber` aside: bytes of a tuple's header before its null bitmap (`SizeofHeapTupleHeader`).
const TUPLE_HEADER_BYTES: usize = 23;
/// `SizeOfXLogHeapHeader`.
const LOGGED_HEADER_BYTES: usize = 5;
/// `XLH_DELETE_IS_SUPER`: a speculative insertion that is taken back.
const DELETE_IS_SUPER: u8 = 0x08;

/// What a record did to rows of the relation of its block 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Insert { offset: u16 },
    MultiInsert { rows: u16 },
    Delete { offset: u16 },
    Update { old_offset: u16, new_offset: u16 },
    InPlace { offset: u16 },
}

/// `None` for records that change no row: locks, pruning, freezing, visibility, truncation for logical decoding.
pub fn change(record: &Record, layout: &Layout) -> Option<Change> {
    let mut main = Fields(layout.main(record));
    match (record.resource_manager, record.info & 0x70) {
        // XLOG_HEAP_INSERT
        (manager::HEAP, 0x00) => Some(Change::Insert { offset: main.u16()? }),
        // XLOG_HEAP_DELETE
        (manager::HEAP, 0x10) => {
            main.u32()?;
            let (offset, _, flags) = (main.u16()?, main.u8()?, main.u8()?);
            (flags & DELETE_IS_SUPER == 0).then_some(Change::Delete { offset })
        }
        // XLOG_HEAP_UPDATE and XLOG_HEAP_HOT_UPDATE
        (manager::HEAP, 0x20 | 0x40) => {
            main.u32()?;
            let (old_offset, _) = (main.u16()?, main.u16()?);
            main.u32()?;
            Some(Change::Update { old_offset, new_offset: main.u16()? })
        }
        // XLOG_HEAP_INPLACE
        (manager::HEAP, 0x70) => Some(Change::InPlace { offset: main.u16()? }),
        // XLOG_HEAP2_MULTI_INSERT
        (manager::HEAP2, 0x50) => {
            main.u16()?;
            Some(Change::MultiInsert { rows: main.u16()? })
        }
        _ => None,
    }
}

/// A row of `pg_class`, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRow {
    pub oid: u32,
    pub name: String,
    pub namespace: u32,
    pub filenode: u32,
    /// `relpersistence`: `p`, `u` or `t`.
    pub persistence: u8,
    /// `relkind`.
    pub kind: u8,
}

/// The row that an insertion into `pg_class` holds, in the record or in the page's image.
pub fn inserted_class_row(record: &Record, offset: u16) -> Option<ClassRow> {
    let block = reference::block(record, 0)?;
    let row = if block.data.is_empty() { imaged_row(&block, offset)? } else { logged_row(block.data)? };
    let mut fields = Fields(&row);
    let oid = fields.u32()?;
    let name = name(fields.bytes(64)?);
    let namespace = fields.u32()?;
    let mut at_filenode = Fields(row.get(88..)?);
    // 18 has relallfrozen before reltoastrelid.
    let at = if record.major >= 18 { 118 } else { 114 };
    let (persistence, kind) = (*row.get(at)?, *row.get(at + 1)?);
    Some(ClassRow { oid, name, namespace, filenode: at_filenode.u32()?, persistence, kind })
}

/// OID and name of the row that an insertion into `pg_database` or `pg_namespace` holds: their first columns.
pub fn inserted_name(record: &Record, offset: u16) -> Option<(u32, String)> {
    let block = reference::block(record, 0)?;
    let row = if block.data.is_empty() { imaged_row(&block, offset)? } else { logged_row(block.data)? };
    let mut fields = Fields(&row);
    Some((fields.u32()?, name(fields.bytes(64)?)))
}

/// Of what a column is called once it is dropped (`RemoveAttributeById`).
const DROPPED_COLUMN: &[u8] = b".pg.dropped.";

/// Whether an update of a row of `pg_attribute` made it a dropped column's. What the old row begins and ends with may be left out of the
/// record, but the name is a new one.
pub fn drops_column(record: &Record, new_offset: u16) -> bool {
    let Some(block) = reference::block(record, 0) else { return false };
    let row = if block.data.is_empty() { imaged_row(&block, new_offset) } else { Some(block.data.to_vec()) };
    row.is_some_and(|row| row.windows(DROPPED_COLUMN.len()).any(|part| part == DROPPED_COLUMN))
}

/// The database that an in-place change of a row of `pg_database` left with this connection limit.
pub fn database_limit(record: &Record, offset: u16) -> Option<(u32, i32)> {
    let block = reference::block(record, 0)?;
    let row = if block.data.is_empty() { imaged_row(&block, offset)? } else { block.data.to_vec() };
    let oid = Fields(&row).u32()?;
    // 15 replaced two names of locales by a provider and moved the names to the end.
    let at = if record.major >= 15 { 80 } else { 208 };
    let limit = Fields(row.get(at..)?).u32()?;
    Some((oid, limit as i32))
}

/// A tuple as `xl_heap_insert` logs it: three fields of its header, then all after the header's fixed part.
fn logged_row(data: &[u8]) -> Option<Vec<u8>> {
    let begin = usize::from(*data.get(4)?).checked_sub(TUPLE_HEADER_BYTES)?;
    Some(data.get(LOGGED_HEADER_BYTES + begin..)?.to_vec())
}

/// The tuple at a line pointer of a page that is there as an image.
fn imaged_row(block: &Block, offset: u16) -> Option<Vec<u8>> {
    let page = image::restore(block)?;
    let pointer = 24 + 4 * usize::from(offset.checked_sub(1)?);
    let pointer = Fields(page.get(pointer..)?).u32()?;
    let (at, bytes) = ((pointer & 0x7FFF) as usize, (pointer >> 17) as usize);
    let tuple = page.get(at..at + bytes)?;
    Some(tuple.get(usize::from(*tuple.get(TUPLE_HEADER_BYTES - 1)?)..)?.to_vec())
}

/// A `NameData`.
fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
