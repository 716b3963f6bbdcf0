//! The restored server: started in quarantine, followed until it stands at its target, asked, stopped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::DrillError;
use super::target::Reached;
use crate::clock;
use crate::owner::Ids;
use crate::postgres::control::ControlFile;
use crate::postgres::history::History;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::quarantine::Quarantine;
use crate::postgres::scratch::{self, Scratch, Stop};
use crate::postgres::session::{Session, SessionError};
use crate::postgres::wal::name::WalFile;

/// Between two looks at a server that recovers.
const PAUSE: Duration = Duration::from_millis(50);
/// Each round of limits that were raised in the WAL needs a new start.
const STARTS_MAX: u32 = 10;
/// Lines of the log that a report shows.
const LOG_LINES: usize = 12;

/// Why the server did not get to where it should.
#[derive(Debug)]
pub enum Trouble {
    /// The server ended; the end of its log.
    Ended {
        log: String,
    },
    /// Nothing moved for so long.
    Stalled {
        seconds: u64,
        log: String,
    },
    Asked(SessionError),
    Failed(DrillError),
}

impl From<SessionError> for Trouble {
    fn from(error: SessionError) -> Self {
        Trouble::Asked(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Ended { log } => write!(f, "the server ended before it reached the target; its log says:\n{log}"),
            Trouble::Stalled { seconds, log } => write!(f, "replay did not move for {seconds} s; the server's log says:\n{log}"),
            Trouble::Asked(error) => error.fmt(f),
            Trouble::Failed(error) => error.fmt(f),
        }
    }
}

pub struct Server {
    scratch: Scratch,
    settings: PathBuf,
    quarantine: Quarantine,
    /// Roles that may be superusers; the first is one, once it was asked.
    roles: Vec<String>,
    database: &'static str,
    major: u32,
    stall_s: u64,
}

/// What the server needs to be started.
pub struct Setup {
    pub bin: PathBuf,
    pub data: PathBuf,
    pub sockets: PathBuf,
    pub settings: PathBuf,
    pub user: Option<Ids>,
    pub quarantine: Quarantine,
    pub roles: Vec<String>,
    pub major: u32,
    pub stall_s: u64,
    /// It shall live on when we end.
    pub is_kept: bool,
}

impl Server {
    pub fn new(setup: Setup) -> Result<Server, DrillError> {
        let scratch = Scratch::new(&setup.bin, &setup.data, &setup.sockets, setup.user)?;
        let scratch = if setup.is_kept { scratch } else { scratch.tied() };
        Ok(Server {
            scratch,
            settings: setup.settings,
            quarantine: setup.quarantine,
            roles: setup.roles,
            database: "postgres",
            major: setup.major,
            stall_s: setup.stall_s,
        })
    }

    /// Starts it and follows it until it pauses at its target, or has ended recovery there.
    pub async fn recover(&mut self) -> Result<(Session, Reached), Trouble> {
        for _ in 0..STARTS_MAX {
            self.configure().map_err(Trouble::Failed)?;
            let followed = self.follow().await;
            // A record in the WAL raised them: a standby pauses or ends there, and goes on with higher ones.
            if self.take_higher_limits() {
                self.scratch.stop(Stop::Fast);
                continue;
            }
            return followed;
        }
        Err(self.ended())
    }

    fn configure(&mut self) -> Result<(), DrillError> {
        let failed = |source| DrillError::Io { doing: "write settings into", path: self.settings.clone(), source };
        let arguments = self.quarantine.write(&self.settings, self.scratch.data(), self.scratch.user()).map_err(failed)?;
        self.scratch.set_arguments(arguments);
        Ok(self.scratch.spawn()?)
    }

    /// Whether `pg_control` knows higher limits than the server was started with; they count from now on.
    fn take_higher_limits(&mut self) -> bool {
        let Ok(control) = ControlFile::read(self.scratch.data()) else { return false };
        let higher = self.quarantine.limits.or_higher(control.limits);
        std::mem::replace(&mut self.quarantine.limits, higher) != higher
    }

