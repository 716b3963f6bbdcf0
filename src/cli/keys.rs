//! From configuration and environment to the keys of a repository.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use zeroize::Zeroizing;

use super::output;
use crate::child;
use crate::config::{Config, ConfigError, Encryption};
use crate::repo::seal::keys::Keys;
use crate::repo::seal::text;

/// Holds the passphrase itself; for containers, whose secrets are environment variables.
pub const PASSPHRASE_VARIABLE: &str = "LASTGOOD_PASSPHRASE";

/// What the keys are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Everything: a writer's key file gives way to a passphrase or an identity.
    Read,
    /// Documents and writing: a writer's key file is enough, and costs nothing.
    Write,
    /// As [`Need::Read`], and a key file that is not there yet is none.
    Init,
}

pub fn keys(config: &Config, need: Need) -> anyhow::Result<Keys> {
    let encryption = &config.encryption;
    let others = encryption.passphrase_file.is_some()
        || encryption.identity_file.is_some()
        || !encryption.passphrase_command.is_empty()
        || std::env::var_os(PASSPHRASE_VARIABLE).is_some();
    let file = match &encryption.key_file {
        // WAL is archived slowly rather than not at all; `check` says that the file is missing.
        Some(path) if (need == Need::Init || others) && is_missing(path) => None,
        Some(path) => Some((path.display().to_string(), Arc::new(read_key_file(path)?))),
        None => None,
    };
    let identities = match &encryption.identity_file {
        Some(path) => read_identities(path)?,
        None => Vec::new(),
    };
    // A passphrase command may ask a person or a far service: not for what a key file does.
    let enough = need == Need::Write && file.is_some();
    let passphrase = if enough { None } else { passphrase(encryption)? };
    Ok(Keys { file, identities, passphrase, pinned: encryption.key_id.clone(), only_write: need == Need::Write })
}

fn is_missing(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn invalid(what: String, mend: &str) -> anyhow::Error {
    ConfigError::Invalid { what, mend: mend.into() }.into()
}

/// Reads a file with a secret; its content goes into no error.
pub fn read_secret(path: &Path, what: &str) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    text.map_err(|error| {
        let mend = "see [encryption] in the configuration; the file must be readable by this user";
        invalid(format!("{what} {} cannot be read: {error}", path.display()), mend)
    })
}

fn read_key_file(path: &Path) -> anyhow::Result<crate::repo::seal::Seal> {
    let text = read_secret(path, "key_file")?;
    text::read(&text).map_err(|error| {
        let mend = "compare that line with the paper or the file it came from";
        invalid(format!("key_file {} is no key: {error}", path.display()), mend)
    })
}

fn read_identities(path: &Path) -> anyhow::Result<Vec<age::x25519::Identity>> {
    let text = read_secret(path, "identity_file")?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let identities: Result<Vec<_>, _> = lines.map(|line| line.parse::<age::x25519::Identity>()).collect();
    match identities {
        Ok(identities) if !identities.is_empty() => Ok(identities),
        _ => Err(invalid(
            format!("identity_file {} holds no age identity", path.display()),
            "it should hold a line AGE-SECRET-KEY-1…, as age-keygen writes it",
        )),
    }
}

/// The configured passphrase: from the environment, a command, or a file, in this order.
fn passphrase(encryption: &Encryption) -> anyhow::Result<Option<Zeroizing<String>>> {
    if let Ok(text) = std::env::var(PASSPHRASE_VARIABLE).map(Zeroizing::new)
        && !text.is_empty()
    {
        return Ok(Some(text));
    }
    if let Some((program, rest)) = encryption.passphrase_command.split_first() {
        let failed = |why: String| invalid(format!("passphrase_command {program} {why}"), "run it by hand as this user");
        let mut command = Command::new(program);
        command.args(rest).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = child::without_secrets(&mut command).output();
        let output = output.map_err(|error| failed(format!("cannot be run: {error}")))?;
        let text = Zeroizing::new(output.stdout);
        if !output.status.success() {
            return Err(failed(format!("ended with {}", output.status)));
        }
        let text = std::str::from_utf8(&text).map_err(|_| failed("printed what is no text".into()))?;
        return trimmed(text).ok_or_else(|| failed("printed nothing".into())).map(Some);
    }
    let Some(path) = &encryption.passphrase_file else { return Ok(None) };
    let text = read_secret(path, "passphrase_file")?;
    let empty = || invalid(format!("passphrase_file {} is empty", path.display()), "write the passphrase into it");
    trimmed(&text).ok_or_else(empty).map(Some)
}

/// Editors and `echo` end a file with a newline, which is no part of a passphrase.
pub fn trimmed(text: &str) -> Option<Zeroizing<String>> {
    let text = text.trim_end_matches(['\n', '\r']);
    (!text.is_empty()).then(|| Zeroizing::new(text.to_string()))
}

/// Asks at the terminal, twice, without showing what is typed.
pub fn ask_new_passphrase() -> anyhow::Result<Zeroizing<String>> {
    let first = ask("New passphrase: ")?;
    let second = ask("The same again: ")?;
    anyhow::ensure!(first == second, "the two passphrases differ; nothing was changed");
    Ok(first)
}

fn ask(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    use rustix::termios::{LocalModes, OptionalActions, isatty, tcgetattr, tcsetattr};
    use std::io::BufRead;
    let stdin = std::io::stdin();
    if !isatty(&stdin) {
        return Err(invalid("there is no terminal to ask for a passphrase".into(), "pass --passphrase-file or --recipient"));
    }
    let before = tcgetattr(&stdin).context("ask the terminal for its modes")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent).context("turn off the terminal's echo")?;
    output::ask(prompt);
    let mut line = Zeroizing::new(String::new());
    let read = stdin.lock().read_line(&mut line);
    let _ = tcsetattr(&stdin, OptionalActions::Now, &before);
    output::complain("");
    read.context("read the passphrase")?;
    trimmed(&line).context("an empty passphrase protects nothing; nothing was changed")
}
