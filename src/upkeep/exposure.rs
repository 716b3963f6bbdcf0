//! What others could read: connections without TLS, and files with secrets.
//!
//! Whatever was made insecure on purpose stays red here for as long as it is so, because nobody remembers a setting.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::check::Findings;
use crate::config::Config;
use crate::postgres::session::{Session, Transport};

/// Rights of group and others.
const OTHERS: u32 = 0o077;
/// Of these, to change what is there.
const OTHERS_WRITE: u32 = 0o022;

/// How the connection to the server travels.
pub async fn server(findings: &mut Findings, session: &Session) {
    match session.transport().await {
        Ok(Transport::Socket) => findings.ok("connection", "over a socket of this host"),
        Ok(Transport::Tls(used)) => {
            findings.ok("connection", format!("encrypted ({used}), and the server's certificate is verified"))
        }
        Ok(Transport::Plain { loopback: true }) => findings.ok("connection", "not encrypted, and does not leave this host"),
        Ok(Transport::Plain { loopback: false }) => findings.fail(
            "connection",
            format!("INSECURE: the connection to {} is not encrypted", session.target()),
            "set ssl = on at the server, and take sslmode out of [postgres] (or set it to \"require\")",
        ),
        Err(error) => findings.warn("connection", error.to_string(), "see the message"),
    }
}

/// How the connection to the store travels, by the settings.
pub fn store(findings: &mut Findings, config: &Config) {
    if !config.repository.url.starts_with("s3://") {
        return;
    }
    let s3 = &config.repository.s3;
    match (s3.plain_host(), s3.endpoint.as_deref()) {
        (Some(host), _) => findings.fail(
            "store",
            format!("INSECURE: {host} is reached without TLS; everybody on the way can read and change backups"),
            "use an https:// endpoint (ca_file for an authority of your own), and remove insecure from [repository.s3]",
        ),
        (None, _) if s3.insecure => findings.fail(
            "store",
            "INSECURE: insecure = true is set, and this endpoint does not need it",
            "remove insecure from [repository.s3], so that a later change of the endpoint cannot lose TLS unseen",
        ),
        (None, Some(endpoint)) if !endpoint.to_ascii_lowercase().starts_with("https://") => {
            findings.ok("store", "not encrypted, and does not leave this host");
        }
        _ => findings.ok("store", "reached over TLS, and its certificate is verified"),
    }
}

/// Files with secrets that are open to more than their owner. `default_credentials` is where the AWS chain would look.
pub fn secret_files(findings: &mut Findings, config: &Config, default_credentials: Option<PathBuf>) {
    let s3 = &config.repository.s3;
    let is_s3 = config.repository.url.starts_with("s3://");
    let credentials = s3.credentials_file.clone().or(default_credentials).filter(|_| is_s3);
    let encryption = &config.encryption;
    let files = [
        ("password_file", config.postgres.password_file.clone()),
        ("credentials_file", credentials),
        ("passphrase_file", encryption.passphrase_file.clone()),
        ("identity_file", encryption.identity_file.clone()),
        ("key_file", encryption.key_file.clone()),
    ];
    for (key, path) in files {
        if let Some(path) = path {
            secret_file(findings, key, &path);
        }
    }
}

/// The spool: what lies there counts as archived, or is handed to a server in recovery. Whoever else may write there decides about both.
pub fn spool(findings: &mut Findings, config: &Config) {
    let root = &config.archive.spool;
    let below = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let mut is_closed = true;
    for directory in [root.clone()].into_iter().chain(below) {
        let Ok(metadata) = std::fs::metadata(&directory) else { continue };
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & OTHERS_WRITE != 0 {
            is_closed = false;
            let what = format!(
                "the spool {} has mode {mode:04o}: others than its owner can put WAL and acknowledgements there",
                directory.display()
            );
            findings.warn("spool", what, format!("chmod go-w {}, and see whose the files in it are", directory.display()));
        }
    }
    if is_closed && root.exists() {
        findings.ok("spool", format!("{} can be written by its owner only", root.display()));
    }
}

fn secret_file(findings: &mut Findings, key: &str, path: &Path) {
    // One that cannot be read was complained about by whoever needed it.
    let Ok(metadata) = std::fs::metadata(path) else { return };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS == 0 {
        findings.ok("secrets", format!("{key} {} is its owner's only", path.display()));
    } else {
        let what = format!("{key} {} has mode {mode:04o}: others than its owner can get at the secret", path.display());
        findings.warn(
            "secrets",
            what,
            format!("chmod 0600 {}, and change the secret if others may have read it", path.display()),
        );
    }
}
