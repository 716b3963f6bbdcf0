//! The directory of one drill, and what drills that died have left.
//!
//! `<scratch>/lastgood-drill-<random>/` holds the data directory, tablespaces, settings, socket, log, and a mark with a lock: whoever can
//! take the lock knows that the drill is over. A drill that keeps its server writes so into the mark, and then nobody removes it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use super::DrillError;
use crate::child;
use crate::clock;
use crate::durable;
use crate::monitor::Monitor;
use crate::owner::Ids;
use crate::postgres::postmaster;
use crate::postgres::scratch;

const PREFIX: &str = "lastgood-drill-";
const MARK: &str = "lastgood.drill";
const KEPT: &str = "kept\n";
/// `sun_path` of a socket address, with its end.
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// How long files of threads that are just ending are removed again and again.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    mark: File,
    is_kept: bool,
}

/// A name that no other drill has.
pub fn name() -> String {
    format!("{PREFIX}{}", clock::random_hex(4))
}

impl Place {
    pub fn make(scratch: &Path) -> Result<Place, DrillError> {
        let name = name();
        let dir = scratch.join(&name);
        let failed = |source| DrillError::Io { doing: "make", path: dir.clone(), source };
        // Under its name only when it is locked: others look at those.
        let hidden = scratch.join(format!(".{name}"));
        scratch::make_directory(&hidden, None)?;
        let mark = File::options().read(true).write(true).create_new(true).open(hidden.join(MARK)).map_err(failed)?;
        flock(&mark, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
        fs::rename(&hidden, &dir).map_err(failed)?;
        let place = Place { dir, mark, is_kept: false };
        for part in place.parts() {
            scratch::make_directory(&part, None)?;
        }
        Ok(place)
    }

    fn parts(&self) -> [PathBuf; 4] {
        [self.spaces(), self.sockets(), self.spool(), self.settings()]
    }

    /// Lets the server's user in. The mark stays ours.
    pub fn give(&self, user: Option<Ids>) -> Result<(), DrillError> {
        for part in self.parts().iter().chain([&self.dir]) {
            scratch::make_directory(part, user)?;
        }
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn spaces(&self) -> PathBuf {
        self.dir.join("spaces")
    }

    pub fn sockets(&self) -> PathBuf {
        self.dir.join("sockets")
    }

    pub fn spool(&self) -> PathBuf {
        self.dir.join("spool")
    }

    pub fn settings(&self) -> PathBuf {
        self.dir.join("settings")
    }

    /// What `restore_command` reads before it starts us, where our environment has what that needs: the server's has nothing.
    pub fn environment(&self) -> PathBuf {
        self.settings().join("environment")
    }

    /// Hands our environment to `restore_command`; answers what to put before it. Only the server's user can read it.
    pub fn lend_environment(&self, user: Option<Ids>) -> Result<String, DrillError> {
        let Some(text) = child::own_environment() else { return Ok(String::new()) };
        let path = self.environment();
        write_environment(&path, &text, user)?;
        Ok(format!(". '{}' && ", path.display().to_string().replace('\'', "'\\''")))
    }
}

/// Takes the environment away again: the server stands where it should, and from now on code of the restored database runs in it. Whatever
/// it asks for when it ends recovery is not there.
pub fn withdraw_environment(path: &Path, user: Option<Ids>) -> Result<(), DrillError> {
    if path.exists() { write_environment(path, b"exit 1\n", user) } else { Ok(()) }
}

fn write_environment(path: &Path, text: &[u8], user: Option<Ids>) -> Result<(), DrillError> {
    let failed = |source| DrillError::Io { doing: "write", path: path.into(), source };
    durable::replace(path, text, 0o600).map_err(failed)?;
    let Some(user) = user else { return Ok(()) };
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).map_err(failed)
}

impl Place {
    /// Leaves everything where it is, for people.
    pub fn keep(mut self) -> Result<PathBuf, DrillError> {
        let failed = |source| DrillError::Io { doing: "write", path: self.dir.join(MARK), source };
        self.mark.write_all(KEPT.as_bytes()).and_then(|()| self.mark.sync_all()).map_err(failed)?;
        self.is_kept = true;
        Ok(self.dir.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed now, the next drill removes.
            let _ = remove(&self.dir);
        }
    }
}

/// Threads that were given up may still write for a moment.
fn remove(dir: &Path) -> io::Result<()> {
    let began = clock::monotonic();
    loop {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && began.elapsed() < REMOVAL_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

/// Looks at the scratch directory before anything is made there.
pub fn check(scratch: &Path) -> Result<(), DrillError> {
    let refuse = |problem: &str, mend| Err(DrillError::Place { path: scratch.into(), problem: problem.into(), mend });
    if !scratch.is_dir() {
        return refuse("this directory for drills does not exist", "make it, or set [drill] directory");
    }
    if rustix::fs::access(scratch, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_err() {
        return refuse("this directory for drills cannot be written by this user", "change its rights, or set [drill] directory");
    }
    let socket = scratch.join(name()).join("sockets/.s.PGSQL.5432");
    if socket.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
        return refuse("its path is too long for the socket of a server", "set [drill] directory to a shorter one");
    }
    Ok(())
}

/// Ends and removes what drills that died have left: only directories of ours, whose lock nobody holds, and that were not kept.
pub fn sweep(scratch: &Path, monitor: &dyn Monitor) {
    for entry in fs::read_dir(scratch).into_iter().flatten().flatten() {
        let dir = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !is_ours(&dir) {
            continue;
        }
        let Ok(mark) = File::open(dir.join(MARK)) else { continue };
        if flock(&mark, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if fs::read_to_string(dir.join(MARK)).is_ok_and(|text| text == KEPT) {
            continue;
        }
        match end_server(&dir.join("data")).and_then(|()| remove(&dir)) {
            Ok(()) => monitor.note(&format!("removed what an interrupted drill had left in {}", dir.display())),
            Err(error) => {
                monitor.warn(&format!("an interrupted drill has left {}, which cannot be removed: {error}", dir.display()));
            }
        }
    }
}

/// Anybody may make directories below `/var/tmp`; only who made the mark may remove its directory.
fn is_ours(dir: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(dir.join(MARK)).is_ok_and(|mark| mark.is_file() && mark.uid() == own && mark.nlink() == 1)
}

/// A server whose drill is gone.
fn end_server(data: &Path) -> io::Result<()> {
    if !data.exists() {
        return Ok(());
    }
    let began = clock::monotonic();
    // Of a server that works elsewhere (above, below) nothing is ended.
    while let Some(living) = postmaster::living(data)?.filter(|living| living.elsewhere.is_none()) {
        let signal = if began.elapsed() < REMOVAL_PATIENCE / 2 { Signal::QUIT } else { Signal::KILL };
        let pid = living.pid.and_then(Pid::from_raw).ok_or_else(|| io::Error::other("its server runs in another container"))?;
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        if began.elapsed() > REMOVAL_PATIENCE {
            return Err(io::Error::other(format!("its server does not end ({living})")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;

    #[test]
    fn only_what_nobody_holds_and_nobody_kept_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let exists = |dir: &Path| dir.exists();
        let held = Place::make(scratch.path()).unwrap();
        let dead = Place::make(scratch.path()).unwrap();
        fs::create_dir_all(dead.data().join("base")).unwrap();
        let dead_dir = dead.dir().to_path_buf();
        // As a kill does it: the lock goes, the directory stays.
        flock(&dead.mark, FlockOperation::Unlock).unwrap();
        let kept = Place::make(scratch.path()).unwrap().keep().unwrap();
        let foreign = scratch.path().join("lastgood-drill-foreign");
        fs::create_dir(&foreign).unwrap();
        sweep(scratch.path(), &Silent);
        assert!(exists(held.dir()) && exists(&kept) && exists(&foreign) && !exists(&dead_dir));
        let gone = held.dir().to_path_buf();
        drop(held);
        assert!(!exists(&gone));
    }

    #[test]
    fn a_path_that_no_socket_fits_into_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        check(scratch.path()).unwrap();
        let long = scratch.path().join("x".repeat(80));
        fs::create_dir(&long).unwrap();
        assert!(check(&long).unwrap_err().to_string().contains("too long"));
        assert!(check(&long.join("absent")).unwrap_err().to_string().contains("does not exist"));
    }
}
