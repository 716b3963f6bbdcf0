//! Which event a person means: its id, or its kind and a name.

use jiff::Timestamp;

use super::archive::Archive;
use super::indexes::Local;
use super::story::{self, Question, Story};
use super::told::{self, Kind, Told};
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::index::facts::FEW_ROWS;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;

/// What a person typed after `--before`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// An id as `timeline` shows it.
    Id { timeline: Timeline, target: Lsn },
    /// `drop of shop.public.orders`, `drop database shop`, `delete from orders`.
    Words { kind: Kind, name: String },
}

#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(
        "{text:?} is no event; write its id from `lastgood timeline`, like 1:0/48E06C0, or what it was, like \"drop of shop.public.orders\", \"truncate of orders\", \"delete from orders\" or \"drop database shop\" (an LSN, a time or a transaction id goes with --to)"
    )]
    Bad { text: String },
    #[error("there is no event {text} in the WAL that can be read{}{}; `lastgood timeline` lists them", nearest.as_ref().map(|n| format!(" (the nearest is {n})")).unwrap_or_default(), unknown(*unnamed, *is_of_rows))]
    Unknown { text: String, nearest: Option<String>, unnamed: usize, is_of_rows: bool },
    #[error("{text} happened {times} times; say which, by its id:\n{}{}", found.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n"), further(*times - found.len()))]
    Ambiguous { text: String, found: Vec<String>, times: usize },
    #[error("timeline {timeline} is not in the archive")]
    UnknownTimeline { timeline: Timeline },
}

/// What a search for a name cannot see.
fn unknown(unnamed: usize, is_of_rows: bool) -> String {
    let mut said = match unnamed {
        0 => String::new(),
        1 => "; one event of this kind is of relations or a database whose names are not known".into(),
        many => format!("; {many} events of this kind are of relations or databases whose names are not known"),
    };
    if is_of_rows {
        said +=
            &format!("; a transaction that changed fewer than {FEW_ROWS} rows is not an event: name its time or id with --to");
    }
    said
}

fn further(more: usize) -> String {
    if more == 0 { String::new() } else { format!("\n  and {more} earlier ones: `lastgood timeline --rows 1` lists them") }
}

/// Events that are shown when several are meant.
const SHOWN: usize = 20;

impl std::str::FromStr for Wanted {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Wanted, EventError> {
        let bad = || EventError::Bad { text: text.into() };
        if let Some((timeline, lsn)) = text.split_once(':')
            && let (Ok(timeline), Ok(target)) = (timeline.parse(), lsn.parse())
        {
            return Ok(Wanted::Id { timeline: Timeline(timeline), target });
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let [first, middle @ .., name] = words.as_slice() else { return Err(bad()) };
        let about: Vec<String> = middle.iter().map(|word| word.to_lowercase()).collect();
        let is_database = about.iter().any(|word| word == "database");
        let kind = match (first.to_lowercase().as_str(), is_database) {
            ("drop", true) => Kind::DropDatabase,
            ("drop", false) if about.iter().any(|word| word == "column") => Kind::DropColumn,
            ("drop", false) if about.iter().any(|word| word == "index") => Kind::DropIndex,
            ("drop", false) => Kind::Drop,
            ("alter", false) => Kind::AlterTable,
            (word, false) => Kind::of_word(word).ok_or_else(bad)?,
            (_, true) => return Err(bad()),
        };
        let is_known = |word: &String| {
            let objects = ["table", "database", "column", "index", "view", "materialized", "partition"];
            matches!(word.as_str(), "of" | "from" | "in" | "on" | "to") || objects.contains(&word.as_str())
        };
        if !about.iter().all(is_known) {
            return Err(bad());
        }
        Ok(Wanted::Words { kind, name: (*name).into() })
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Id { timeline, target } => f.write_str(&told::id(*timeline, *target)),
            Wanted::Words { kind: Kind::DropDatabase, name } => write!(f, "drop database {name}"),
            Wanted::Words { kind, name } => write!(f, "{} of {name}", kind.word()),
        }
    }
}

impl Wanted {
    fn is(&self, told: &Told) -> bool {
        match self {
            Wanted::Id { timeline, target } => told.timeline == *timeline && told.target == *target,
            Wanted::Words { kind: Kind::DropDatabase, name } => {
                told.kind == Kind::DropDatabase && told.database.as_ref() == Some(name)
            }
            Wanted::Words { kind, name } => told.kind == *kind && told.touches(name),
        }
    }
}

/// Where to look.
pub struct Place<'a> {
    pub archive: &'a Archive,
    /// Of the archive's system, oldest first.
    pub manifests: &'a [Manifest],
    /// The timeline to follow when the event does not say one.
    pub path: &'a History,
    /// How far back to look for words.
    pub since: Timestamp,
    pub local: Local<'a>,
}

