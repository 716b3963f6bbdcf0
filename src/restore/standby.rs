//! A restore that becomes a standby.
//!
//! It follows the cluster's primary, and never ends recovery by itself: so it carries no mark of a restore, keeps the original's archiving
//! for the day on which it is promoted, and has no target. What keeps two primaries apart then is the archive, as with every standby.

use serde::Serialize;

use super::RestoreError;
use crate::postgres::history::History;
use crate::postgres::lsn::Timeline;
use crate::timeline::archive::Archive;
use crate::timeline::target::Target;

/// How the standby reaches its primary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Standby {
    /// Absent where it lives from the archive alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_conninfo: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// The one timeline that it follows, where the newest is not the one to follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
}

impl Standby {
    /// Refuses what makes no standby.
    pub fn check(&self, target: &Target) -> Result<(), RestoreError> {
        let refuse = |problem: &str, mend| Err(RestoreError::Standby { problem: problem.into(), mend });
        if *target != Target::Latest {
            return refuse(
                "a standby follows its primary to the end, and has no other target",
                "use --to latest, or restore without --standby",
            );
        }
        let names_password = |conninfo: &String| {
            let of_url = conninfo.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.split_once('@'));
            conninfo.to_ascii_lowercase().replace(' ', "").contains("password=")
                || of_url.is_some_and(|(user, _)| user.contains(':'))
        };
        if self.primary_conninfo.as_ref().is_some_and(names_password) {
            return refuse(
                "--primary-conninfo holds a password, which every process of this host can read",
                "put it into the .pgpass of the server's user, or name a passfile=",
            );
        }
        let is_name = |slot: &String| {
            (1..64).contains(&slot.len()) && slot.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if self.slot.as_ref().is_some_and(|slot| !is_name(slot)) {
            return refuse("this is no name of a replication slot", "use lower-case letters, digits and _");
        }
        Ok(())
    }

    /// PostgreSQL takes the timeline with the highest number for the newest. One that was given up may have a higher one than that which
    /// goes on: then the standby is told which.
    pub fn following(&self, archive: &Archive, path: &History) -> Standby {
        let timeline = path.timeline();
        let timeline = archive.timelines().into_iter().any(|other| other > timeline).then_some(timeline);
        Standby { timeline, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_standby_is_refused() {
        let standby = |conninfo: &str, slot: &str| Standby {
            primary_conninfo: Some(conninfo.into()),
            slot: Some(slot.into()),
            timeline: None,
        };
        let said =
            |standby: Standby, target: &Target| standby.check(target).err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(said(standby("host=db passfile=/x", "two_2"), &Target::Latest), "");
        for secret in ["host=db password=x", "host=db Password = x", "postgres://u@h/?password=x", "postgresql://u:x@h/d"] {
            assert!(said(standby(secret, "two"), &Target::Latest).contains("holds a password"), "{secret}");
        }
        for slot in ["", "Two", "a-b", "x y"] {
            assert!(said(standby("host=db", slot), &Target::Latest).contains("replication slot"), "{slot}");
        }
        assert!(said(standby("host=db", "two"), &"0/5000028".parse().unwrap()).contains("no other target"));
    }
}
