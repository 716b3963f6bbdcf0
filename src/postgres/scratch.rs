//! A throw-away server: made, started, asked, stopped. Drills, the demo and the tests use it.
//!
//! It listens on a socket in a directory of its own and on no network. PostgreSQL refuses to run as root; root therefore
//! runs it as the given user. It is stopped by the pid that was started, at the latest when the value is dropped.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::session::{Connection, Session, Tls};
use crate::child;
use crate::owner::{self, Ids};

#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{program} failed:\n{output}")]
    Program { program: String, output: String },
    #[error("the server did not start; its log says:\n{log}")]
    NotStarted { log: String },
    #[error("this is root, which PostgreSQL refuses, and there is no user {name:?} to run it as")]
    NoUser { name: String },
}

/// The user for servers: nobody else when we are not root, the named user when we are.
pub fn run_as(name: &str) -> Result<Option<Ids>, ScratchError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    owner::user(name).map(Some).ok_or_else(|| ScratchError::NoUser { name: name.into() })
}

/// How to end a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Roll back, checkpoint, exit.
    Fast,
    /// Exit now; the next start recovers.
    Immediate,
}

#[derive(Debug)]
pub struct Scratch {
    bin: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    user: Option<Ids>,
    process: Option<Child>,
    arguments: Vec<String>,
    is_tied: bool,
}

/// Socket file names carry a port; each server has a socket directory of its own, so all can have the same.
const PORT: u16 = 5432;

impl Scratch {
    /// A server of the programs in `bin` on the data directory `data`. `sockets` is made; nothing is started.
    pub fn new(bin: &Path, data: &Path, sockets: &Path, user: Option<Ids>) -> Result<Scratch, ScratchError> {
        make_directory(sockets, user)?;
        let log = sockets.join("server.log");
        Ok(Scratch {
            bin: bin.into(),
            data: data.into(),
            sockets: sockets.into(),
            log,
            user,
            process: None,
            arguments: Vec::new(),
            is_tied: false,
        })
    }

    /// Further arguments for `postgres`, from the next start on.
    pub fn set_arguments(&mut self, arguments: Vec<String>) {
        self.arguments = arguments;
    }

    /// The server does not outlive the thread that starts it, however that ends: the kernel tells it to stop at once. Only for a thread
    /// that lives as long as the server shall.
    pub fn tied(mut self) -> Scratch {
        self.is_tied = true;
        self
    }

    /// Lets the server live on when this value goes. Answers its pid.
    pub fn leave(mut self) -> Option<u32> {
        self.process.take().map(|process| process.id())
    }

    /// `initdb` with settings that make a throw-away server quick.
    pub fn initdb(&self, options: &[&str]) -> Result<(), ScratchError> {
        make_directory(&self.data, self.user)?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(&self.data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]);
        run(command.args(options))
    }

    /// Adds lines to `postgresql.conf`.
    pub fn configure(&self, lines: &str) -> Result<(), ScratchError> {
        use std::io::Write;
        let path = self.data.join("postgresql.conf");
        let failed = |source| ScratchError::Io { doing: "write", path: path.clone(), source };
        let mut file = fs::OpenOptions::new().append(true).open(&path).map_err(failed)?;
        writeln!(file, "{lines}").map_err(failed)
    }

    /// Starts the server and waits until it answers. A server that recovers answers once it is consistent.
    pub async fn start(&mut self) -> Result<(), ScratchError> {
        self.spawn()?;
        loop {
            if self.has_exited() {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                return Err(ScratchError::NotStarted { log: last_lines(&log, 30) });
            }
            if Session::open(&self.connection()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the server without waiting.
    pub fn spawn(&mut self) -> Result<(), ScratchError> {
        let failed = |source| ScratchError::Io { doing: "write", path: self.log.clone(), source };
        let log = fs::OpenOptions::new().append(true).create(true).open(&self.log).map_err(failed)?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.sockets).args(["-h", "", "-p", &PORT.to_string()]);
        command.args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        // A group of its own, so that an interrupt at the terminal reaches us and not the server behind our back.
        command.process_group(0);
        if self.is_tied {
            tie(&mut command);
        }
        self.process = Some(command.spawn().map_err(|source| ScratchError::Io {
            doing: "start",
            path: self.bin.join("postgres"),
            source,
        })?);
        Ok(())
    }

    /// Whether a started server has ended by itself.
    pub fn has_exited(&mut self) -> bool {
        self.process.as_mut().is_none_or(|process| !matches!(process.try_wait(), Ok(None)))
    }

    pub fn stop(&mut self, how: Stop) {
        let Some(mut process) = self.process.take() else { return };
        // A pid that was waited for may be somebody else's by now.
        if !matches!(process.try_wait(), Ok(None)) {
            return;
        }
        let signal = match how {
            Stop::Fast => rustix::process::Signal::INT,
            Stop::Immediate => rustix::process::Signal::QUIT,
        };
        if let Some(pid) = rustix::process::Pid::from_raw(process.id() as i32) {
            // It may have ended already; then there is nothing to signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
        let _ = process.wait();
    }

    pub fn connection(&self) -> Connection {
        Connection {
            host: Some(self.sockets.display().to_string()),
            port: Some(PORT),
            user: Some("postgres".into()),
            dbname: Some("postgres".into()),
            tls: Some(Tls::Disable),
            ..Connection::default()
        }
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn user(&self) -> Option<Ids> {
        self.user
    }

    /// A program of this server's version, as its user.
    pub fn command(&self, program: &str) -> Command {
        self::program(&self.bin, program, self.user)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}

/// A program of PostgreSQL as the user of a server, which gets nothing of our secrets: such a server runs the code of its databases.
pub fn program(bin: &Path, name: &str, user: Option<Ids>) -> Command {
    let mut command = Command::new(bin.join(name));
    child::bare(&mut command);
    command.current_dir("/").env("LC_ALL", "C");
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid).env("HOME", "/");
    }
    command
}

/// Lets the kernel send SIGQUIT (an immediate shutdown) to the command when the thread that started it ends.
fn tie(command: &mut Command) {
    let parent = rustix::process::getpid();
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::QUIT))?;
        // It ended before it was asked.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: between fork and exec only functions that are safe in a signal handler may be called: these are two plain system calls
    // that take no memory. It happens after the change of user, which would clear it.
    unsafe {
        command.pre_exec(ask);
    }
}

/// Makes a directory 0700 that belongs to the server's user.
pub fn make_directory(path: &Path, user: Option<Ids>) -> Result<(), ScratchError> {
    let failed = |source| ScratchError::Io { doing: "make", path: path.into(), source };
    fs::create_dir_all(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    match user {
        Some(user) => chown(path, Some(user.uid), Some(user.gid)).map_err(failed),
        None => Ok(()),
    }
}

fn run(command: &mut Command) -> Result<(), ScratchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ScratchError::Io { doing: "run", path: PathBuf::from(&program), source };
    let output = command.stdin(Stdio::null()).output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(ScratchError::Program { program: program.clone(), output: last_lines(&text, 30) })
}

pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
