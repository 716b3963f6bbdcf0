//! Measurements on disk: a small file for each place and hour, below `storage/` in the spool.
//!
//! Many processes add to them, one for each archived segment: each adds under a lock what it counted. Two weeks are kept. Losing
//! them loses evidence and nothing else, so a spool that cannot be written is no error.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Cell, Hours};
use crate::{clock, durable};

const KEEP_S: i64 = 14 * 24 * 3600;
/// Longest wait for others that write.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// One place in one hour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hour {
    pub place: String,
    /// Seconds since 1970.
    pub begins: i64,
    pub operations: BTreeMap<String, Cell>,
}

fn directory(spool: &Path) -> PathBuf {
    spool.join("storage")
}

fn file_name(place: &str, begins: i64) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let tail: String = place.chars().rev().take(100).map(plain).collect::<Vec<_>>().into_iter().rev().collect();
    format!("{tail}-{begins}.json")
}

/// Adds what was counted. Nothing happens where there is no spool yet.
pub fn save(spool: &Path, place: &str, hours: Hours) -> io::Result<()> {
    if hours.is_empty() || !spool.is_dir() {
        return Ok(());
    }
    let owner = fs::metadata(spool)?;
    let dir = directory(spool);
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => give(&dir, &owner)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let lock_path = dir.join("lock");
    let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path)?;
    give(&lock_path, &owner)?;
    wait_for(&lock)?;
    let mut by_hour: BTreeMap<i64, BTreeMap<String, Cell>> = BTreeMap::new();
    for ((begins, operation), cell) in hours {
        by_hour.entry(begins).or_default().insert(operation, cell);
    }
    for (begins, operations) in by_hour {
        let path = dir.join(file_name(place, begins));
        let mut hour = read(&path).unwrap_or_else(|| {
            forget(&dir);
            Hour { place: place.into(), begins, operations: BTreeMap::new() }
        });
        for (operation, cell) in &operations {
            hour.operations.entry(operation.clone()).or_default().merge(cell);
        }
        let temporary = durable::temporary_beside(&path);
        let json = serde_json::to_vec(&hour).map_err(io::Error::other)?;
        durable::create_private(&temporary)?.write_all(&json)?;
        give(&temporary, &owner)?;
        fs::rename(&temporary, &path)?;
    }
    Ok(())
}

/// Whoever has the lock writes a few small files; one that was stopped in the middle must not stop archiving with it.
fn wait_for(lock: &fs::File) -> io::Result<()> {
    let began = clock::monotonic();
    loop {
        match rustix::fs::flock(lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What root writes belongs to whose spool it is, or the server's user could not go on with it.
fn give(path: &Path, owner: &fs::Metadata) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
}

fn read(path: &Path) -> Option<Hour> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn forget(dir: &Path) {
    let oldest = clock::now().as_second() - KEEP_S;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let begins = name.strip_suffix(".json").and_then(|name| name.rsplit('-').next()?.parse::<i64>().ok());
        if begins.is_some_and(|begins| begins < oldest) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Everything that is kept, by place and time.
pub fn load(spool: &Path) -> io::Result<Vec<Hour>> {
    let mut hours = Vec::new();
    let entries = match fs::read_dir(directory(spool)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(hours),
        Err(error) => return Err(error),
    };
    for entry in entries {
        hours.extend(read(&entry?.path()));
    }
    hours.sort_by(|a, b| (&a.place, a.begins).cmp(&(&b.place, b.begins)));
    Ok(hours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_add_to_one_hour_and_old_hours_go() {
        let spool = tempfile::tempdir().unwrap();
        let now = clock::now().as_second();
        let hours = |begins: i64| {
            let mut cell = Cell::default();
            cell.add(Duration::from_millis(3), 10, None);
            Hours::from([((begins, "read".to_string()), cell)])
        };
        save(spool.path(), "s3://b/p", hours(now - KEEP_S - 10)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| save(spool.path(), "s3://b/p", hours(now)).unwrap());
            }
        });
        save(spool.path(), "s3://b/q", hours(now)).unwrap();
        let found = load(spool.path()).unwrap();
        let found: Vec<_> = found.iter().map(|h| (h.place.as_str(), h.begins - now, h.operations["read"].calls)).collect();
        assert_eq!(found, [("s3://b/p", 0, 8), ("s3://b/q", 0, 1)]);
        // Somebody who was stopped with the lock in hand costs evidence, and holds nobody up for ever.
        let held = fs::File::open(directory(spool.path()).join("lock")).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        assert_eq!(save(spool.path(), "s3://b/q", hours(now)).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // Without a spool nothing is kept, and nothing fails.
        save(&spool.path().join("none"), "s3://b/p", hours(now)).unwrap();
        assert!(load(&spool.path().join("none")).unwrap().is_empty());
    }
}
