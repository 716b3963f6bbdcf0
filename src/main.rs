//! `lastgood`: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    lastgood::cli::main()
}
