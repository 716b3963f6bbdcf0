//! Measuring programs: a process of its own runs them one after the other, and tells what they and all their descendants took.
//!
//! What counts is taken from the kernel's own accounts: CPU time and the largest process from `getrusage(RUSAGE_CHILDREN)`,
//! bytes from `/proc/self/io`, into which the kernel adds those of every child that was waited for. The measuring process is a
//! subreaper, so that descendants which outlive their parents (look-ahead, asynchronous archiving) are its children and count too.
//! Only the sum of memory at one moment must be sampled. A group of its own lets all of it be ended at once.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lastgood::clock;
use lastgood::postgres::owner::Ids;
use serde::{Deserialize, Serialize};

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(20);
/// How long descendants may outlive the last program.
const GRACE: Duration = Duration::from_secs(30);
/// What is shown of what a failed program printed, from its end.
const ERROR_CHARS: usize = 1200;
/// What is kept of what a program printed, from its end.
const OUTPUT_BYTES: usize = 256 << 10;

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

    fn command(&self, output: &Path) -> Result<Command> {
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

/// The measuring process: a task comes in, what it took goes out.
pub fn run_task() -> Result<()> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    let task: Task = serde_json::from_slice(&text)?;
    drop(text);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let before = io_bytes()?;
    let watch = Arc::new(Watch::default());
    let deadline = clock::monotonic() + Duration::from_secs(task.limit_s);
    let watcher = std::thread::spawn({
        let watch = watch.clone();
        move || watch.keep(deadline)
    });
    let mut measured = Measured::default();
    if let Err(error) = run_steps(&task, &mut measured) {
        measured.failure = Some(format!("{error:#}"));
    }
    reap()?;
    watch.done.store(true, Ordering::Relaxed);
    let _ = watcher.join();
    if watch.timed_out.load(Ordering::Relaxed) {
        measured.failure = Some(format!("not done after {} s", task.limit_s));
    }
    let after = io_bytes()?;
    measured.read_bytes = after.0 - before.0;
    measured.written_bytes = after.1 - before.1;
    usage(&mut measured);
    measured.peak_bytes = watch.peak.load(Ordering::Relaxed);
    serde_json::to_writer(std::io::stdout(), &measured)?;
    Ok(())
}

fn run_steps(task: &Task, measured: &mut Measured) -> Result<()> {
    let output = |name: &str| task.scratch.join(format!("output-{}-{name}", std::process::id()));
    let mut beside = match &task.beside {
        Some(step) => Some(step.command(&output("beside"))?.spawn()?),
        None => None,
    };
    if beside.is_some() {
        // It has no other way to say that it listens.
        std::thread::sleep(Duration::from_millis(300));
    }
    let began = clock::monotonic();
    let mut ran = Ok(());
    for step in &task.steps {
        ran = run_step(step, &output("step"), measured);
        if ran.is_err() {
            break;
        }
    }
    measured.wall_s = began.elapsed().as_secs_f64();
    if let Some(child) = &mut beside {
        end(child);
    }
    for name in ["step", "beside"] {
        let _ = fs::remove_file(output(name));
    }
    ran
}

fn run_step(step: &Step, output: &Path, measured: &mut Measured) -> Result<()> {
    if let Some(Server::Archives { ready, .. }) = &step.server
        && !ready.exists()
    {
        return Ok(());
    }
    let mut command = step.command(output)?;
    let began = clock::monotonic();
    let status = command.spawn().with_context(|| format!("start {}", step.program.display()))?.wait()?;
    measured.steps_s.push(began.elapsed().as_secs_f64());
    let printed = fs::read(output).unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed[printed.len().saturating_sub(OUTPUT_BYTES)..]).trim().to_string();
    if !status.success() {
        let from = printed.char_indices().rev().nth(ERROR_CHARS).map_or(0, |(at, _)| at);
        bail!("{} {}: {status}: {}", step.program.display(), step.args.join(" "), &printed[from..]);
    }
    measured.output = printed;
    match &step.server {
        // Some tools rename it themselves.
        Some(Server::Archives { ready, done }) => drop(fs::rename(ready, done)),
        Some(Server::Takes(path)) => fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?,
        None => {}
    }
    Ok(())
}

fn end(child: &mut Child) {
    if let (Ok(None), Some(pid)) = (child.try_wait(), rustix::process::Pid::from_raw(child.id() as i32)) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Waits for every descendant that is left; what does not end in time is killed, and waited for.
fn reap() -> Result<()> {
    let began = clock::monotonic();
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(Some(_)) => {}
            Ok(None) => {
                if began.elapsed() > GRACE {
                    descendants().keys().for_each(|pid| kill(*pid));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Looks at memory, and ends what takes too long.
#[derive(Default)]
struct Watch {
    done: AtomicBool,
    timed_out: AtomicBool,
    peak: AtomicU64,
}

impl Watch {
    fn keep(&self, deadline: Instant) {
        while !self.done.load(Ordering::Relaxed) {
            let found = descendants();
            self.peak.fetch_max(found.values().sum(), Ordering::Relaxed);
            if clock::monotonic() > deadline {
                self.timed_out.store(true, Ordering::Relaxed);
                found.keys().for_each(|pid| kill(*pid));
            }
            std::thread::sleep(SAMPLE);
        }
    }
}

/// Descendants of this process with the bytes they have in memory.
fn descendants() -> HashMap<i32, u64> {
    let own = std::process::id() as i32;
    // SAFETY: it only asks.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    // What is younger has a higher number, so the many older processes of the machine need not be asked.
    let mut pids: Vec<i32> = pids.filter(|pid| *pid > own).collect();
    pids.sort_unstable();
    let mut found = HashMap::new();
    for pid in pids {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name stands in parentheses and may hold anything; after it come state, parent, …, and field 24 is the memory.
        let Some((name, fields)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let parent = fields.get(1).and_then(|text| text.parse::<i32>().ok()).unwrap_or(0);
        if parent == own || found.contains_key(&parent) {
            let pages: u64 = fields.get(21).and_then(|text| text.parse().ok()).unwrap_or(0);
            // All processes of a server map its shared memory: what matters is what the tools take beside it.
            let pages = if name.ends_with("(postgres") { 0 } else { pages };
            found.insert(pid, pages * page_bytes);
        }
    }
    found
}

/// Bytes read and written by this process and every child that it waited for.
fn io_bytes() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/io")?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Ok((field("rchar:").context("no rchar")?, field("wchar:").context("no wchar")?))
}

fn usage(measured: &mut Measured) {
    // SAFETY: the structure is plain numbers, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    measured.cpu_user_s = seconds(usage.ru_utime);
    measured.cpu_system_s = seconds(usage.ru_stime);
    measured.peak_process_bytes = usage.ru_maxrss as u64 * 1024;
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
