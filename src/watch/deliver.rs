//! Telling somebody: a program that gets the alert on its standard input, and a URL that it is posted to.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::child;
use crate::config::Alert as Settings;
use crate::repo::alert::Alert;
use crate::repo::object;
use crate::tls;

/// A route is tried so often, with a pause that doubles.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Sends an alert by every route; answers what failed, each with its reason, after several attempts.
pub async fn deliver(alert: &Alert, settings: &Settings) -> Vec<String> {
    let body = object::to_json(alert);
    let mut failed = Vec::new();
    if !settings.command.is_empty() {
        failed.extend(attempts(|| run(&body, settings)).await.err().map(|e| format!("[alert] command: {e}")));
    }
    if let Some(url) = &settings.webhook {
        // Without the URL, which may hold a secret.
        failed.extend(attempts(|| post(&body, url, settings)).await.err().map(|e| format!("[alert] webhook: {e}")));
    }
    failed
}

async fn attempts<F: Future<Output = Result<(), String>>>(attempt: impl Fn() -> F) -> Result<(), String> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        if attempt().await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    attempt().await
}

async fn run(body: &[u8], settings: &Settings) -> Result<(), String> {
    let mut command = Command::new(&settings.command[0]);
    command.args(&settings.command[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = child::without_secrets(&mut command)
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", settings.command[0]))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read it may still do its work.
            let _ = stdin.write_all(body).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(Duration::from_secs(settings.timeout_s), talk).await {
        Err(_) => Err(format!("it did not end within {} s", settings.timeout_s)),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}: {}", output.status, said.lines().next().unwrap_or_default()))
        }
    }
}

async fn post(body: &[u8], url: &str, settings: &Settings) -> Result<(), String> {
    let tls = tls::client(settings.ca_file.as_deref())?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(Duration::from_secs(settings.timeout_s))
        .user_agent(concat!("lastgood/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| error.without_url().to_string())?;
    let request = client.post(url).header("content-type", "application/json").body(body.to_vec());
    let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}
