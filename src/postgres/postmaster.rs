//! Whether a server lives in a data directory. In doubt, it lives.
//!
//! Three signs are looked at, because each alone has failed somebody: the pid file (which may be gone, or name a pid that another
//! program has by now), the processes of this host (a postmaster and all its children work in their data directory; but another
//! container's processes cannot be seen), and the socket that the pid file names (which reaches into other containers).

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A running server.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Living {
    /// Absent where only its socket answers: a process of another container.
    pub pid: Option<i32>,
    /// How it was found.
    pub sign: Sign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    PidFile,
    /// `postmaster.pid` is gone or wrong, but a process works in the directory.
    Process,
    Socket,
}

impl std::fmt::Display for Living {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pid = self.pid.map(|pid| format!("pid {pid}")).unwrap_or_else(|| "in another container".into());
        match self.sign {
            Sign::PidFile => write!(f, "{pid}"),
            Sign::Process => write!(f, "{pid}, found by its working directory although postmaster.pid does not name it"),
            Sign::Socket => write!(f, "{pid}, found by its socket"),
        }
    }
}

/// The server that lives in `dir`.
pub fn living(dir: &Path) -> io::Result<Option<Living>> {
    let text = match fs::read_to_string(dir.join("postmaster.pid")) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => String::new(),
        Err(error) => return Err(error),
    };
    let here = fs::canonicalize(dir)?;
    if let Some(pid) = named_pid(&text)
        // Another user's process does not show where it works, but what it is.
        && works_in(pid, &here).unwrap_or_else(|| is_server(pid))
    {
        return Ok(Some(Living { pid: Some(pid), sign: Sign::PidFile }));
    }
    if let Some(pid) = process_in(&here) {
        return Ok(Some(Living { pid: Some(pid), sign: Sign::Process }));
    }
    if may_be_in_container(&text) {
        return Ok(Some(Living { pid: None, sign: Sign::PidFile }));
    }
    Ok(socket(&text).filter(|socket| answers(socket, &text)).map(|_| Living { pid: None, sign: Sign::Socket }))
}

/// The pid of the first line, if such a process exists; negative for a stand-alone backend.
fn named_pid(text: &str) -> Option<i32> {
    let pid = text.lines().next()?.trim().parse::<i32>().ok()?.abs();
    (pid > 1 && Path::new("/proc").join(pid.to_string()).exists()).then_some(pid)
}

/// Whether a process works in `dir`; `None` when we may not know. By device and inode: in a container the same directory has
/// another name, but the link leads there all the same.
fn works_in(pid: i32, dir: &Path) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    let cwd = fs::metadata(Path::new("/proc").join(pid.to_string()).join("cwd")).ok()?;
    let dir = fs::metadata(dir).ok()?;
    Some((cwd.dev(), cwd.ino()) == (dir.dev(), dir.ino()))
}

/// The first process of a container wrote the pid file, and there is a server whose place we may not see.
fn may_be_in_container(text: &str) -> bool {
    let is_first = text.lines().next().is_some_and(|line| line.trim() == "1");
    is_first && processes().any(|pid| is_server(pid) && works_in(pid, Path::new("/")).is_none())
}

fn processes() -> impl Iterator<Item = i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
}

/// A `postgres` process that works in `dir`, whatever the pid file says. Others may: a shell, or an administrator's `ls`.
fn process_in(dir: &Path) -> Option<i32> {
    processes().find(|pid| works_in(*pid, dir) == Some(true) && is_server(*pid))
}

fn is_server(pid: i32) -> bool {
    let name = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")).unwrap_or_default();
    let name = name.trim();
    // Kernel names are cut at 15 bytes; packagers call the program `postgres`, `postmaster`, or `edb-postgres`.
    name.contains("postgres") || name.contains("postmaster")
}

/// The socket that a pid file names: line 4 the port, line 5 the directory (`src/include/utils/pidfile.h`).
fn socket(text: &str) -> Option<PathBuf> {
    let lines: Vec<&str> = text.lines().collect();
    let port: u16 = lines.get(3)?.trim().parse().ok()?;
    let dir = lines.get(4).map(|dir| dir.trim()).filter(|dir| dir.starts_with('/'))?;
    Some(Path::new(dir).join(format!(".s.PGSQL.{port}")))
}

/// Whether the server that wrote the pid file answers at its socket. Sockets are reused as pids are: the lock beside the socket
/// says, as the pid file does, which pid serves it and since when.
fn answers(socket: &Path, pid_file: &str) -> bool {
    if UnixStream::connect(socket).is_err() {
        return false;
    }
    let lock = socket.with_file_name(format!("{}.lock", socket.file_name().unwrap_or_default().to_string_lossy()));
    let server = |text: &str| text.lines().map(|line| line.trim().to_string()).step_by(2).take(2).collect::<Vec<_>>();
    fs::read_to_string(lock).map_or(true, |lock| server(&lock) == server(pid_file))
}
