//! The connection to the server: facts about it, and the start and stop of a base backup.
//!
//! # One session
//! A base backup belongs to the session that started it (rule 1), so one [`Session`] is held open for the whole copy and
//! pinged all the while (rule 8). When it dies, so does the backup, and the server forgets it: nothing needs cleaning up.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use secrecy::SecretString;
use tokio_postgres::{Client, Row};

use super::lsn::{Lsn, SystemId, Timeline};
use connect::{CONNECT_TIMEOUT, configuration, connect, describe, network_host};

mod connect;

/// How to reach the server. Whatever is absent has libpq's default.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Host name, or directory of the socket.
    pub host: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub dbname: Option<String>,
    /// Wiped when dropped, and never printed.
    pub password: Option<SecretString>,
    /// Absent: [`Tls::Require`] on another host, [`Tls::Prefer`] on this one.
    pub tls: Option<Tls>,
    /// PEM file with the authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// With TLS the certificate and the host's name in it are always verified, as with libpq's `verify-full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    Disable,
    /// TLS when the server offers it. Somebody in the middle can say that it does not.
    Prefer,
    Require,
}

/// How the bytes of a session travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A socket of this host.
    Socket,
    /// The protocol and cipher, as the server names them.
    Tls(String),
    Plain {
        loopback: bool,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("connect to PostgreSQL at {target}: {detail}")]
    Connect { target: String, detail: String },
    #[error(
        "connect to PostgreSQL at {target}: {detail}; create the role (docs/guide/setup.md, A role of its own), or set [postgres] user (--pg-user) to one that exists"
    )]
    NoRole { target: String, detail: String },
    #[error("{doing}: PostgreSQL answered {detail}{}", hint.map(|h| format!("; {h}")).unwrap_or_default())]
    Query { doing: &'static str, detail: String, hint: Option<&'static str> },
    #[error("{doing}: what it needs is locked by another transaction, which did not end within 10 s")]
    Locked { doing: &'static str },
    #[error("{doing}: the connection to PostgreSQL is lost")]
    Lost { doing: &'static str },
    #[error("role {role} may not read the setting {setting}; as a superuser run: GRANT pg_read_all_settings TO {role}")]
    SettingHidden { role: String, setting: String },
    #[error("PostgreSQL {major} is not supported; lastgood knows 13 to 18")]
    Version { major: u32 },
    #[error("TLS to PostgreSQL: {detail}")]
    Tls { detail: String },
}

/// What the server says about itself.
#[derive(Debug, Clone)]
pub struct Facts {
    pub version_num: u32,
    pub version: String,
    pub system_identifier: SystemId,
    pub data_directory: PathBuf,
    pub timeline: Timeline,
    pub control_version: u32,
    pub catalog_version: u32,
    pub in_recovery: bool,
    pub role: String,
    pub block_bytes: u32,
    pub wal_segment_bytes: u32,
    pub data_checksums: bool,
    pub wal_level: String,
    pub archive_mode: String,
    pub archive_command: String,
    /// 15 and later; empty elsewhere.
    pub archive_library: String,
    pub archive_timeout_s: u32,
    pub config_file: PathBuf,
    /// Settings that were changed and need a restart.
    pub pending_restart: Vec<String>,
    /// The server's clock, and how far the host's is from it, in seconds.
    pub now: Timestamp,
    pub clock_skew_s: f64,
}

impl Facts {
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

/// What `pg_backup_stop` answered.
#[derive(Debug, Clone)]
pub struct Stopped {
    pub lsn: Lsn,
    pub backup_label: String,
    pub time: Timestamp,
}

/// `pg_stat_archiver`, the part that tells why archiving does not work.
#[derive(Debug, Clone, Default)]
pub struct ArchiverState {
    pub archived: i64,
    pub failed: i64,
    pub last_archived: Option<String>,
    pub last_failed: Option<String>,
}

#[derive(Debug)]
pub struct Session {
    client: Client,
    connection: Connection,
    target: String,
    /// Absent for a socket.
    host: Option<String>,
    major: u32,
    /// Statements may take as long as they take, see [`Session::run`].
    is_unlimited: AtomicBool,
}

const WRITE_SETTING: &str = "write a setting";

/// See [`Session::failing_archive`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingArchive {
    pub segment: String,
    /// When it failed last.
    pub since: Timestamp,
}

impl Session {
    /// Connects and makes the session safe for long work (rule 2): it stays open for as long as we want, and no statement waits for ever,
    /// neither for a lock nor for anything else. What may take longer says so.
    pub async fn open(connection: &Connection) -> Result<Session, SessionError> {
        let config = configuration(connection);
        let target = describe(&config);
        // A server whose catalogs are locked takes the connection, and then says nothing.
        let detail = || format!("it did not let us in within {} s", CONNECT_TIMEOUT.as_secs());
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(&config, connection, &target)).await;
        let client = connected.map_err(|_| SessionError::Connect { target: target.clone(), detail: detail() })??;
        let mut session = Session {
            client,
            connection: connection.clone(),
            target,
            host: network_host(&config),
            major: 0,
            is_unlimited: AtomicBool::new(false),
        };
        session
            .execute(
                "prepare the session",
                "SET search_path = pg_catalog; SET client_encoding = 'UTF8'; SET max_parallel_workers_per_gather = 0; \
                 SET statement_timeout = '10min'; SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '10s'; \
                 SET standard_conforming_strings = on; SET TimeZone = 'UTC'; SET DateStyle = 'ISO'",
            )
            .await?;
        let version: i32 = session.one("ask the version", "SELECT current_setting('server_version_num')::int4").await?.get(0);
        session.major = version as u32 / 10_000;
        if !super::SUPPORTED_MAJORS.contains(&session.major) {
            return Err(SessionError::Version { major: session.major });
        }
        if session.major >= 14 {
            session.execute("prepare the session", "SET idle_session_timeout = 0").await?;
        }
        if session.major >= 17 {
            // It would end a statement that may take long, such as a checkpoint that is spread.
            session.execute("prepare the session", "SET transaction_timeout = 0").await?;
        }
        Ok(session)
    }

    /// Another session of the same role, in another database.
    pub async fn in_database(&self, name: &str) -> Result<Session, SessionError> {
        Session::open(&Connection { dbname: Some(name.into()), ..self.connection.clone() }).await
    }

    pub fn target(&self) -> &str {
        &self.target
    }

    /// Whether this session is encrypted, as the server sees it.
    pub async fn transport(&self) -> Result<Transport, SessionError> {
        let Some(host) = &self.host else { return Ok(Transport::Socket) };
        let sql = "SELECT coalesce(max(version || ', ' || cipher), '') FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";
        let used: String = self.one("ask whether the session is encrypted", sql).await?.get(0);
        let plain = Transport::Plain { loopback: crate::config::is_loopback(host) };
        Ok(if used.is_empty() { plain } else { Transport::Tls(used) })
    }

    pub async fn facts(&self) -> Result<Facts, SessionError> {
        let row = self
            .one(
                "ask what server this is",
                "SELECT current_setting('server_version_num')::int4, version(), s.system_identifier::text, c.timeline_id, \
                 pg_is_in_recovery(), current_user::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8, \
                 s.pg_control_version, s.catalog_version_no \
                 FROM pg_control_system() s, pg_control_checkpoint() c",
            )
            .await?;
        let role: String = row.get(5);
        let now = timestamp(row.get(6));
        let skew = crate::clock::now().duration_since(now).as_secs_f64();
        let settings = Settings { session: self, role: role.clone() };
        let pending = self.value("SELECT coalesce(string_agg(name, ','), '') FROM pg_settings WHERE pending_restart").await?;
        let segment: u64 = settings.number("wal_segment_size").await?;
        Ok(Facts {
            version_num: row.get::<_, i32>(0) as u32,
            version: row.get(1),
            system_identifier: SystemId(row.get::<_, String>(2).parse().unwrap_or(0)),
            timeline: Timeline(row.get::<_, i32>(3) as u32),
            control_version: row.get::<_, i32>(7) as u32,
            catalog_version: row.get::<_, i32>(8) as u32,
            in_recovery: row.get(4),
            data_directory: settings.text("data_directory").await?.into(),
            block_bytes: settings.number("block_size").await? as u32,
            wal_segment_bytes: segment as u32,
            data_checksums: settings.text("data_checksums").await? == "on",
            wal_level: settings.text("wal_level").await?,
            archive_mode: settings.text("archive_mode").await?,
            archive_command: settings.text("archive_command").await?,
            archive_library: if self.major >= 15 { settings.text("archive_library").await? } else { String::new() },
            archive_timeout_s: settings.number("archive_timeout").await? as u32,
            pending_restart: pending.split(',').map(str::to_string).collect(),
            config_file: settings.text("config_file").await?.into(),
            role,
            now,
            clock_skew_s: skew,
        })
    }

    pub async fn now(&self) -> Result<Timestamp, SessionError> {
        let row = self.one("ask the time", "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8").await?;
        Ok(timestamp(row.get(0)))
    }

    /// Whether the server is a standby, and that the session lives (rule 8).
    pub async fn in_recovery(&self) -> Result<bool, SessionError> {
        Ok(self.one("ping", "SELECT pg_is_in_recovery()").await?.get(0))
    }

    /// Starts a base backup; an immediate checkpoint when `fast`. Answers its start LSN and the server's time.
    pub async fn start_backup(&self, label: &str, fast: bool) -> Result<(Lsn, Timestamp), SessionError> {
        let start = if self.major >= 15 { "pg_backup_start($1, $2)" } else { "pg_start_backup($1, $2, false)" };
        let sql = format!("SELECT {start}::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8");
        let doing = "start the base backup";
        // A checkpoint that is spread takes as long as the server likes, and up to `checkpoint_timeout`, which may be a day.
        self.execute(doing, "SET statement_timeout = 0").await?;
        let row = self.client.query_one(&sql, &[&label, &fast]).await.map_err(|e| self.error(doing, e))?;
        self.execute(doing, "SET statement_timeout = '10min'").await?;
        Ok((lsn(&row, doing)?, timestamp(row.get(1))))
    }

    /// Stops it, without the server's own wait for archiving: we wait ourselves, with a deadline (rule 1). The map of the tablespaces is not
    /// asked for: their paths need not be text, and a restore makes the links (rule 44).
    pub async fn stop_backup(&self) -> Result<Stopped, SessionError> {
        let stop = if self.major >= 15 { "pg_backup_stop(false)" } else { "pg_stop_backup(false, false)" };
        let sql = format!("SELECT lsn::text, labelfile, (extract(epoch FROM clock_timestamp()) * 1000000)::int8 FROM {stop}");
        let doing = "stop the base backup";
        let row = self.one(doing, &sql).await?;
        Ok(Stopped { lsn: lsn(&row, doing)?, backup_label: row.get(1), time: timestamp(row.get(2)) })
    }

    /// Makes the server archive what it has: a restore point first, because an idle server switches nothing (rule 5).
    /// Answers the name of the segment that is now complete.
    pub async fn switch_segment(&self, restore_point: &str) -> Result<String, SessionError> {
        let doing = "switch to a new WAL segment";
        let sql = "SELECT pg_create_restore_point($1)::text";
        self.client.query_one(sql, &[&restore_point]).await.map_err(|e| self.error(doing, e))?;
        let row = self.one(doing, "SELECT pg_walfile_name(pg_switch_wal())").await?;
        Ok(row.get(0))
    }

    /// The last position written, or replayed on a standby.
    pub async fn current_lsn(&self) -> Result<Lsn, SessionError> {
        let doing = "ask the WAL position";
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text";
        lsn(&self.one(doing, sql).await?, doing)
    }

    /// The segment that could not be archived, where that is the newest that is known of archiving.
    pub async fn failing_archive(&self) -> Result<Option<FailingArchive>, SessionError> {
        let sql = "SELECT last_failed_wal, (extract(epoch FROM last_failed_time) * 1000000)::int8 FROM pg_stat_archiver \
                   WHERE last_failed_time > coalesce(last_archived_time, '-infinity')";
        let doing = "ask about archiving";
        let row = self.client.query_opt(sql, &[]).await.map_err(|e| self.error(doing, e))?;
        Ok(row.map(|row| FailingArchive { segment: row.get(0), since: timestamp(row.get(1)) }))
    }

    pub async fn archiver(&self) -> Result<ArchiverState, SessionError> {
        let sql = "SELECT archived_count, failed_count, last_archived_wal, last_failed_wal FROM pg_stat_archiver";
        let row = self.one("ask about archiving", sql).await?;
        Ok(ArchiverState { archived: row.get(0), failed: row.get(1), last_archived: row.get(2), last_failed: row.get(3) })
    }

    /// Which of the functions a backup needs this role may not call.
    pub async fn missing_grants(&self) -> Result<Vec<String>, SessionError> {
        let (start, stop) = if self.major >= 15 {
            ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)")
        } else {
            ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)")
        };
        let mut missing = Vec::new();
        for function in [start, stop, "pg_switch_wal()", "pg_create_restore_point(text)"] {
            let sql = "SELECT has_function_privilege($1, 'EXECUTE')";
            let row = self.client.query_one(sql, &[&function]).await.map_err(|e| self.error("ask for privileges", e))?;
            if !row.get::<_, bool>(0) {
                missing.push(format!("GRANT EXECUTE ON FUNCTION {function}"));
            }
        }
        Ok(missing)
    }

    /// Databases that take connections, but not from this role, as SQL writes their names: what happens in them has no names.
    pub async fn closed_databases(&self) -> Result<Vec<String>, SessionError> {
        let sql = "SELECT pg_catalog.quote_ident(datname) FROM pg_catalog.pg_database \
                   WHERE datallowconn AND NOT pg_catalog.has_database_privilege(oid, 'CONNECT') ORDER BY datname";
        self.column(sql).await
    }

    /// Writes a setting with `ALTER SYSTEM`; `name` is one of ours, `value` is quoted.
    pub async fn alter_system(&self, name: &str, value: &str) -> Result<(), SessionError> {
        let sql = format!("ALTER SYSTEM SET {name} = '{}'", value.replace('\'', "''"));
        self.execute(WRITE_SETTING, &sql).await
    }

    pub async fn reload(&self) -> Result<(), SessionError> {
        self.execute("reload the settings", "SELECT pg_reload_conf()").await
    }

    /// Runs SQL that answers nothing, for as long as it takes: checkpoints, extensions, the demo, tests. Statements behind it are not
    /// limited either, if it does not limit them itself; only waiting for locks is.
    pub async fn run(&self, sql: &str) -> Result<(), SessionError> {
        if !self.is_unlimited.swap(true, Ordering::Relaxed) {
            self.execute("run SQL", "SET statement_timeout = 0").await?;
        }
        self.execute("run SQL", sql).await
    }

    /// The first column of the first row, as text.
    pub async fn value(&self, sql: &str) -> Result<String, SessionError> {
        let doing = "run SQL";
        let rows = self.client.simple_query(sql).await.map_err(|e| self.error(doing, e))?;
        let first = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_string()),
            _ => None,
        });
        Ok(first.unwrap_or_default())
    }

    /// The first column of all rows, as text.
    pub async fn column(&self, sql: &str) -> Result<Vec<String>, SessionError> {
        let doing = "run SQL";
        let rows = self.client.simple_query(sql).await.map_err(|e| self.error(doing, e))?;
        let text = |message: &tokio_postgres::SimpleQueryMessage| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_string()),
            _ => None,
        };
        Ok(rows.iter().filter_map(text).collect())
    }

    /// All rows of three columns, as text.
    pub async fn triples(&self, sql: &str) -> Result<Vec<[String; 3]>, SessionError> {
        let rows = self.client.simple_query(sql).await.map_err(|e| self.error("run SQL", e))?;
        let texts = |message: &tokio_postgres::SimpleQueryMessage| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some([0, 1, 2].map(|at| row.get(at).unwrap_or_default().to_string())),
            _ => None,
        };
        Ok(rows.iter().filter_map(texts).collect())
    }

    pub(super) async fn rows(&self, doing: &'static str, sql: &str) -> Result<Vec<Row>, SessionError> {
        self.client.query(sql, &[]).await.map_err(|e| self.error(doing, e))
    }

    async fn execute(&self, doing: &'static str, sql: &str) -> Result<(), SessionError> {
        self.client.batch_execute(sql).await.map_err(|e| self.error(doing, e))
    }

    async fn one(&self, doing: &'static str, sql: &str) -> Result<Row, SessionError> {
        self.client.query_one(sql, &[]).await.map_err(|e| self.error(doing, e))
    }

    fn error(&self, doing: &'static str, error: tokio_postgres::Error) -> SessionError {
        match error.as_db_error() {
            None if error.is_closed() || self.client.is_closed() => SessionError::Lost { doing },
            None => SessionError::Query { doing, detail: error.to_string(), hint: None },
            Some(database) => {
                let hint = match database.code().code() {
                    "42501" if doing == WRITE_SETTING => Some(
                        "only a superuser may, or from 15 on a role with GRANT ALTER SYSTEM ON PARAMETER: run `lastgood init --apply \
                         --pg-user postgres` once, or run what `lastgood init` prints in psql",
                    ),
                    // From 17 on, with allow_alter_system = off.
                    "0A000" if doing == WRITE_SETTING => Some(
                        "the settings are kept by something else here: run `lastgood init` without --apply, and put there what it prints",
                    ),
                    "42501" => Some("run `lastgood check` for the GRANTs that this role needs"),
                    "57P01" | "57P02" | "57P03" => return SessionError::Lost { doing },
                    "55P03" => return SessionError::Locked { doing },
                    _ => None,
                };
                SessionError::Query { doing, detail: format!("{:?} ({})", database.message(), database.code().code()), hint }
            }
        }
    }
}

/// Reads settings, telling hidden ones from empty ones (rule 2).
struct Settings<'a> {
    session: &'a Session,
    role: String,
}

impl Settings<'_> {
    async fn text(&self, name: &str) -> Result<String, SessionError> {
        let sql = "SELECT (SELECT setting FROM pg_settings WHERE name = $1)";
        let row = self.session.client.query_one(sql, &[&name]).await.map_err(|e| self.session.error("read a setting", e))?;
        let hidden = || SessionError::SettingHidden { role: self.role.clone(), setting: name.into() };
        row.get::<_, Option<String>>(0).ok_or_else(hidden)
    }

    async fn number(&self, name: &str) -> Result<u64, SessionError> {
        Ok(self.text(name).await?.parse().unwrap_or(0))
    }
}

fn timestamp(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn lsn(row: &Row, doing: &'static str) -> Result<Lsn, SessionError> {
    let text: String = row.get(0);
    text.parse().map_err(|_| SessionError::Query { doing, detail: format!("no LSN: {text:?}"), hint: None })
}
