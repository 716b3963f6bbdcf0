//! What a person types after `--to`.

use jiff::Timestamp;

use crate::postgres::lsn::Lsn;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The end of the WAL.
    Latest,
    /// All that was committed up to and including this moment.
    Time(Timestamp),
    Lsn(Lsn),
    Xid(u32),
    /// A restore point.
    Name(String),
    /// Where a snapshot is consistent.
    Snapshot(String),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    #[error(
        "the target is empty; use latest, a time with zone, an LSN, a transaction id, the name of a restore point, or a snapshot"
    )]
    Empty,
    #[error(
        "{text:?} is a time without a zone, and could mean {utc} or something else; write {utc:?} or with your offset, like \"{text}+01:00\""
    )]
    NoZone { text: String, utc: String },
    #[error("{text:?} is no {kind}: {problem}")]
    Bad { text: String, kind: &'static str, problem: String },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Latest => f.write_str("latest"),
            Target::Time(time) => write!(f, "time {time}"),
            Target::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Target::Xid(xid) => write!(f, "transaction {xid}"),
            Target::Name(name) => write!(f, "restore point {name:?}"),
            Target::Snapshot(id) => write!(f, "snapshot {id}"),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = TargetError;

    /// Reads a target by its look; `time:`, `lsn:`, `xid:`, `name:` and `snapshot:` say what it is.
    fn from_str(text: &str) -> Result<Target, TargetError> {
        let text = text.trim();
        if let Some((kind, rest)) = text.split_once(':') {
            match kind {
                "time" => return time(rest),
                "lsn" => return lsn(rest),
                "xid" => return xid(rest),
                "name" => return Ok(Target::Name(rest.into())),
                "snapshot" => return Ok(Target::Snapshot(rest.into())),
                _ => {}
            }
        }
        match text {
            "" => Err(TargetError::Empty),
            "latest" => Ok(Target::Latest),
            _ if is_snapshot_id(text) => Ok(Target::Snapshot(text.into())),
            _ if text.bytes().all(|b| b.is_ascii_digit()) => xid(text),
            // Before LSNs: the name of a zone may hold a slash.
            _ if looks_like_time(text) => time(text),
            _ if text.contains('/') => lsn(text),
            _ => Ok(Target::Name(text.into())),
        }
    }
}

/// `20261121T010203Z-ab12`.
fn is_snapshot_id(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 16 && bytes[8] == b'T' && bytes[15] == b'Z' && bytes[..8].iter().all(u8::is_ascii_digit)
}

/// `2026-11-21…`
fn looks_like_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 8 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-' && bytes[5].is_ascii_digit()
}

fn bad(text: &str, kind: &'static str, problem: impl ToString) -> TargetError {
    TargetError::Bad { text: text.into(), kind, problem: problem.to_string() }
}

fn lsn(text: &str) -> Result<Target, TargetError> {
    text.parse().map(Target::Lsn).map_err(|error| bad(text, "LSN", error))
}

fn xid(text: &str) -> Result<Target, TargetError> {
    let xid: u32 = text.parse().map_err(|_| bad(text, "transaction id", "it must be a number below 4294967296"))?;
    // FirstNormalTransactionId
    if xid < 3 { Err(bad(text, "transaction id", "ids below 3 are PostgreSQL's own")) } else { Ok(Target::Xid(xid)) }
}

fn time(text: &str) -> Result<Target, TargetError> {
    let normal = with_full_offset(&text.trim().replacen(' ', "T", 1).replace(' ', "").replace("UTC", "Z"));
    if let Ok(time) = normal.parse::<Timestamp>() {
        return Ok(Target::Time(time));
    }
    if let Ok(zoned) = normal.parse::<jiff::Zoned>() {
        return Ok(Target::Time(zoned.timestamp()));
    }
    if let Ok(civil) = normal.parse::<jiff::civil::DateTime>() {
        let utc = format!("{}Z", civil.strftime("%Y-%m-%d %H:%M:%S"));
        return Err(TargetError::NoZone { text: text.into(), utc });
    }
    Err(bad(text, "time", "write it like \"2026-11-21 04:15:00Z\" or \"2026-11-21 05:15:00+01:00\""))
}

/// PostgreSQL prints `+01`; the parser wants `+01:00`.
fn with_full_offset(text: &str) -> String {
    let bytes = text.as_bytes();
    let short = bytes.len() > 13
        && matches!(bytes[bytes.len() - 3], b'+' | b'-')
        && bytes[bytes.len() - 2..].iter().all(u8::is_ascii_digit)
        && text.contains('T');
    if short { format!("{text}:00") } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_known_by_their_look() {
        let parse = |text: &str| text.parse::<Target>().unwrap();
        let at: Timestamp = "2026-11-21T04:15:00Z".parse().unwrap();
        assert_eq!(parse("latest"), Target::Latest);
        assert_eq!(parse("0/3000028"), Target::Lsn(Lsn(0x300_0028)));
        assert_eq!(parse("751"), Target::Xid(751));
        assert_eq!(parse("before deploy"), Target::Name("before deploy".into()));
        assert_eq!(parse("name:751"), Target::Name("751".into()));
        assert_eq!(parse("20261121T010203Z-ab12"), Target::Snapshot("20261121T010203Z-ab12".into()));
        for text in [
            "2026-11-21 04:15:00Z",
            "2026-11-21T05:15:00+01:00",
            "2026-11-21 05:15:00+01",
            "2026-11-21 04:15:00 UTC",
            "time:2026-11-21 04:15:00.000+00",
            "2026-11-21T05:15:00+01:00[Europe/Berlin]",
        ] {
            assert_eq!(parse(text), Target::Time(at), "{text}");
        }
    }

    #[test]
    fn a_time_without_zone_is_refused_with_the_mend() {
        let error = "2026-11-21 04:15:00".parse::<Target>().unwrap_err();
        assert!(matches!(&error, TargetError::NoZone { utc, .. } if utc == "2026-11-21 04:15:00Z"), "{error}");
        assert!(matches!("2026-13-45 99:00Z".parse::<Target>(), Err(TargetError::Bad { .. })));
        assert!(matches!("1/zz".parse::<Target>(), Err(TargetError::Bad { .. })));
        assert!(matches!("2".parse::<Target>(), Err(TargetError::Bad { .. })));
        assert_eq!(" ".parse::<Target>(), Err(TargetError::Empty));
    }
}
