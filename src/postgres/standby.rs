//! The settings of a standby that was built from a backup.
//!
//! A standby follows whatever becomes of its primary, so nothing of an earlier recovery may be left: a target would end it, a timeline of
//! a point-in-time restore would keep it on the wrong one (rule 40). It archives when it is promoted, as its primary did.

use std::fs;
use std::io;
use std::path::Path;

use super::lsn::Timeline;
use super::settings;
use crate::durable;

/// What a standby needs to know.
#[derive(Debug, Clone, Default)]
pub struct Following {
    pub restore_command: String,
    /// Empty where it lives from the archive alone.
    pub primary_conninfo: String,
    pub slot: String,
    /// Absent: whichever is the newest at any time.
    pub timeline: Option<Timeline>,
    /// Of PostgreSQL: `promote_trigger_file` is known up to 15 alone.
    pub major: u32,
    /// What else holds in it.
    pub more: Vec<(&'static str, String)>,
}

/// Writes the settings of a standby, and makes the directory one.
pub fn configure(data_directory: &Path, following: &Following) -> io::Result<()> {
    let path = data_directory.join(settings::AUTO_CONF);
    let before = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    durable::replace(&path, text(&before, following).as_bytes(), 0o600)?;
    durable::replace(&data_directory.join("standby.signal"), b"", 0o600)
}

fn text(before: &str, following: &Following) -> String {
    let is_ours =
        |line: &str| settings::setting(line).is_some_and(|(name, _)| following.more.iter().any(|(ours, _)| *ours == name));
    let stays = |line: &&str| (!settings::is_recovery_setting(line) || is_archiving(line)) && !is_ours(line);
    let mut text: String = before.lines().filter(stays).map(|line| format!("{line}\n")).collect();
    let mut set = |name: &str, value: &str| text.push_str(&settings::line(name, value));
    following.more.iter().for_each(|(name, value)| set(name, value));
    set("restore_command", &following.restore_command);
    set("primary_conninfo", &following.primary_conninfo);
    set("primary_slot_name", &following.slot);
    // What stands in postgresql.conf must not count either.
    for name in ["recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"]
    {
        set(name, "");
    }
    set("recovery_target_timeline", &following.timeline.map_or("latest".into(), |timeline| timeline.0.to_string()));
    set("recovery_end_command", "");
    set("archive_cleanup_command", "");
    if following.major < 16 {
        set("promote_trigger_file", "");
    }
    text
}

/// The original archived when the snapshot was taken; `off` is what a restore had left for the next start.
fn is_archiving(line: &str) -> bool {
    settings::setting(line).is_some_and(|(name, value)| name == settings::ARCHIVE_MODE && value != "off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_an_earlier_recovery_is_left() {
        let before = "# Do not edit\nwork_mem = '8MB'\narchive_mode = 'on'\nport = 5432\nrecovery_target_timeline = '3'\n\
                      recovery_target_lsn = '0/5000028'\nprimary_conninfo = 'host=old'\nprimary_slot_name = 'old'\n\
                      restore_command = 'cp'\n";
        let following = Following {
            restore_command: "lastgood archive-get %f \"%p\"".into(),
            primary_conninfo: r"host=new options='-c search_path=a\ b'".into(),
            slot: "two".into(),
            timeline: None,
            major: 15,
            more: vec![("port", "5433".into())],
        };
        let expected = [
            "# Do not edit",
            "work_mem = '8MB'",
            "archive_mode = 'on'",
            "port = '5433'",
            "restore_command = 'lastgood archive-get %f \"%p\"'",
            r"primary_conninfo = 'host=new options=''-c search_path=a\\ b'''",
            "primary_slot_name = 'two'",
            "recovery_target = ''",
            "recovery_target_name = ''",
            "recovery_target_time = ''",
            "recovery_target_xid = ''",
            "recovery_target_lsn = ''",
            "recovery_target_timeline = 'latest'",
            "recovery_end_command = ''",
            "archive_cleanup_command = ''",
            "promote_trigger_file = ''",
        ];
        assert_eq!(text(before, &following).lines().collect::<Vec<_>>(), expected);
        let left = text("archive_mode = 'off'\n", &Following { timeline: Some(Timeline(10)), major: 16, ..following });
        assert!(!left.contains("archive_mode") && !left.contains("promote_trigger_file"), "{left}");
        assert!(left.contains("recovery_target_timeline = '10'\n"), "{left}");
    }
}
