//! Signals that end the program: each says what was left, and ends it as it would end without us.
//!
//! Nothing is tidied up: whatever was under way is as crash-safe as a loss of power, and to be gone at once is what was asked for.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::{Command, output, quiet};

/// What an interrupted command leaves, for people; `None` for those that have an end of their own, or leave nothing to say.
fn leaves(command: &Command) -> Option<&'static str> {
    match command {
        Command::Drill(_) | Command::ArchiveGet(_) | Command::ArchivePush(_) | Command::Demo(_) => None,
        Command::Backup(_) => Some(
            "no snapshot was made; run it again on this host, and it clears what this one left (on another host once its lease has gone stale: a try says when)",
        ),
        Command::Restore(_) | Command::Recover(_) => Some(
            "what stood in the place stands there as before, or `lastgood undo` says what to do; run it again, and it clears what this one built",
        ),
        Command::Undo(_) => Some("run it again: it goes on where this one stopped"),
        Command::Expire(_) | Command::Mirror(_) | Command::Release(_) => {
            Some("what was done is done; run it again, and it does the rest")
        }
        _ => Some("nothing was changed that is not whole; run it again"),
    }
}

/// From now on a signal that ends the program is answered.
pub fn watch(command: &Command) {
    let Some(leaves) = leaves(command) else { return };
    let kinds = [(Signal::HUP, "SIGHUP"), (Signal::INT, "SIGINT"), (Signal::TERM, "SIGTERM")];
    for (kind, name) in kinds.into_iter().filter(|(kind, _)| !is_ignored(*kind)) {
        // A thread each: the rest of the program may be waiting for a person, or for a disk.
        std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let Ok(mut signals) = signal(SignalKind::from_raw(kind.as_raw())) else { return };
                if signals.recv().await.is_some() {
                    quiet::release();
                    output::complain(&format!("lastgood: ended by {name}: {leaves}"));
                    std::process::exit(128 + kind.as_raw());
                }
            });
        });
    }
}

/// Whether whoever started us wants this signal ignored (`nohup`).
pub fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal.as_raw() - 1)) != 0
}
