//! Proves the chain from the server to the repository before it is needed.
//!
//! Each step gives findings: what is so, and the mend when it should not be. Silence is never green: no snapshot, an old one, or an
//! archive that does not move are failures (rule 60).

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::clock;
use crate::config::Config;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory;
use crate::postgres::page::PAGE_BYTES;
use crate::postgres::session::{Facts, Session};
use crate::repo::repository::{Cluster, Repository};
use crate::repo::seal::rotation;
use crate::repo::verified::Verified;
use crate::repo::{RepoError, lease};
use crate::snapshot::wait;
use crate::storage::{Created, ObjectKey, Part, Storage};

/// A host clock further from the server's or the store's makes times in messages misleading.
const CLOCK_SKEW_MAX_S: f64 = 5.0;
/// Less free room in the repository than this share of the last snapshot is worth a warning.
const ROOM_SNAPSHOTS: u64 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Warning,
    Failure,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub subject: &'static str,
    pub what: String,
    /// What to do; empty when all is well.
    pub mend: String,
}

/// Collects findings.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    pub fn ok(&mut self, subject: &'static str, what: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, subject, what: what.into(), mend: String::new() });
    }

    pub fn warn(&mut self, subject: &'static str, what: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Finding { level: Level::Warning, subject, what: what.into(), mend: mend.into() });
    }

    pub fn fail(&mut self, subject: &'static str, what: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Finding { level: Level::Failure, subject, what: what.into(), mend: mend.into() });
    }

    pub fn worst(&self) -> Level {
        self.0.iter().map(|f| f.level).max().unwrap_or(Level::Failure)
    }
}

/// What [`server`] learned and the later steps need.
pub struct Server {
    pub session: Session,
    pub facts: Facts,
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
    super::exposure::server(findings, &session).await;
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
    Some(Server { session, facts })
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
        findings.fail("settings", what, "ALTER SYSTEM RESET archive_library, then reload");
    } else if facts.archive_command.is_empty() || facts.archive_command == "(disabled)" {
        findings.fail("settings", "archive_command is empty", "`lastgood init` prints the one to set");
    } else if !facts.archive_command.contains("archive-push") {
        let what = format!("archive_command does not call lastgood: {}", facts.archive_command);
        findings.fail("settings", what, "`lastgood init` prints the one to set; WAL that goes elsewhere is missing here");
    } else {
        findings.ok("settings", "archive_command calls archive-push");
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
    if let Err(error) = data_directory::tablespaces(&dir) {
        findings.fail("data directory", error.to_string(), "correct the link in pg_tblspc");
    }
}

fn clock_skew(findings: &mut Findings, subject: &'static str, whose: &str, skew_s: f64) {
    if skew_s.abs() > CLOCK_SKEW_MAX_S {
        findings.warn(subject, format!("this host's clock is {skew_s:.0} s from {whose}"), "run a time service on both");
    } else {
        findings.ok(subject, format!("this host's clock agrees with {whose}"));
    }
}

/// Rights of the repository: write, read back, list, delete; its clock; its room.
pub async fn repository(findings: &mut Findings, storage: &dyn Storage, cluster: &Cluster) {
    let key = ObjectKey::new(format!("probe/{}", clock::random_hex(8)));
    let content = clock::random_hex(32).into_bytes();
    match storage.create(&key, content.clone().into()).await {
        Ok(Created::New) => findings.ok("repository", format!("{} can be written", storage.place())),
        Ok(Created::AlreadyThere) => {
            findings.fail("repository", "a new name was taken already", "look for another writer of probe/")
        }
        Err(error) => {
            findings.fail("repository", error.to_string(), "give this host the right to create objects");
            return;
        }
    }
    match storage.read(&key, Part::Whole).await {
        Ok(read) if read.bytes == content => findings.ok("repository", "what was written reads back the same"),
        Ok(_) => findings.fail("repository", "what was written reads back differently", "do not trust this store"),
        Err(error) => findings.fail("repository", error.to_string(), "give this host the right to read objects"),
    }
    match storage.create(&key, b"other".to_vec().into()).await {
        Ok(Created::AlreadyThere) if storage.conditional_create() => findings.ok("repository", "an object cannot be overwritten"),
        Ok(Created::AlreadyThere) => findings.warn(
            "repository",
            "the store has no conditional writes: two writers of one name in the same instant may not see each other",
            "let only one server archive under this name, or use a store that knows If-None-Match",
        ),
        Ok(Created::New) => {
            findings.fail("repository", "an object was overwritten", "set conditional_create = false for this store")
        }
        Err(error) => findings.fail("repository", error.to_string(), "see the message"),
    }
    if let Ok(Some(info)) = storage.stat(&key).await {
        clock_skew(findings, "repository", "the store's", clock::now().duration_since(info.modified).as_secs_f64());
    }
    match storage.delete(std::slice::from_ref(&key)).await {
        Ok(failed) if failed.is_empty() => findings.ok("repository", "objects can be deleted"),
        // Write-only credentials on a database host are a good habit, so this is no failure.
        _ => findings.warn(
            "repository",
            "objects cannot be deleted from here: what broken snapshots leave stays",
            "fine for a database host with write-only credentials",
        ),
    }
    room(findings, storage, cluster).await;
}

