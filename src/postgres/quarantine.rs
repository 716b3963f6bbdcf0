//! Settings with which a copy of a server can be looked at and acts on nothing.
//!
//! # What it must not do
//! Archive, replicate in either direction, run jobs, reach other hosts, or be written to by somebody who takes it for the original. So it
//! has a `postgresql.conf` and a `pg_hba.conf` of its own: those of the original may lie outside the data directory (rule 46), and name
//! files, libraries and hosts that are not there. Nothing is preloaded but what is asked for, because libraries start workers that act.
//!
//! # What it must have
//! A hot standby refuses to start with limits below those of the server that wrote the WAL; `pg_control` has them
//! ([`crate::postgres::control::Limits`]). A record in the WAL may raise them later, and then `pg_control` has the new ones.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use super::control::Limits;
use super::quiet;
use super::settings::{self, line};
use crate::durable;
use crate::owner::Ids;

/// Bytes of shared memory that one transaction may take for each lock (`src/backend/storage/lmgr/lock.c`, rounded up), and that each
/// backend takes for itself.
const LOCK_BYTES: u64 = 300;
const BACKEND_BYTES: u64 = 24 << 10;
/// What a server takes besides: its processes, caches, and the memory of what is asked.
const BASE_BYTES: u64 = 96 << 20;

#[derive(Debug, Clone)]
pub struct Quarantine {
    pub major: u32,
    pub limits: Limits,
    pub shared_buffers_mib: u64,
    /// For WAL and types that need them; each must be there.
    pub preload: Vec<String>,
}

impl Quarantine {
    /// Memory that the server is going to need.
    pub fn memory_bytes(&self) -> u64 {
        let backends = u64::from(self.limits.max_connections)
            + u64::from(self.limits.max_worker_processes)
            + u64::from(self.limits.max_wal_senders);
        let transactions = backends + u64::from(self.limits.max_prepared_transactions);
        let locks = transactions * u64::from(self.limits.max_locks_per_transaction) * LOCK_BYTES;
        BASE_BYTES + (self.shared_buffers_mib << 20) + backends * BACKEND_BYTES + locks
    }

    /// Writes the files into `place`, and takes everything but recovery out of the data directory's own settings. Answers the arguments
    /// with which `postgres` finds them.
    pub fn write(&self, place: &Path, data: &Path, user: Option<Ids>) -> io::Result<Vec<String>> {
        let file = |name: &str, text: &str| -> io::Result<PathBuf> {
            let path = place.join(name);
            durable::replace(&path, text.as_bytes(), 0o600)?;
            own(&path, user)?;
            Ok(path)
        };
        // Only the server's own user reaches the socket. No line allows replication.
        file("pg_hba.conf", "local all all trust\n")?;
        file("pg_ident.conf", "")?;
        let conf = file("postgresql.conf", &self.text(place))?;
        settings::keep_only_recovery(data)?;
        own(&data.join("postgresql.auto.conf"), user)?;
        Ok(vec!["-c".into(), format!("config_file={}", conf.display())])
    }

    fn text(&self, place: &Path) -> String {
        let path = |name: &str| quoted(&place.join(name).display().to_string());
        let (hba, ident) = (path("pg_hba.conf"), path("pg_ident.conf"));
        let preload = quoted(&self.preload.join(","));
        let shared_buffers = self.shared_buffers_mib;
        let lines =
            |settings: Vec<(&str, String)>| -> String { settings.iter().map(|(name, value)| line(name, value)).collect() };
        let limits = lines(quiet::limit_settings(self.limits));
        let quiet = quiet::acts_on_nobody(self.major).into_iter().map(|(name, value)| (name, value.to_string())).collect();
        let quiet = lines(quiet);
        format!(
            "# Written by lastgood for a server in quarantine.\n\
             hba_file = {hba}\nident_file = {ident}\n\
             # As the original had them: a hot standby must not be below.\n\
             {limits}\
             # Acts on nothing.\n\
             {quiet}\
             listen_addresses = ''\narchive_mode = off\nprimary_conninfo = ''\n\
             max_sync_workers_per_subscription = 0\nshared_preload_libraries = {preload}\nautovacuum = off\n\
             autovacuum_freeze_max_age = 2000000000\ndefault_transaction_read_only = on\nhot_standby = on\n\
             restart_after_crash = off\nssl = off\n\
             # Small, and the same everywhere.\n\
             shared_buffers = '{shared_buffers}MB'\nhuge_pages = off\njit = off\nlc_messages = 'C'\ntimezone = 'UTC'\n\
             log_timezone = 'UTC'\n"
        )
    }
}

/// A value of `postgresql.conf`.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn own(path: &Path, user: Option<Ids>) -> io::Result<()> {
    match user {
        Some(user) => chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

/// Gives everything below `path` to the server's user; links stay what they are.
pub fn own_all(path: &Path, user: Ids) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            own_all(&entry?.path(), user)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_the_original_are_kept_and_nothing_acts() {
        let limits = Limits {
            wal_level: 2,
            max_connections: 431,
            max_worker_processes: 17,
            max_wal_senders: 23,
            max_prepared_transactions: 5,
            max_locks_per_transaction: 99,
        };
        let quarantine = Quarantine { major: 17, limits, shared_buffers_mib: 64, preload: vec![] };
        let text = quarantine.text(Path::new("/it's here"));
        for line in [
            "hba_file = '/it''s here/pg_hba.conf'",
            "max_connections = '431'",
            "max_worker_processes = '17'",
            "max_wal_senders = '23'",
            "max_prepared_transactions = '5'",
            "max_locks_per_transaction = '99'",
            "wal_level = 'logical'",
            "event_triggers = 'off'",
            "listen_addresses = ''",
            "archive_mode = off",
            "max_logical_replication_workers = '0'",
            "default_transaction_read_only = on",
            "shared_preload_libraries = ''",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        let more = Quarantine { limits: Limits { max_connections: 5000, ..limits }, ..quarantine.clone() };
        assert!(more.memory_bytes() > quarantine.memory_bytes() + (100 << 20));
    }
}
