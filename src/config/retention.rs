//! `[retention]`: how long snapshots and WAL are kept.

use serde::Deserialize;

use super::{ConfigError, invalid};

/// A snapshot stays when any of these wants it. With none of them nothing is ever removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
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
        Ok(())
    }
}
