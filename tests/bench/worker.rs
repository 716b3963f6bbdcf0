//! The measuring process, from inside: runs a [`Task`], and tells what it took.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lastgood::clock;

use crate::measure::{GRACE, Measured, Server, Step, Task};

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(20);
/// What is kept of what a program printed, from its end.
const OUTPUT_BYTES: usize = 256 << 10;
/// What is shown of what a failed program printed, from its end.
const ERROR_CHARS: usize = 1200;

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
    let (busy, stolen) = machine_seconds()?;
    let began = clock::monotonic();
    let mut ran = Ok(());
    for step in &task.steps {
        ran = run_step(step, &output("step"), measured);
        if ran.is_err() {
            break;
        }
    }
    measured.wall_s = began.elapsed().as_secs_f64();
    let after = machine_seconds()?;
    (measured.machine_s, measured.stolen_s) = (after.0 - busy, after.1 - stolen);
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

/// Seconds of all cores since the machine started: busy, and stolen. The kernel counts in hundredths (`proc_stat(5)`).
fn machine_seconds() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu ")).context("no line of all cores")?;
    let fields: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let sum = |places: &[usize]| places.iter().filter_map(|place| fields.get(*place)).sum::<f64>() / 100.0;
    Ok((sum(&[0, 1, 2, 5, 6]), sum(&[7])))
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
