//! Measuring programs: a process of its own runs them one after the other, and tells what they and all their descendants took.
//!
//! What counts is taken from the kernel's own accounts: CPU time and the largest process from `getrusage(RUSAGE_CHILDREN)`,
//! bytes from `/proc/self/io`, into which the kernel adds those of every child that was waited for. The measuring process is a
//! subreaper, so that descendants which outlive their parents (look-ahead, asynchronous archiving) are its children and count too.
//! Only the sum of memory at one moment must be sampled. A group of its own lets all of it be ended at once.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lastgood::clock;
use lastgood::owner::Ids;
use serde::{Deserialize, Serialize};

/// How long descendants may outlive the last program.
pub const GRACE: Duration = Duration::from_secs(30);
/// So much free memory is used before a measurement: more than anything measured takes, with the page cache.
const READY_BYTES: usize = 3 << 30;
/// Of memory, on x86-64.
const PAGE_BYTES: usize = 4096;

/// One program to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub dir: PathBuf,
    pub server: Option<Server>,
}

/// What PostgreSQL does around a program that it calls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Server {
    /// Calls it only when `ready` is still there, and renames that to `done` after success.
    Archives { ready: PathBuf, done: PathBuf },
    /// Takes the file away.
    Takes(PathBuf),
}

impl Step {
    pub fn new<S: Into<String>>(program: &Path, args: impl IntoIterator<Item = S>) -> Step {
        let args = args.into_iter().map(Into::into).collect();
        Step { program: program.into(), args, env: Vec::new(), dir: "/".into(), server: None }
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Step {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn dir(mut self, dir: &Path) -> Step {
        self.dir = dir.into();
        self
    }

    pub fn called_by(mut self, server: Server) -> Step {
        self.server = Some(server);
        self
    }

    /// As a line for a shell, with `"$1"` for the argument `%1`.
    pub fn shell(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let argument = |text: &String| if text == "%1" { "\"$1\"".to_string() } else { quoted(text) };
        let env = self.env.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let program = [quoted(&self.program.display().to_string())];
        ["env".to_string()]
            .into_iter()
            .chain(env)
            .chain(program)
            .chain(self.args.iter().map(argument))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Ready to be started, with its output in a file.
    pub fn command(&self, output: &Path) -> Result<Command> {
        let file = fs::File::create(output).with_context(|| format!("create {}", output.display()))?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.dir).env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", "/nonexistent").env("LC_ALL", "C.UTF-8");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(command)
    }
}

/// Programs to run one after the other, beside one that runs all the while.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    pub beside: Option<Step>,
    pub steps: Vec<Step>,
    /// Where output is kept until it is read.
    pub scratch: PathBuf,
    pub limit_s: u64,
}

/// What programs took.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    /// From the first program's start to the last one's end.
    pub wall_s: f64,
    /// How long the file system then took to write what it still held back.
    pub sync_s: f64,
    pub cpu_user_s: f64,
    pub cpu_system_s: f64,
    /// What the whole machine was busy for meanwhile, and what the hypervisor gave to others: tells a disturbed measurement.
    pub machine_s: f64,
    pub stolen_s: f64,
    /// The largest sum over all processes but PostgreSQL's at one moment that was looked at; pages that several share count in
    /// each.
    pub peak_bytes: u64,
    /// The largest single process.
    pub peak_process_bytes: u64,
    /// By `read` and the like, whether from the disk or from memory; not what came through `recv` or `mmap`.
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Of each program.
    pub steps_s: Vec<f64>,
    /// The end of what the last program printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Measured {
    pub fn cpu_s(&self) -> f64 {
        self.cpu_user_s + self.cpu_system_s
    }

    /// What ends between two looks is known by its largest process only.
    pub fn most_bytes(&self) -> u64 {
        self.peak_bytes.max(self.peak_process_bytes)
    }
}

/// Runs tasks as the server's user.
#[derive(Debug, Clone)]
pub struct Meter {
    /// A copy of this program that the user can read.
    pub program: PathBuf,
    pub user: Option<Ids>,
    pub scratch: PathBuf,
    pub limit: Duration,
}

/// A whole group, ended when dropped.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Meter {
    /// Runs, and tells what it took. A program that failed is an error here.
    pub async fn run(&self, steps: Vec<Step>) -> Result<Measured> {
        self.run_beside(None, steps).await
    }

    pub async fn run_beside(&self, beside: Option<Step>, steps: Vec<Step>) -> Result<Measured> {
        let task = Task { beside, steps, scratch: self.scratch.clone(), limit_s: self.limit.as_secs() };
        let text = serde_json::to_vec(&task)?;
        let input = tempfile::tempfile_in(&self.scratch)?;
        (&input).write_all(&text)?;
        std::io::Seek::rewind(&mut &input)?;
        let mut command = tokio::process::Command::new(&self.program);
        command.arg("run-task").stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).current_dir("/");
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        settle(&self.scratch)?;
        let child = command.spawn().with_context(|| format!("start {}", self.program.display()))?;
        let mut group = Group(child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)));
        let limit = self.limit + GRACE * 2;
        let output = tokio::time::timeout(limit, child.wait_with_output()).await.context("the measuring process hangs")??;
        // It was waited for: its number may be somebody else's by now.
        group.0 = None;
        let mut measured: Measured = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the measuring process failed: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
        let began = clock::monotonic();
        settle(&self.scratch)?;
        measured.sync_s = began.elapsed().as_secs_f64();
        match measured.failure.take() {
            None => Ok(measured),
            Some(failure) => bail!("{failure}"),
        }
    }
}

/// Writes out what the file system holds back, so that nobody pays for another's writing.
fn settle(path: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(fs::File::open(path)?)?)
}

/// Uses free memory once. The host of a virtual machine takes back what lies unused, and whoever uses it next waits for it, many
/// times as long as for copying: with that, who comes first would be slower than who comes second.
pub fn have_memory() -> Result<()> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let free = text.lines().find_map(|line| line.strip_prefix("MemFree:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    let bytes = (free.context("/proc/meminfo has no MemFree")? << 10) / 2;
    let mut memory = vec![0u8; bytes.min(READY_BYTES)];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
    Ok(())
}

/// A command that prepares something and is not measured.
pub fn quietly(command: &mut Command, user: Option<Ids>) -> Result<String> {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.current_dir("/").stdin(Stdio::null()).output().with_context(|| format!("start {name}"))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { bail!("{name} failed: {}", text.trim()) }
}
