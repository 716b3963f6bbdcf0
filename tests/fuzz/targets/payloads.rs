//! Any bytes as what a record holds, for every manager whose payloads are understood: transactions, databases, tablespaces, storage, the
//! relation map, standby, heap and xlog; on every version.
#![no_main]

use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::wal::reader::Record;
use lastgood::postgres::wal::{database, ended, heap, reference, storage, transaction, xlog};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [resource_manager, info, major, payload @ ..] = bytes else { return };
    let record = Record {
        major: 13 + u32::from(major % 6),
        lsn: Lsn(0x0100_0028),
        xid: 700,
        resource_manager: *resource_manager,
        info: *info,
        payload,
        payload_bytes: payload.len() as u32 + u32::from(major >> 7),
    };
    let _ = transaction::event(&record);
    let _ = (ended::ended(&record), xlog::control(&record), database::database(&record), database::tablespace(&record));
    let _ =
        (storage::storage(&record), storage::relation_map(&record), storage::locks(&record), storage::oldest_running(&record));
    if let Ok(layout) = reference::each(&record, |_| {}) {
        let _ = heap::change(&record, &layout);
    }
    for offset in [1, 2, 300] {
        let _ = (heap::inserted_class_row(&record, offset), heap::database_limit(&record, offset));
    }
});
