//! `pg_dump` to nowhere: the server reads every row and prints every object, as an export would.

use std::process::Stdio;

use tokio::io::AsyncReadExt;

use super::server::Server;
use crate::monitor::Monitor;

/// Dumps one database; answers how many bytes came out.
pub async fn database(server: &Server, name: &str, monitor: &dyn Monitor) -> Result<u64, String> {
    let mut command = server.scratch().command("pg_dump");
    command.arg("-h").arg(server.scratch().sockets()).args([
        "-p",
        "5432",
        "-U",
        server.role(),
        "--no-password",
        "--lock-wait-timeout=10s",
        "-d",
    ]);
    command.arg(format!("dbname={}", quoted(name)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().map_err(|error| format!("pg_dump cannot be started: {error}"))?;
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let said = async {
        let mut text = Vec::new();
        if let Some(mut errors) = errors {
            let _ = errors.read_to_end(&mut text).await;
        }
        String::from_utf8_lossy(&text).trim().to_string()
    };
    let counted = async {
        let (mut total, mut buffer) = (0u64, vec![0u8; 256 << 10]);
        if let Some(mut out) = out {
            while let Ok(count @ 1..) = out.read(&mut buffer).await {
                total += count as u64;
                monitor.advance(count as u64);
            }
        }
        total
    };
    let (said, total) = tokio::join!(said, counted);
    match child.wait().await {
        Ok(status) if status.success() && total > 0 => Ok(total),
        Ok(status) => Err(format!("pg_dump of {name} failed ({status}): {said}")),
        Err(error) => Err(format!("pg_dump of {name} failed: {error}")),
    }
}

/// A value of a connection string.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
