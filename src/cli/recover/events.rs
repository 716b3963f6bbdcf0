//! What happened, and which of it a person means.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{Stopped, ask};
use crate::cli::context::{self, Global, Place};
use crate::cli::{moment, output, progress};
use crate::clock;
use crate::timeline::archive::Archive;
use crate::timeline::story::{self, Question};
use crate::timeline::told::{Kind, Told};

/// Looked back when nothing says since when.
const HOURS: i64 = 24;
/// Shown at once; the newest.
const SHOWN: usize = 9;
/// Longest that the archiver is waited for.
const ARCHIVED: std::time::Duration = std::time::Duration::from_secs(20);

/// What a person said.
#[derive(Debug, PartialEq)]
pub struct Wanted {
    pub words: Vec<String>,
    pub since: Timestamp,
}

impl Wanted {
    /// `orders since 9:30`: names and kinds, and since when; an hour is the last such hour on this host's clock.
    pub fn parse(words: &[String], now: Timestamp) -> anyhow::Result<Wanted> {
        let at = words.iter().position(|word| word.eq_ignore_ascii_case("since"));
        let (names, time) = match at {
            Some(at) => (&words[..at], words[at + 1..].join(" ")),
            None => (words, String::new()),
        };
        let since = match time.as_str() {
            "" => now - SignedDuration::from_hours(HOURS),
            time => match hour(time, now, TimeZone::system()) {
                Some(hour) => hour,
                None => moment::time(time)?,
            },
        };
        Ok(Wanted { words: names.iter().map(|word| word.to_lowercase()).collect(), since })
    }

    fn is(&self, told: &Told) -> bool {
        let text = told.text.to_lowercase();
        let matches =
            |word: &String| text.contains(word.as_str()) || told.touches(word) || Kind::of_word(word) == Some(told.kind);
        told.kind.is_destructive() && !told.is_ours && self.words.iter().all(matches)
    }
}

/// `9` or `9:30`, the last time that a clock of this zone showed it.
fn hour(text: &str, now: Timestamp, zone: TimeZone) -> Option<Timestamp> {
    let (hour, minute) = text.split_once(':').unwrap_or((text, "0"));
    let (hour, minute): (i8, i8) = (hour.parse().ok()?, minute.parse().ok()?);
    let today = now.to_zoned(zone);
    let at = today.with().hour(hour).minute(minute).second(0).subsec_nanosecond(0).build().ok()?;
    let at = if at > today { at.yesterday().ok()? } else { at };
    Some(at.timestamp())
}

/// Shows what fits, and asks which; `None` when nothing does.
pub async fn choose(global: &Global, wanted: &Wanted) -> anyhow::Result<Option<Told>> {
    bring_into_the_archive(global).await;
    let mut events = read(global, wanted).await?;
    events.retain(|told| wanted.is(told));
    // Several things that one transaction did have one id.
    events.dedup_by_key(|told| told.id.clone());
    let first = events.len().saturating_sub(SHOWN);
    if first > 0 {
        output::line(format!("{} earlier ones are not shown: say a name, or since when", output::count(first as u64, "event")));
    }
    let shown = &events[first..];
    shown.iter().enumerate().for_each(|(at, told)| show(at + 1, told));
    match shown {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        several => loop {
            match ask::answer("Before which? Its number, or q to stop: ")?.as_str() {
                "q" => return Err(Stopped.into()),
                text => match text.parse::<usize>().ok().and_then(|number| several.get(number.checked_sub(1)?)) {
                    Some(told) => return Ok(Some(told.clone())),
                    None => output::line(format!("  a number from 1 to {}", several.len())),
                },
            }
        },
    }
}

/// What the server has written is not in the archive until it ends a segment: it is asked to, when it lives.
async fn bring_into_the_archive(global: &Global) {
    let Ok(config) = global.configuration() else { return };
    let Ok(session) = context::session(&config).await else {
        return output::line("The server does not answer, so only what is archived is read; over it, its own WAL counts too.");
    };
    let Ok(name) = session.switch_segment("lastgood recover").await else { return };
    let began = clock::monotonic();
    while began.elapsed() < ARCHIVED {
        match session.archiver().await {
            Ok(state) if state.last_archived.as_ref().is_some_and(|last| last.len() == 24 && *last >= name) => return,
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            Err(_) => break,
        }
    }
    output::line(format!("{name}, the newest WAL, did not reach the archive: what happened last may be missing here."));
}

async fn read(global: &Global, wanted: &Wanted) -> anyhow::Result<Vec<Told>> {
    let place = Place::open_any(global).await?;
    let history = place.record.current().ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?;
    let system = history.system_identifier;
    let manifests: Vec<_> = place.manifests(false).await?.into_iter().filter(|m| m.system_identifier == system).collect();
    let mut archive = Archive::load(&place.cluster, system, history.wal_segment_bytes.into()).await?;
    archive.decide(&place.record);
    let path = moment::path(&archive, None)?;
    let spool = moment::spool(&place.config, system, place.config.postgres.data_directory.as_ref());
    let local = |name| spool.as_ref().and_then(|spool| spool.index(name));
    let question = Question {
        archive: &archive,
        manifests: &manifests,
        path: &path,
        since: Some(wanted.since),
        until: None,
        from: None,
        to: None,
        many_rows: story::MANY_ROWS,
        numbers: None,
        local: &local,
        passes_sealed: true,
    };
    let monitor = progress::monitor(false);
    let told = story::tell(&question).await?.events;
    drop(monitor);
    Ok(told)
}

fn show(number: usize, told: &Told) {
    let time = told.time.map_or("at an unknown time".into(), |time| {
        let local = time.to_zoned(TimeZone::system()).strftime("%H:%M:%S %Z");
        format!("{} ({local}, {})", output::time(time), output::ago(time))
    });
    output::line(format!("  {number}  {time}  {}", told.text));
    let mut facts = Vec::new();
    if told.changed_rows > 0 || told.rows() > 0 {
        facts.push(format!("about {}", output::count(told.changed_rows.max(told.rows()), "row")));
    }
    if told.bytes() > 0 {
        facts.push(format!("about {}", output::bytes(told.bytes())));
    }
    if told.xid != 0 {
        facts.push(format!("transaction {}", told.xid));
    }
    output::entry("", facts.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_names_and_since_when() {
        let now: Timestamp = "2026-11-21T08:30:00Z".parse().unwrap();
        let wanted = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(String::from).collect();
            Wanted::parse(&words, now).unwrap()
        };
        assert_eq!(wanted("Orders"), Wanted { words: vec!["orders".into()], since: "2026-11-20T08:30:00Z".parse().unwrap() });
        assert_eq!(wanted("drop since 2026-11-21 04:00Z").since, "2026-11-21T04:00:00Z".parse().unwrap());
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let at = |text| hour(text, now, zone.clone()).map(|time| time.to_string());
        assert_eq!(at("9").as_deref(), Some("2026-11-21T08:00:00Z"));
        assert_eq!(at("9:45").as_deref(), Some("2026-11-20T08:45:00Z"));
        assert_eq!(at("2h"), None);
        assert_eq!(at("25"), None);
    }
}
