//! What the server says: role, settings, archiver, data directory, clock.

use std::path::{Path, PathBuf};

use super::command::{self, Verdict};
use super::{Findings, clock_skew};
use crate::clock;
use crate::config::Config;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::{self, DataDirectoryError, Scope};
use crate::postgres::page::PAGE_BYTES;
use crate::postgres::session::{Facts, Session};
use crate::upkeep::apart::apart;
use crate::upkeep::exposure;

/// What [`server`] learned and the later steps need.
pub struct Server {
    pub session: Session,
    pub facts: Facts,
    /// Where this host sees its WAL.
    pub pg_wal: PathBuf,
}

/// Role, versions, settings, data directory.
pub async fn server(findings: &mut Findings, config: &Config, session: Session) -> Option<Server> {
    let facts = match session.facts().await {
        Ok(facts) => facts,
        Err(error) => {
            findings.fail("role", error.to_string(), "see the message");
            return None;
        }
    };
    findings.ok("server", format!("PostgreSQL {} at {}, system {}", facts.major(), session.target(), facts.system_identifier));
    match session.missing_grants().await {
        Ok(missing) if missing.is_empty() => findings.ok("role", format!("{} may start and stop backups", facts.role)),
        Ok(missing) => {
            let grants: Vec<String> = missing.iter().map(|grant| format!("{grant} TO {};", facts.role)).collect();
            findings.fail("role", format!("{} may not call {} functions", facts.role, missing.len()), grants.join(" "));
        }
        Err(error) => findings.fail("role", error.to_string(), "see the message"),
    }
    closed_databases(findings, &session, &facts.role).await;
    exposure::server(findings, &session).await;
    let dir = config.postgres.data_directory.clone().unwrap_or_else(|| facts.data_directory.clone());
    if !facts.in_recovery && dir.join(data_directory::RESTORED_MARK).exists() {
        let mend =
            format!("`lastgood release --data-directory {0}` when it takes over, or `lastgood undo --into {0}`", dir.display());
        findings.fail("registration", "this cluster was restored and is not released: it does not archive", mend);
    } else {
        settings(findings, &facts);
    }
    archiver(findings, &session).await;
    data_directory(findings, config, &facts);
    clock_skew(findings, "clock", "the server's", facts.clock_skew_s);
    Some(Server { session, facts, pg_wal: dir.join("pg_wal") })
}

/// Databases of which a snapshot learns no names, so that the tripwire does not see what happens in them.
async fn closed_databases(findings: &mut Findings, session: &Session, role: &str) {
    match session.closed_databases().await {
        Ok(closed) if closed.is_empty() => {}
        Ok(closed) => {
            let grants: Vec<String> =
                closed.iter().map(|database| format!("GRANT CONNECT ON DATABASE {database} TO {role};")).collect();
            let what =
                format!("{role} may not connect to {}: the tripwire and `timeline` know no names in there", closed.join(", "));
            findings.fail("role", what, grants.join(" "));
        }
        Err(error) => findings.warn("role", error.to_string(), "see the message"),
    }
}

/// What the server itself says of archiving; asked also where no segment is switched.
async fn archiver(findings: &mut Findings, session: &Session) {
    match session.failing_archive().await {
        Ok(None) => {}
        Ok(Some(failing)) => findings.fail(
            "archiving",
            format!("archive_command fails since {} ({})", clock::seconds(failing.since), failing.segment),
            "the server's log has what archive-push says; WAL piles up in pg_wal until then",
        ),
        Err(error) => findings.warn("archiving", error.to_string(), "see the message"),
    }
}

