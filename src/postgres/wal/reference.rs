//! Block references: which blocks of which relation files a record changes, and where its parts lie.
//!
//! A record's payload is: block headers, then each block's image and data, then the main data. The headers alone tell where
//! everything is, so nothing is allocated and nothing but headers is read.
//!
//! Source: `src/include/access/xlogrecord.h` (`XLogRecordBlockHeader`, `…ImageHeader`, `…CompressHeader`, `XLR_BLOCK_ID_*`),
//! `src/backend/access/transam/xlogreader.c` (`DecodeXLogRecord`).

use serde::{Deserialize, Serialize};

use super::fields::{Fields, u32_of};
use super::reader::Record;

/// `BLCKSZ`, as built everywhere.
pub const BLOCK_BYTES: usize = 8192;

pub const MAIN_FORK: u8 = 0;
pub const FSM_FORK: u8 = 1;
pub const VM_FORK: u8 = 2;
pub const INIT_FORK: u8 = 3;

/// `RelFileLocator` (`RelFileNode` before 16): where a relation's files lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelFileLocator {
    /// OID; 1663 is `pg_default`, 1664 `pg_global`.
    pub tablespace: u32,
    /// OID; 0 for shared relations.
    pub database: u32,
    /// The relfilenode: the OID of a relation that was never rewritten.
    pub number: u32,
}

impl RelFileLocator {
    pub fn of(item: &[u8; 12]) -> RelFileLocator {
        RelFileLocator { tablespace: u32_of(item, 0), database: u32_of(item, 4), number: u32_of(item, 8) }
    }
}

impl std::fmt::Display for RelFileLocator {
    /// As pg_waldump prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.number)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Pglz,
    Lz4,
    Zstd,
    /// More than one method, or none that 13 to 18 know.
    Unknown,
}

/// A full-page image, as its header describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    pub bytes: u16,
    pub hole_offset: u16,
    /// Zeros that were left out at `hole_offset`; 0 when there is no hole.
    pub hole_bytes: u16,
    pub compression: Compression,
    /// Replay restores the page from it; otherwise it is there for `wal_consistency_checking`.
    pub applies: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    pub id: u8,
    pub locator: RelFileLocator,
    pub fork: u8,
    pub block: u32,
    /// The page is made anew, whatever it held.
    pub initializes: bool,
    pub image: Option<ImageHeader>,
    pub data_bytes: u16,
    /// Where its image, or else its data, begins behind the headers.
    offset: u32,
}

/// Where the parts of a payload lie, and what the small headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub header_bytes: u32,
    pub main_bytes: u32,
    /// `XLR_BLOCK_ID_ORIGIN`.
    pub origin: Option<u16>,
    /// `XLR_BLOCK_ID_TOPLEVEL_XID`: the transaction of which this subtransaction is a part (`wal_level = logical`).
    pub top_xid: Option<u32>,
}

/// Not built as any server builds records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record is not built as PostgreSQL 13 to 18 build records")]
pub struct Malformed;

/// `BKPBLOCK_*` and `BKPIMAGE_*`.
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;
const HAS_HOLE: u8 = 0x01;

/// Reads the headers and hands every block reference to `visit`.
pub fn each(record: &Record, mut visit: impl FnMut(&Reference)) -> Result<Layout, Malformed> {
    walk(record, &mut visit).ok_or(Malformed)
}

