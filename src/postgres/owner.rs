//! Names of users and groups. Only `/etc/passwd` and `/etc/group` are read; an owner from elsewhere (LDAP) is known by number.

use std::fs;

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

fn name(file: &str, id: u32) -> String {
    let id = id.to_string();
    let found = find(file, |fields| fields.get(2) == Some(&id));
    found.and_then(|fields| fields.into_iter().next()).unwrap_or(id)
}

fn find(file: &str, matches: impl Fn(&[String]) -> bool) -> Option<Vec<String>> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().map(|line| line.split(':').map(str::to_string).collect::<Vec<_>>()).find(|fields| matches(fields))
}
