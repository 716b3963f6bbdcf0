//! Starting a copy: as `pg_ctl start` does, with its own settings, as the user it belongs to.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::RestoreError;
use crate::owner::Ids;
use crate::postgres::data_directory::START_LOG;
use crate::postgres::scratch;

/// A server that was started. It lives on when this value goes.
#[derive(Debug)]
pub struct Started {
    process: Child,
    /// What it says before its own log begins, and after where it has none.
    pub log: PathBuf,
}

impl Started {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn lives(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }
}

/// Who owns a data directory: as whom its server runs, when we are root.
pub fn user(directory: &Path) -> io::Result<Option<Ids>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let found = fs::metadata(directory)?;
    Ok(Some(Ids { uid: found.uid(), gid: found.gid() }))
}

/// Starts the programs in `bin` on the copy, and lets the server live on.
pub fn start(bin: &Path, directory: &Path) -> Result<Started, RestoreError> {
    let log = directory.join(START_LOG);
    let failed = |doing: &'static str| {
        let path = log.clone();
        move |source| RestoreError::Io { doing, path, source }
    };
    let user = user(directory).map_err(failed("look at"))?;
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&log).map_err(failed("write"))?;
    if let Some(user) = user {
        std::os::unix::fs::chown(&log, Some(user.uid), Some(user.gid)).map_err(failed("change the owner of"))?;
    }
    let mut command = scratch::program(bin, "postgres", user);
    command.arg("-D").arg(directory).stdin(Stdio::null()).stdout(file.try_clone().map_err(failed("write"))?).stderr(file);
    // An interrupt at the terminal reaches us, and not the server.
    command.process_group(0);
    let process = command.spawn().map_err(|source| RestoreError::Io { doing: "start", path: bin.join("postgres"), source })?;
    Ok(Started { process, log })
}
