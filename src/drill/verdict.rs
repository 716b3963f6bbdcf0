//! Whether a drill has passed. Silence is no proof: what was never looked at makes it fail (rule 60).

use crate::repo::report::{Level, Report};

/// Adds a failure for everything that a drill must have looked at and has not, and says whether it passed.
pub fn conclude(report: &mut Report) {
    let mut missing: Vec<(&str, String)> = Vec::new();
    let has_failed = report.failures().next().is_some();
    // A drill that was given up early has its reason already.
    if !has_failed {
        let checked = &report.checked;
        let proven = report.findings.iter().any(|finding| finding.subject == "target" && finding.level == Level::Ok);
        if report.replayed_to.is_none() || !proven {
            missing.push(("target", "nothing proves that recovery reached its target".into()));
        }
        if checked.databases == 0 {
            missing.push(("databases", "no database was opened".into()));
        }
        if checked.pages == 0 {
            missing.push(("pages", "no page was read".into()));
        }
        if checked.relations == 0 {
            missing.push(("relations", "no table and no index was checked".into()));
        }
        if checked.questions < checked.questions_configured {
            let (asked, all) = (checked.questions, checked.questions_configured);
            missing.push(("question", format!("{asked} of {all} questions were asked")));
        }
    }
    for (subject, what) in missing {
        report.fail(subject, what);
    }
    let passed = report.failures().next().is_none();
    report.passed = passed;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lsn::{Lsn, SystemId};
    use crate::repo::audit::Who;
    use crate::repo::report::{Checked, Kind};
    use crate::repo::repository::Cluster;
    use crate::repo::vault::Vault;
    use crate::storage::memory::MemoryStorage;

    fn good() -> Report {
        let cluster = Cluster::unchecked(Vault::new(std::sync::Arc::new(MemoryStorage::new()), None), "shop");
        let mut report = Report::begin(Kind::Drill, &cluster, SystemId(7), &Who::default(), "latest".into());
        report.replayed_to = Some(Lsn(7));
        report.ok("target", "reached");
        report.checked =
            Checked { databases: 1, pages: 1, relations: 1, questions: 1, questions_configured: 1, ..Checked::default() };
        report
    }

    #[test]
    fn what_was_not_looked_at_fails() {
        let mut report = good();
        conclude(&mut report);
        assert!(report.passed);
        type Spoil = fn(&mut Report);
        let spoil: [(&str, Spoil); 6] = [
            ("reached its target", |r| r.replayed_to = None),
            ("reached its target", |r| r.findings.clear()),
            ("no database", |r| r.checked.databases = 0),
            ("no page", |r| r.checked.pages = 0),
            ("no table", |r| r.checked.relations = 0),
            ("0 of 1 questions", |r| r.checked.questions = 0),
        ];
        for (word, spoil) in spoil {
            let mut report = good();
            spoil(&mut report);
            conclude(&mut report);
            let said: Vec<&str> = report.failures().map(|finding| finding.what.as_str()).collect();
            assert!(!report.passed && said.len() == 1 && said[0].contains(word), "{word}: {said:?}");
        }
    }

    #[test]
    fn a_failure_is_not_buried_under_what_followed_from_it() {
        let mut report = good();
        report.replayed_to = None;
        report.fail("restore", "a pack is damaged");
        conclude(&mut report);
        assert!(!report.passed && report.failures().count() == 1);
    }
}