/// The one event that is meant.
pub async fn find(place: &Place<'_>, wanted: &Wanted) -> Result<Told, EventError> {
    let story = tell(place, wanted).await?;
    let mut found: Vec<&Told> = story.events.iter().filter(|told| wanted.is(told)).collect();
    // Several things that one transaction did have one id, and the worst stands for all.
    found.dedup_by_key(|told| told.id.clone());
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let kind = if let Wanted::Words { kind, .. } = wanted { Some(*kind) } else { None };
            let is_it = |told: &&Told| told.is_unnamed && Some(told.kind) == kind;
            Err(EventError::Unknown {
                text: wanted.to_string(),
                nearest: nearest(place, wanted, &story).await?.map(|told| line(&told)),
                unnamed: story.events.iter().filter(is_it).count(),
                is_of_rows: matches!(kind, Some(Kind::Delete | Kind::Update)),
            })
        }
        several => {
            let newest = &several[several.len().saturating_sub(SHOWN)..];
            let found = newest.iter().map(|told| line(told)).collect();
            Err(EventError::Ambiguous { text: wanted.to_string(), found, times: several.len() })
        }
    }
}

/// What may have been meant: of an id the event that lies nearest, of words the last one of that name, or else of that kind.
async fn nearest(place: &Place<'_>, wanted: &Wanted, story: &Story) -> Result<Option<Told>, EventError> {
    let last = |is_it: &dyn Fn(&Told) -> bool| story.events.iter().rev().find(|told| is_it(told)).cloned();
    let target = match wanted {
        Wanted::Words { kind, name } => {
            return Ok(last(&|told| told.touches(name)).or_else(|| last(&|told| told.kind == *kind)));
        }
        Wanted::Id { target, .. } => *target,
    };
    // What lies before it, and of rows only what is worth telling.
    let near = tell_from(place, wanted, Lsn(target.0.saturating_sub(place.archive.segment_bytes)), story::MANY_ROWS).await?;
    Ok(near.events.into_iter().filter(|told| !told.kind.is_routine()).min_by_key(|told| told.target.0.abs_diff(target.0)))
}

async fn tell(place: &Place<'_>, wanted: &Wanted) -> Result<Story, EventError> {
    let from = match wanted {
        Wanted::Id { target, .. } => *target,
        Wanted::Words { .. } => Lsn(0),
    };
    tell_from(place, wanted, from, 1).await
}

/// The story around an id, from a position on; or that of the place, where words are looked for.
async fn tell_from(place: &Place<'_>, wanted: &Wanted, from: Lsn, rows: u64) -> Result<Story, EventError> {
    let Place { archive, manifests, local, .. } = *place;
    let mut question = Question {
        archive,
        manifests,
        path: place.path,
        since: None,
        until: None,
        from: None,
        to: None,
        many_rows: story::MANY_ROWS,
        numbers: None,
        local,
        passes_sealed: false,
    };
    let own;
    match wanted {
        // Whatever its size: a small one that is meant must not be taken for a larger one of another day.
        Wanted::Words { .. } => (question.since, question.many_rows) = (Some(place.since), rows),
        Wanted::Id { timeline, target } => {
            own = archive.path(*timeline).ok_or(EventError::UnknownTimeline { timeline: *timeline })?;
            (question.path, question.from, question.to, question.many_rows) = (&own, Some(from), Some(*target), rows);
        }
    }
    Ok(story::tell(&question).await?)
}

fn line(told: &Told) -> String {
    let time = told.time.map(|time| time.strftime(" at %Y-%m-%d %H:%M:%S.%6fZ").to_string()).unwrap_or_default();
    format!("{}: {}{time}", told.id, told.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type() {
        let words = |kind, name: &str| Wanted::Words { kind, name: name.into() };
        for (text, wanted) in [
            ("1:0/48E06C0", Wanted::Id { timeline: Timeline(1), target: Lsn(0x48E_06C0) }),
            ("drop of shop.public.orders", words(Kind::Drop, "shop.public.orders")),
            ("DROP TABLE orders", words(Kind::Drop, "orders")),
            ("drop database shop", words(Kind::DropDatabase, "shop")),
            ("truncate orders", words(Kind::Truncate, "orders")),
            ("delete from public.orders", words(Kind::Delete, "public.orders")),
            ("update of orders", words(Kind::Update, "orders")),
            ("drop column of orders", words(Kind::DropColumn, "orders")),
            ("drop materialized view sums", words(Kind::Drop, "sums")),
            ("alter table orders", words(Kind::AlterTable, "orders")),
            ("detach partition part_1", words(Kind::Detach, "part_1")),
        ] {
            assert_eq!(text.parse::<Wanted>().unwrap(), wanted, "{text}");
        }
        for text in ["", "orders", "drop", "lose orders", "drop my good orders", "1:zz"] {
            assert!(matches!(text.parse::<Wanted>(), Err(EventError::Bad { .. })), "{text}");
        }
    }
}
