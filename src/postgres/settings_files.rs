//! The settings files of a copy: plain `pg_ctl -D COPY start` starts the copy and nothing else.
//!
//! `data_directory` in `postgresql.conf` beats `-D`, so a copy of a server whose settings name it starts the original. What else names
//! a place in the original's directory is pointed into the copy. Where the original keeps its settings elsewhere (Debian), the copy gets
//! files of its own, which read the original's where they are there.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::data_directory::EXTERNAL_PID;
use super::settings::{line, setting};
use crate::durable;

/// `CONF_FILE_MAX_DEPTH`: so deep may files include one another.
const DEPTH_MAX: usize = 10;
const CONF: &str = "postgresql.conf";

/// How the file begins that stands in for settings which the snapshot does not have.
const WRITTEN: &str =
    "# Written by lastgood: the snapshot has no postgresql.conf, because the original keeps its settings elsewhere.\n";

/// Whether the settings in a data directory are those that came with it.
pub fn are_of_the_original(data: &Path) -> bool {
    fs::read(data.join(CONF)).is_ok_and(|text| !text.starts_with(WRITTEN.as_bytes()))
}

/// A copy, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Copy<'a> {
    /// Where its files lie now.
    pub root: &'a Path,
    /// Where they are going to be started.
    pub into: &'a Path,
    /// The data directory of the original.
    pub original: &'a Path,
    /// The original's settings, when they lay outside of its data directory and are known.
    pub config_file: Option<&'a Path>,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Files that were written.
    pub files: Vec<PathBuf>,
    /// Files outside of the copy that it reads, and that are not there.
    pub missing: Vec<PathBuf>,
    /// The value of `shared_preload_libraries`, as far as it was seen.
    pub libraries: String,
}

/// Makes the copy's settings its own.
pub fn make_own(copy: &Copy) -> io::Result<Made> {
    let mut work = Work { copy, made: Made::default(), is_named_elsewhere: false };
    let conf = copy.root.join(CONF);
    if !conf.try_exists()? {
        work.write_new()?;
    } else if copy.into != copy.original {
        work.rewrite(&conf, 0)?;
        if work.is_named_elsewhere {
            work.append(&conf)?;
        }
    }
    let auto = fs::read(copy.root.join(super::settings::AUTO_CONF)).unwrap_or_default();
    let auto = String::from_utf8_lossy(&auto).into_owned();
    auto.lines().filter_map(setting).for_each(|(name, value)| work.see(&name, &value));
    Ok(work.made)
}

struct Work<'a> {
    copy: &'a Copy<'a>,
    made: Made,
    /// A file outside of the copy names a data directory.
    is_named_elsewhere: bool,
}

