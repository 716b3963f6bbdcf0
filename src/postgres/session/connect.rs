//! How a connection is made, and what keeps it from being made, with the mend.
//!
//! A server says why it let nobody in in the language of its `lc_messages`; what is decided here follows from the code of the error and
//! from the name of the server's function that raised it, which are the same everywhere.

use std::io::ErrorKind;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, NoTls};

use super::{Connection, SessionError, Tls};
use crate::owner;

/// A server that is there answers long before.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn configuration(connection: &Connection) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.host(connection.host.as_deref().unwrap_or("/var/run/postgresql"));
    config.port(connection.port.unwrap_or(5432));
    config.user(connection.user.as_deref().unwrap_or("postgres"));
    config.dbname(connection.dbname.as_deref().unwrap_or("postgres"));
    if let Some(password) = &connection.password {
        // tokio-postgres keeps a copy of its own, for as long as the connection is made.
        config.password(password.expose_secret());
    }
    config.application_name("lastgood").connect_timeout(CONNECT_TIMEOUT);
    config.keepalives(true).keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(60));
    config
}

pub(super) fn describe(config: &tokio_postgres::Config) -> String {
    use tokio_postgres::config::Host;
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "localhost".into(),
    };
    format!("{host}:{} as {}", config.get_ports().first().unwrap_or(&5432), config.get_user().unwrap_or("postgres"))
}

/// The host that is reached over a network; `None` for a socket.
pub(super) fn network_host(config: &tokio_postgres::Config) -> Option<String> {
    match config.get_hosts().first() {
        Some(tokio_postgres::config::Host::Tcp(name)) => Some(name.clone()),
        _ => None,
    }
}

pub(super) async fn connect(
    config: &tokio_postgres::Config,
    connection: &Connection,
    target: &str,
) -> Result<Client, SessionError> {
    let failed = |error: tokio_postgres::Error| failure(&error, config, target);
    let host = network_host(config);
    let is_near = host.as_deref().is_none_or(crate::config::is_loopback);
    let tls_wanted = connection.tls.unwrap_or(if is_near { Tls::Prefer } else { Tls::Require });
    if host.is_none() || tls_wanted == Tls::Disable {
        let (client, io) = config.connect(NoTls).await.map_err(failed)?;
        tokio::spawn(io);
        return Ok(client);
    }
    let mut config = config.clone();
    config.ssl_mode(match tls_wanted {
        Tls::Require => tokio_postgres::config::SslMode::Require,
        _ => tokio_postgres::config::SslMode::Prefer,
    });
    let tls = crate::tls::client(connection.ca_file.as_deref()).map_err(|detail| SessionError::Tls { detail })?;
    let tls = tokio_postgres_rustls::MakeRustlsConnect::new(tls);
    let (client, io) = config.connect(tls).await.map_err(failed)?;
    tokio::spawn(io);
    Ok(client)
}

fn failure(error: &tokio_postgres::Error, config: &tokio_postgres::Config, target: &str) -> SessionError {
    let cause = std::error::Error::source(error);
    let (detail, mend) = match error.as_db_error() {
        // src/backend/utils/init/miscinit.c
        Some(database) if database.routine() == Some("InitializeSessionUserId") && database.code().code() == "28000" => {
            return SessionError::NoRole { target: target.into(), detail: database.message().into() };
        }
        Some(database) => (database.message().to_string(), refused(database, config)),
        None => {
            let detail = cause.map_or(error.to_string(), |cause| format!("{error}: {cause}"));
            let io = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
            let mend = match io {
                Some(kind) => unreachable(kind, config).or_else(|| tls(&detail)),
                None => tls(&detail).or_else(|| without_password(&detail)),
            };
            (detail, mend)
        }
    };
    let detail = mend.map_or(detail.clone(), |mend| format!("{detail}; {mend}"));
    SessionError::Connect { target: target.into(), detail }
}

/// What to do when the server answered, and let nobody in.
fn refused(database: &DbError, config: &tokio_postgres::Config) -> Option<String> {
    let role = config.get_user().unwrap_or_default();
    let mend = match (database.code().code(), database.routine().unwrap_or_default()) {
        ("28P01", _) => format!("set [postgres] password_file to the password of {role}"),
        // src/backend/libpq/auth.c: one function for all methods, and one for no line at all.
        ("28000", "auth_failed") => {
            let user = owner::current();
            format!(
                "with peer a system user is only let in as the role of its own name, and this is the system user {user}: run lastgood as \
                 the system user {role}, or set [postgres] user (--pg-user), or map {user} to {role} in pg_ident.conf \
                 (docs/guide/setup.md, A role of its own)"
            )
        }
        ("28000", "ClientAuthentication") => {
            format!("add a line for {role} to pg_hba.conf and reload, or use the server's socket")
        }
        ("3D000", _) => "set [postgres] dbname to a database that exists".into(),
        ("53300", _) => "end sessions, or raise max_connections or superuser_reserved_connections".into(),
        ("57P03", _) => "it starts, stops or recovers: try again, and see its log if it stays so".into(),
        _ => return None,
    };
    Some(mend)
}

/// What to do when nobody answered.
fn unreachable(kind: ErrorKind, config: &tokio_postgres::Config) -> Option<String> {
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let is_socket = network_host(config).is_none();
    match kind {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused if is_socket => Some(format!(
            "no server has a socket for port {port} in this directory: start it, or set [postgres] host (--pg-host) to its \
             unix_socket_directories, and port (--pg-port)"
        )),
        ErrorKind::PermissionDenied if is_socket => {
            Some("this user may not enter the socket's directory, or unix_socket_permissions keeps it out".into())
        }
        ErrorKind::ConnectionRefused => {
            Some("nothing listens there: start the server, or correct [postgres] host and port, or its listen_addresses".into())
        }
        _ => None,
    }
}

/// The words of rustls and of tokio-postgres; a test holds on to both.
fn tls(detail: &str) -> Option<String> {
    let mend = match detail {
        told if told.contains("UnknownIssuer") => "set [postgres] ca_file to the authority that signed its certificate",
        told if told.contains("not valid for name") => "set [postgres] host to a name that its certificate is for",
        told if told.contains("server does not support TLS") => {
            "set ssl = on there, or [postgres] sslmode = \"prefer\" to accept a connection that others can read"
        }
        _ => return None,
    };
    Some(mend.into())
}

/// The words of tokio-postgres, when the server wants one.
fn without_password(detail: &str) -> Option<String> {
    detail.contains("password missing").then(|| "set [postgres] password_file, or use peer through the socket".into())
}
