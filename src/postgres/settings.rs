//! Writing server settings: the file `postgresql.auto.conf` and the signal files of recovery.
//!
//! From PostgreSQL 12 on recovery is configured by ordinary settings and a signal file, the same in 13 to 18. The server reads
//! `postgresql.auto.conf` last, so what stands there wins wherever `postgresql.conf` lives (rule 46).

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::lsn::{Lsn, Timeline};
use crate::durable;

/// What the server does when it reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetAction {
    Pause,
    Promote,
    Shutdown,
}

impl TargetAction {
    pub fn word(self) -> &'static str {
        match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        }
    }
}

/// Where recovery stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// Where the snapshot is consistent.
    Immediate,
    /// At the first record at or after this position: with it, or just before it.
    Lsn { lsn: Lsn, inclusive: bool },
    /// The end of the WAL.
    End,
}

/// The file that the server reads last.
pub const AUTO_CONF: &str = "postgresql.auto.conf";
pub(super) const ARCHIVE_MODE: &str = "archive_mode";

/// What recovery needs to know.
#[derive(Debug, Clone)]
pub struct Recovery {
    pub restore_command: String,
    pub timeline: Timeline,
    pub target: RecoveryTarget,
    pub action: TargetAction,
}

/// Settings that an earlier recovery left behind; each would change this one (rule 40).
const RECOVERY_SETTINGS: [&str; 13] = [
    "recovery_min_apply_delay",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "primary_conninfo",
];

/// A setting that a copy has until it is adopted, and what stood there before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UntilAdopted {
    pub name: String,
    pub value: String,
    /// The value in `postgresql.auto.conf`; absent when another file or the default decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// Writes the recovery settings, and those of `quiet`, which hold until the copy is adopted. Archiving is off until then (rule 41).
