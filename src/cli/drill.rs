//! `lastgood drill`

use super::context::{self, Global, Place};
use super::estimate;
use super::guard::{self, Desk};
use super::output::{self, Colour, Part};
use super::quiet::{self, Quiet};
use super::{error, progress, reports, signals};
use rustix::process::Signal;
use tokio::signal::unix::SignalKind;

use crate::drill::prepare::{Drill, Prepared, Request, Wanted};
use crate::drill::run::Kept;
use crate::drill::{DrillError, place, verdict};
use crate::repo::report::{Kind, Level, Report};
use crate::timeline::target::Target;

/// Try a restore for real: restore, start, replay, question, report, clean up
///
/// Restores into a directory of its own, starts PostgreSQL there in quarantine (own socket, no network, no archiving, no replication, no
/// jobs, read only), proves that replay reached the target, and asks: page checksums, amcheck, catalogue, your questions from
/// [[drill.question]]. Then everything is removed, and a report is kept in the repository. Exits with 11 when the drill failed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lastgood drill\n  lastgood drill --reports\n  lastgood drill --random\n  lastgood drill --to '2026-11-21 04:15:00Z' --dump\n  \
    lastgood drill --json | jq 'select(.event == \"result\") | .report.findings'"
)]
pub struct Args {
    /// latest, a time with zone, an LSN, a transaction id, the name of a restore point, or a snapshot [default: latest]
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true, conflicts_with = "random")]
    to: Option<String>,
    /// Any moment of any window, by chance
    #[arg(long)]
    random: bool,
    /// From this snapshot and no other (its id, or the beginning of it)
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// Stop just before the record or the transaction instead of after it
    #[arg(long, requires = "to")]
    exclusive: bool,
    /// Leave the server running for people, and print its address
    #[arg(long)]
    keep: bool,
    /// Also dump every database, to nowhere
    #[arg(long)]
    dump: bool,
    /// Show the plan, and stop
    #[arg(long)]
    dry_run: bool,
    /// Show what earlier drills and restores reported instead; with an id (or the beginning of one) that report whole
    #[arg(
        long,
        value_name = "ID",
        num_args = 0..=1,
        default_missing_value = "",
        conflicts_with_all = ["to", "random", "snapshot", "exclusive", "keep", "dump", "dry_run"]
    )]
    reports: Option<String>,
    #[command(flatten)]
    pub quiet: Quiet,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    if let Some(wanted) = &args.reports {
        return reports::run(global, wanted).await;
    }
    let wanted = match (&args.to, args.random) {
        (Some(text), _) => {
            let target: Target = text.parse()?;
            target.check(args.exclusive, args.snapshot.as_deref())?;
            Wanted::Target(target)
        }
        (None, true) => Wanted::Random,
        (None, false) => Wanted::Target(Target::Latest),
    };
    let request = Request { wanted, snapshot: args.snapshot, inclusive: !args.exclusive, keep: args.keep, dump: args.dump };
    let place = Place::open_for_drill(global).await?;
    let config = place.config.drill.clone().unwrap_or_default();
    place::check(&config.directory)?;
    let drill = Drill {
        around: guard::around(&place),
        config: &config,
        who: guard::who(),
        role: place.config.postgres.user.as_deref(),
        threads: context::threads(place.config.restore.threads),
        read_back: place.config.restore.read_back,
    };
    let mut report = drill.begin(&request);
    if args.dry_run {
        let prepared = drill.prepare(&request, None, &mut report).await?;
        show_plan(global, prepared.as_ref(), &report);
        return Ok(if report.failures().next().is_some() { error::DRILL_FAILED } else { 0 });
    }
    let desk = Desk::new("drill", &place, global);
    let attempt = desk.begins().await;
    let work = Work { global, place: &place, drill: &drill, request: &request };
    let outcome = tokio::select! {
        outcome = work.run(&mut report) => outcome,
        () = interrupted() => Err(DrillError::Interrupted.into()),
    };
    let kept = match outcome {
        Ok(kept) => kept,
        Err(error) => return desk.ends(attempt, Err(error)).await,
    };
    let written = report.put(&place.cluster).await;
    let words = if report.passed { "passed" } else { "failed" };
    let reference = written.as_ref().ok().cloned();
    desk.reported(attempt, reference, report.passed, format!("{words}; report {}", report.id)).await;
    if global.json {
        output::json(&serde_json::json!({ "event": "result", "report": report, "kept": kept }));
    } else {
        show(&report, kept.as_ref());
    }
    // A drill of which nothing is kept counts for nobody: `check` would wait for another.
    written?;
    Ok(if report.passed { 0 } else { error::DRILL_FAILED })
}

struct Work<'a> {
    global: &'a Global,
    place: &'a Place,
    drill: &'a Drill<'a>,
    request: &'a Request,
}

