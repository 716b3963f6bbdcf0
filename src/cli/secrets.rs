//! Where secrets come from, and what keeps them from getting elsewhere.
//!
//! No flag takes a secret, because every user of a host can read the command lines of all processes. A password comes from a
//! file, a command or the environment; S3 credentials come from the AWS chain, whose values the SDK wipes and never prints.
//!
//! # Core dumps
//! [`protect`] sets `RLIMIT_CORE` to 1, soft and hard. A core of one byte is none, and 1 is what the kernel itself looks for
//! when `core_pattern` is a pipe (systemd-coredump, apport), where a limit of 0 is not asked: `core(5)`, and `do_coredump` in
//! Linux's `fs/coredump.c`. `PR_SET_DUMPABLE` would do the same, and would also hide our process in `/proc` mounted with
//! `hidepid=2` from our own other processes, which then took the leases of living ones for leases of the dead.
//!
//! # Files
//! Everything that is made is 0600 or 0700 by its own mode; the umask is the second line behind it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncReadExt;

use super::Command;
use crate::child;
use crate::config::{self, ConfigError};

/// A command that asks a person at a terminal must not hang a nightly job.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer answers are no passwords.
const ANSWER_BYTES: u64 = 64 << 10;

/// Before anything secret is read.
pub fn protect(command: &Command) {
    // Lowering limits cannot fail; where a container forbids even that, the work is worth more.
    let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) });
    match command {
        // What these write is for others to read, or belongs to a server of its own.
        Command::Demo(_) | Command::Man(_) | Command::Completions(_) | Command::Schedule(_) => {}
        // A cluster that was open to its group comes back so.
        Command::Restore(_) => drop(rustix::process::umask(Mode::from_raw_mode(0o027))),
        _ => drop(rustix::process::umask(Mode::from_raw_mode(0o077))),
    }
}

/// The configured password: from the file or the command, else from `PGPASSWORD`.
pub async fn password(postgres: &config::Postgres) -> anyhow::Result<Option<SecretString>> {
    if let Some(path) = &postgres.password_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("read password_file {}", path.display()))?;
        let text = SecretString::from(text);
        return Ok(Some(text.expose_secret().trim_end_matches(['\n', '\r']).into()));
    }
    match &postgres.password_command {
        Some(words) => Ok(Some(answer("password_command", words).await?)),
        None => Ok(std::env::var("PGPASSWORD").ok().map(SecretString::from)),
    }
}

/// The first line that a program prints. Neither its output nor its messages are ever shown: they may hold the secret.
async fn answer(key: &'static str, words: &[String]) -> anyhow::Result<SecretString> {
    let failed = |what: String| ConfigError::Invalid {
        what: format!("{key} {:?} {what}", words.first().map_or("", String::as_str)),
        mend: "run it by hand, as the user and in the environment of this program, to see why".into(),
    };
    let Some((program, arguments)) = words.split_first() else { bail!(failed("names no program".into())) };
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child =
        child::without_secrets(&mut command).spawn().map_err(|error| failed(format!("cannot be started: {error}")))?;
    let Some(out) = child.stdout.take() else { bail!(failed("has no output".into())) };
    let ran = async {
        let mut text = String::new();
        let read = out.take(ANSWER_BYTES).read_to_string(&mut text).await;
        let text = SecretString::from(text);
        // The reason of a failed read could quote what was read.
        read.map_err(|error| failed(format!("printed no text ({})", error.kind())))?;
        let status = child.wait().await.map_err(|error| failed(format!("cannot be waited for: {error}")))?;
        if status.success() { Ok(text) } else { Err(failed(format!("failed ({status})"))) }
    };
    let ran = tokio::time::timeout(COMMAND_TIMEOUT, ran).await;
    let text = ran.map_err(|_| failed(format!("did not end within {} s", COMMAND_TIMEOUT.as_secs())))??;
    match text.expose_secret().lines().next() {
        Some(line) if !line.is_empty() => Ok(line.into()),
        _ => bail!(failed("printed nothing in its first line".into())),
    }
}
