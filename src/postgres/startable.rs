//! What a server needs of its host before it starts: libraries, certificates, files that its settings name. `postgres -C` reads the
//! settings as a start does, and ends.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::scratch;
use crate::owner::Ids;

/// Tries the settings in `data` with the programs in `bin`. Answers what they name and this host has not; an error when they cannot be
/// read at all, with the server's words.
pub fn missing(bin: &Path, data: &Path, user: Option<Ids>) -> Result<Vec<String>, String> {
    Own { bin, data, user }.missing()
}

struct Own<'a> {
    bin: &'a Path,
    data: &'a Path,
    user: Option<Ids>,
}

impl Own<'_> {
    fn missing(&self) -> Result<Vec<String>, String> {
        let mut missing = Vec::new();
        for library in self.value("shared_preload_libraries")?.split(',').map(|name| name.trim().trim_matches('"')) {
            if !library.is_empty() && !self.has_library(library) {
                missing.push(format!("shared_preload_libraries names {library:?}, which is not installed"));
            }
        }
        let mut files = vec!["hba_file"];
        if self.value("ssl")? == "on" {
            files.extend(["ssl_cert_file", "ssl_key_file"]);
        }
        for setting in files {
            let path = self.data.join(self.value(setting)?);
            if !path.exists() {
                missing.push(format!("{setting} is {}, which is not there", path.display()));
            }
        }
        Ok(missing)
    }

    /// Where libraries are, by the layout of the installation; one that lies elsewhere is not looked for.
    fn has_library(&self, name: &str) -> bool {
        let name = name.strip_prefix("$libdir/").unwrap_or(name);
        let file = if name.ends_with(".so") { name.to_string() } else { format!("{name}.so") };
        if name.starts_with('/') {
            return Path::new(&file).exists();
        }
        let beside = |below: &str| self.bin.join("..").join(below);
        let places: Vec<PathBuf> =
            ["lib", "lib/postgresql", "lib64", "lib64/pgsql", "lib64/postgresql"].into_iter().map(beside).collect();
        let is_known = places.iter().any(|place| place.join("plpgsql.so").exists());
        !is_known || places.iter().any(|place| place.join(&file).exists())
    }

    /// A setting, as a start would have it.
    fn value(&self, name: &str) -> Result<String, String> {
        let mut command = scratch::program(self.bin, "postgres", self.user);
        command.arg("-D").arg(self.data).args(["-C", name]);
        let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
            false => Err(scratch::last_lines(String::from_utf8_lossy(&output.stderr).trim(), 8)),
        }
    }
}
