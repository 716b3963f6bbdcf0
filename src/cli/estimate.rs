//! How long a restore will take, in words.

use crate::repo::report::Span;
use crate::timeline::estimate::Estimate;

use super::output;

/// `about 4 min (3 to 6), from 5 drills`
pub fn words(estimate: Option<&Estimate>) -> String {
    let Some(estimate) = estimate else { return "not known yet: no drill and no restore of such a size has measured it".into() };
    let from: Vec<String> = [(estimate.drills, "drill"), (estimate.restores, "restore")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| output::count(count as u64, what))
        .collect();
    let from = from.join(" and ");
    match estimate.total() {
        Some(total) => format!("{}, from {from}", span(&total)),
        None => format!("{} and the replay of WAL, which no drill has measured; from {from}", span(&estimate.restore)),
    }
}

/// `about 4 min (3 to 6)`: all three in the unit of the highest.
pub fn span(span: &Span) -> String {
    let (unit, seconds) = match span.high_s {
        high if high < 100.0 => ("s", 1.0),
        high if high < 6000.0 => ("min", 60.0),
        _ => ("h", 3600.0),
    };
    // Small numbers need a digit more to differ at all.
    let number = |value: f64| {
        let value = value / seconds;
        if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
    };
    format!("about {} {unit} ({} to {})", number(span.typical_s), number(span.low_s), number(span.high_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_read_well() {
        let seconds = |typical_s, low_s, high_s| Span { typical_s, low_s, high_s };
        assert_eq!(span(&seconds(245.0, 180.0, 360.0)), "about 4.1 min (3.0 to 6.0)");
        assert_eq!(span(&seconds(1.2, 0.8, 1.9)), "about 1.2 s (0.8 to 1.9)");
        assert_eq!(span(&seconds(9000.0, 7200.0, 43200.0)), "about 2.5 h (2.0 to 12)");
        assert!(words(None).contains("not known yet"));
        let mut estimate = Estimate { restore: seconds(60.0, 50.0, 70.0), replay: None, drills: 0, restores: 1 };
        assert!(words(Some(&estimate)).ends_with("which no drill has measured; from 1 restore"));
        (estimate.replay, estimate.drills) = (Some(seconds(60.0, 50.0, 70.0)), 5);
        assert_eq!(words(Some(&estimate)), "about 2.0 min (1.7 to 2.3), from 5 drills and 1 restore");
    }
}
