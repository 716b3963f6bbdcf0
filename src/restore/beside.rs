//! A copy beside its original: it gets a port of its own, so that neither takes the other's place, nor its clients.

use std::net::TcpListener;
use std::path::Path;

use super::plan::Plan;
use crate::postgres::apart;

/// Where PostgreSQL's packages put their sockets.
const SOCKET_DIRECTORIES: [&str; 2] = ["/tmp", "/var/run/postgresql"];
/// More ports are not tried.
const PORTS_MAX: u16 = 1000;

/// Whether the copy goes to another place than its original had.
pub fn is_apart(plan: &Plan) -> bool {
    apart::real(Path::new(&plan.manifest().data_directory)) != apart::real(&plan.into)
}

/// A free port behind that of the original, when that is on this host. In doubt, it is.
pub fn port(plan: &Plan, original: u16) -> Option<u16> {
    let is_here = Path::new(&plan.manifest().data_directory).join("PG_VERSION").try_exists().unwrap_or(true);
    if !is_here || !is_apart(plan) {
        return None;
    }
    (original.saturating_add(1)..=original.saturating_add(PORTS_MAX)).find(|port| is_free(*port))
}

fn is_free(port: u16) -> bool {
    let has_socket = |directory: &str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
    TcpListener::bind(("127.0.0.1", port)).is_ok() && !SOCKET_DIRECTORIES.iter().any(|directory| has_socket(directory))
}
