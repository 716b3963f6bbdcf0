//! `--quiet`: nothing is printed when all is well, and everything when it is not. For cron, which mails whatever a command prints.
//!
//! What would be printed is held back until the command ends, or something is said that wants a person; from then on it is printed as
//! it comes. It is held in memory up to [`HELD_MAX`] bytes; more than that is no quiet command, and is printed.

use std::sync::{Mutex, PoisonError};

use clap::ValueEnum;

/// More than any of our commands prints when all is well.
const HELD_MAX: usize = 1 << 20;

/// The flag, for commands that cron runs.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Quiet {
    /// Print nothing when all is well, and everything when something failed or there was a warning, for cron to mail
    ///
    /// With --quiet=failures a warning alone is not printed either.
    #[arg(
        long,
        short,
        value_enum,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "warnings"
    )]
    quiet: Option<Until>,
}

/// What is worth printing everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// Warnings and failures
    Warnings,
    /// Failures only
    Failures,
}

/// What is not printed yet.
#[derive(Debug)]
struct Held {
    until: Until,
    text: String,
}

static HELD: Mutex<Option<Held>> = Mutex::new(None);

impl Quiet {
    /// Holds back what is printed from now on, when that is wanted.
    pub fn begin(self) {
        *lock() = self.quiet.map(|until| Held { until, text: String::new() });
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether anything is held back: nobody watches then.
pub fn is_on() -> bool {
    lock().is_some()
}

/// Takes a line, or says with `false` that it is to be printed.
pub fn hold(line: &str) -> bool {
    let mut held = lock();
    let Some(holding) = held.as_mut() else { return false };
    if holding.text.len() + line.len() >= HELD_MAX {
        print(held.take());
        return false;
    }
    holding.text.push_str(line);
    holding.text.push('\n');
    true
}

/// There was a warning: it is printed with all that came before it, unless only failures are.
pub fn warned() {
    let mut held = lock();
    if held.as_ref().is_some_and(|held| held.until == Until::Warnings) {
        print(held.take());
    }
}

/// Something failed, or a person is asked: what was held is printed, and what follows too.
pub fn release() {
    print(lock().take());
}

/// All of it goes to one place, in its order.
fn print(held: Option<Held>) {
    use std::io::Write;
    let text = held.map(|held| held.text).unwrap_or_default();
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
