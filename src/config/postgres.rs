//! `[cluster]` and `[postgres]`: which server this is, and how to reach it.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, invalid};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// The name under which this cluster's history is kept; letters, digits, `_` and `-`.
    pub name: String,
    /// One of [`LABELS`]: `production` is treated with most care, and the tripwire is on for it.
    pub label: Option<String>,
}

/// What a cluster may be labelled. Another word would switch off what `production` switches on, and nobody would notice.
pub const LABELS: [&str; 4] = ["production", "staging", "development", "test"];

impl Cluster {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if let Some(label) = self.label.as_deref().filter(|label| !LABELS.contains(label)) {
            let near = |known: &&&str| {
                strsim::damerau_levenshtein(&label.to_lowercase(), known) <= 3 || known.starts_with(&label.to_lowercase())
            };
            let meant = LABELS.iter().find(near).map(|known| format!("; did you mean {known:?}?")).unwrap_or_default();
            return invalid(
                format!("[cluster] label is {label:?}{meant}"),
                &format!("use one of {}, or leave it out", LABELS.map(|known| format!("{known:?}")).join(", ")),
            );
        }
        if self.name.is_empty() {
            return invalid("no cluster is named", "set `name` under [cluster], or pass --cluster NAME");
        }
        if !is_cluster_name(&self.name) {
            return invalid(
                format!("the cluster name {:?} cannot be used", self.name),
                "use 1 to 63 letters, digits, '_' or '-', beginning with a letter or digit",
            );
        }
        Ok(())
    }
}

/// Cluster names become parts of object keys.
pub fn is_cluster_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Postgres {
    /// Host name, or directory of the socket.
    pub host: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub dbname: Option<String>,
    /// A file with the password and nothing else.
    pub password_file: Option<PathBuf>,
    /// A program and its arguments; the first line that it prints is the password.
    pub password_command: Option<Vec<String>>,
    /// `disable`, `prefer`, or `require` (also called `verify-full`); on another host `require` when absent.
    pub sslmode: Option<String>,
    pub ca_file: Option<PathBuf>,
    /// Where this host sees the data directory; the server's own answer when absent.
    pub data_directory: Option<PathBuf>,
}

impl Postgres {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.password_file.is_some() && self.password_command.is_some() {
            return invalid("both password_file and password_command are set", "keep one of them under [postgres]");
        }
        if self.password_command.as_ref().is_some_and(Vec::is_empty) {
            return invalid(
                "password_command names no program",
                "write it as a list of words, like [\"pass\", \"show\", \"pg\"]",
            );
        }
        Ok(())
    }
}
