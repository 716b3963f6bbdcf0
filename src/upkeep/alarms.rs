//! What `check` says about finding mistakes: alerts that nobody acknowledged, and what would keep the next one from being found.

use super::check::Findings;
use crate::repo::RepoError;
use crate::repo::alert;
use crate::repo::repository::Cluster;

/// A server with traffic hands over a segment after this long at the latest when the tripwire shall be of use.
const ARCHIVE_TIMEOUT_S: u32 = 300;

/// What this host knows of it.
#[derive(Debug, Default)]
pub struct Notes {
    /// Why the last segment has no index.
    pub index_problem: Option<String>,
    /// Why the last alert did not reach everybody.
    pub alert_problem: Option<String>,
    /// The tripwire is on.
    pub is_on: bool,
    /// The configuration says whether it is on; else the label decides.
    pub is_decided: bool,
    /// Why an alert would not reach everybody.
    pub undeliverable: Vec<String>,
    /// Somebody is told.
    pub has_route: bool,
    /// The server's `archive_timeout`, where it could be asked.
    pub archive_timeout_s: Option<u32>,
}

/// One finding for each, and one when all is well.
pub async fn alarms(findings: &mut Findings, cluster: &Cluster, notes: &Notes) -> Result<(), RepoError> {
    let open = alert::open(cluster).await?;
    for (id, alert) in &open {
        match alert {
            Ok(alert) => {
                let mend = format!(
                    "{}; when it was meant: lastgood alerts --acknowledge {} --reason TEXT",
                    alert.command(),
                    alert.event
                );
                findings.fail("alerts", alert.what.clone(), mend);
            }
            Err(error) => {
                let mend = format!(
                    "`lastgood timeline` shows what happened; when it was meant: lastgood alerts --acknowledge {id} --reason TEXT"
                );
                findings.fail("alerts", format!("an open alert cannot be read: {error}"), mend);
            }
        }
    }
    if let Some(problem) = &notes.index_problem {
        findings.warn("WAL index", problem.clone(), "`lastgood verify --reindex` makes what is missing");
    }
    if let Some(problem) = &notes.alert_problem {
        findings.fail("alerts", format!("the last alert did not reach everybody: {problem}"), "correct [alert]");
    }
    for problem in &notes.undeliverable {
        findings.fail("alerts", format!("an alert cannot be delivered: {problem}"), "correct [alert]");
    }
    if !notes.is_on {
        if !notes.is_decided {
            let mend = "set label = \"production\" under [cluster] and run `lastgood init`, or set enabled under [tripwire]";
            findings.warn("alerts", "the tripwire is off: the cluster is not labelled production", mend);
        }
        return Ok(());
    }
    if !notes.has_route {
        let mend = "set command or webhook under [alert]";
        findings.warn("alerts", "the tripwire is on, and nobody is told when it fires", mend);
    }
    match notes.archive_timeout_s {
        Some(0) => findings.warn(
            "alerts",
            "archive_timeout is 0: on a quiet server a mistake is only seen when its segment is full",
            "set archive_timeout = '1min'",
        ),
        Some(seconds) if seconds > ARCHIVE_TIMEOUT_S => findings.warn(
            "alerts",
            format!("archive_timeout is {seconds} s: a mistake may be seen that much later"),
            "set archive_timeout = '1min'",
        ),
        _ if open.is_empty() => findings.ok("alerts", "the tripwire is on, and no alert is open"),
        _ => {}
    }
    Ok(())
}
