//! The repository: rights, keys, room, registration, and whether archiving reaches it.

use std::path::Path;
use std::time::Duration;

use super::{Findings, Server, clock_skew};
use crate::clock;
use crate::config::Config;
use crate::postgres::session::Facts;
use crate::repo::RepoError;
use crate::repo::repository::{Cluster, Repository};
use crate::repo::seal::rotation;
use crate::snapshot::wait;
use crate::storage::{Created, ObjectKey, Part, Storage};
use crate::timeline::indexes::Kept;

/// Less free room in the repository than this share of the last snapshot is worth a warning.
const ROOM_SNAPSHOTS: u64 = 2;

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
    let has_other_segments = |known: u32| facts.wal_segment_bytes != known;
    let cluster = match repository.registered(name).await {
        Ok((_, record))
            if record
                .current()
                .is_some_and(|h| h.system_identifier == facts.system_identifier && has_other_segments(h.wal_segment_bytes)) =>
        {
            let known = record.current().map_or(0, |h| h.wal_segment_bytes >> 20);
            let here = facts.wal_segment_bytes >> 20;
            findings.fail(
                "registration",
                format!("this server's WAL segments have {here} MiB, and those in the archive of {name:?} {known} MiB (pg_resetwal --wal-segsize)"),
                "give it a [cluster] name of its own, and run `lastgood init` and `lastgood backup`",
            );
            return Ok(None);
        }
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
        Err(error @ RepoError::NoRecord { .. }) => {
            findings.fail("registration", error.to_string(), "lastgood init --rebuild");
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
pub async fn archiving(findings: &mut Findings, cluster: &Cluster, server: &Server, pg_wal: &Path, timeout: Duration) {
    if server.facts.in_recovery {
        findings.ok("archiving", "not tried: this is a standby");
        return;
    }
    if server.facts.archive_mode == "off" {
        findings.fail("archiving", "not tried: archive_mode is off", "see above");
        return;
    }
    let began = clock::monotonic();
    let asked = wait::Server { system: server.facts.system_identifier, session: &server.session, pg_wal, kept: &Kept::default() };
    match wait::prove_archiving(cluster, asked, timeout).await {
        Ok(name) => findings
            .ok("archiving", format!("segment {name} reached the repository after {:.1} s", began.elapsed().as_secs_f64())),
        Err(error) => findings.fail("archiving", error.to_string(), "look into the server's log for what archive-push says"),
    }
}
