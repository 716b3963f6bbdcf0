//! Whether a server lives in a data directory.

use std::fs;
use std::io;
use std::path::Path;

/// A running postmaster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Living {
    pub pid: i32,
}

/// The postmaster that lives in `dir`, going by `postmaster.pid`. A pid that exists counts as alive unless it can be proven
/// to be another program's: a postmaster's working directory is its data directory. In doubt, it lives.
pub fn living(dir: &Path) -> io::Result<Option<Living>> {
    let text = match fs::read_to_string(dir.join("postmaster.pid")) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(error),
    };
    // Negative for a stand-alone backend.
    let Some(pid) = text.lines().next().and_then(|l| l.trim().parse::<i32>().ok()).map(i32::abs).filter(|p| *p > 1) else {
        return Ok(None);
    };
    let proc = Path::new("/proc").join(pid.to_string());
    if !proc.exists() {
        return Ok(None);
    }
    let elsewhere = match (fs::read_link(proc.join("cwd")), fs::canonicalize(dir)) {
        (Ok(cwd), Ok(dir)) => cwd != dir,
        _ => false,
    };
    Ok((!elsewhere).then_some(Living { pid }))
}
