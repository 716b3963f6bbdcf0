//! Telling somebody: a program that gets the alert on its standard input, and a URL that it is posted to.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::child;
use crate::config::Alert as Settings;
use crate::repo::object;
use crate::tls;

/// A route is tried so often, with a pause that doubles.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Sends an alert by every route; answers what failed, each with its reason, after several attempts.
pub async fn deliver(alert: &impl Serialize, settings: &Settings) -> Vec<String> {
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

/// What would keep an alert from being delivered, as far as that shows without one: the program is looked for, and the host of the
/// webhook is asked for nothing.
pub async fn problems(settings: &Settings) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(program) = settings.command.first() {
        problems.extend(missing(Path::new(program)).map(|problem| format!("[alert] command: {problem}")));
    }
    if let Some(url) = &settings.webhook {
        // It may not know HEAD, and says so: then it is there.
        let answer = match client(settings) {
            Ok(client) => client.head(url).send().await.err().map(|error| causes(&error.without_url())),
            Err(error) => Some(error),
        };
        problems.extend(answer.map(|problem| format!("[alert] webhook: {problem}")));
    }
    problems
}

/// Why a program cannot be started; one without a directory is looked for as `execvp` does it.
fn missing(program: &Path) -> Option<String> {
    let is_program = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    let shown = program.display();
    if program.components().count() > 1 {
        return match std::fs::metadata(program) {
            Ok(_) if is_program(program) => None,
            Ok(_) => Some(format!("{shown} is no program that this user may run")),
            Err(error) => Some(format!("{shown}: {error}")),
        };
    }
    let path = child::search_path();
    let found = std::env::split_paths(&path).any(|directory| is_program(&directory.join(program)));
    (!found).then(|| format!("{shown} is in no directory of PATH; write its whole path"))
}

/// With what lies under it: the outermost words say only that it failed.
fn causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        said = format!("{said}: {inner}");
        cause = inner.source();
    }
    said
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

fn client(settings: &Settings) -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client(settings.ca_file.as_deref())?)
        .timeout(Duration::from_secs(settings.timeout_s))
        .user_agent(concat!("lastgood/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| error.without_url().to_string())
}

async fn post(body: &[u8], url: &str, settings: &Settings) -> Result<(), String> {
    let request = client(settings)?.post(url).header("content-type", "application/json").body(body.to_vec());
    let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}
