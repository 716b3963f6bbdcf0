//! `[drill]`: where and how restores are tried, and what the restored server is asked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, invalid};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drill {
    /// Where drills make a directory for each run.
    pub directory: PathBuf,
    /// `check` fails when the last drill that passed is older.
    pub max_age_days: u64,
    /// Seconds for reading pages, and as many again for amcheck; what is not reached is left for another drill.
    pub check_budget_s: u64,
    /// A recovery that shows no progress for so long has failed.
    pub stall_s: u64,
    pub shared_buffers_mib: u64,
    /// Ceiling for what a drill reads from the repository.
    pub bytes_per_s: Option<u64>,
    /// A superuser of the restored server; found out when absent.
    pub role: Option<String>,
    /// Libraries that the restored server must load; none unless named here, because they may act.
    pub preload: Vec<String>,
    /// Directories with PostgreSQL's programs, by major version.
    pub programs: BTreeMap<String, PathBuf>,
    pub question: Vec<Question>,
}

/// Something that must be so in a restored database.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// For people; the SQL itself when absent.
    pub name: Option<String>,
    /// The first column of its first row is the answer.
    pub sql: String,
    pub database: Option<String>,
    /// The very answer.
    pub expect: Option<Answer>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub timeout_s: Option<u64>,
}

/// An answer as TOML has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

impl Answer {
    /// As PostgreSQL prints it.
    pub fn text(&self) -> String {
        match self {
            Answer::Boolean(true) => "t".into(),
            Answer::Boolean(false) => "f".into(),
            Answer::Integer(number) => number.to_string(),
            Answer::Number(number) => number.to_string(),
            Answer::Text(text) => text.clone(),
        }
    }
}

impl Question {
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.sql)
    }
}

impl Default for Drill {
    fn default() -> Self {
        Drill {
            directory: PathBuf::from("/var/tmp"),
            max_age_days: 8,
            check_budget_s: 600,
            stall_s: 900,
            shared_buffers_mib: 128,
            bytes_per_s: None,
            role: None,
            preload: Vec::new(),
            programs: BTreeMap::new(),
            question: Vec::new(),
        }
    }
}

impl Drill {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !self.directory.is_absolute() {
            return invalid(format!("[drill] directory {:?} is no absolute path", self.directory), "name the whole path");
        }
        for (name, value) in
            [("check_budget_s", self.check_budget_s), ("stall_s", self.stall_s), ("max_age_days", self.max_age_days)]
        {
            if value == 0 {
                return invalid(format!("[drill] {name} is 0"), "use 1 or more, or leave it out");
            }
        }
        if self.bytes_per_s == Some(0) {
            return invalid("[drill] bytes_per_s is 0", "use 1 or more, or leave it out for no ceiling");
        }
        if !(1..=1 << 20).contains(&self.shared_buffers_mib) {
            return invalid(format!("[drill] shared_buffers_mib is {}", self.shared_buffers_mib), "use 1 or more");
        }
        if let Some(major) = self.programs.keys().find(|major| major.parse::<u32>().is_err()) {
            return invalid(
                format!("[drill.programs] names {major:?}"),
                "use a major version, like 15 = \"/usr/lib/postgresql/15/bin\"",
            );
        }
        self.question.iter().try_for_each(|question| {
            if question.sql.trim().is_empty() {
                return invalid("a [[drill.question]] has no sql", "write the SQL whose first value is the answer");
            }
            if question.expect.is_none() && question.min.is_none() && question.max.is_none() {
                let what = format!("the [[drill.question]] {:?} expects nothing, so it could never fail", question.label());
                return invalid(what, "add expect, min or max");
            }
            if question.expect.is_some() && (question.min.is_some() || question.max.is_some()) {
                return invalid(
                    format!("the [[drill.question]] {:?} has expect and a range", question.label()),
                    "keep one of them",
                );
            }
            Ok(())
        })
    }
}
