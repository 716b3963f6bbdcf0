//! Writing server settings: the file `postgresql.auto.conf` and the signal files of recovery.
//!
//! From PostgreSQL 12 on recovery is configured by ordinary settings and a signal file, the same in 13 to 18. The server reads
//! `postgresql.auto.conf` last, so what stands there wins wherever `postgresql.conf` lives (rule 46).

use std::fs;
use std::io;
use std::path::Path;

use super::lsn::{Lsn, Timeline};
use crate::durable;

/// What the server does when it reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
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

/// Writes the recovery settings, and turns archiving off (rule 41).
pub fn configure_recovery(data_directory: &Path, recovery: &Recovery) -> io::Result<()> {
    let path = data_directory.join("postgresql.auto.conf");
    let before = match fs::read(&path) {
        // Comments may hold anything; settings are ASCII names.
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let text = recovery_text(&before, recovery);
    durable::replace(&path, text.as_bytes(), 0o600)?;
    for stale in ["standby.signal", "recovery.conf"] {
        match fs::remove_file(data_directory.join(stale)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    durable::replace(&data_directory.join("recovery.signal"), b"", 0o600)
}

/// Takes the settings of recovery out again, and turns archiving on. The server reads it at its next start.
pub fn end_recovery(data_directory: &Path) -> io::Result<()> {
    let path = data_directory.join("postgresql.auto.conf");
    let before = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let mut text: String = before.lines().filter(|line| !is_recovery_setting(line)).map(|line| format!("{line}\n")).collect();
    text.push_str("archive_mode = 'on'\n");
    let owner = fs::metadata(&path)?;
    durable::replace(&path, text.as_bytes(), 0o600)?;
    use std::os::unix::fs::MetadataExt;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Takes out everything that is no setting of recovery, so that nothing of the original acts in a copy that is only looked at.
pub fn keep_only_recovery(data_directory: &Path) -> io::Result<()> {
    let path = data_directory.join("postgresql.auto.conf");
    let before = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let text: String = before.lines().filter(|line| is_recovery_setting(line)).map(|line| format!("{line}\n")).collect();
    durable::replace(&path, text.as_bytes(), 0o600)
}

fn is_recovery_setting(line: &str) -> bool {
    let name = line.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
    RECOVERY_SETTINGS.contains(&name.as_str()) || name == "archive_mode" || name == "primary_slot_name"
}

/// The content of `postgresql.auto.conf` after old recovery settings were taken out and ours were put in.
fn recovery_text(before: &str, recovery: &Recovery) -> String {
    let mut text: String = before.lines().filter(|line| !is_recovery_setting(line)).map(|line| format!("{line}\n")).collect();
    let mut set = |name: &str, value: &str| {
        text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
    };
    // A restored cluster must not write into the archive of its original.
    set("archive_mode", "off");
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
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_recovery_settings_go_and_others_stay() {
        let before = "# Do not edit\nwork_mem = '8MB'\nrecovery_target_time = '2020-01-01'\nRecovery_Target_Action='promote'\n\
                      archive_mode = 'on'\nprimary_conninfo = 'host=old'\nrestore_command = 'cp'\n";
        let recovery = Recovery {
            restore_command: "lastgood archive-get %f \"%p\" --it's".into(),
            timeline: Timeline(11),
            target: RecoveryTarget::Lsn { lsn: Lsn(0x1_0000_0028), inclusive: false },
            action: TargetAction::Pause,
        };
        let text = recovery_text(before, &recovery);
        let expected = [
            "# Do not edit",
            "work_mem = '8MB'",
            "archive_mode = 'off'",
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
    }
}
