//! `lastgood completions` and `lastgood man`: made from the same definitions as the help.

use std::path::PathBuf;

use clap::CommandFactory;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood completions bash > /etc/bash_completion.d/lastgood")]
pub struct CompletionArgs {
    shell: clap_complete::Shell,
}

/// Write man pages
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Directory for the pages
    directory: PathBuf,
}

pub fn completions(args: CompletionArgs) -> anyhow::Result<u8> {
    clap_complete::generate(args.shell, &mut super::Args::command(), "lastgood", &mut std::io::stdout());
    Ok(0)
}

pub fn man(args: ManArgs) -> anyhow::Result<u8> {
    clap_mangen::generate_to(super::Args::command(), args.directory)?;
    Ok(0)
}
