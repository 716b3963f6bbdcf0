//! Where PostgreSQL's programs of a major version are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::child;

#[derive(Debug, thiserror::Error)]
#[error(
    "the programs of PostgreSQL {major} are not on this host (looked in {}); install them, or name their directory under [drill.programs]: {major} = \"/path/bin\"",
    looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub struct NoPrograms {
    pub major: u32,
    pub looked: Vec<PathBuf>,
}

/// The directory with the programs of `major`: the configured one, or where Debian, the RPMs of PostgreSQL, and Alpine have them.
pub fn find(major: u32, configured: Option<&Path>) -> Result<PathBuf, NoPrograms> {
    let looked = match configured {
        Some(path) => vec![path.to_path_buf()],
        None => ["/usr/lib/postgresql/@/bin", "/usr/pgsql-@/bin", "/usr/libexec/postgresql@"]
            .iter()
            .map(|pattern| PathBuf::from(pattern.replace('@', &major.to_string())))
            .collect(),
    };
    let found = looked.iter().find(|path| version(path).is_some_and(|version| major_of(&version) == Some(major))).cloned();
    found.ok_or(NoPrograms { major, looked })
}

/// What `postgres --version` says, such as `15.14 (Debian 15.14-0+deb12u1)`.
pub fn version(bin: &Path) -> Option<String> {
    let mut command = Command::new(bin.join("postgres"));
    let output = child::bare(command.arg("--version").stdin(Stdio::null())).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
    let version = text.rsplit_once("(PostgreSQL) ").map(|(_, version)| version.to_string())?;
    output.status.success().then_some(version)
}

fn major_of(version: &str) -> Option<u32> {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_read_from_every_kind_of_version() {
        for (text, major) in [("15.14 (Debian 15.14-0+deb12u1)", 15), ("18beta1", 18), ("13.22", 13)] {
            assert_eq!(major_of(text), Some(major), "{text}");
        }
        assert_eq!(major_of("devel"), None);
    }
}