impl Work<'_> {
    fn see(&mut self, name: &str, value: &str) {
        if name == "shared_preload_libraries" {
            self.made.libraries = value.into();
        }
    }

    /// The original's settings lie elsewhere: the copy reads them where they are there, and says what is its own.
    fn write_new(&mut self) -> io::Result<()> {
        let Copy { root, into, config_file, .. } = *self.copy;
        let mut text =
            format!("{WRITTEN}# `pg_ctl -D` of this directory reads this file; what starts the original reads the original's.\n");
        let mut has_hba = false;
        if let Some(config) = config_file {
            self.scan(config, 0);
            has_hba = config.exists();
            text.push_str(&line("include_if_exists", &config.display().to_string()).replacen(" = ", " ", 1));
        }
        text.push_str(&line("data_directory", &into.display().to_string()));
        text.push_str(&line("external_pid_file", &into.join(EXTERNAL_PID).display().to_string()));
        if !has_hba {
            for (name, content) in [("pg_hba.conf", "local all all peer\n"), ("pg_ident.conf", "")] {
                let path = root.join(name);
                if !path.try_exists()? {
                    self.replace(path, content.as_bytes())?;
                }
            }
        }
        self.replace(root.join(CONF), text.as_bytes())
    }

    fn replace(&mut self, path: PathBuf, bytes: &[u8]) -> io::Result<()> {
        durable::replace(&path, bytes, 0o600)?;
        self.made.files.push(path);
        Ok(())
    }

    fn append(&mut self, conf: &Path) -> io::Result<()> {
        let mut text = fs::read(conf)?;
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(b"# Written by lastgood: a file that is included names the original's.\n");
        text.extend_from_slice(line("data_directory", &self.copy.into.display().to_string()).as_bytes());
        self.replace(conf.into(), &text)
    }

    /// Rewrites a file of the copy, and those that it includes.
    fn rewrite(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX || !path.try_exists()? {
            return Ok(());
        }
        let before = fs::read(path)?;
        let mut after = Vec::with_capacity(before.len());
        for old in before.split_inclusive(|byte| *byte == b'\n') {
            match self.new_line(&String::from_utf8_lossy(old), path, depth)? {
                Some(new) => after.extend_from_slice(new.as_bytes()),
                None => after.extend_from_slice(old),
            }
        }
        if after != before { self.replace(path.into(), &after) } else { Ok(()) }
    }

    /// What stands in place of a line; `None` when it stays.
    fn new_line(&mut self, old: &str, file: &Path, depth: usize) -> io::Result<Option<String>> {
        let Some((name, value)) = setting(old) else { return Ok(None) };
        let commented = || Some(format!("# lastgood: of the original: {}\n", old.trim()));
        self.see(&name, &value);
        match name.as_str() {
            "data_directory" | "external_pid_file" => Ok(commented()),
            "hba_file" | "ident_file" => Ok(self.moved(Path::new(&value)).map(|path| line(&name, &path.display().to_string()))),
            "include" | "include_if_exists" | "include_dir" => self.include(&name, Path::new(&value), file, depth),
            _ => Ok(None),
        }
    }

    /// Where something of the original's directory is in the copy.
    fn moved(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(self.copy.original).ok().map(|rest| self.copy.into.join(rest))
    }

    fn include(&mut self, name: &str, value: &Path, file: &Path, depth: usize) -> io::Result<Option<String>> {
        let (inside, new) = match (value.is_relative(), self.moved(value)) {
            (true, _) => (Some(durable::parent(file).join(value)), None),
            (false, Some(moved)) => {
                let rest = moved.strip_prefix(self.copy.into).unwrap_or(value);
                let text = line(name, &moved.display().to_string()).replacen(" = ", " ", 1);
                (Some(self.copy.root.join(rest)), Some(text))
            }
            (false, None) => (None, None),
        };
        let here = inside.clone().unwrap_or_else(|| value.into());
        for path in if name == "include_dir" { directory(&here) } else { vec![here.clone()] } {
            match &inside {
                Some(_) => self.rewrite(&path, depth + 1)?,
                None => self.scan(&path, depth + 1),
            }
        }
        if name != "include_if_exists" && !here.exists() {
            self.made.missing.push(here);
        }
        Ok(new)
    }

    /// Reads a file that is not ours to change.
    fn scan(&mut self, path: &Path, depth: usize) {
        let Ok(text) = fs::read(path) else { return };
        if depth > DEPTH_MAX {
            return;
        }
        for (name, value) in String::from_utf8_lossy(&text).lines().filter_map(setting) {
            self.see(&name, &value);
            match name.as_str() {
                "data_directory" => self.is_named_elsewhere = true,
                "include" | "include_if_exists" => self.scan(&durable::parent(path).join(&value), depth + 1),
                "include_dir" => {
                    directory(&durable::parent(path).join(&value)).iter().for_each(|path| self.scan(path, depth + 1));
                }
                _ => {}
            }
        }
    }
}

/// The files that `include_dir` reads, in its order: `*.conf` that do not begin with a dot.
fn directory(path: &Path) -> Vec<PathBuf> {
    let is_read = |path: &PathBuf| {
        let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        name.ends_with(b".conf") && !name.starts_with(b".") && path.is_file()
    };
    let mut found: Vec<PathBuf> =
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_read).collect();
    found.sort();
    found
}
