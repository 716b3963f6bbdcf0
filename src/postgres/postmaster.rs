//! Whether a server lives in a data directory. In doubt, it lives.
//!
//! Four signs are looked at, because each alone has failed somebody: the pid file (which may be gone, or name a pid that another
//! program has by now), the processes of this host (a postmaster and all its children work in their data directory; but another
//! container's processes cannot be seen), the socket and the address that the pid file names (which reach into other containers).
//! A server in a directory below or above counts too: who moves the one moves the other.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest that a connection, or an answer to it, is waited for.
const ANSWER: Duration = Duration::from_secs(2);
/// More directories above one are not looked at.
const DEPTH_MAX: usize = 64;
/// `PROC_PID_INIT_INO`: who is in this namespace sees every process of the host.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// A running server.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Living {
    /// Absent where only its socket or address answers: a process of another container.
    pub pid: Option<i32>,
    /// Where it works, when that is a directory below or above the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<PathBuf>,
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
    /// The TCP address answers.
    Address,
    /// Its process would not be seen from here, and nothing answers.
    Unknown,
}

impl std::fmt::Display for Living {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pid = self.pid.map(|pid| format!("pid {pid}")).unwrap_or_else(|| "in another container".into());
        match self.sign {
            Sign::PidFile => write!(f, "{pid}")?,
            Sign::Process if self.elsewhere.is_some() => write!(f, "{pid}")?,
            Sign::Process => write!(f, "{pid}, found by its working directory although postmaster.pid does not name it")?,
            Sign::Socket => write!(f, "{pid}, found by its socket")?,
            Sign::Address => write!(f, "{pid}, found by its TCP address")?,
            Sign::Unknown => write!(
                f,
                "unknown: postmaster.pid names a process that cannot be seen from this container; when it is certain that no server runs, \
                 remove postmaster.pid"
            )?,
        }
        match &self.elsewhere {
            Some(dir) => write!(f, ", in {}", dir.display()),
            None => Ok(()),
        }
    }
}

impl Living {
    fn new(pid: Option<i32>, sign: Sign) -> Living {
        Living { pid, elsewhere: None, sign }
    }
}

/// The server that lives in `dir`, below it, or in a directory above it.
pub fn living(dir: &Path) -> io::Result<Option<Living>> {
    let text = match fs::read_to_string(dir.join(PID_FILE)) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => String::new(),
        Err(error) => return Err(error),
    };
    let here = fs::canonicalize(dir)?;
    if let Some(pid) = named_pid(&text)
        // Another user's process does not show where it works, but what it is.
        && works_in(pid, &here).unwrap_or_else(|| is_server(pid))
    {
        return Ok(Some(Living::new(Some(pid), Sign::PidFile)));
    }
    if let Some(pid) = process_in(&here) {
        return Ok(Some(Living::new(Some(pid), Sign::Process)));
    }
    if let Some((pid, elsewhere)) = process_around(&here)? {
        return Ok(Some(Living { elsewhere: Some(elsewhere), ..Living::new(Some(pid), Sign::Process) }));
    }
    if may_be_in_container(&text) {
        return Ok(Some(Living::new(None, Sign::PidFile)));
    }
    if socket(&text).is_some_and(|socket| answers(&socket, &text)) {
        return Ok(Some(Living::new(None, Sign::Socket)));
    }
    // A pid that exists is another program's by now, or another's thread.
    if address(&text).is_some_and(|(host, port)| is_postgresql(host, port) && !is_explained(port)) {
        return Ok(Some(Living::new(None, Sign::Address)));
    }
    Ok(is_unknown(&text).then(|| Living::new(None, Sign::Unknown)))
}

/// The data directories in which servers work that this host lets us see: with the root that their paths begin at.
pub fn working() -> Vec<(PathBuf, PathBuf)> {
    let of = |pid: i32| Path::new("/proc").join(pid.to_string());
    let servers = processes().filter(|pid| is_server(*pid) && of(*pid).join("cwd/PG_VERSION").exists());
    let mut seen = HashSet::new();
    let place = |pid: i32| Some((fs::metadata(of(pid).join("cwd")).ok().map(|m| (m.dev(), m.ino()))?, pid));
    servers
        .filter_map(place)
        .filter(|(place, _)| seen.insert(*place))
        .map(|(_, pid)| (of(pid).join("cwd"), of(pid).join("root")))
        .collect()
}

/// The data directory that a pid file names: its second line.
pub fn named_directory(dir: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(dir.join(PID_FILE)).ok()?;
    text.lines().nth(1).map(|line| PathBuf::from(line.trim())).filter(|path| path.is_absolute())
}

const PID_FILE: &str = "postmaster.pid";

/// The pid of the first line, if such a process exists; negative for a stand-alone backend.
fn named_pid(text: &str) -> Option<i32> {
    let pid = text.lines().next()?.trim().parse::<i32>().ok()?.abs();
    (pid > 1 && Path::new("/proc").join(pid.to_string()).exists()).then_some(pid)
}

