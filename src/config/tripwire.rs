//! `[tripwire]` and `[alert]`: what in the WAL raises an alert, and who hears of it.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, invalid};

/// What raises an alert when it passes through the archive.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tripwire {
    /// On for clusters labelled `production` when absent.
    pub enabled: Option<bool>,
    /// DROP or TRUNCATE of a relation of at least so many rows, or so many bytes, as the last snapshot's catalogue knew them.
    pub min_rows: u64,
    pub min_bytes: u64,
    /// DELETE or UPDATE of so many rows of one relation in one transaction, or of such a share of it.
    pub changed_rows: u64,
    pub changed_percent: u64,
    /// Drops and truncations of known relations within a minute.
    pub drops_per_minute: usize,
    /// Drops and truncations that together take such a share of all that the catalogue knew.
    pub shrink_percent: u64,
}

impl Default for Tripwire {
    fn default() -> Self {
        Tripwire {
            enabled: None,
            min_rows: 1000,
            min_bytes: 1 << 20,
            changed_rows: 100_000,
            changed_percent: 50,
            drops_per_minute: 10,
            shrink_percent: 50,
        }
    }
}

impl Tripwire {
    pub fn is_on(&self, label: Option<&str>) -> bool {
        self.enabled.unwrap_or(label == Some("production"))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (key, percent) in [("changed_percent", self.changed_percent), ("shrink_percent", self.shrink_percent)] {
            if !(1..=100).contains(&percent) {
                return invalid(format!("[tripwire] {key} is {percent}"), "use 1 to 100");
            }
        }
        if self.drops_per_minute == 0 || self.changed_rows == 0 {
            return invalid(
                "[tripwire] drops_per_minute and changed_rows must be above 0",
                "set enabled = false to turn the tripwire off",
            );
        }
        Ok(())
    }
}

/// Who hears of an alert.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alert {
    /// A program and its arguments; it gets the alert as JSON on its standard input.
    pub command: Vec<String>,
    /// A URL that the alert is posted to, as JSON.
    pub webhook: Option<String>,
    /// PEM file with the authorities to trust besides the system's, for the webhook.
    pub ca_file: Option<PathBuf>,
    /// Longest time for one attempt.
    pub timeout_s: u64,
}

impl Default for Alert {
    fn default() -> Self {
        Alert { command: Vec::new(), webhook: None, ca_file: None, timeout_s: 20 }
    }
}

impl Alert {
    pub fn is_configured(&self) -> bool {
        !self.command.is_empty() || self.webhook.is_some()
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.webhook.as_ref().is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
            return invalid("[alert] webhook is no URL", "write it like \"https://host/path\"");
        }
        if self.timeout_s == 0 {
            return invalid("[alert] timeout_s is 0", "leave it out for 20");
        }
        Ok(())
    }
}
