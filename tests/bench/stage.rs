//! What one round is played on: a fresh copy of the database with a running server, and the WAL that it archives.
//!
//! The server archives every file into an inbox, and hands it to the tool that is being measured. Before a tool's turn it gets
//! what the others' turns left in the inbox, so that each has the whole archive, and nobody pays for another.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lastgood::clock;
use lastgood::owner::Ids;
use lastgood::postgres::scratch::{self, Scratch, Stop};
use lastgood::postgres::session::Session;

use crate::database::{self, PROGRAMS};
use crate::measure::{Meter, Step};

const SCRIPT: &str = "archive-also-for-pgbackrest";
/// Longest that anything of the server's is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// As a server in earnest, but for what would start work of its own in the middle of a measurement.
const SETTINGS: &str = "fsync = on\nfull_page_writes = on\nwal_level = replica\nmax_wal_senders = 8\narchive_mode = on\n\
    shared_buffers = '256MB'\nmax_wal_size = '8GB'\nmin_wal_size = '80MB'\ncheckpoint_timeout = '1h'\nautovacuum = off\n\
    log_checkpoints = off\nhot_standby = on";

/// A server on a copy of the database, its inbox, and where tools keep what they keep beside a repository.
pub struct Stage {
    // First, so that the server is stopped before its directory goes.
    pub server: Scratch,
    pub session: Session,
    pub home: PathBuf,
    pub user: Option<Ids>,
    pub meter: Meter,
    /// Numbers what is made, so that nothing is used twice.
    made: std::cell::Cell<u64>,
}

impl Stage {
    /// Copies `base` and starts a server on the copy; `home` is made.
    pub async fn start(base: &Path, home: &Path, meter: &Meter) -> Result<Stage> {
        let user = meter.user;
        for dir in [home.to_path_buf(), home.join("inbox")] {
            scratch::make_directory(&dir, user)?;
        }
        let data = home.join("data");
        database::copy(base, &data)?;
        let mut server = Scratch::new(Path::new(PROGRAMS), &data, &home.join("sockets"), user)?;
        // pgBackRest wants to find its name in the command.
        let script = home.join(SCRIPT);
        server.configure(&format!("{SETTINGS}\narchive_command = '{} \"%p\" \"%f\"'", script.display()))?;
        write_script(&script, home, None)?;
        let session = database::start(&mut server).await?;
        let home = home.to_path_buf();
        Ok(Stage { server, session, home, user, meter: meter.clone(), made: std::cell::Cell::new(0) })
    }

    /// From now on the server hands each WAL file also to this program, whose argument `%1` stands for the file.
    pub fn archive_with(&self, push: Option<&Step>) -> Result<()> {
        write_script(&self.home.join(SCRIPT), &self.home, push)
    }

    pub fn inbox(&self) -> PathBuf {
        self.home.join("inbox")
    }

    /// Segments and backup histories that were archived, in order.
    pub fn archived(&self) -> Result<Vec<String>> {
        let names = std::fs::read_dir(self.inbox())?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        Ok(names)
    }

    /// Ends the segment, and waits until all before it is archived.
    pub async fn switch(&self) -> Result<()> {
        let name = self.session.switch_segment("bench").await?;
        let began = clock::monotonic();
        while !self.inbox().join(&name).exists() {
            if began.elapsed() > PATIENCE {
                bail!("{name} is not archived:\n{}", self.server.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Gives a tool what it does not have yet.
    pub async fn feed(&self, fed: &mut HashSet<String>, push: impl Fn(&Path) -> Step) -> Result<()> {
        let names: Vec<String> = self.archived()?.into_iter().filter(|name| !fed.contains(name)).collect();
        let steps: Vec<Step> = names.iter().map(|name| push(&self.inbox().join(name)).dir(self.server.data())).collect();
        if !steps.is_empty() {
            self.meter.run(steps).await.context("archive what other tools' turns left")?;
        }
        fed.extend(names);
        Ok(())
    }

    /// Writes so many full segments, and answers their names.
    pub async fn write_segments(&self, count: usize) -> Result<Vec<String>> {
        self.switch().await?;
        // Pages that change after a checkpoint go into the WAL whole: that makes it dense.
        self.session.run("CHECKPOINT").await?;
        self.switch().await?;
        let before: HashSet<String> = self.archived()?.into_iter().collect();
        let new = |names: Vec<String>| -> Vec<String> {
            names.into_iter().filter(|name| name.len() == 24 && !before.contains(name)).collect()
        };
        let began = clock::monotonic();
        let mut turn = 0;
        while new(self.archived()?).len() < count {
            if began.elapsed() > PATIENCE * 4 {
                bail!("{count} segments were not written in time:\n{}", self.server.log());
            }
            database::work(&self.session, turn).await?;
            turn += 1;
        }
        self.switch().await?;
        let mut names = new(self.archived()?);
        names.truncate(count);
        Ok(names)
    }

    /// A new empty directory of the server's user.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.fresh(name);
        scratch::make_directory(&path, self.user)?;
        Ok(path)
    }

    /// A path where nothing is yet.
    pub fn fresh(&self, name: &str) -> PathBuf {
        self.made.set(self.made.get() + 1);
        self.home.join(format!("{name}-{}", self.made.get()))
    }

    pub fn stop(&mut self) {
        self.server.stop(Stop::Fast);
    }
}

/// Replaced in one step: the archiver may run it at any moment.
fn write_script(path: &Path, home: &Path, push: Option<&Step>) -> Result<()> {
    let inbox = home.join("inbox");
    let inbox = inbox.display();
    let push = push.map(|step| format!("{}\n", step.shell())).unwrap_or_default();
    let text = format!("#!/bin/sh\nset -e\n{push}cp \"$1\" '{inbox}'/\".$2\"\nmv '{inbox}'/\".$2\" '{inbox}'/\"$2\"\n");
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o755))?;
    Ok(std::fs::rename(&temporary, path)?)
}

/// Reads every file once, so that everybody finds it in memory.
pub fn warm(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut buffer = vec![0u8; 1 << 20];
    for path in files(dir)? {
        // Files of a running server may go while we look.
        let Ok(mut file) = std::fs::File::open(&path) else { continue };
        loop {
            match std::io::Read::read(&mut file, &mut buffer)? {
                0 => break,
                count => bytes += count as u64,
            }
        }
    }
    Ok(bytes)
}

/// Frees the space of everything below a directory, and leaves the files, empty, until the run ends: for a minute ext4 looks at every
/// inode that was removed before it gives out a new one, and whoever makes many files next would pay for that.
pub fn empty(dir: &Path) -> Result<()> {
    for path in files(dir)? {
        // What has another name is in use there.
        if std::fs::symlink_metadata(&path)?.nlink() == 1 {
            std::fs::File::options().write(true).truncate(true).open(&path)?;
        }
    }
    Ok(())
}

/// Bytes of all files below a directory.
pub fn stored(dir: &Path) -> u64 {
    let lengths = files(dir).unwrap_or_default();
    lengths.iter().filter_map(|path| std::fs::symlink_metadata(path).ok()).map(|metadata| metadata.len()).sum()
}

/// Every file below a directory, in order.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}