/// Answers what adoption has to take back.
pub fn configure_recovery(data_directory: &Path, recovery: &Recovery, quiet: &[(&str, String)]) -> io::Result<Vec<UntilAdopted>> {
    let path = data_directory.join(AUTO_CONF);
    let before = match fs::read(&path) {
        // Comments may hold anything; settings are ASCII names.
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let (text, changed) = recovery_text(&before, recovery, quiet);
    durable::replace(&path, text.as_bytes(), 0o600)?;
    for stale in ["standby.signal", "recovery.conf"] {
        match fs::remove_file(data_directory.join(stale)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    durable::replace(&data_directory.join("recovery.signal"), b"", 0o600)?;
    Ok(changed)
}

/// Takes the settings of recovery out again and those that held until now, but for what somebody has set since; turns archiving on. The
/// server reads it at its next start.
pub fn end_recovery(data_directory: &Path, changed: &[UntilAdopted]) -> io::Result<()> {
    let path = data_directory.join(AUTO_CONF);
    let before = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let text = adopted_text(&before, changed);
    let owner = fs::metadata(&path)?;
    durable::replace(&path, text.as_bytes(), 0o600)?;
    use std::os::unix::fs::MetadataExt;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

fn adopted_text(before: &str, changed: &[UntilAdopted]) -> String {
    let ours = |line: &str| changed.iter().any(|one| setting(line) == Some((one.name.clone(), one.value.clone())));
    let stays = |line: &&str| !is_recovery_setting(line) && !ours(line);
    let mut text: String = before.lines().filter(stays).map(|line| format!("{line}\n")).collect();
    let is_set = |name: &str| before.lines().filter(stays).filter_map(setting).any(|(found, _)| found == name);
    let back = changed.iter().filter(|one| one.name != ARCHIVE_MODE && !is_set(&one.name));
    back.filter_map(|one| Some((&one.name, one.before.as_ref()?))).for_each(|(name, value)| text.push_str(&line(name, value)));
    let mode = changed.iter().find(|one| one.name == ARCHIVE_MODE).and_then(|one| one.before.as_deref());
    text.push_str(&line(ARCHIVE_MODE, if mode == Some("always") { "always" } else { "on" }));
    text
}

/// Takes out everything that is no setting of recovery, so that nothing of the original acts in a copy that is only looked at.
pub fn keep_only_recovery(data_directory: &Path) -> io::Result<()> {
    let path = data_directory.join(AUTO_CONF);
    let before = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let text: String = before.lines().filter(|line| is_recovery_setting(line)).map(|line| format!("{line}\n")).collect();
    durable::replace(&path, text.as_bytes(), 0o600)
}

pub(super) fn is_recovery_setting(line: &str) -> bool {
    setting(line).is_some_and(|(name, _)| {
        RECOVERY_SETTINGS.contains(&name.as_str()) || name == ARCHIVE_MODE || name == "primary_slot_name"
    })
}

/// Name, in lower case, and value of a line such as `ALTER SYSTEM` writes it, or people: the equals sign and the quotes may be absent.
pub fn setting(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$'))).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    if name.is_empty() {
        return None;
    }
    let Some(quoted) = rest.strip_prefix('\'') else {
        let end = rest.find(|c: char| c.is_whitespace() || c == '#').unwrap_or(rest.len());
        return Some((name.to_ascii_lowercase(), rest[..end].into()));
    };
    let (mut value, mut rest) = (String::new(), quoted.chars().peekable());
    while let Some(next) = rest.next() {
        match next {
            '\'' if rest.peek() == Some(&'\'') => value.extend(rest.next()),
            '\'' => break,
            '\\' => value.extend(rest.next()),
            other => value.push(other),
        }
    }
    Some((name.to_ascii_lowercase(), value))
}

/// A line that sets `name`; in quotes a backslash stands for what follows it.
pub fn line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// The content of `postgresql.auto.conf` after old recovery settings were taken out and ours were put in, and what was changed until the
/// copy is adopted.
fn recovery_text(before: &str, recovery: &Recovery, quiet: &[(&str, String)]) -> (String, Vec<UntilAdopted>) {
    // Of several lines the last counts.
    let was = |name: &str| before.lines().rev().filter_map(setting).find(|(found, _)| found == name).map(|(_, value)| value);
    let until = |name: &str, value: &str| UntilAdopted { name: name.into(), value: value.into(), before: was(name) };
    // A restored cluster must not write into the archive of its original.
    let mut changed = vec![until(ARCHIVE_MODE, "off")];
    changed.extend(quiet.iter().map(|(name, value)| until(name, value)));
    let is_ours = |line: &str| setting(line).is_some_and(|(name, _)| changed.iter().any(|one| one.name == name));
    let stays = |line: &&str| !is_recovery_setting(line) && !is_ours(line);
    let mut text: String = before.lines().filter(stays).map(|line| format!("{line}\n")).collect();
    changed.iter().for_each(|one| text.push_str(&line(&one.name, &one.value)));
    let mut set = |name: &str, value: &str| text.push_str(&line(name, value));
    set("restore_command", &recovery.restore_command);
    // What stands in postgresql.conf must not count either. Before our own target: a second target, even an empty one, is refused
    // by the server after the first was set.
    for name in ["recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"]
    {
        set(name, "");
    }
    set("recovery_end_command", "");
    // A delayed standby's setting would make a restore wait for hours.
    set("recovery_min_apply_delay", "0");
    set("archive_cleanup_command", "");
    set("recovery_target_timeline", &recovery.timeline.0.to_string());
    match recovery.target {
        RecoveryTarget::Immediate => set("recovery_target", "immediate"),
        RecoveryTarget::Lsn { lsn, inclusive } => {
            set("recovery_target_lsn", &lsn.to_string());
            set("recovery_target_inclusive", if inclusive { "on" } else { "off" });
        }
        RecoveryTarget::End => {}
    }
    set("recovery_target_action", recovery.action.word());
    (text, changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_recovery_settings_go_and_others_stay() {
        let before: &str = "# Do not edit\nwork_mem = '8MB'\nrecovery_target_time = '2020-01-01'\nRecovery_Target_Action='promote'\n\
                      archive_mode = 'on'\nprimary_conninfo = 'host=old'\nrestore_command = 'cp'\n";
        let recovery = Recovery {
            restore_command: "lastgood archive-get %f \"%p\" --it's".into(),
            timeline: Timeline(11),
            target: RecoveryTarget::Lsn { lsn: Lsn(0x1_0000_0028), inclusive: false },
            action: TargetAction::Pause,
        };
        let (text, changed) = recovery_text(before, &recovery, &[("max_connections", "250".into()), ("work_mem", "64kB".into())]);
        let expected = [
            "# Do not edit",
            "archive_mode = 'off'",
            "max_connections = '250'",
            "work_mem = '64kB'",
            "restore_command = 'lastgood archive-get %f \"%p\" --it''s'",
            "recovery_target = ''",
            "recovery_target_name = ''",
            "recovery_target_time = ''",
            "recovery_target_xid = ''",
            "recovery_target_lsn = ''",
            "recovery_end_command = ''",
            "recovery_min_apply_delay = '0'",
            "archive_cleanup_command = ''",
            "recovery_target_timeline = '11'",
            "recovery_target_lsn = '1/28'",
            "recovery_target_inclusive = 'off'",
            "recovery_target_action = 'pause'",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        let adopted = adopted_text(&text, &changed);
        assert_eq!(adopted.lines().collect::<Vec<_>>(), ["# Do not edit", "work_mem = '8MB'", "archive_mode = 'on'"]);
        // What somebody has set on the copy stays.
        let set = adopted_text(&format!("{text}max_connections = '500'\nwork_mem = '1GB'\n"), &changed);
        let expected = ["# Do not edit", "max_connections = '500'", "work_mem = '1GB'", "archive_mode = 'on'"];
        assert_eq!(set.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        let lines = [
            ("port=5433 # here", Some(("port", "5433"))),
            ("  Data_Directory  '/srv/it''s \\\\ here'", Some(("data_directory", "/srv/it's \\ here"))),
            ("cron.launch_active_jobs = off", Some(("cron.launch_active_jobs", "off"))),
            ("# port = 1", None),
            ("", None),
        ];
        for (line, expected) in lines {
            assert_eq!(setting(line), expected.map(|(name, value)| (name.into(), value.into())), "{line}");
        }
        for value in ["it's", r"C:\new 'x'", "%f \"%p\""] {
            assert_eq!(setting(&line("a", value)), Some(("a".into(), value.into())));
        }
    }
}