/// Whether a process works in `dir`; `None` when we may not know. By device and inode: in a container the same directory has
/// another name, but the link leads there all the same.
fn works_in(pid: i32, dir: &Path) -> Option<bool> {
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

/// A server whose data directory lies below `dir`, or above it.
fn process_around(dir: &Path) -> io::Result<Option<(i32, PathBuf)>> {
    let place = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let own = place(dir)?;
    let above: HashSet<(u64, u64)> = dir.ancestors().skip(1).filter_map(|path| place(path).ok()).collect();
    let found = processes().filter(|pid| is_server(*pid)).find_map(|pid| {
        let cwd = Path::new("/proc").join(pid.to_string()).join("cwd");
        // Others than servers may have such a name and work anywhere.
        if !cwd.join("PG_VERSION").exists() {
            return None;
        }
        let mut path = cwd.clone();
        let is_above = above.contains(&place(&path).ok()?);
        let is_below = (0..DEPTH_MAX).any(|_| {
            path.push("..");
            place(&path).is_ok_and(|place| place == own)
        });
        (is_above || is_below).then(|| (pid, fs::read_link(&cwd).unwrap_or(cwd)))
    });
    Ok(found)
}

fn is_server(pid: i32) -> bool {
    let name = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")).unwrap_or_default();
    let name = name.trim();
    // Kernel names are cut at 15 bytes; packagers call the program `postgres`, `postmaster`, or `edb-postgres`.
    name.contains("postgres") || name.contains("postmaster")
}

/// Whether the pid file names a process that exists.
pub fn names_a_process(dir: &Path) -> bool {
    fs::read_to_string(dir.join(PID_FILE)).is_ok_and(|text| named_pid(&text).is_some())
}

/// Where the living server of a data directory is reached: the directory of its socket or its address, and the port.
pub fn reached_at(dir: &Path) -> Option<(String, u16)> {
    let text = fs::read_to_string(dir.join(PID_FILE)).ok()?;
    named_pid(&text)?;
    let port = text.lines().nth(3)?.trim().parse().ok()?;
    if let Some(socket) = socket(&text) {
        return Some((socket.parent()?.display().to_string(), port));
    }
    let (host, _) = address(&text)?;
    let host = if matches!(host, "*" | "0.0.0.0" | "::") { "127.0.0.1" } else { host };
    Some((host.into(), port))
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

/// The TCP address that a pid file names: line 6 the host, line 4 the port.
fn address(text: &str) -> Option<(&str, u16)> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let host = lines.get(5).filter(|host| !host.is_empty())?;
    Some((host, lines.get(3)?.parse().ok()?))
}

/// Whether something that speaks PostgreSQL's protocol answers there: it answers to a request for TLS with one letter.
fn is_postgresql(host: &str, port: u16) -> bool {
    let hosts = match host {
        "*" | "0.0.0.0" | "::" => vec!["127.0.0.1", "::1"],
        host => vec![host],
    };
    let ask = |address| -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        // Length 8, code 1234.5679.
        stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok(matches!(&answer, b"S" | b"N" | b"E"))
    };
    let addresses = hosts.into_iter().filter_map(|host| (host, port).to_socket_addrs().ok()).flatten();
    addresses.take(4).any(|address| ask(address).unwrap_or(false))
}

/// Whether another server, which we see, listens at this port: then it is the one that answers.
fn is_explained(port: u16) -> bool {
    working().into_iter().any(|(dir, _)| {
        let text = fs::read_to_string(dir.join(PID_FILE)).unwrap_or_default();
        address(&text).is_some_and(|(_, other)| other == port)
    })
}

/// A pid file from after the start of this host, in a container from which not every process can be seen.
fn is_unknown(text: &str) -> bool {
    if fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace == Path::new(FIRST_NAMESPACE)) {
        return false;
    }
    // Fewer lines are no server's.
    let Some(started) = text.lines().nth(2).and_then(|line| line.trim().parse::<i64>().ok()) else { return false };
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<i64>().ok());
    booted.is_none_or(|booted| started >= booted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_in_the_protocol() {
        let text = |host: &str| format!("77\n/data\n1700000000\n5433\n/run\n{host}\n");
        assert_eq!(address(&text("*")), Some(("*", 5433)));
        assert_eq!(address(&text("")), None);
        assert_eq!(address("77\n/data\n"), None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = |answer: &'static [u8]| {
            let listener = listener.try_clone().unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 8];
                stream.read_exact(&mut asked).unwrap();
                stream.write_all(answer).unwrap();
            })
        };
        for (said, is) in [(&b"N"[..], true), (b"S", true), (b"HTTP/1.1 400", false), (b"", false)] {
            let server = answer(said);
            assert_eq!(is_postgresql("127.0.0.1", port), is, "{said:?}");
            server.join().unwrap();
        }
        drop(listener);
        assert!(!is_postgresql("127.0.0.1", port));
    }
}
