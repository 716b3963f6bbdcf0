//! Whether a copy stands at its target. That it answers, or pauses, proves nothing: replay pauses short of the target where a limit of
//! the server is below the original's, and somebody may promote it there.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::mark::Mark;
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::control::{ControlFile, State};
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::postmaster;
use crate::postgres::quiet;
use crate::postgres::session::{Connection, Session, SessionError};
use crate::postgres::settings::TargetAction;

/// Between two looks at a server that recovers.
const PAUSE: Duration = Duration::from_millis(100);
/// Between the end of a record and the beginning of the next lie at most a long page header (40 bytes) and the alignment of records.
const BETWEEN_RECORDS_BYTES: u64 = 40 + 8;

/// Where a copy stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Arrival {
    /// At the target, paused: readable, and nothing is written.
    Paused { lsn: Lsn, last_transaction: Option<Timestamp> },
    /// At the target, and recovery has ended there: writable, on a timeline of its own.
    Promoted { timeline: Timeline, prepared: Vec<Prepared> },
    /// It has shut down in recovery, as it was told to do at the target.
    ShutDown,
    /// Replay goes on.
    OnTheWay { lsn: Option<Lsn> },
    /// It stands, and not at the target.
    Short { lsn: Lsn, why: String },
    /// No server runs there, and it is not at its target.
    Down { why: String },
    /// It runs, and nobody lets us ask.
    Unknown { why: String },
}

/// A transaction that was prepared before the target, and still holds its locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prepared {
    pub gid: String,
    pub database: String,
    pub owner: String,
}

impl Arrival {
    /// Whether it is where it should be.
    pub fn is_there(&self) -> bool {
        matches!(self, Arrival::Paused { .. } | Arrival::Promoted { .. } | Arrival::ShutDown)
    }
}