/// Which key is at hand, and whether it is the newest.
pub async fn encryption(findings: &mut Findings, config: &Config, repository: &Repository) -> Result<(), RepoError> {
    let Some(seal) = repository.vault().seal() else {
        findings.ok("encryption", "the repository is not encrypted by lastgood");
        return Ok(());
    };
    let what = format!("sealed; key id {}, {} key of epoch {}", seal.key_id(), seal.role(), seal.newest().0);
    match rotation::outdated(repository.vault()).await? {
        Some(old) => findings.warn("encryption", old, "on a host with a reader key: lastgood key export --writer --to FILE"),
        None => findings.ok("encryption", what),
    }
    if config.encryption.key_file.as_ref().is_none_or(|path| !path.exists()) {
        let mend = "lastgood key export --writer --to FILE, and set [encryption] key_file to it";
        findings.warn("encryption", "there is no key_file: every archive-push opens the keyring anew, which is slow", mend);
    }
    Ok(())
}

async fn room(findings: &mut Findings, storage: &dyn Storage, cluster: &Cluster) {
    let Ok(Some(free)) = storage.free_bytes().await else { return };
    let stored = match cluster.manifests().await {
        Ok(manifests) => manifests.iter().rev().find_map(|(_, m)| m.as_ref().ok().map(|m| m.totals.stored_bytes)).unwrap_or(0),
        Err(_) => 0,
    };
    let free_gib = free as f64 / f64::from(1 << 30);
    if free < ROOM_SNAPSHOTS * stored || free < 1 << 30 {
        findings.fail(
            "repository",
            format!("only {free_gib:.1} GiB are free"),
            "add room: when it is full, WAL piles up on the server",
        );
    } else {
        findings.ok("repository", format!("{free_gib:.1} GiB are free"));
    }
}

/// Whether the repository knows this server.
pub async fn registration(
    findings: &mut Findings,
    repository: &Repository,
    name: &str,
    facts: &Facts,
) -> Result<Option<Cluster>, RepoError> {
    let cluster = match repository.registered(name).await {
        Ok((cluster, record)) if record.current().is_some_and(|h| h.system_identifier == facts.system_identifier) => cluster,
        Ok((_, record)) => {
            let known: Vec<String> = record.histories.iter().map(|h| h.system_identifier.to_string()).collect();
            let what =
                format!("{name:?} in the repository is system {}, this server is {}", known.join(", "), facts.system_identifier);
            findings.fail(
                "registration",
                what,
                "after pg_upgrade or initdb run `lastgood init --new-history`; else choose another name",
            );
            return Ok(None);
        }
        Err(RepoError::NoCluster { .. }) => {
            findings.fail("registration", format!("the repository does not know {name:?}"), "run `lastgood init`");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    findings.ok("registration", format!("{name:?} is this server"));
    Ok(Some(cluster))
}

/// Archives a freshly switched segment and waits for it.
pub async fn archiving(findings: &mut Findings, cluster: &Cluster, server: &Server, timeout: Duration) {
    if server.facts.in_recovery {
        findings.ok("archiving", "not tried: this is a standby");
        return;
    }
    if server.facts.archive_mode == "off" {
        findings.fail("archiving", "not tried: archive_mode is off", "see above");
        return;
    }
    let began = clock::monotonic();
    match wait::prove_archiving(cluster, server.facts.system_identifier, &server.session, timeout).await {
        Ok(name) => findings
            .ok("archiving", format!("segment {name} reached the repository after {:.1} s", began.elapsed().as_secs_f64())),
        Err(error) => findings.fail("archiving", error.to_string(), "look into the server's log for what archive-push says"),
    }
}

/// Whether everything was read again in time; only where that is configured.
pub async fn reading(findings: &mut Findings, cluster: &Cluster, cycle_days: Option<u32>) -> Result<(), RepoError> {
    let Some(days) = cycle_days else { return Ok(()) };
    let mend = "run `lastgood verify --budget` often enough, or with more; see why its schedule did not run";
    let Some(verified) = Verified::read(cluster).await? else {
        findings.fail("reading", "nothing was ever read again by `lastgood verify --budget`", mend);
        return Ok(());
    };
    let Some(oldest) = verified.oldest else { return Ok(()) };
    let age = clock::now().duration_since(oldest).as_hours();
    let what = format!("the object that waits longest was read {} days ago", age / 24);
    match age > 24 * i64::from(days) {
        true => findings.fail("reading", format!("{what}, and [verify] cycle_days is {days}"), mend),
        false => findings.ok("reading", what),
    }
    Ok(())
}

/// The age of the last snapshot, and leases of snapshots that run.
pub async fn snapshots(findings: &mut Findings, cluster: &Cluster, max_age_hours: u64) -> Result<(), RepoError> {
    let manifests = cluster.manifests().await?;
    for (id, manifest) in &manifests {
        if let Err(error) = manifest {
            findings.fail("snapshots", format!("{id} cannot be read: {error}"), "run `lastgood verify`");
        }
    }
    match manifests.iter().rev().find_map(|(_, manifest)| manifest.as_ref().ok()) {
        None => findings.fail("snapshots", "there is none: nothing can be restored", "run `lastgood backup`"),
        Some(newest) => {
            let hours = clock::now().duration_since(newest.stop_time).as_hours();
            let what = format!("the newest is {} ({hours} h old)", newest.id);
            if hours >= max_age_hours as i64 {
                findings.fail(
                    "snapshots",
                    what,
                    format!("it should not be older than {max_age_hours} h: see why the schedule did not run"),
                );
            } else if newest.damaged_pages.is_empty() {
                findings.ok("snapshots", what);
            } else {
                let what = format!("{what} and holds {} pages damaged in the database", newest.damaged_pages.len());
                findings.fail("snapshots", what, "keep older snapshots, and mend the relations that `lastgood backup` named");
            }
        }
    }
    for work in lease::at_work(cluster).await? {
        findings.ok("at work", work.describe());
    }
    Ok(())
}
