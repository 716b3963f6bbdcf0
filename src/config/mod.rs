//! The configuration: one TOML file, every key checked, errors with the line and the fix.
//!
//! Environment variables and flags override single values; `cli` applies them, because the library never reads the
//! environment. No secret stands in a command line; secrets come from files or from the AWS credential chain.
//!
//! A section is a struct in a file of its own, or with its neighbours, and checks itself.

mod drill;
mod encryption;
mod endpoint;
mod mirror;
mod postgres;
mod repository;
mod retention;
mod tripwire;
mod verify;
mod work;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use drill::{Answer, Drill, Question};
pub use encryption::Encryption;
pub use endpoint::is_loopback;
pub use mirror::Mirror;
pub use postgres::{Cluster, Postgres, is_cluster_name};
pub use repository::{LEASE_S, ObjectLockMode, Repository, S3, ServerSideEncryption};
pub use retention::Retention;
pub use tripwire::{Alert, Tripwire};
pub use verify::Verify;
pub use work::{Archive, ReadBack, Restore, Snapshot};

/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/lastgood.toml";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}, line {line}, column {column}: {message}{}", hint.as_ref().map(|h| format!("; {h}")).unwrap_or_default())]
    Parse { path: PathBuf, line: usize, column: usize, message: String, hint: Option<String> },
    #[error("{what}; {mend}")]
    Invalid { what: String, mend: String },
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub repository: Repository,
    pub mirror: Vec<Mirror>,
    pub cluster: Cluster,
    pub postgres: Postgres,
    pub snapshot: Snapshot,
    pub archive: Archive,
    pub restore: Restore,
    pub encryption: Encryption,
    pub retention: Retention,
    pub verify: Verify,
    pub tripwire: Tripwire,
    pub alert: Alert,
    /// Absent: drills can be run, and nobody is waiting for them.
    pub drill: Option<Drill>,
    /// Where the file came from; shown in the settings that `init` prints.
    #[serde(skip)]
    pub path: Option<PathBuf>,
}

/// What is wrong, and what mends it.
fn invalid(what: impl Into<String>, mend: &str) -> Result<(), ConfigError> {
    Err(ConfigError::Invalid { what: what.into(), mend: mend.into() })
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let mut config = Self::parse(path, &text)?;
        config.path = Some(path.to_path_buf());
        Ok(config)
    }

    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|error| parse_error(path, text, &error))
    }

    /// Checks what only the whole can tell, after environment and flags were applied.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.repository.check()?;
        mirror::check(&self.repository.url, &self.mirror)?;
        self.cluster.check()?;
        self.postgres.check()?;
        self.snapshot.check()?;
        self.archive.check()?;
        self.restore.check()?;
        self.retention.check()?;
        self.verify.check()?;
        self.encryption.check()?;
        self.tripwire.check()?;
        self.alert.check()?;
        self.drill.as_ref().map_or(Ok(()), Drill::check)
    }
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text[..offset];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let message = in_words(error.message());
    ConfigError::Parse { path: path.into(), line, column, hint: nearest_name(&message), message }
}

/// The names of Rust's types, as people say them.
fn in_words(message: &str) -> String {
    let of_type = |name: &&str| message.ends_with(&format!("expected {name}"));
    match ["usize", "u64", "u32", "u16", "u8"].into_iter().find(of_type) {
        Some(name) => message.trim_end_matches(name).to_string() + "a whole number, 0 or more",
        None => message.into(),
    }
}

/// For "unknown field `x`, expected one of `a`, `b`": the name that `x` most resembles.
fn nearest_name(message: &str) -> Option<String> {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (unknown, known) = message.starts_with("unknown").then(|| quoted.split_first()).flatten()?;
    let (distance, name) = known.iter().map(|name| (strsim::damerau_levenshtein(unknown, name), name)).min()?;
    (distance <= 3.max(unknown.len() / 3)).then(|| format!("did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(Path::new("lastgood.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn unknown_keys_name_the_line_and_the_nearest_name() {
        let said = error("[repository]\nurl = \"/backup\"\n\n[snapshot]\ncompresion_level = 3\n");
        assert!(said.contains("line 5") && said.contains("did you mean `compression_level`?"), "{said}");
    }

    #[test]
    fn a_label_is_one_of_a_few_so_that_a_slip_of_the_pen_switches_nothing_off() {
        let labelled = |label: &str| {
            let text = format!("[repository]\nurl = \"/backup\"\n[cluster]\nname = \"shop\"\nlabel = \"{label}\"\n");
            Config::parse(Path::new("lastgood.toml"), &text).unwrap().check().map_err(|error| error.to_string())
        };
        for label in ["production", "staging", "development", "test"] {
            labelled(label).unwrap();
        }
        for near in ["Production", "PRODUCTION", "prod", "produktion", "production "] {
            let said = labelled(near).unwrap_err();
            assert!(said.contains("did you mean \"production\"?") && said.contains("use one of"), "{said}");
        }
        assert!(!labelled("blue").unwrap_err().contains("did you mean"));
    }

    #[test]
    fn wrong_types_name_the_line() {
        let said = error("[postgres]\nport = \"many\"\n");
        assert!(
            said.contains("line 2") && said.contains("invalid type") && said.contains("expected a whole number, 0 or more"),
            "{said}"
        );
        let said = error("[archive]\nfetch_ahead = -1\n");
        assert!(said.contains("`-1`, expected a whole number, 0 or more"), "{said}");
    }

    #[test]
    fn what_the_whole_needs_is_checked() {
        let mut config = Config::default();
        assert!(config.check().unwrap_err().to_string().contains("no repository"));
        config.repository.url = "/backup".into();
        assert!(config.check().unwrap_err().to_string().contains("no cluster"));
        config.cluster.name = "../x".into();
        assert!(config.check().unwrap_err().to_string().contains("cannot be used"));
        config.cluster.name = "shop".into();
        config.check().unwrap();
        config.snapshot.compression_level = 40;
        assert!(config.check().is_err());
    }
}
