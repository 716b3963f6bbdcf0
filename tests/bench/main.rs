//! `make bench`: lastgood beside pgBackRest, wal-rus, `pg_basebackup`, and what the machine could do at best.
//!
//! `docs/benchmarks/README.md` says how to run it and how to read it. The program is also its own helper: as a process apart it
//! measures ([`worker`]), stands in front of an S3 store ([`proxy`]), shows the limit ([`limit`]), recovers a server, and compares two runs.
//!
//! Everything runs on the main thread, one thing at a time. What was started is ended by the values that stand for it, also when
//! the run is interrupted.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, bail};
use lastgood::clock;
use lastgood::postgres::scratch;

mod database;
mod limit;
mod measure;
mod place;
mod proxy;
mod report;
mod requests;
mod results;
mod sections;
mod settings;
mod stage;
#[path = "../support/mod.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "the tests use the rest of it, and may panic")]
mod support;
mod tools;
mod worker;

fn main() -> std::process::ExitCode {
    // Cargo passes --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match run(&arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    match arguments.split_first() {
        None => bench(),
        Some((word, rest)) => match word.as_str() {
            "compare" => compare(rest),
            "run-task" => worker::run_task(),
            "proxy" => proxy::serve(rest),
            "limit" => limit::run(rest),
            "recover" => sections::recover(rest),
            "walk" => sections::walk(rest),
            "index" => sections::index(rest),
            "start-stop" => sections::start_stop(rest),
            _ => bail!("unknown word {word:?}; settings come from the environment, see docs/benchmarks/README.md"),
        },
    }
}

/// `compare ONE/results.json OTHER/results.json`
fn compare(arguments: &[String]) -> Result<()> {
    let [one, other] = arguments else { bail!("compare wants the results.json of two runs") };
    print!("{}", report::compare(one.as_ref(), other.as_ref())?);
    Ok(())
}

fn bench() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = measure_all() => result,
            _ = tokio::signal::ctrl_c() => bail!("interrupted; everything that was started has been ended"),
            _ = terminated.recv() => bail!("terminated; everything that was started has been ended"),
        }
    })
}

async fn measure_all() -> Result<()> {
    let mut settings = settings::Settings::from_environment()?;
    let user = scratch::run_as("postgres")?;
    std::fs::create_dir_all(&settings.work)?;
    std::fs::set_permissions(&settings.work, std::fs::Permissions::from_mode(0o755))?;
    let base = match settings.wants_database() {
        true => database::base(&settings, user).await.context("build the database")?,
        false => Default::default(),
    };
    let home = tempfile::Builder::new().prefix("run-").tempdir_in(&settings.work)?;
    scratch::make_directory(home.path(), user)?;
    settings.keep_programs(home.path())?;
    let scratch = home.path().join("scratch");
    scratch::make_directory(&scratch, user)?;
    let meter = measure::Meter { program: settings.harness.clone(), user, scratch, limit: settings.limit };
    let described = tools::described(&settings);
    let bench = sections::Bench {
        settings,
        meter,
        base,
        home: home.path().into(),
        began: clock::monotonic(),
        samples: RefCell::default(),
    };
    let mut failed = 0;
    for round in 0..bench.settings.rounds {
        for kind in settings::PLACES.into_iter().filter(|kind| bench.settings.wants_place(kind)) {
            println!("round {} of {}, {kind}", round + 1, bench.settings.rounds);
            if let Err(error) = bench.all(kind, round).await {
                failed += 1;
                eprintln!("bench: round {}, {kind}: {error:#}", round + 1);
            }
            // What was measured until now stays, whatever comes.
            report::write(&bench.settings, &described, &bench.samples.borrow())?;
        }
    }
    report::show(&bench.samples.borrow());
    if failed > 0 { bail!("{failed} rounds were not finished") } else { Ok(()) }
}