    async fn follow(&mut self) -> Result<(Session, Reached), Trouble> {
        let mut session: Option<Session> = None;
        let (mut seen, mut moved) = (None, clock::monotonic());
        loop {
            if self.scratch.has_exited() {
                return Err(self.ended());
            }
            if session.is_none() {
                session = self.connect_somehow().await?;
            }
            let mut state = String::new();
            if let Some(open) = &session {
                match open.value(STATE).await {
                    Ok(found) => state = found,
                    // Replay may end any session, and so does the end of the server.
                    Err(_) => session = None,
                }
            }
            if !state.is_empty()
                && !state.starts_with("on")
                && let Some(open) = session.take()
            {
                let reached = self.reached(&open, state.starts_with("paused")).await?;
                return Ok((open, reached));
            }
            let now = Some((state, self.traces()));
            if now != seen {
                (seen, moved) = (now, clock::monotonic());
            } else if moved.elapsed().as_secs() >= self.stall_s {
                let log = scratch::last_lines(&self.scratch.log(), LOG_LINES);
                return Err(Trouble::Stalled { seconds: self.stall_s, log });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What moves while a server replays, also before it answers: its log, `pg_control`, and the segments that it fetched.
    fn traces(&self) -> Vec<Option<std::time::SystemTime>> {
        let data = self.scratch.data();
        let log = self.scratch.sockets().join("server.log");
        let paths = [log, data.join("global/pg_control"), data.join("pg_wal"), data.join("pg_wal/RECOVERYXLOG")];
        paths.iter().map(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok()).collect()
    }

    fn ended(&self) -> Trouble {
        Trouble::Ended { log: scratch::last_lines(&self.scratch.log(), LOG_LINES) }
    }

    /// A superuser's session, when the server lets anybody in yet.
    async fn connect_somehow(&mut self) -> Result<Option<Session>, Trouble> {
        for database in ["postgres", "template1"] {
            let mut unknown = 0;
            for role in self.roles.clone() {
                match self.open_as(&role, database).await {
                    Ok(session) => {
                        self.roles = vec![session.value(SUPERUSER).await?];
                        // Either may have been the first to answer, because the server was just getting ready.
                        self.database = if session.value(HAS_POSTGRES).await? == "t" { "postgres" } else { "template1" };
                        return if self.roles[0] == role { Ok(Some(session)) } else { Ok(self.session(database).await.ok()) };
                    }
                    Err(SessionError::NoRole { .. }) => unknown += 1,
                    Err(_) => {}
                }
            }
            if unknown == self.roles.len() {
                return Err(Trouble::Failed(DrillError::NoRole { tried: self.roles.clone() }));
            }
        }
        Ok(None)
    }

    async fn open_as(&self, role: &str, database: &str) -> Result<Session, SessionError> {
        let mut connection = self.scratch.connection();
        (connection.user, connection.dbname) = (Some(role.into()), Some(database.into()));
        Session::open(&connection).await
    }

    /// A superuser's session in a database.
    pub async fn session(&self, database: &str) -> Result<Session, SessionError> {
        self.open_as(self.role(), database).await
    }

    pub fn role(&self) -> &str {
        self.roles.first().map_or("postgres", String::as_str)
    }

    /// The database for questions that name none.
    pub fn database(&self) -> &'static str {
        self.database
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Where it stands, from its own state and from the disk.
    async fn reached(&self, session: &Session, is_paused: bool) -> Result<Reached, Trouble> {
        let transaction = "SELECT coalesce((extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::int8::text, '')";
        let last_transaction = session.value(transaction).await?.parse().ok().and_then(|at| Timestamp::from_microsecond(at).ok());
        if !is_paused {
            return self.history(session, last_transaction).await;
        }
        let lsn = lsn(&session.value("SELECT pg_last_wal_replay_lsn()").await?)?;
        // The first writes what replay has changed. The second finds nothing to do, and then puts the very position into pg_control
        // (`CreateRestartPoint` in xlog.c, "skipping restartpoint").
        session.run("CHECKPOINT").await?;
        session.run("CHECKPOINT").await?;
        let control = "SELECT min_recovery_end_lsn || ' ' || min_recovery_end_timeline FROM pg_control_recovery()";
        let told = session.value(control).await?;
        let (position, timeline) = told.split_once(' ').unwrap_or_default();
        let durable = (self::lsn(position)?, Timeline(timeline.parse().unwrap_or(0)));
        Ok(Reached { lsn, durable, last_transaction, is_paused })
    }

    /// Recovery has ended: the history file of the new timeline says where.
    async fn history(&self, session: &Session, last_transaction: Option<Timestamp>) -> Result<Reached, Trouble> {
        session.run("CHECKPOINT").await?;
        let names = std::fs::read_dir(self.scratch.data().join("pg_wal")).into_iter().flatten().flatten();
        let timelines = names.filter_map(|entry| match entry.file_name().to_str()?.parse() {
            Ok(WalFile::History(timeline)) => Some(timeline),
            _ => None,
        });
        let newest = timelines.max().unwrap_or(Timeline(0));
        let text = std::fs::read_to_string(self.scratch.data().join(format!("pg_wal/{newest}.history"))).unwrap_or_default();
        let path = History::parse(newest, &text).unwrap_or_else(|_| History::first(newest));
        let stretches = path.stretches();
        let left = stretches.iter().rev().nth(1).and_then(|stretch| Some((stretch.end?, stretch.timeline)));
        let durable = left.unwrap_or((Lsn(0), newest));
        Ok(Reached { lsn: durable.0, durable, last_transaction, is_paused: false })
    }

    /// Ends recovery at the target, where it pauses.
    pub async fn promote(&mut self) -> Result<(), Trouble> {
        let session = self.session(self.database).await?;
        if session.value("SELECT pg_is_in_recovery()").await? == "f" {
            return Ok(());
        }
        session.run("SELECT pg_wal_replay_resume()").await?;
        let began = clock::monotonic();
        while session.value("SELECT pg_is_in_recovery()").await? != "f" {
            if self.scratch.has_exited() {
                return Err(self.ended());
            }
            if began.elapsed().as_secs() >= self.stall_s {
                return Err(Trouble::Stalled { seconds: self.stall_s, log: scratch::last_lines(&self.scratch.log(), LOG_LINES) });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Databases that can be opened, and those that a target in the middle of DROP DATABASE has left behind (rule 42).
    pub async fn databases(&self, session: &Session) -> Result<(Vec<String>, Vec<String>), SessionError> {
        let all =
            |valid: &str| format!("SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit {valid} -2 ORDER BY 1");
        Ok((session.column(&all("<>")).await?, session.column(&all("=")).await?))
    }

    pub fn major(&self) -> u32 {
        self.major
    }

    pub fn log(&self) -> String {
        scratch::last_lines(&self.scratch.log(), LOG_LINES)
    }

    /// Lets it live on, and answers where it is reached.
    pub fn leave(self) -> (PathBuf, String, Option<u32>) {
        let (sockets, role) = (self.scratch.sockets().to_path_buf(), self.role().to_string());
        (sockets, role, self.scratch.leave())
    }
}

const STATE: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'over' WHEN pg_is_wal_replay_paused() THEN 'paused' ELSE 'on' END \
                     || ' ' || coalesce(pg_last_wal_replay_lsn()::text, '')";
const HAS_POSTGRES: &str = "SELECT count(*) = 1 FROM pg_database WHERE datname = 'postgres' AND datallowconn";
/// The oldest is the one that initdb made.
const SUPERUSER: &str = "SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1";

fn lsn(text: &str) -> Result<Lsn, Trouble> {
    let detail = || format!("no LSN: {text:?}");
    text.parse().map_err(|_| SessionError::Query { doing: "ask the position", detail: detail(), hint: None }.into())
}

/// Free memory of this host, as the kernel estimates it; `None` where it does not say.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}
