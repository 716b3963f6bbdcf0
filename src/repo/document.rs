//! The one door for everything that is read from a repository.
//!
//! Whoever may write into a store, and a disk that lies, decide what a document says. So nothing is believed that was not looked at:
//! [`Document::defect`] looks at every field when a document is parsed, before any code counts with it, makes a key or a path of it, or
//! takes memory for it. What it refuses is damage of that one object, which is named; whatever does not depend on it goes on.
//!
//! How long a document may be is decided before it is opened: see [`raw_max`].

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::{FORMAT_VERSION, RepoError, object};
use crate::storage::ObjectKey;

/// What can be read from a repository.
pub trait Document: DeserializeOwned {
    /// The first field that makes no sense, in words that follow "it is damaged: ".
    fn defect(&self) -> Option<String> {
        None
    }
}

/// Nothing counts more bytes than this: eight pebibytes, of which 2,048 can be added up.
pub const BYTES_MAX: u64 = 1 << 53;
/// No position in the WAL is behind this, so that a few segments can be added.
const LSN_MAX: u64 = u64::MAX - (1 << 40);
/// From 1970 to November 9999: a month can be added and taken away. Pins and locks may end far in the future.
const SECONDS: std::ops::Range<i64> = 0..253_399_622_400;

/// zstd cannot make less of a block: 128 KiB of one byte take four.
const RATIO_MAX: u64 = 32 << 10;
/// A file list is finished at 4 MiB; one line is behind that at most, with the packs of a file of a gibibyte.
const LIST_MAX: u64 = 16 << 20;
/// A manifest has a line of 100 bytes for each file list, and one for each damaged page.
const MANIFEST_MAX: u64 = 64 << 20;
/// Tables and catalogues are as long as a snapshot has packs, segments and relations; some notes name keys.
const TABLE_MAX: u64 = 1 << 30;
/// Everything else: an alert, a pin, a keyring, an entry of the audit with its plan.
const OTHER_MAX: u64 = 64 << 20;

/// How long the raw content of a document can be that takes `stored` bytes under this key.
pub fn raw_max(key: &ObjectKey, stored: u64) -> u64 {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    let kind = match parts[..] {
        ["clusters", _, "files", _, "packs" | "wal" | "catalogue"] => TABLE_MAX,
        ["clusters", _, "locks" | "verified", _] | ["clusters", _, "wal", _, "gone", _] => TABLE_MAX,
        ["clusters", _, "files", ..] => LIST_MAX,
        ["clusters", _, "snapshots" | "expired", ..] => MANIFEST_MAX,
        _ => OTHER_MAX,
    };
    kind.min(stored.saturating_mul(RATIO_MAX))
}

/// How long a document can be as it is stored: content that zstd could not make shorter, its trailer and its seal.
pub fn stored_max(key: &ObjectKey) -> u64 {
    raw_max(key, u64::MAX).max(OTHER_MAX) + (1 << 20)
}

/// Refuses a document of a later format before anything else of it is looked at.
pub fn prove_format(key: &ObjectKey, raw: &[u8]) -> Result<(), RepoError> {
    #[derive(serde::Deserialize)]
    struct Format {
        format: u64,
    }
    impl Document for Format {}
    match object::from_json::<Format>(key, raw)?.format {
        version if version > u64::from(FORMAT_VERSION) => Err(RepoError::Newer { key: key.clone(), version }),
        _ => Ok(()),
    }
}

/// The first that does not hold.
pub fn first_defect<const N: usize>(checks: [(bool, &str); N]) -> Option<String> {
    checks.into_iter().find(|(holds, _)| !holds).map(|(_, what)| what.into())
}

/// `YYYYMMDDTHHMMSSZ-` and four hex digits, as every snapshot is called.
pub fn is_snapshot_id(text: &str) -> bool {
    let Some((time, random)) = text.split_once('-') else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_time = |time: &str| {
        time.len() == 16
            && time.is_ascii()
            && digits(&time[..8])
            && &time[8..9] == "T"
            && digits(&time[9..15])
            && time.ends_with('Z')
    };
    is_time(time) && random.len() == 4 && random.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The same time, and sixteen hex digits; four in reports that older programs wrote.
pub fn is_report_id(text: &str) -> bool {
    let Some((time, random)) = text.split_once('-') else { return false };
    let is_random = matches!(random.len(), 4 | 16) && random.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_random && is_snapshot_id(&format!("{time}-0000"))
}

/// `<snapshot>/d000001` or `<snapshot>/m000001`: a name leads to an object below `packs/`, and nowhere else.
pub fn is_pack_name(text: &str) -> bool {
    let Some((snapshot, pack)) = text.split_once('/') else { return false };
    let Some(number) = pack.strip_prefix(['d', 'm']) else { return false };
    is_snapshot_id(snapshot) && (6..=9).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit())
}

/// The lengths that `initdb --wal-segsize` knows.
pub fn is_segment_length(bytes: u32) -> bool {
    bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)
}

/// The lengths that PostgreSQL can be built with.
pub fn is_block_length(bytes: u32) -> bool {
    bytes.is_power_of_two() && (1 << 10..=1 << 15).contains(&bytes)
}

pub fn is_lsn(lsn: crate::postgres::lsn::Lsn) -> bool {
    lsn.0 <= LSN_MAX
}

/// A time with which can be counted.
pub fn is_time(at: Timestamp) -> bool {
    SECONDS.contains(&at.as_second())
}

/// A number of seconds with which can be counted: it may be a measurement.
pub fn is_seconds(seconds: f64) -> bool {
    (0.0..1e9).contains(&seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        assert!(is_pack_name("20261121T082522Z-8bdd/d000001") && is_pack_name("20261121T082522Z-8bdd/m123456"));
        for bad in [
            "",
            "/",
            "20261121T082522Z-8bdd/../d000001",
            "../20261121T082522Z-8bdd/d000001",
            "/20261121T082522Z-8bdd/d000001",
            "20261121T082522Z-8bdd/d000001/",
            "20261121T082522Z-8bdd//d000001",
            "20261121T082522Z-8bdd/d00001",
            "20261121T082522Z-8bdd/x000001",
            "20261121T082522Z-8BDD/d000001",
            "20261121T08252\u{e9}Z-8bdd/d000001",
            "\u{e9}0261121T082522Z-8bdd/d000001",
            "20261121T082522Z/d000001",
            "20261121T082522Z-8bdd/d00000\n",
        ] {
            assert!(!is_pack_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_can_be_read_is_bounded_by_what_is_stored() {
        let key = |text: &str| ObjectKey::new(text);
        let id = "20261121T082522Z-8bdd";
        assert_eq!(raw_max(&key(&format!("clusters/shop/snapshots/{id}")), 100), 100 * RATIO_MAX);
        assert_eq!(raw_max(&key(&format!("clusters/shop/snapshots/{id}")), u64::MAX), MANIFEST_MAX);
        assert_eq!(raw_max(&key(&format!("clusters/shop/files/{id}/000001")), u64::MAX), LIST_MAX);
        assert_eq!(raw_max(&key(&format!("clusters/shop/files/{id}/packs")), u64::MAX), TABLE_MAX);
        assert!(stored_max(&key("keys/000001-000001")) > OTHER_MAX);
    }
}
