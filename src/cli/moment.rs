//! Which moment a person means: `--to`, `--before` an event, or `--after` one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

use crate::archive::spool::Spool;
use crate::clock;
use crate::config::Config;
use crate::postgres::data_directory::RESTORED_MARK;
use crate::postgres::history::History;
use crate::postgres::lsn::{SystemId, Timeline};
use crate::postgres::session::Session;
use crate::postgres::wal::name::SegmentName;
use crate::repo::manifest::Manifest;
use crate::timeline::archive::Archive;
use crate::timeline::before::{self, EventError, Wanted};
use crate::timeline::indexes::Kept;
use crate::timeline::tail;
use crate::timeline::target::{Target, TargetError};
use crate::timeline::told::Told;

/// Words for an event are looked for in so many days of WAL.
const LOOK_BACK_DAYS: i64 = 35;

/// A moment to restore to; just one of the three.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Moment {
    /// latest, a time with zone, an LSN, a transaction id, the name of a restore point, or a snapshot
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    to: Option<String>,
    /// Just before an event: its id from `lastgood timeline`, or what it was, like 'drop of shop.public.orders'
    #[arg(long, value_name = "EVENT")]
    before: Option<String>,
    /// Up to and including an event, a transaction, or all that was committed by a time
    #[arg(long, value_name = "EVENT|XID|TIME", conflicts_with = "exclusive")]
    after: Option<String>,
}

/// What was typed, understood as far as that goes without the repository.
#[derive(Debug, Clone)]
pub enum Asked {
    Target(Target),
    Before(Wanted),
    After(Wanted),
}

/// A moment as the library knows it.
#[derive(Debug)]
pub struct Found {
    pub target: Target,
    pub inclusive: Option<bool>,
    pub timeline: Option<Timeline>,
    pub event: Option<Told>,
}

impl Moment {
    /// Flags that belong to it are looked at as well.
    pub fn asked(&self, exclusive: bool, snapshot: Option<&str>) -> Result<Asked, anyhow::Error> {
        if let Some(before) = &self.before {
            return Ok(Asked::Before(before.parse()?));
        }
        if let Some(after) = &self.after {
            return Ok(match after.parse::<Wanted>() {
                Ok(wanted) => Asked::After(wanted),
                Err(_) => {
                    let target: Target = after.parse()?;
                    target.check_after()?;
                    Asked::Target(target)
                }
            });
        }
        let target: Target = self.to.as_deref().unwrap_or_default().parse()?;
        target.check(exclusive, snapshot)?;
        Ok(Asked::Target(target))
    }
}

/// Finds the event, where one is meant, in the archive and in what lies in `into` and is not archived.
pub async fn find(
    asked: Asked,
    timeline: Option<Timeline>,
    (archive, manifests): (&Archive, &[Manifest]),
    into: &Path,
) -> anyhow::Result<Found> {
    let (wanted, is_before) = match asked {
        Asked::Target(target) => return Ok(Found { target, inclusive: None, timeline, event: None }),
        Asked::Before(wanted) => (wanted, true),
        Asked::After(wanted) => (wanted, false),
    };
    let mut archive = archive.clone();
    let pg_wal = into.join("pg_wal");
    // What a copy that was not adopted wrote by itself is another history: what is meant happened to its original.
    if pg_wal.is_dir() && !into.join(RESTORED_MARK).exists() {
        archive.add_tails(
            tail::in_directory(&pg_wal, archive.system).map_err(|e| anyhow::anyhow!("read {}: {e}", pg_wal.display()))?,
        );
    }
    let path = path(&archive, timeline)?;
    let since = clock::now() - SignedDuration::from_hours(24 * LOOK_BACK_DAYS);
    let local = |_: SegmentName| None;
    let place = before::Place { archive: &archive, manifests, path: &path, since, local: &local };
    let told = before::find(&place, &wanted).await?;
    if let (Some(timeline), false) = (timeline, path.contains(told.timeline, told.target)) {
        anyhow::bail!(
            "event {} is not on the path to timeline {timeline}; leave --timeline out, or name {:X}",
            told.id,
            told.timeline.0
        );
    }
    let lsn = if is_before { told.target } else { told.lsn };
    Ok(Found { target: Target::Lsn(lsn), inclusive: Some(!is_before), timeline: Some(told.timeline), event: Some(told) })
}

/// The path to the timeline that is asked for, or to the newest.
pub fn path(archive: &Archive, timeline: Option<Timeline>) -> Result<History, EventError> {
    match timeline {
        Some(timeline) => archive.path(timeline).ok_or(EventError::UnknownTimeline { timeline }),
        None => archive.newest().ok_or(EventError::UnknownTimeline { timeline: Timeline(1) }),
    }
}

/// Indexes that this host kept while it archived.
pub fn spool(config: &Config, system: SystemId, data_directory: Option<&PathBuf>) -> Option<Spool> {
    let (root, cluster) = (&config.archive.spool, &config.cluster.name);
    match data_directory {
        Some(directory) => Spool::existing(root, cluster, system, directory).ok(),
        None => Spool::only(root, cluster, system),
    }
}

/// The same for the server at hand. Opened when it is wanted: before its first push the server has none.
pub async fn kept(config: &Config, session: &Session) -> anyhow::Result<Kept> {
    let facts = session.facts().await?;
    let directory = config.postgres.data_directory.clone().unwrap_or(facts.data_directory);
    let (config, opened) = (config.clone(), Arc::new(OnceLock::new()));
    let system = facts.system_identifier;
    let of_index = (config.clone(), opened.clone(), directory.clone());
    let kept = Kept::new(move |segment| {
        let (config, opened, directory) = &of_index;
        let spool: &Option<Spool> = opened.get_or_init(|| spool(config, system, Some(directory)));
        spool.as_ref()?.index(segment)
    });
    Ok(kept.with_digests(move |segment| {
        let spool = opened.get_or_init(|| spool(&config, system, Some(&directory)));
        spool.as_ref()?.digest(segment, &directory.join("pg_wal").join(segment.to_string()))
    }))
}

/// A time with a zone, or how long ago: `2h`, `30min`, `7 days`.
pub fn time(text: &str) -> Result<Timestamp, TargetError> {
    if let Ok(span) = text.trim().parse::<Span>()
        && let Ok(back) = span.abs().to_duration(SpanRelativeTo::days_are_24_hours())
    {
        return Ok(clock::now() - back);
    }
    match text.parse()? {
        Target::Time(time) => Ok(time),
        _ => {
            let problem = "write a time with a zone, or how long ago, like 2h, 30min or 7d".into();
            Err(TargetError::Bad { text: text.into(), kind: "time", problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_moments_or_long_ago() {
        let ago = |text: &str| {
            let then = time(text).unwrap();
            clock::now().duration_since(then).as_secs()
        };
        assert!((7200..7210).contains(&ago("2h")) && (1800..1810).contains(&ago("30min")), "{} {}", ago("2h"), ago("30min"));
        assert!((7 * 86_400..7 * 86_400 + 10).contains(&ago("7d")) && (3600..3610).contains(&ago("1 hour ago")));
        assert_eq!(time("2026-11-21 04:15:00Z").unwrap(), "2026-11-21T04:15:00Z".parse().unwrap());
        for text in ["yesterday", "0/5000000", "2026-11-21 04:15:00", "12"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