impl Work<'_> {
    async fn run(&self, report: &mut Report) -> anyhow::Result<Option<Kept>> {
        let monitor = progress::monitor(self.global.json);
        let scratch = &self.drill.config.directory;
        place::sweep(scratch, &*monitor);
        let dir = place::Place::make(scratch)?;
        let Some(prepared) = self.drill.prepare(self.request, Some(&dir), report).await? else {
            report.ended = crate::clock::now();
            verdict::conclude(report);
            return Ok(None);
        };
        show_plan(self.global, Some(&prepared), report);
        dir.give(prepared.user)?;
        let system = prepared.plan.system_identifier;
        let spool = output::shell_words(&[dir.spool().display().to_string()]);
        let until = prepared.plan.last_segment().map(|name| format!(" --until {name}")).unwrap_or_default();
        let spool = spool.replace('%', "%%");
        let pace = self.drill.config.bytes_per_s.map(|rate| format!(" --bytes-per-s {rate}")).unwrap_or_default();
        let get = format!("archive-get --system-identifier {system}{until}{pace} --spool {spool} %f \"%p\"");
        let lent = dir.lend_environment(prepared.user)?.replace('%', "%%");
        let command = format!("{lent}{}", self.global.server_command(&self.place.config, &get)?);
        Ok(self.drill.carry_out(dir, prepared, self.request, command, report, monitor).await?)
    }
}

/// Until somebody wants us to stop.
async fn interrupted() {
    let kinds = [Signal::INT, Signal::TERM, Signal::HUP].into_iter().filter(|kind| !signals::is_ignored(*kind));
    let mut waiting: Vec<_> =
        kinds.filter_map(|kind| tokio::signal::unix::signal(SignalKind::from_raw(kind.as_raw())).ok()).collect();
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    futures::future::select_all(waiting.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
}

fn show_plan(global: &Global, prepared: Option<&Prepared>, report: &Report) {
    let estimate = prepared.and_then(|prepared| prepared.estimate.as_ref());
    if global.json {
        let plan = prepared.map(|prepared| &prepared.plan);
        let findings = &report.findings;
        output::json(&serde_json::json!({ "event": "plan", "plan": plan, "estimate": estimate, "findings": findings }));
        return;
    }
    output::line("plan");
    if let Some(Prepared { plan, version, .. }) = prepared {
        let at = output::time(plan.snapshot_stop);
        output::entry("from", format!("snapshot {} of cluster {}, consistent at {at}", plan.snapshot, plan.cluster));
        output::entry("to", format!("{}, {}", plan.target, plan.recovery));
        let (files, segments) = (output::count(plan.files, "file"), output::count(plan.wal_segments, "WAL segment"));
        output::entry("size", format!("{} in {files}, {segments} to replay, PostgreSQL {version}", output::bytes(plan.bytes)));
        output::entry("into", format!("{}, removed at the end", plan.into.display()));
    }
    output::entry("estimate", estimate::words(estimate));
    for finding in report.failures() {
        output::entry("FAILED", format!("{}: {}", finding.subject, finding.what));
    }
}

/// What was found, how long it took, and whether it passed.
pub fn show(report: &Report, kept: Option<&Kept>) {
    for finding in &report.findings {
        let mark = match finding.level {
            Level::Ok => Part::Plain("ok     "),
            Level::Warning => Part::In(Colour::Yellow, "WARNING"),
            Level::Failure => Part::In(Colour::Red, "FAILED "),
        };
        if finding.level == Level::Warning {
            quiet::warned();
        }
        output::finding(mark, &format!("{:<10}", finding.subject), &finding.what, None);
    }
    let phases = report.phases.iter().map(|phase| {
        let bytes = if phase.bytes > 0 { format!(" ({})", output::bytes(phase.bytes)) } else { String::new() };
        format!("{} {}{bytes}", phase.name, output::duration(phase.seconds))
    });
    output::entry("phases", phases.collect::<Vec<_>>().join(", "));
    if let Some(seconds) = report.rto_s {
        let expected =
            report.estimated.map(|span| format!("; it was estimated at {}", estimate::span(&span))).unwrap_or_default();
        output::entry("readable", format!("after {}{expected}", output::duration(seconds)));
    }
    if let Some(seconds) = report.rpo_s {
        output::entry("newest", format!("the last transaction was {} old when the drill began", output::duration(seconds)));
    }
    if let Some(kept) = kept {
        let words = |parts: &[&str]| output::shell_words(&parts.iter().map(ToString::to_string).collect::<Vec<_>>());
        let (sockets, data, dir) =
            (kept.sockets.display().to_string(), kept.data.display().to_string(), kept.directory.display().to_string());
        output::entry("kept", format!("psql -h {} -p {} -U {} postgres", words(&[&sockets]), kept.port, words(&[&kept.role])));
        let stop = words(&[&kept.bin.join("pg_ctl").display().to_string(), "-D", &data, "stop", "-m", "immediate"]);
        output::entry("to end it", format!("{stop} && rm -r {}", words(&[&dir])));
    }
    let took = output::duration(report.ended.duration_since(report.began).as_secs_f64());
    let failures = report.failures().count() as u64;
    let what = if report.kind == Kind::Drill { "drill" } else { "restore" };
    output::line(match report.passed {
        true => format!("the {what} passed in {took}; report {}", report.id),
        false => format!("the {what} FAILED ({}) in {took}; report {}", output::count(failures, "failure"), report.id),
    });
}
