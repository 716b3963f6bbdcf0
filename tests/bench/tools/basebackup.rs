//! PostgreSQL's own `pg_basebackup`: full snapshots into a directory, without an archive.

use std::path::Path;

use anyhow::Result;

use super::{Ahead, Ground, Tool};
use crate::database::PROGRAMS;
use crate::measure::Step;
use crate::place::Place;

pub const HOW: &str = "tar, compressed by the server (whose CPU time and memory are not counted) with zstd level 1, fast checkpoint, no WAL; \
                       restored with zstd and tar";

pub struct Basebackup(pub Ground);

impl Basebackup {
    fn into(&self) -> String {
        match &self.0.place {
            Place::Directory(path) => path.join("base").display().to_string(),
            Place::S3(_) => self.0.home.join("base").display().to_string(),
        }
    }
}

impl Tool for Basebackup {
    fn name(&self) -> &'static str {
        "pg_basebackup"
    }

    fn prepare(&self) -> Result<Vec<Step>> {
        Ok(Vec::new())
    }

    fn backup(&self, full: bool) -> Option<Step> {
        let sockets = self.0.sockets.display().to_string();
        let into = self.into();
        let args =
            ["-h", &sockets, "-U", "postgres", "-D", &into, "-F", "tar", "--compress=server-zstd:1", "-X", "none", "-c", "fast"];
        full.then(|| Step::new(&Path::new(PROGRAMS).join("pg_basebackup"), args))
    }

    fn restore(&self, into: &Path) -> Option<Step> {
        let script = format!("zstd -dc '{}/base.tar.zst' | tar -x -C '{}'", self.into(), into.display());
        Some(Step::new(Path::new("/bin/sh"), ["-c", &script]))
    }

    fn verify(&self) -> Option<Step> {
        None
    }

    fn push(&self, _: &Path, _: &str, _: Ahead) -> Option<Step> {
        None
    }

    fn fetch(&self, _: &Path, _: &str, _: &str, _: Ahead) -> Option<Step> {
        None
    }
}
