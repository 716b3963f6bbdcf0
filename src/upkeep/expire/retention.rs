//! Which snapshots the rules keep, and why.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::view::Snapshot;
use crate::config::Retention;

/// Reasons by place in the order of snapshots.
pub type Reasons = BTreeMap<usize, Vec<String>>;

/// The reasons to keep snapshots, which stand in order, oldest first.
///
/// Good ones are chosen among themselves, so that no other pushes one of them out. The others stay where the rules would keep
/// them if they were good.
pub fn keep(rules: &Retention, snapshots: &[Snapshot]) -> Reasons {
    let all: Vec<usize> = (0..snapshots.len()).collect();
    let good: Vec<usize> = all.iter().copied().filter(|at| snapshots[*at].flaw.is_none()).collect();
    let Some(newest) = good.last() else { return Reasons::new() };
    let anchor = snapshots[*newest].stop_time;
    let mut kept = select(rules, snapshots, &good, anchor);
    kept.entry(*newest).or_default().insert(0, "the newest that can be restored".into());
    for (at, reasons) in select(rules, snapshots, &all, anchor) {
        if let Some(flaw) = &snapshots[at].flaw {
            let reasons = reasons.join(", ");
            kept.insert(at, vec![format!("{reasons}; not counted, because {flaw}")]);
        }
    }
    kept
}

/// So many days before.
pub fn days_before(at: Timestamp, days: u32) -> Timestamp {
    at.checked_sub(SignedDuration::from_hours(24 * i64::from(days))).unwrap_or(Timestamp::MIN)
}

fn select(rules: &Retention, snapshots: &[Snapshot], among: &[usize], anchor: Timestamp) -> Reasons {
    let mut kept = Reasons::new();
    let mut want = |at: usize, why: String| kept.entry(at).or_default().push(why);
    for at in among.iter().rev().take(rules.keep_last.unwrap_or(0) as usize) {
        want(*at, format!("keep_last = {}", rules.keep_last.unwrap_or(0)));
    }
    if let Some(days) = rules.keep_days {
        within(snapshots, among, days_before(anchor, days)).into_iter().for_each(|at| want(at, format!("keep_days = {days}")));
    }
    if let Some(days) = rules.window_days {
        within(snapshots, among, days_before(anchor, days)).into_iter().for_each(|at| want(at, format!("window_days = {days}")));
    }
    type Unit = (&'static str, Option<u32>, fn(Date) -> String);
    let units: [Unit; 4] = [
        ("keep_daily", rules.keep_daily, |day| day.to_string()),
        ("keep_weekly", rules.keep_weekly, |day| {
            let week = day.iso_week_date();
            format!("week {}-{:02}", week.year(), week.week())
        }),
        ("keep_monthly", rules.keep_monthly, |day| format!("{:04}-{:02}", day.year(), day.month())),
        ("keep_yearly", rules.keep_yearly, |day| day.year().to_string()),
    ];
    for (name, count, unit) in units {
        let mut seen: Vec<String> = Vec::new();
        for at in among.iter().rev() {
            let name_of_unit = unit(snapshots[*at].stop_time.to_zoned(TimeZone::UTC).date());
            if seen.contains(&name_of_unit) {
                continue;
            }
            if seen.len() >= count.unwrap_or(0) as usize {
                break;
            }
            want(*at, format!("{name} ({name_of_unit})"));
            seen.push(name_of_unit);
        }
    }
    kept
}

/// All from `since` on, and the one before: from it the beginning of that time is reached (rule 49).
fn within(snapshots: &[Snapshot], among: &[usize], since: Timestamp) -> Vec<usize> {
    let first = among.iter().position(|at| snapshots[*at].stop_time >= since).unwrap_or(among.len());
    among[first.saturating_sub(1)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upkeep::expire::view::snapshot;

    /// Snapshots at these times, one after the other.
    fn at(times: &[&str]) -> Vec<Snapshot> {
        times.iter().enumerate().map(|(n, time)| snapshot(&format!("s{n}"), n as u64, time)).collect()
    }

    fn kept(rules: &Retention, snapshots: &[Snapshot]) -> Vec<usize> {
        keep(rules, snapshots).into_keys().collect()
    }

    #[test]
    fn each_rule_keeps_what_it_says() {
        let days: Vec<String> = (1..=28).map(|day| format!("2026-02-{day:02}T02:00:00Z")).collect();
        let mut times: Vec<&str> = vec!["2024-05-01T02:00:00Z", "2025-05-01T02:00:00Z", "2026-01-31T02:00:00Z"];
        times.extend(days.iter().map(String::as_str));
        let snapshots = at(&times);
        let rule = |set: fn(&mut Retention)| {
            let mut rules = Retention::default();
            set(&mut rules);
            kept(&rules, &snapshots)
        };
        assert_eq!(rule(|r| r.keep_last = Some(3)), [28, 29, 30]);
        // Two days back from the newest: that day, the two before it, and the one before these.
        assert_eq!(rule(|r| r.keep_days = Some(2)), [27, 28, 29, 30]);
        assert_eq!(rule(|r| r.keep_daily = Some(2)), [29, 30]);
        // 22 February 2026 is a Sunday, the last day of its week.
        assert_eq!(rule(|r| r.keep_weekly = Some(2)), [24, 30]);
        assert_eq!(rule(|r| r.keep_monthly = Some(3)), [1, 2, 30]);
        assert_eq!(rule(|r| r.keep_yearly = Some(9)), [0, 1, 30]);
        assert_eq!(rule(|r| r.window_days = Some(1)), [28, 29, 30]);
        assert_eq!(rule(|_| {}), [30]);
    }

    #[test]
    fn too_few_are_all_kept_and_time_stands_still_without_backups() {
        let snapshots = at(&["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]);
        assert_eq!(kept(&Retention { keep_last: Some(3), ..Retention::default() }, &snapshots), [0, 1]);
        // Whatever today is: both are within three days of the newest.
        assert_eq!(kept(&Retention { keep_days: Some(3), ..Retention::default() }, &snapshots), [0, 1]);
    }

    #[test]
    fn what_cannot_be_restored_pushes_nothing_out() {
        let mut snapshots = at(&["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z"]);
        snapshots[3].flaw = Some("a pack is missing".into());
        snapshots[2].flaw = Some("a pack is missing".into());
        let reasons = keep(&Retention { keep_last: Some(1), ..Retention::default() }, &snapshots);
        assert_eq!(reasons.keys().copied().collect::<Vec<_>>(), [1, 3]);
        assert!(reasons[&3][0].contains("not counted"), "{reasons:?}");
        snapshots.iter_mut().for_each(|s| s.flaw = Some("a pack is missing".into()));
        assert!(kept(&Retention { keep_last: Some(1), ..Retention::default() }, &snapshots).is_empty());
    }
}