/// Looks once. `connection` says who asks; where the server is reached is known by its pid file.
pub async fn look(directory: &Path, mark: &Mark, connection: &Connection) -> Arrival {
    let Some((host, port)) = postmaster::reached_at(directory) else {
        // It writes where it listens some time after it wrote who it is.
        let is_starting = postmaster::names_a_process(directory);
        return if is_starting { Arrival::OnTheWay { lsn: None } } else { without_server(directory, mark) };
    };
    let roles = [connection.user.clone(), Some("postgres".into())];
    let mut refused = None;
    for user in roles.into_iter().filter(|user| user.is_some() || connection.user.is_none()) {
        let there = Connection { host: Some(host.clone()), port: Some(port), user, ..connection.clone() };
        let asked = match Session::open(&there).await {
            Ok(session) => ask(&session, directory, mark).await,
            Err(error) => Err(error),
        };
        match asked {
            Ok(arrival) => return arrival,
            Err(error) if is_starting(&error) => return Arrival::OnTheWay { lsn: None },
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    // It may have ended while it was asked.
    if postmaster::reached_at(directory).is_none() {
        return without_server(directory, mark);
    }
    Arrival::Unknown { why: refused.map(|error| error.to_string()).unwrap_or_default() }
}

/// Looks until the copy stands somewhere, or nothing has moved for `stall`. `lives` says whether the process that was started does.
pub async fn follow(
    directory: &Path,
    mark: &Mark,
    connection: &Connection,
    stall: Duration,
    mut lives: impl FnMut() -> bool,
    monitor: &dyn Monitor,
) -> Arrival {
    let (mut seen, mut moved, mut told) = (None, clock::monotonic(), None::<Lsn>);
    loop {
        let arrival = look(directory, mark, connection).await;
        let at = match &arrival {
            Arrival::OnTheWay { lsn } => *lsn,
            // Its first process has not got to its pid file yet.
            Arrival::Down { .. } if lives() => None,
            // Somebody may just be allowed in as soon as it is consistent.
            Arrival::Unknown { .. } if moved.elapsed() < stall.min(Duration::from_secs(10)) => None,
            _ => return arrival,
        };
        if let Some(lsn) = at {
            monitor.advance(lsn.0.saturating_sub(told.unwrap_or(lsn).0));
            told = Some(lsn);
        }
        let now = Some((at, traces(directory)));
        if now != seen {
            (seen, moved) = (now, clock::monotonic());
        } else if moved.elapsed() >= stall {
            let why = format!("replay has not moved for {} s; look into the server's log", stall.as_secs());
            return Arrival::Short { lsn: at.unwrap_or(Lsn(0)), why };
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What moves while a server replays, also before it answers.
fn traces(directory: &Path) -> Vec<Option<std::time::SystemTime>> {
    let paths = ["global/pg_control", "pg_wal", "pg_wal/RECOVERYXLOG", "postmaster.pid"];
    paths.iter().map(|path| std::fs::metadata(directory.join(path)).and_then(|found| found.modified()).ok()).collect()
}

fn is_starting(error: &SessionError) -> bool {
    let text = error.to_string();
    ["starting up", "not yet accepting", "not accepting", "recovery mode", "57P03"].iter().any(|words| text.contains(words))
}

/// What the directory of a server that does not run tells.
fn without_server(directory: &Path, mark: &Mark) -> Arrival {
    let state = ControlFile::read(directory).map(|control| control.state);
    let in_recovery = directory.join("recovery.signal").exists();
    match (state, mark.action) {
        (Ok(State::ShutDownInRecovery), TargetAction::Shutdown) if in_recovery => Arrival::ShutDown,
        (Ok(state), _) => {
            let recovery = if in_recovery { "recovery has not ended" } else { "recovery has ended" };
            Arrival::Down { why: format!("no server runs there: it is {}, and {recovery}", state.words()) }
        }
        (Err(error), _) => Arrival::Down { why: format!("no server runs there, and {error}") },
    }
}

async fn ask(session: &Session, directory: &Path, mark: &Mark) -> Result<Arrival, SessionError> {
    let paused = if mark.major >= 14 { "pg_get_wal_replay_pause_state() = 'paused'" } else { "pg_is_wal_replay_paused()" };
    let state = session
        .value(&format!(
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'over ' WHEN {paused} THEN 'paused ' ELSE 'on ' END \
             || CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn()::text, '') ELSE '' END"
        ))
        .await?;
    let (state, lsn) = state.split_once(' ').unwrap_or((&state, ""));
    let lsn: Option<Lsn> = lsn.parse().ok();
    match (state, lsn) {
        ("over", _) => over(session, directory, mark).await,
        ("paused", Some(lsn)) if is_reached(mark, lsn) => {
            let time = "SELECT coalesce((extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::int8::text, '')";
            let last_transaction = session.value(time).await?.parse().ok().and_then(|at| Timestamp::from_microsecond(at).ok());
            Ok(Arrival::Paused { lsn, last_transaction })
        }
        ("paused", Some(lsn)) => Ok(Arrival::Short { lsn, why: why_paused(session, directory, mark).await? }),
        (_, lsn) => Ok(Arrival::OnTheWay { lsn }),
    }
}

/// Whether replay that ended at `lsn` has come to the target.
fn is_reached(mark: &Mark, lsn: Lsn) -> bool {
    match mark.stop_lsn {
        None => true,
        Some(stop) if mark.inclusive => lsn > stop,
        Some(stop) => lsn.0 + BETWEEN_RECORDS_BYTES >= stop.0,
    }
}

fn target(mark: &Mark) -> String {
    mark.stop_lsn.map_or_else(|| mark.target.clone(), |lsn| lsn.to_string())
}

/// A limit is too low, or somebody has paused it.
async fn why_paused(session: &Session, directory: &Path, mark: &Mark) -> Result<String, SessionError> {
    let needed = ControlFile::read(directory).map(|control| quiet::limit_settings(control.limits)).unwrap_or_default();
    for (name, needed) in needed.into_iter().filter(|(name, _)| *name != "wal_level") {
        let has = session.value(&format!("SELECT current_setting('{name}')")).await?;
        if has.parse::<u64>().ok() < needed.parse().ok() {
            return Ok(format!(
                "replay pauses short of the target ({}) because {name} is {has} here, and the original had {needed}: set it in \
                 postgresql.auto.conf, and start the server again",
                target(mark)
            ));
        }
    }
    Ok(format!("replay was paused short of the target ({}): SELECT pg_wal_replay_resume() lets it go on", target(mark)))
}

/// Recovery has ended: where, its history file says.
async fn over(session: &Session, directory: &Path, mark: &Mark) -> Result<Arrival, SessionError> {
    let name = session.value("SELECT pg_walfile_name(pg_current_wal_lsn())").await?;
    let timeline = Timeline(name.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0));
    let text = std::fs::read_to_string(directory.join(format!("pg_wal/{timeline}.history"))).unwrap_or_default();
    let left = History::parse(timeline, &text).ok().and_then(|path| path.stretches().iter().rev().nth(1)?.end);
    if let Some(lsn) = left.filter(|lsn| !is_reached(mark, *lsn)) {
        return Ok(Arrival::Short { lsn, why: format!("it was promoted at {lsn}, short of the target ({})", target(mark)) });
    }
    let prepared = session.triples("SELECT gid, database::text, owner::text FROM pg_prepared_xacts ORDER BY prepared").await?;
    let prepared = prepared.into_iter().map(|[gid, database, owner]| Prepared { gid, database, owner }).collect();
    Ok(Arrival::Promoted { timeline, prepared })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(stop_lsn: Option<Lsn>, inclusive: bool) -> Mark {
        Mark {
            major: 15,
            target: "latest".into(),
            timeline: Timeline(1),
            stop_lsn,
            inclusive,
            action: TargetAction::Pause,
            original: None,
            until_adopted: vec![],
        }
    }

    #[test]
    fn a_pause_short_of_the_target_is_not_the_target() {
        let inclusive = mark(Some(Lsn(0x600_0000)), true);
        assert!(is_reached(&inclusive, Lsn(0x600_0040)) && !is_reached(&inclusive, Lsn(0x600_0000)));
        // The record before may end with the page before; the header of the page is no record.
        let exclusive = mark(Some(Lsn(0x600_0028)), false);
        assert!(is_reached(&exclusive, Lsn(0x600_0000)) && !is_reached(&exclusive, Lsn(0x5ff_fff0)));
        assert!(is_reached(&mark(None, true), Lsn(1)));
    }
}
