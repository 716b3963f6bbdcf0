//! What the programs that we start get to know.
//!
//! A child inherits the environment, and every process of its user can read it in `/proc`. Ours may hold the passphrase of the
//! repository, the keys of the store and the password of the database, which are nobody's business: a mail program's no more than that
//! of the server of a drill, which runs whatever code the restored database brings. This program itself, started as a child, needs them and
//! is not started by these.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Of the AWS chain, what is no secret and leads to none by itself.
const HARMLESS: [&str; 5] = ["AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE"];
/// All that a server of PostgreSQL may need of ours: where its programs and libraries are.
const OF_SERVERS: [&str; 5] = ["PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "TZ"];
/// What our own process below such a server needs beside secrets: the way to the store.
const OF_STORES: [&str; 9] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// A command whose environment can be taken away: that of `std`, and that of `tokio`.
pub trait Child {
    fn remove(&mut self, name: &OsStr);
}

impl Child for std::process::Command {
    fn remove(&mut self, name: &OsStr) {
        self.env_remove(name);
    }
}

impl Child for tokio::process::Command {
    fn remove(&mut self, name: &OsStr) {
        self.env_remove(name);
    }
}

/// Whether a variable is for this program and the libraries in it alone.
fn is_ours(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.starts_with(b"LASTGOOD_")
        || bytes == b"PGPASSWORD"
        || (bytes.starts_with(b"AWS_") && HARMLESS.iter().all(|harmless| harmless.as_bytes() != bytes))
}

/// Where programs without a directory are looked for.
pub fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

fn names() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name)
}

/// For programs that people configure: everything but what is ours.
pub fn without_secrets<C: Child>(command: &mut C) -> &mut C {
    names().filter(|name| is_ours(name)).for_each(|name| command.remove(&name));
    command
}

/// For PostgreSQL's programs: what they need, and nothing else.
pub fn bare<C: Child>(command: &mut C) -> &mut C {
    let is_needed = |name: &OsString| OF_SERVERS.iter().any(|needed| needed.as_bytes() == name.as_bytes());
    names().filter(|name| !is_needed(name)).for_each(|name| command.remove(&name));
    command
}

/// What this program needs of its environment when one of those starts it, as lines for a shell; `None` when it needs nothing.
pub fn own_environment() -> Option<Vec<u8>> {
    let is_for_stores = |name: &OsStr| OF_STORES.iter().any(|known| known.as_bytes() == name.as_bytes());
    let is_needed = |name: &OsStr| is_ours(name) || is_for_stores(name) || name.as_bytes().starts_with(b"AWS_");
    let mut text = Vec::new();
    for (name, value) in std::env::vars_os().filter(|(name, _)| is_needed(name)) {
        // A shell cannot name any other.
        if !name.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') {
            continue;
        }
        text.extend(b"export ");
        text.extend(name.as_bytes());
        text.extend(b"='");
        for byte in value.as_bytes() {
            match byte {
                b'\'' => text.extend(b"'\\''"),
                byte => text.push(*byte),
            }
        }
        text.extend(b"'\n");
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_ours_alone() {
        for secret in ["LASTGOOD_PASSPHRASE", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "PGPASSWORD"] {
            assert!(is_ours(OsStr::new(secret)), "{secret}");
        }
        for other in ["PATH", "AWS_REGION", "MAILTO", "PGHOST", "XLASTGOOD_"] {
            assert!(!is_ours(OsStr::new(other)), "{other}");
        }
    }
}
