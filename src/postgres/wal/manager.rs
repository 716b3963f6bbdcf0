//! Resource managers: who wrote a record, and who replays it.
//!
//! Source: `src/include/access/rmgrlist.h`; the numbers are the same in 13 to 18.

pub const XLOG: u8 = 0;
pub const TRANSACTION: u8 = 1;
pub const STORAGE: u8 = 2;
pub const DATABASE: u8 = 4;
pub const TABLESPACE: u8 = 5;
pub const RELATION_MAP: u8 = 7;
pub const STANDBY: u8 = 8;
pub const HEAP2: u8 = 9;
pub const HEAP: u8 = 10;

/// Bytes of a transaction's record that are kept when it crosses pages. A commit that drops 300,000 relations fits; of a
/// longer one the end is cut off, and who reads it sees that.
const TRANSACTION_KEPT_BYTES: usize = 16 << 20;
/// The same of all other records: more than 32 block headers (`XLR_MAX_BLOCK_ID`) and a page with its tuple.
const KEPT_BYTES: usize = 64 << 10;

/// How much of a record's payload is kept when it crosses pages.
pub fn kept_bytes(manager: u8) -> usize {
    if manager == TRANSACTION { TRANSACTION_KEPT_BYTES } else { KEPT_BYTES }
}
