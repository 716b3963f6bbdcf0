//! `[verify]`: how often everything is read again.

use serde::Deserialize;

use super::{ConfigError, invalid};

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// `check` fails when an object was not read for so many days by `verify --budget`.
    pub cycle_days: Option<u32>,
}

impl Verify {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.cycle_days.is_none_or(|days| (1..=3650).contains(&days)) {
            return Ok(());
        }
        invalid(format!("[verify] cycle_days is {}", self.cycle_days.unwrap_or(0)), "use 1 to 3650, or leave it out")
    }
}
