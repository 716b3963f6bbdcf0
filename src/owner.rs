//! Names of users and groups. Only `/etc/passwd` and `/etc/group` are read; an owner from elsewhere (LDAP) is known by number.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, io};

/// A user with the primary group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

pub fn user_name(uid: u32) -> String {
    name("/etc/passwd", uid)
}

pub fn group_name(gid: u32) -> String {
    name("/etc/group", gid)
}

/// The user of that name (or number) with the primary group.
pub fn user(wanted: &str) -> Option<Ids> {
    let fields = find("/etc/passwd", |fields| fields.first().is_some_and(|name| name == wanted))?;
    Some(Ids { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
}

/// The user whose rights this process has.
pub fn current() -> String {
    user_name(rustix::process::geteuid().as_raw())
}

/// Behind an error that rights were the cause of: whose the file is, or the directory on the way that keeps us out, and what to do. Empty
/// behind any other.
pub fn kept_out(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let Some((found, place)) = path.ancestors().find_map(|place| Some((fs::metadata(place).ok()?, place))) else {
        return String::new();
    };
    let (owner, mode) = (user_name(found.uid()), found.mode() & 0o7777);
    format!(
        "; {} belongs to {owner} (mode {mode:04o}), and this is {}: chown it, or run as its owner",
        place.display(),
        current()
    )
}

fn name(file: &str, id: u32) -> String {
    let id = id.to_string();
    let found = find(file, |fields| fields.get(2) == Some(&id));
    found.and_then(|fields| fields.into_iter().next()).unwrap_or(id)
}

fn find(file: &str, matches: impl Fn(&[String]) -> bool) -> Option<Vec<String>> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().map(|line| line.split(':').map(str::to_string).collect::<Vec<_>>()).find(|fields| matches(fields))
}
