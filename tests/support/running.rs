//! A program that runs, is paused, and goes on; killed when the test ends early.

use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::world::{PATIENCE, Said};

pub struct Running(Option<Child>);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        Running(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    pub fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.id() as i32).unwrap(), signal).unwrap();
    }

    /// Stops it, and waits until it stands, or has ended.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        let path = format!("/proc/{}/stat", self.id());
        let began = lastgood::clock::monotonic();
        while !std::fs::read_to_string(&path).unwrap().rsplit(')').next().unwrap().trim_start().starts_with(['T', 'Z']) {
            assert!(began.elapsed() < PATIENCE);
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    pub fn end(mut self) -> Said {
        let Output { status, stdout, stderr } = self.0.take().unwrap().wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
    }

    pub fn kill(self) {
        self.signal(Signal::KILL);
        self.end();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
