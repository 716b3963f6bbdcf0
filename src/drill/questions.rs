//! What the configuration wants to know of the restored data, and whether every database opens.

use crate::config::Question;
use crate::postgres::session::SessionError;
use crate::repo::report::Report;

use super::server::Server;

/// A question that takes longer has no answer.
const TIMEOUT_S: u64 = 60;

/// Opens every database that people may open.
pub async fn databases(server: &Server, report: &mut Report) -> Result<Vec<String>, SessionError> {
    let session = server.session(server.database()).await?;
    let (names, broken) = server.databases(&session).await?;
    for name in broken {
        report.warn("databases", format!("{name} is half dropped: the target lies in the middle of DROP DATABASE"));
    }
    let mut opened = Vec::new();
    for name in names {
        match relations(server, &name).await {
            Ok(_) => opened.push(name),
            Err(error) => report.fail("databases", format!("{name} cannot be opened: {error}")),
        }
    }
    report.checked.databases = opened.len() as u64;
    if opened.is_empty() {
        report.fail("databases", "there is no database that can be opened");
    } else {
        report.ok("databases", format!("{} opened: {}", opened.len(), opened.join(", ")));
    }
    Ok(opened)
}

async fn relations(server: &Server, database: &str) -> Result<String, SessionError> {
    server.session(database).await?.value("SELECT count(*) FROM pg_class").await
}

/// Asks everything that is configured. Answers what the transaction at the target has locked: it can be asked when recovery has ended.
pub async fn ask<'q>(server: &Server, questions: &'q [Question], report: &mut Report) -> Vec<&'q Question> {
    report.checked.questions_configured = questions.len() as u64;
    if questions.is_empty() {
        report.warn("question", "none of your own was asked: write what must be so into [[drill.question]]");
    }
    let mut locked = Vec::new();
    for question in questions {
        match answer(server, question).await {
            Err(SessionError::Locked { .. }) => locked.push(question),
            answer => note(question, answer, report),
        }
    }
    locked
}

/// Asks again what was locked.
pub async fn ask_again(server: &Server, locked: &[&Question], report: &mut Report) {
    for question in locked {
        note(question, answer(server, question).await, report);
    }
}

fn note(question: &Question, answer: Result<String, SessionError>, report: &mut Report) {
    report.checked.questions += 1;
    match answer.map(|answer| judge(question, &answer).map(|()| answer)) {
        Ok(Ok(answer)) => report.ok("question", format!("{}: {answer}", question.label())),
        Ok(Err(problem)) => report.fail("question", format!("{}: {problem}", question.label())),
        Err(error) => report.fail("question", format!("{}: {error}", question.label())),
    }
}

async fn answer(server: &Server, question: &Question) -> Result<String, SessionError> {
    let database = question.database.as_deref().unwrap_or(server.database());
    let session = server.session(database).await?;
    let timeout_s = question.timeout_s.unwrap_or(TIMEOUT_S);
    // As a user of the database would ask it.
    session
        .run(&format!("RESET search_path; SET default_transaction_read_only = on; SET statement_timeout = '{timeout_s}s'"))
        .await?;
    session.value(&question.sql).await
}

/// Whether an answer is the expected one.
fn judge(question: &Question, answer: &str) -> Result<(), String> {
    if let Some(expected) = &question.expect {
        let expected = expected.text();
        return if answer.trim() == expected {
            Ok(())
        } else {
            Err(format!("{answer:?} came back, and {expected:?} is expected"))
        };
    }
    let range = || match (question.min, question.max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("at least {min}"),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => "something".into(),
    };
    let number: f64 =
        answer.trim().parse().map_err(|_| format!("{answer:?} came back, and a number is expected ({})", range()))?;
    // Written so that NaN is in no range.
    let is_in = question.min.is_none_or(|min| number >= min) && question.max.is_none_or(|max| number <= max);
    if is_in { Ok(()) } else { Err(format!("{answer} came back, and {} is expected", range())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Answer;

    #[test]
    fn only_what_is_expected_passes() {
        let range = |min, max| Question { sql: "SELECT 1".into(), min, max, ..Question::default() };
        let exactly = |answer| Question { sql: "SELECT 1".into(), expect: Some(answer), ..Question::default() };
        for good in ["5", "10", " 7.5 "] {
            judge(&range(Some(5.0), Some(10.0)), good).unwrap();
        }
        for bad in ["", "4.99", "11", "many", "NaN"] {
            assert!(judge(&range(Some(5.0), Some(10.0)), bad).is_err(), "{bad}");
        }
        assert!(judge(&range(Some(5.0), None), "4").unwrap_err().contains("at least 5"));
        assert!(judge(&range(None, Some(5.0)), "NaN").is_err());
        judge(&exactly(Answer::Boolean(true)), "t").unwrap();
        judge(&exactly(Answer::Integer(42)), "42").unwrap();
        assert!(judge(&exactly(Answer::Text("shop".into())), "").unwrap_err().contains("\"shop\" is expected"));
    }
}
