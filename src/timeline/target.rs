//! What a person types after `--to`.

use jiff::civil::DateTime;
use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::{AmbiguousOffset, Disambiguation, TimeZone};
use jiff::{Span, SpanRelativeTo, Timestamp, Zoned};

use crate::clock;
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
    #[error("{text:?} is a time without a zone; write {} for this host's time, or {utc:?}", local.iter().map(|time| format!("{time:?}")).collect::<Vec<_>>().join(" or "))]
    NoZone { text: String, local: Vec<String>, utc: String },
    #[error("{text:?} happened twice, because clocks were put back; write {first:?} or {second:?}")]
    Twice { text: String, first: String, second: String },
    #[error("{text:?} never was, because clocks were put forward; write a time with its offset, like {near:?}")]
    Never { text: String, near: String },
    #[error("{text:?} is how long ago something was, and the plan that is confirmed needs a time that stays: write {time:?}")]
    Ago { text: String, time: String },
    #[error(
        "{text:?} looks like a time, and is not written like one: {}, or name:{text} for a restore point that is called so",
        how()
    )]
    Loose { text: String },
    #[error(
        "--exclusive goes with an LSN or a transaction id; {target} has no such side (--before EVENT stops just before an event)"
    )]
    NotExclusive { target: String },
    #[error("--to snapshot {to} begins with that snapshot; --snapshot {with} names another one")]
    OtherSnapshot { to: String, with: String },
    #[error("--after goes with an event, a transaction, an LSN or a time; {target} goes with --to")]
    NotAfter { target: String },
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
            _ if is_event(text) => Err(bad(text, "moment", "it is the id of an event, which goes with --before or --after")),
            _ if is_loose_time(text) => Err(ago(text).unwrap_or_else(|| TargetError::Loose { text: text.into() })),
            _ if text.contains('/') => lsn(text),
            _ => Ok(Target::Name(text.into())),
        }
    }
}

impl Target {
    /// Whether flags that some targets know fit this one: none is accepted and then does nothing.
    pub fn check(&self, exclusive: bool, snapshot: Option<&str>) -> Result<(), TargetError> {
        if exclusive && !matches!(self, Target::Lsn(_) | Target::Xid(_)) {
            return Err(TargetError::NotExclusive { target: self.to_string() });
        }
        match (self, snapshot) {
            (Target::Snapshot(to), Some(with)) if !to.starts_with(with) && !with.starts_with(to.as_str()) => {
                Err(TargetError::OtherSnapshot { to: to.clone(), with: with.into() })
            }
            _ => Ok(()),
        }
    }

    /// Whether it has an end that can be meant with `--after`.
    pub fn check_after(&self) -> Result<(), TargetError> {
        match self {
            Target::Time(_) | Target::Lsn(_) | Target::Xid(_) => Ok(()),
            Target::Latest | Target::Name(_) | Target::Snapshot(_) => Err(TargetError::NotAfter { target: self.to_string() }),
        }
    }
}

/// As times are written; with now for an example, which is one that people know.
fn how() -> String {
    format!("write {:?}, with the offset of your zone", with_offset(&clock::now().to_zoned(TimeZone::system())))
}

fn with_offset(time: &Zoned) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

/// `10m`, `2 hours ago`.
fn ago(text: &str) -> Option<TargetError> {
    let back = text.parse::<Span>().ok()?.abs().to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    let time = clock::now().checked_sub(back).ok()?.to_zoned(TimeZone::system());
    Some(TargetError::Ago { text: text.into(), time: with_offset(&time) })
}

/// `21.11.2026`, `11/21/26`; a version like `4.2.1` is none.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split_whitespace().next().unwrap_or_default().split(['.', '/']).collect();
    let lengths: Vec<usize> =
        parts.iter().filter(|part| part.bytes().all(|b| b.is_ascii_digit())).map(|part| part.len()).collect();
    parts.len() == 3 && lengths.len() == 3 && (lengths.contains(&4) || lengths == [2, 2, 2])
}

/// An event's id, as `timeline` shows it.
fn is_event(text: &str) -> bool {
    let parts = text.split_once(':');
    parts.is_some_and(|(timeline, lsn)| timeline.bytes().all(|b| b.is_ascii_digit()) && lsn.parse::<Lsn>().is_ok())
}