fn settings(findings: &mut Findings, facts: &Facts) {
    if facts.block_bytes as usize != PAGE_BYTES {
        findings.fail(
            "settings",
            format!("block_size is {}", facts.block_bytes),
            "lastgood reads clusters with blocks of 8192 bytes only",
        );
    }
    if facts.wal_level == "minimal" {
        findings.fail("settings", "wal_level is minimal", "ALTER SYSTEM SET wal_level = 'replica', then restart the server");
    } else {
        findings.ok("settings", format!("wal_level is {}", facts.wal_level));
    }
    match facts.archive_mode.as_str() {
        "off" if facts.pending_restart.iter().any(|name| name == "archive_mode") => {
            findings.fail("settings", "archive_mode is set, but off until the server is restarted", "restart the server");
        }
        "off" => {
            findings.fail("settings", "archive_mode is off", "ALTER SYSTEM SET archive_mode = 'on', then restart the server")
        }
        "always" => findings.warn(
            "settings",
            "archive_mode is always: standbys archive too",
            "set it to on, or set [archive] allow_archive_mode_always when that is meant",
        ),
        _ => findings.ok("settings", "archive_mode is on"),
    }
    if facts.archive_mode == "off" {
        // The server does not show the command then.
    } else if !facts.archive_library.is_empty() {
        let what = format!("archive_library is {:?}, so archive_command is not called", facts.archive_library);
        findings.fail("settings", what, "`lastgood init --apply` clears it and sets archive_command");
    } else if facts.archive_command.is_empty() || facts.archive_command == "(disabled)" {
        findings.fail("settings", "archive_command is empty", "`lastgood init` prints the one to set");
    } else {
        archive_command(findings, &facts.archive_command);
    }
    if facts.archive_timeout_s == 0 {
        let mend = "set archive_timeout = '1min', so that at most a minute of commits is only on this host";
        findings.warn("settings", "archive_timeout is off: a quiet server may keep its last commits unarchived for hours", mend);
    } else {
        findings.ok("settings", format!("archive_timeout is {} s", facts.archive_timeout_s));
    }
    if !facts.data_checksums {
        let mend = "stop the server once and run pg_checksums --enable";
        findings.warn("settings", "data checksums are off: damaged pages cannot be told from good ones", mend);
    }
}

fn archive_command(findings: &mut Findings, line: &str) {
    let mend = "`lastgood init` prints the one to set";
    match command::judge(line) {
        Verdict::Told => findings.ok("settings", "archive_command calls archive-push, and tells the server when it fails"),
        Verdict::Hidden(why) => {
            let what = format!("archive_command hides failures of archive-push: {why}: {line}");
            let mend = format!("{mend}, with nothing after it; then take a new snapshot: segments may be missing already");
            findings.fail("settings", what, mend);
        }
        Verdict::Foreign => {
            let mend = format!("{mend}; WAL that goes elsewhere is missing here");
            findings.fail("settings", format!("archive_command does not call lastgood: {line}"), mend);
        }
        Verdict::Unknown(why) => {
            let mend = format!("see that it exits with archive-push's own exit code; {mend}");
            findings.warn(
                "settings",
                format!("whether archive_command tells the server of failures is unknown: {why}: {line}"),
                mend,
            );
        }
    }
}

fn data_directory(findings: &mut Findings, config: &Config, facts: &Facts) {
    let dir: PathBuf = config.postgres.data_directory.clone().unwrap_or_else(|| facts.data_directory.clone());
    match ControlFile::read_bytes_stable(&dir) {
        Ok((control, _)) if control.system_identifier == facts.system_identifier => {
            findings.ok("data directory", format!("{} is the server's, and can be read", dir.display()));
        }
        Ok((control, _)) => findings.fail(
            "data directory",
            format!("{} belongs to system {}, not to this server", dir.display(), control.system_identifier),
            "set [postgres] data_directory to where this host sees the server's",
        ),
        Err(error) => findings.fail("data directory", error.to_string(), "run as the server's user on the database host"),
    }
    match data_directory::tablespaces(&dir) {
        Ok(tablespaces) => {
            if let Err(error) = mounted(&dir, &tablespaces) {
                findings.fail("data directory", error.to_string(), "backups fail until then");
            }
        }
        Err(error) => findings.fail("data directory", error.to_string(), "correct the link in pg_tblspc"),
    }
    if let Err(error) = data_directory::check_apart(&dir, &apart(config)) {
        findings.fail("data directory", error.to_string(), "backups are refused until then");
    }
}

/// Whether each tablespace holds this cluster's directory.
fn mounted(dir: &Path, tablespaces: &[(String, PathBuf)]) -> Result<(), DataDirectoryError> {
    if tablespaces.is_empty() {
        return Ok(());
    }
    let scope = Scope::of(dir)?;
    tablespaces.iter().try_for_each(|(oid, _)| data_directory::has_own(&dir.join("pg_tblspc").join(oid), &scope.own).map(drop))
}
