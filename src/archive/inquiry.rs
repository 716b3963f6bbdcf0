//! Questions to the process that fetches ahead, about what does not lie in the spool: its connections are open, so an answer costs two
//! round trips of a distant store, where a process of its own needs two more to connect. Recovery asks five times where WAL ends.
//!
//! Questions and answers are files below `questions` in the spool, named by chance: `.asked` holds the name of what is asked for and the
//! configuration of who asks, and is locked for as long as it waits; `.whole` is the file itself, and `.absent` says that it provably is
//! not there. The question goes when it is answered; when it goes without an answer, who asked sees for itself.
//!
//! # Invariants
//! - An answer is made for one question, after it was asked: what was proven for another proves nothing.
//! - Only who reads the same places in the same way answers. With several places nobody is told that something is absent: which of
//!   them count is found out when a process starts, and may be another by now.
//! - Who asks waits only while somebody is at work, and else finds out for itself. No answer is an error.
//! - Nothing is kept for who does not wait any more.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::get::{self, Got};
use super::spool::{Spool, write_private};
use crate::clock;
use crate::durable;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::WalFile;
use crate::repo::repository::Cluster;

/// Between two looks for an answer.
const LOOK: Duration = Duration::from_millis(2);
/// Nobody waits longer for another process, which may be stopped.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether somebody still waits.
const LOOK_BACK: Duration = Duration::from_millis(100);

const ASKED: &str = "asked";
const WHOLE: &str = "whole";
const ABSENT: &str = "absent";

/// Where questions are put and taken.
#[derive(Debug, Clone)]
pub struct Desk {
    spool: Spool,
    /// Without white space.
    configuration: String,
}

/// The files of a question, without their extension.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place(PathBuf);

impl Place {
    fn with(&self, extension: &str) -> PathBuf {
        self.0.with_extension(extension)
    }

    fn remove(&self) {
        for extension in [ASKED, WHOLE, ABSENT] {
            let _ = fs::remove_file(self.with(extension));
        }
    }

    /// Whether somebody waits for the answer.
    fn is_open(&self) -> bool {
        let free = |asked: fs::File| flock(&asked, FlockOperation::NonBlockingLockExclusive).is_ok();
        fs::File::open(self.with(ASKED)).is_ok_and(|asked| !free(asked))
    }
}

/// A question that waits. Goes with all that belongs to it.
struct Asked {
    place: Place,
    _lock: fs::File,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.place.remove();
    }
}

impl Desk {
    /// `configuration` tells one apart from another that would look elsewhere, or in another way; it has no white space.
    pub fn new(spool: Spool, configuration: String) -> Desk {
        Desk { spool, configuration }
    }

    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Asks whoever fetches ahead for `file`, to be put at `destination`. `None` where nobody is at work, or has no answer.
    pub async fn ask(&self, file: WalFile, destination: &Path) -> Option<Got> {
        if !self.spool.is_somebody_fetching() {
            return None;
        }
        let asked = self.put(file).ok()?;
        let began = clock::monotonic();
        while began.elapsed() < PATIENCE {
            // In this order: the question goes after the answer came.
            let is_open = asked.place.with(ASKED).exists();
            if get::move_file(&asked.place.with(WHOLE), destination).ok()? {
                return Some(Got::Fetched);
            }
            if asked.place.with(ABSENT).exists() {
                return Some(Got::Absent);
            }
            if !is_open || !self.spool.is_somebody_fetching() {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
        None
    }

    fn put(&self, file: WalFile) -> io::Result<Asked> {
        let place = Place(self.spool.questions().join(clock::random_hex(8)));
        let temporary = durable::temporary_beside(&place.0);
        let mut lock = durable::create_private(&temporary)?;
        let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from);
        let written = locked.and_then(|()| lock.write_all(format!("{file} {}", self.configuration).as_bytes()));
        if let Err(error) = written.and_then(|()| fs::rename(&temporary, place.with(ASKED))) {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        Ok(Asked { place, _lock: lock })
    }

    /// All questions that can be answered here. The others are refused, and those for which nobody waits any more are removed.
    pub fn pending(&self) -> Vec<Inquiry> {
        let entries = fs::read_dir(self.spool.questions()).into_iter().flatten().flatten();
        let asked = entries.map(|entry| entry.path()).filter(|path| path.extension() == Some(OsStr::new(ASKED)));
        asked.filter_map(|path| self.open(&path)).collect()
    }

    fn open(&self, path: &Path) -> Option<Inquiry> {
        let place = Place(path.with_extension(""));
        if !place.is_open() {
            place.remove();
            return None;
        }
        let text = fs::read_to_string(path).ok()?;
        let (file, configuration) = text.split_once(' ')?;
        let inquiry = Inquiry { file: file.parse().ok()?, place };
        if configuration != self.configuration {
            inquiry.refuse();
            return None;
        }
        Some(inquiry)
    }

    /// Removes answers. Who still waits for one finds out for itself.
    pub fn sweep(&self) {
        for entry in fs::read_dir(self.spool.questions()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension() != Some(OsStr::new(ASKED)) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// A question to be answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inquiry {
    place: Place,
    pub file: WalFile,
}

impl Inquiry {
    /// Answers, and says what it answered.
    pub async fn answer(&self, cluster: &Cluster, system: SystemId, spool: &Spool) -> Option<Got> {
        let whole = self.place.with(WHOLE);
        // Whether recovery needs it at all is for who asks to say: nothing that cannot be had is taken for absent here.
        let getting = get::get(cluster, system, self.file, &whole, None, Some(spool));
        let got = tokio::select! {
            got = getting => got.ok(),
            () = self.is_given_up() => None,
        };
        let is_sure = |got: &Got| *got == Got::Fetched || cluster.storage().copies().is_empty();
        let answered = match got.filter(is_sure) {
            Some(Got::Absent) => write_private(&self.place.with(ABSENT), b"").is_ok(),
            Some(Got::Fetched) => true,
            None => false,
        };
        // Gone already where who asked has given up.
        if answered && fs::remove_file(self.place.with(ASKED)).is_ok() {
            return got;
        }
        self.refuse();
        None
    }

    /// Leaves it to who asks.
    pub fn refuse(&self) {
        self.place.remove();
    }

    async fn is_given_up(&self) {
        while self.place.is_open() {
            tokio::time::sleep(LOOK_BACK).await;
        }
    }
}
