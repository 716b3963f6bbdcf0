//! `[retention]`: how long snapshots and WAL are kept.

use serde::Deserialize;

use super::{ConfigError, invalid};

/// A snapshot stays when any of these wants it. With none of them nothing is ever removed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The newest so many.
    pub keep_last: Option<u32>,
    /// All of so many days, and the one before them.
    pub keep_days: Option<u32>,
    /// The newest of each of the last so many days (weeks, months, years) that have one, in UTC.
    pub keep_daily: Option<u32>,
    pub keep_weekly: Option<u32>,
    pub keep_monthly: Option<u32>,
    pub keep_yearly: Option<u32>,
    /// Days back to which every moment can be restored. When absent: from the oldest snapshot on that is kept.
    pub window_days: Option<u32>,
    /// A backup stores anew what it needs of packs whose snapshots are gone, when that is less than so many percent of the pack; 0
    /// turns it off.
    pub rewrite_below_percent: u32,
    /// Raw bytes that one backup stores anew for it at most; 0 turns it off.
    pub rewrite_max_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Retention {
            keep_last: None,
            keep_days: None,
            keep_daily: None,
            keep_weekly: None,
            keep_monthly: None,
            keep_yearly: None,
            window_days: None,
            rewrite_below_percent: 25,
            rewrite_max_bytes: 1_000_000_000,
        }
    }
}

impl Retention {
    fn rules(&self) -> [(&'static str, Option<u32>); 7] {
        [
            ("keep_last", self.keep_last),
            ("keep_days", self.keep_days),
            ("keep_daily", self.keep_daily),
            ("keep_weekly", self.keep_weekly),
            ("keep_monthly", self.keep_monthly),
            ("keep_yearly", self.keep_yearly),
            ("window_days", self.window_days),
        ]
    }

    pub fn is_configured(&self) -> bool {
        self.rules().iter().any(|(_, rule)| rule.is_some())
    }

    /// As it is configured, in one line.
    pub fn describe(&self) -> String {
        let set = |(name, rule): &(&str, Option<u32>)| rule.map(|number| format!("{name} = {number}"));
        self.rules().iter().filter_map(set).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (name, rule) in self.rules() {
            if rule.is_some_and(|number| !(1..=36_500).contains(&number)) {
                let what = format!("[retention] {name} is {}", rule.unwrap_or(0));
                return invalid(what, "use 1 to 36500, or leave it out: then this rule keeps nothing");
            }
        }
        if self.rewrite_below_percent > 99 {
            let what = format!("[retention] rewrite_below_percent is {}", self.rewrite_below_percent);
            return invalid(what, "use 1 to 99, or 0 to leave packs as they are");
        }
        Ok(())
    }
}
