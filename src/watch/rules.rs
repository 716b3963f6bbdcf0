//! Which events raise an alert.

use jiff::Timestamp;

use crate::config::Tripwire;
use crate::timeline::told::{Kind, Told};

/// A minute, for the rule about many drops.
const MINUTE_S: i64 = 60;

/// An event that met a rule, by the rule's name in `docs/configuration.md`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Met<'a> {
    pub event: &'a Told,
    pub rule: &'static str,
}

/// The events that raise an alert, each once, in their order. `known_bytes` is the size of everything that the catalogue knows;
/// `has_names` tells whether there is a catalogue at all.
pub fn judge<'a>(events: &'a [Told], rules: &Tripwire, known_bytes: u64, has_names: bool) -> Vec<Met<'a>> {
    let mut met = Vec::new();
    let mut recent: Vec<Timestamp> = Vec::new();
    let mut gone_bytes = 0u64;
    for event in events {
        let mut rule = single(event, rules, has_names);
        if is_loss(event) {
            if let Some(time) = event.time {
                recent.retain(|before| time.duration_since(*before).as_secs().abs() < MINUTE_S);
                recent.push(time);
            }
            if recent.len() == rules.drops_per_minute {
                rule = rule.or(Some("many-drops"));
                recent.clear();
            }
            let before = share(gone_bytes, known_bytes);
            gone_bytes = gone_bytes.saturating_add(event.bytes());
            if before < rules.shrink_percent && share(gone_bytes, known_bytes) >= rules.shrink_percent {
                rule = rule.or(Some("shrink"));
            }
        }
        met.extend(rule.map(|rule| Met { event, rule }));
    }
    met
}

fn share(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}

/// A drop or truncation of something that has a name: temporary tables have none.
fn is_loss(event: &Told) -> bool {
    matches!(event.kind, Kind::Drop | Kind::Truncate) && event.relations.iter().any(|touched| touched.is_named)
}

fn single(event: &Told, rules: &Tripwire, has_names: bool) -> Option<&'static str> {
    match event.kind {
        Kind::DropDatabase => Some("drop-database"),
        Kind::DropTablespace => Some("drop-tablespace"),
        Kind::Drop | Kind::Truncate | Kind::DropColumn => {
            let is_large = event.relations.iter().any(|touched| {
                touched.rows.is_some_and(|rows| rows >= rules.min_rows)
                    || touched.bytes.is_some_and(|bytes| bytes >= rules.min_bytes)
            });
            // Without any names nobody can tell how large it was.
            let rule = match event.kind {
                Kind::Drop => "drop",
                Kind::Truncate => "truncate",
                _ => "drop-column",
            };
            (is_large || !has_names).then_some(rule)
        }
        Kind::Delete | Kind::Update => {
            let by_share = event.share.is_some_and(|share| share * 100.0 >= rules.changed_percent as f64);
            (event.changed_rows >= rules.changed_rows || by_share).then_some("mass-change")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lsn::{Lsn, Timeline};
    use crate::timeline::told::Touched;

    fn event(kind: Kind, second: i64, rows: Option<u64>, bytes: Option<u64>, changed: u64, share: Option<f64>) -> Told {
        let touched = Touched { name: "shop.public.t".into(), is_named: true, kind: Some('r'), rows, bytes };
        Told {
            id: format!("1:0/{second:X}"),
            kind,
            timeline: Timeline(1),
            first_lsn: Lsn(1),
            lsn: Lsn(2),
            target: Lsn(2),
            time: Some(Timestamp::from_second(second).unwrap()),
            xid: 7,
            database: Some("shop".into()),
            relations: vec![touched],
            changed_rows: changed,
            share,
            is_incomplete: false,
            beside: Vec::new(),
            is_unnamed: false,
            is_archived: true,
            is_ours: false,
            text: String::new(),
        }
    }

    fn rule(event: Told) -> Option<&'static str> {
        judge(&[event], &Tripwire::default(), 1 << 40, true).first().map(|met| met.rule)
    }

    #[test]
    fn large_things_raise_an_alert_and_small_ones_do_not() {
        let of = |kind, rows, bytes| rule(event(kind, 0, rows, bytes, 0, None));
        assert_eq!(of(Kind::Drop, Some(1000), None), Some("drop"));
        assert_eq!(of(Kind::Drop, Some(999), Some(1 << 20)), Some("drop"));
        assert_eq!(of(Kind::Truncate, Some(2000), None), Some("truncate"));
        assert_eq!(of(Kind::Truncate, Some(999), Some(8192)), None);
        assert_eq!(of(Kind::DropColumn, Some(1000), None), Some("drop-column"));
        assert_eq!(of(Kind::DropEmpty, None, None), None);
        assert_eq!(of(Kind::Drop, None, None), None, "made after the catalogue: every day has some");
        assert_eq!(of(Kind::DropDatabase, None, None), Some("drop-database"));
        assert_eq!(of(Kind::Rewrite, Some(1 << 30), Some(1 << 40)), None);
        let changed = |rows, share| rule(event(Kind::Delete, 0, Some(1 << 30), None, rows, share));
        assert_eq!(changed(100_000, None), Some("mass-change"));
        assert_eq!(changed(1500, Some(0.5)), Some("mass-change"));
        assert_eq!(changed(1500, Some(0.49)), None);
    }

    #[test]
    fn without_names_every_drop_counts() {
        let drop = event(Kind::Drop, 0, None, None, 0, None);
        assert_eq!(judge(&[drop], &Tripwire::default(), 0, false)[0].rule, "drop");
    }

    #[test]
    fn many_small_drops_are_one_alert() {
        let drops = |step: i64| -> Vec<Told> { (0..12).map(|n| event(Kind::Drop, n * step, Some(1), None, 0, None)).collect() };
        let (quick, slow) = (drops(1), drops(30));
        let met = judge(&quick, &Tripwire::default(), 1 << 40, true);
        assert_eq!(met.iter().map(|met| (met.rule, met.event.id.as_str())).collect::<Vec<_>>(), [("many-drops", "1:0/9")]);
        assert!(judge(&slow, &Tripwire::default(), 1 << 40, true).is_empty());
        // Temporary tables, and what was made since the snapshot in a database that nobody could ask.
        let mut nameless = quick;
        nameless.iter_mut().for_each(|event| event.relations[0].is_named = false);
        assert!(judge(&nameless, &Tripwire::default(), 1 << 40, true).is_empty());
    }

    #[test]
    fn half_of_everything_is_an_alert_once() {
        let parts: Vec<Told> = (0..8).map(|n| event(Kind::Drop, n * 100, Some(1), Some(100_000), 0, None)).collect();
        let met = judge(&parts, &Tripwire::default(), 800_000, true);
        assert_eq!(met.iter().map(|met| (met.rule, met.event.id.as_str())).collect::<Vec<_>>(), [("shrink", "1:0/12C")]);
    }
}
