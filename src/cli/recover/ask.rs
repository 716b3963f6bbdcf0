//! Questions at a terminal, and nothing that comes from anywhere else.

use std::io::{BufRead, IsTerminal};

use super::Stopped;
use crate::cli::output;

pub fn is_possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// What a person types; the end of input stops everything.
pub fn answer(question: &str) -> anyhow::Result<String> {
    // What was typed before the question was shown answers another one.
    rustix::termios::tcflush(std::io::stdin(), rustix::termios::QueueSelector::IFlush)?;
    output::line("");
    output::ask(question);
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line)? {
        0 => Err(Stopped.into()),
        _ => Ok(line.trim().to_string()),
    }
}