/// What people call times: `yesterday`, `10m`, `21.11.2026 04:15`, `11/21/2026`, `04:15`, `5pm`. A restore point of such a name needs `name:`.
fn is_loose_time(text: &str) -> bool {
    const WORDS: [&str; 16] = [
        "now",
        "today",
        "yesterday",
        "tomorrow",
        "noon",
        "midnight",
        "last",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "sun",
        "heute",
        "gestern",
    ];
    let lower = text.to_lowercase();
    let first = lower.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let is_day = first.ends_with("day") && WORDS.iter().any(|word| first.starts_with(word));
    let is_word = is_day || WORDS.contains(&first) && (first == lower || lower.contains(|c: char| c.is_ascii_digit()));
    let begins_with_digit = lower.starts_with(|c: char| c.is_ascii_digit());
    let is_hour_and_minute = begins_with_digit && lower.contains(':');
    let is_hour = begins_with_digit && (first.ends_with("am") || first.ends_with("pm") || first.ends_with("uhr"));
    is_word
        || is_hour_and_minute
        || is_date(&lower)
        || is_hour
        || begins_with_digit && lower.parse::<Span>().is_ok()
        || lower.ends_with(" ago")
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
    let wide: u64 = text.parse().map_err(|_| bad(text, "transaction id", "it must be a number below 4294967296"))?;
    let Ok(xid) = u32::try_from(wide) else {
        let low = wide as u32;
        let problem = format!(
            "it is one of 64 bits, as pg_current_xact_id() shows it: WAL knows its lower half, so write xid:{low} (and check the time that the \
             plan shows, because ids come round)"
        );
        return Err(bad(text, "transaction id", problem));
    };
    // FirstNormalTransactionId
    if xid < 3 { Err(bad(text, "transaction id", "ids below 3 are PostgreSQL's own")) } else { Ok(Target::Xid(xid)) }
}

fn time(text: &str) -> Result<Target, TargetError> {
    let normal = with_full_offset(&text.trim().replacen(' ', "T", 1).replace(' ', "").replace("UTC", "Z").replace("GMT", "Z"));
    if let Ok(time) = normal.parse::<Timestamp>() {
        return Ok(Target::Time(time));
    }
    if let Some(zoned) = zoned(text.trim()) {
        return zoned;
    }
    if let Ok(civil) = normal.parse::<DateTime>() {
        let utc = format!("{}Z", civil.strftime("%Y-%m-%d %H:%M:%S"));
        let zone = TimeZone::system();
        let local = match zone.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => vec![offset],
            AmbiguousOffset::Fold { before, after } => vec![before, after],
            // Clocks were put forward over it.
            AmbiguousOffset::Gap { after, .. } => vec![after],
        };
        let local = local.into_iter().map(|offset| with_offset(&civil_at(civil, offset))).collect();
        return Err(TargetError::NoZone { text: text.into(), local, utc });
    }
    Err(bad(text, "time", "write it like \"2026-11-21 04:15:00Z\" or \"2026-11-21 05:15:00+01:00\""))
}

/// With the offset alone for a zone, so that nothing is left to guess.
fn civil_at(civil: DateTime, offset: jiff::tz::Offset) -> Zoned {
    let instant = offset.to_timestamp(civil).unwrap_or_default();
    instant.to_zoned(TimeZone::fixed(offset))
}

