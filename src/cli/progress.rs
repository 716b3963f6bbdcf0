//! How long work shows: a bar with an estimate on a terminal, plain lines in cron, events with `--json`.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{output, quiet};
use crate::monitor::Monitor;

/// The monitor for this terminal, or for none.
pub fn monitor(json: bool) -> Arc<dyn Monitor> {
    if json {
        Arc::new(Events::default())
    } else if std::io::stderr().is_terminal() && !quiet::is_on() {
        Arc::new(Bar::default())
    } else {
        Arc::new(Lines)
    }
}

/// A bar for the current phase.
#[derive(Default)]
struct Bar {
    current: Mutex<Option<ProgressBar>>,
}

impl Bar {
    fn with(&self, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.current.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            act(bar);
        }
    }
}

impl Monitor for Bar {
    fn phase(&self, name: &str, total_bytes: u64) {
        let template = if total_bytes > 0 {
            "{msg:<16} {wide_bar} {binary_bytes:>10} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
        } else {
            "{msg:<16} {spinner} {elapsed}"
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total_bytes).with_style(style).with_message(output::escaped(name).into_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        let before = self.current.lock().unwrap_or_else(PoisonError::into_inner).replace(bar);
        if let Some(before) = before {
            before.finish_and_clear();
        }
    }

    fn advance(&self, bytes: u64) {
        self.with(|bar| bar.inc(bytes));
    }

    fn note(&self, text: &str) {
        match self.current.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(bar) => bar.suspend(|| output::complain(text)),
            None => output::complain(text),
        }
    }

    fn warn(&self, text: &str) {
        match self.current.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(bar) => bar.suspend(|| output::warn(text)),
            None => output::warn(text),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.with(ProgressBar::finish_and_clear);
    }
}

/// A line for each phase, for cron's mail and for log files.
struct Lines;

impl Monitor for Lines {
    fn phase(&self, name: &str, total_bytes: u64) {
        if total_bytes > 0 {
            output::complain(&format!("{name}: {}", output::bytes(total_bytes)));
        } else {
            output::complain(name);
        }
    }

    fn advance(&self, _: u64) {}

    fn note(&self, text: &str) {
        output::complain(text);
    }

    fn warn(&self, text: &str) {
        output::warn(text);
    }
}

/// One JSON object a line; progress at most once for each hundredth.
#[derive(Default)]
struct Events {
    total: AtomicU64,
    done: AtomicU64,
}

impl Monitor for Events {
    fn phase(&self, name: &str, total_bytes: u64) {
        self.total.store(total_bytes, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        output::json(&serde_json::json!({ "event": "phase", "name": name, "total_bytes": total_bytes }));
    }

    fn advance(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        let hundredth = |done: u64| (done * 100).checked_div(total);
        if hundredth(before) != hundredth(before + bytes) {
            output::json(&serde_json::json!({ "event": "progress", "done_bytes": before + bytes, "total_bytes": total }));
        }
    }

    fn note(&self, text: &str) {
        output::json(&serde_json::json!({ "event": "note", "message": text }));
    }

    fn warn(&self, text: &str) {
        quiet::warned();
        output::json(&serde_json::json!({ "event": "warning", "message": text }));
    }
}