fn walk(record: &Record, visit: &mut impl FnMut(&Reference)) -> Option<Layout> {
    let whole = record.payload_bytes as usize;
    let mut fields = Fields(record.payload);
    let mut layout = Layout { header_bytes: 0, main_bytes: 0, origin: None, top_xid: None };
    let (mut data, mut last) = (0usize, None);
    let at = |fields: &Fields| record.payload.len() - fields.0.len();
    // What is not described yet is a header, as long as there is something that is not described yet.
    while whole > at(&fields) + data {
        match fields.u8()? {
            255 => layout.main_bytes = u32::from(fields.u8()?),
            254 => layout.main_bytes = fields.u32()?,
            253 => {
                layout.origin = Some(fields.u16()?);
                continue;
            }
            252 => {
                layout.top_xid = Some(fields.u32()?);
                continue;
            }
            id @ 0..=32 => {
                let reference = block_header(id, &mut fields, record.major, last, data)?;
                data += usize::from(reference.data_bytes) + reference.image.map_or(0, |image| usize::from(image.bytes));
                last = Some(reference.locator);
                visit(&reference);
                continue;
            }
            _ => return None,
        }
        // The main data's header is the last one.
        break;
    }
    layout.header_bytes = u32::try_from(at(&fields)).ok()?;
    (at(&fields) + data + layout.main_bytes as usize == whole).then_some(layout)
}

fn block_header(id: u8, fields: &mut Fields, major: u32, last: Option<RelFileLocator>, offset: usize) -> Option<Reference> {
    let flags = fields.u8()?;
    let data_bytes = fields.u16()?;
    if (flags & HAS_DATA != 0) != (data_bytes > 0) {
        return None;
    }
    let image = if flags & HAS_IMAGE != 0 { Some(image_header(fields, major)?) } else { None };
    let locator = match last {
        Some(last) if flags & SAME_RELATION != 0 => last,
        _ if flags & SAME_RELATION != 0 => return None,
        _ => RelFileLocator::of(fields.bytes(12)?.try_into().ok()?),
    };
    let (block, offset) = (fields.u32()?, u32::try_from(offset).ok()?);
    let initializes = flags & WILL_INIT != 0;
    Some(Reference { id, locator, fork: flags & 0x0F, block, initializes, image, data_bytes, offset })
}

fn image_header(fields: &mut Fields, major: u32) -> Option<ImageHeader> {
    let (bytes, hole_offset, info) = (fields.u16()?, fields.u16()?, fields.u8()?);
    // 15 made room for the method, and moved BKPIMAGE_APPLY.
    let (applies, methods) = if major >= 15 { (info & 0x02, info & 0x1C) } else { (info & 0x04, (info & 0x02) << 1) };
    let compression = match methods {
        0x00 => Compression::None,
        0x04 => Compression::Pglz,
        0x08 => Compression::Lz4,
        0x10 => Compression::Zstd,
        _ => Compression::Unknown,
    };
    let hole_bytes = match (info & HAS_HOLE != 0, compression) {
        (false, _) => 0,
        (true, Compression::None) => (BLOCK_BYTES as u16).checked_sub(bytes)?,
        (true, _) => fields.u16()?,
    };
    Some(ImageHeader { bytes, hole_offset, hole_bytes, compression, applies: applies != 0 })
}

/// One referenced block with its parts.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    pub reference: Reference,
    pub image: &'a [u8],
    pub data: &'a [u8],
}

/// The block that a record registered as `id`; `None` when it has none, or when it lies where the payload was cut.
pub fn block<'a>(record: &Record<'a>, id: u8) -> Option<Block<'a>> {
    let mut found = None;
    let layout = each(record, |reference| found = (reference.id == id).then_some(*reference).or(found)).ok()?;
    let reference = found?;
    let parts = record.payload.get((layout.header_bytes + reference.offset) as usize..)?;
    let (image, rest) = parts.split_at_checked(reference.image.map_or(0, |image| usize::from(image.bytes)))?;
    Some(Block { reference, image, data: rest.get(..usize::from(reference.data_bytes))? })
}

impl Layout {
    /// The main data, as far as it was kept.
    pub fn main<'a>(&self, record: &Record<'a>) -> &'a [u8] {
        let begin = (record.payload_bytes.saturating_sub(self.main_bytes)) as usize;
        record.payload.get(begin..).unwrap_or_default()
    }
}

/// The main data of a record, as far as it was kept; `None` for a malformed one.
pub fn main_data<'a>(record: &Record<'a>) -> Option<&'a [u8]> {
    Some(each(record, |_| {}).ok()?.main(record))
}