/// A time with the name of a zone, in brackets as in RFC 9557 or after a space; `None` for others. One that was twice is asked about.
fn zoned(text: &str) -> Option<Result<Target, TargetError>> {
    static PARSER: DateTimeParser = DateTimeParser::new().disambiguation(Disambiguation::Reject);
    let (moment, zone) = match text.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        Some((moment, zone)) => (moment, zone),
        None => text.rsplit_once(' ').filter(|(_, zone)| zone.contains('/'))?,
    };
    let moment = with_full_offset(&moment.trim().replacen(' ', "T", 1));
    if let Ok(zoned) = PARSER.parse_zoned(format!("{moment}[{zone}]")) {
        return Some(Ok(Target::Time(zoned.timestamp())));
    }
    let civil = moment.parse::<DateTime>().ok()?;
    let Ok(zone) = TimeZone::get(zone) else {
        return Some(Err(bad(text, "time", format!("there is no time zone {zone:?}"))));
    };
    let text = text.to_string();
    Some(Err(match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { .. } => return None,
        AmbiguousOffset::Fold { before, after } => {
            let (first, second) = (with_offset(&civil_at(civil, before)), with_offset(&civil_at(civil, after)));
            TargetError::Twice { text, first, second }
        }
        AmbiguousOffset::Gap { after, .. } => TargetError::Never { text, near: with_offset(&civil_at(civil, after)) },
    }))
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
            "2026-11-21 04:15:00 GMT",
            "time:2026-11-21 04:15:00.000+00",
            "2026-11-21T05:15:00+01:00[Europe/Berlin]",
        ] {
            assert_eq!(parse(text), Target::Time(at), "{text}");
        }
    }

    #[test]
    fn what_people_call_a_time_is_no_restore_point() {
        for text in [
            "yesterday",
            "Yesterday 4:15",
            "now",
            "21.11.2026 04:15",
            "11/21/2026 4:15 PM",
            "2026/11/21",
            "04:15",
            "5pm",
            "last monday 8:00",
            "gestern",
            "monday",
            "16:00 CET",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(matches!(error, TargetError::Loose { .. }), "{text}: {error}");
            let named = format!("name:{text}").parse::<Target>().unwrap();
            assert_eq!(named, Target::Name(text.into()));
        }
        let id = "1:0/48E06C0".parse::<Target>().unwrap_err().to_string();
        assert!(id.contains("--before"), "{id}");
        for text in ["10m", "2h", "2 hours ago", "7d", "30min"] {
            assert!(matches!(text.parse::<Target>(), Err(TargetError::Ago { .. })), "{text}");
        }
        for name in [
            "before deploy",
            "release 4.2",
            "v1.2.3",
            "4.2.1",
            "lastgood 1",
            "nowhere",
            "sunrise",
            "last good",
            "day 10",
            "marked",
        ] {
            assert_eq!(name.parse::<Target>().unwrap(), Target::Name(name.into()));
        }
    }

    #[test]
    fn a_time_that_was_twice_or_never_is_asked_about() {
        for text in ["2026-10-25 02:30:00[Europe/Berlin]", "2026-10-25 02:30:00 Europe/Berlin"] {
            let error = text.parse::<Target>().unwrap_err();
            let (first, second) = ("2026-10-25 02:30:00+02:00", "2026-10-25 02:30:00+01:00");
            assert_eq!(error, TargetError::Twice { text: text.into(), first: first.into(), second: second.into() });
            assert_ne!(first.parse::<Target>().unwrap(), second.parse().unwrap());
        }
        assert!(matches!("2026-03-29 02:30:00[Europe/Berlin]".parse::<Target>(), Err(TargetError::Never { .. })));
        let at = "2026-10-25T00:30:00Z".parse().unwrap();
        for text in ["2026-10-25 02:30:00+02:00[Europe/Berlin]", "2026-10-25 01:30:00 Europe/London"] {
            let parsed = text.parse::<Target>();
            assert!(parsed == Ok(Target::Time(at)) || matches!(parsed, Err(TargetError::Twice { .. })), "{text}: {parsed:?}");
        }
        assert!(matches!("2026-10-25 04:30:00 Europe/Nowhere".parse::<Target>(), Err(TargetError::Bad { .. })));
    }

    #[test]
    fn an_id_of_64_bits_is_told_in_32() {
        let error = "4294968047".parse::<Target>().unwrap_err().to_string();
        assert!(error.contains("write xid:751"), "{error}");
    }

    /// Each target and each flag: it is honoured or refused.
    #[test]
    fn a_flag_that_would_do_nothing_is_refused() {
        for (target, exclusive, after) in [
            (Target::Latest, false, false),
            (Target::Time(Timestamp::UNIX_EPOCH), false, true),
            (Target::Lsn(Lsn(1)), true, true),
            (Target::Xid(700), true, true),
            (Target::Name("n".into()), false, false),
            (Target::Snapshot("20261121T010203Z-ab12".into()), false, false),
        ] {
            assert_eq!(target.check(true, None).is_ok(), exclusive, "{target} --exclusive");
            assert_eq!(target.check_after().is_ok(), after, "--after {target}");
            let is_snapshot = matches!(target, Target::Snapshot(_));
            assert_eq!(target.check(false, Some("20261120")).is_ok(), !is_snapshot, "{target} --snapshot another");
            assert_eq!(target.check(false, Some("20261121T01")), Ok(()), "{target} --snapshot the same");
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
