//! Whether restores are tried as often as they should be (rule 60).

use super::check::Findings;
use crate::clock;
use crate::config;
use crate::repo::RepoError;
use crate::repo::report::{self, Kind, Report};
use crate::repo::repository::Cluster;

/// Reports that are looked through for the last drill that passed.
const REPORTS: usize = 50;
const SUBJECT: &str = "drills";

/// The last drill, and the last one that passed.
pub async fn check(findings: &mut Findings, cluster: &Cluster, config: &config::Drill) -> Result<(), RepoError> {
    let reports = report::newest(cluster, REPORTS).await?;
    let drills: Vec<&Report> = reports.iter().filter(|report| report.kind == Kind::Drill).collect();
    judge(findings, &drills, config.max_age_days);
    Ok(())
}

fn judge(findings: &mut Findings, drills: &[&Report], max_age_days: u64) {
    let Some(last) = drills.last() else {
        findings.fail(SUBJECT, "no drill was ever run: nobody knows whether a restore works", "run `lastgood drill`");
        return;
    };
    if !last.passed {
        let why = last.failures().next().map_or(String::new(), |finding| format!(": {}: {}", finding.subject, finding.what));
        findings.fail(SUBJECT, format!("the last one failed ({}){why}", last.id), "mend it, then run `lastgood drill` again");
    }
    match drills.iter().rev().find(|drill| drill.passed) {
        None => findings.fail(SUBJECT, "none has passed yet", "run `lastgood drill`"),
        Some(passed) => {
            let days = clock::now().duration_since(passed.began).as_hours() / 24;
            let what = format!("the last one that passed is {} ({days} days old)", passed.id);
            if days >= max_age_days as i64 {
                let mend =
                    format!("one is due every {max_age_days} days: see why the schedule did not run, or run `lastgood drill`");
                findings.fail(SUBJECT, what, mend);
            } else if last.passed {
                findings.ok(SUBJECT, what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lsn::SystemId;
    use crate::repo::audit::Who;
    use crate::repo::vault::Vault;
    use crate::storage::memory::MemoryStorage;
    use crate::upkeep::check::Level;

    fn drill(days_ago: i64, passed: bool) -> Report {
        let cluster = Cluster::unchecked(Vault::new(std::sync::Arc::new(MemoryStorage::new()), None), "shop");
        let mut report = Report::begin(Kind::Drill, &cluster, SystemId(7), &Who::default(), "latest".into());
        report.began = clock::now() - jiff::SignedDuration::from_hours(24 * days_ago + 1);
        report.passed = passed;
        if !passed {
            report.fail("question", "orders: 0 came back");
        }
        report
    }

    fn said(drills: &[Report]) -> (Level, String) {
        let mut findings = Findings::default();
        judge(&mut findings, &drills.iter().collect::<Vec<_>>(), 8);
        (findings.worst(), findings.0.iter().map(|finding| finding.what.clone()).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn an_overdue_a_failed_and_a_missing_drill_are_red() {
        assert_eq!(said(&[drill(7, true)]).0, Level::Ok);
        for (drills, word) in [
            (vec![], "no drill was ever run"),
            (vec![drill(8, true)], "8 days old"),
            (vec![drill(2, true), drill(1, false)], "orders: 0 came back"),
            (vec![drill(1, false)], "none has passed yet"),
        ] {
            let (level, text) = said(&drills);
            assert!(level == Level::Failure && text.contains(word), "{word}: {text}");
        }
        // A later one that passed makes up for it.
        assert_eq!(said(&[drill(3, false), drill(1, true)]).0, Level::Ok);
    }
}
