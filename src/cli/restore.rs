//! `lastgood restore`

use std::path::PathBuf;

use clap::ValueEnum;

use super::context::{self, Global, Place};
use super::{output, progress};
use crate::clock;
use crate::postgres::lsn::Timeline;
use crate::postgres::settings::TargetAction;
use crate::restore::execute::{self, Options};
use crate::restore::plan::{self, Plan, Request};
use crate::timeline::archive::Archive;
use crate::timeline::target::{Target, TargetError};

/// Restore to a moment: shows the plan first, writes only into an empty place
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lastgood restore --to latest --into /var/lib/postgresql/15/restored\n  \
    lastgood restore --to '2026-11-21 04:14:59+01:00' --into /srv/pg --dry-run\n  \
    lastgood restore --to 0/5A001C8 --exclusive --into /srv/pg --target-action promote")]
pub struct Args {
    /// latest, a time with zone, an LSN, a transaction id, the name of a restore point, or a snapshot
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    to: String,
    /// Where to: a directory that is empty or does not exist yet
    #[arg(long, value_name = "DIRECTORY")]
    into: PathBuf,
    /// Stop just before the record at the LSN, or before the transaction's commit, instead of after it
    #[arg(long)]
    exclusive: bool,
    /// What the server does at the target [default: pause; promote for latest]
    #[arg(long, value_enum, value_name = "ACTION")]
    target_action: Option<Action>,
    /// Timeline to follow, in hex as in file names, or latest
    #[arg(long, value_name = "ID")]
    timeline: Option<String>,
    /// New place of a tablespace
    #[arg(long, value_name = "OID=PATH", value_parser = tablespace)]
    tablespace: Vec<(String, PathBuf)>,
    /// Place all other tablespaces below this directory, by OID
    #[arg(long, value_name = "DIRECTORY")]
    tablespaces_below: Option<PathBuf>,
    /// Show the plan and stop
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    Pause,
    Promote,
    Shutdown,
}

fn tablespace(text: &str) -> Result<(String, PathBuf), String> {
    let (oid, path) = text.split_once('=').ok_or("write it as OID=PATH, like 16400=/srv/fast")?;
    Ok((oid.into(), path.into()))
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let target: Target = args.to.parse()?;
    let timeline = timeline(args.timeline.as_deref())?;
    let place = Place::open(global).await?;
    let manifests = place.manifests(global.json).await?;
    // A snapshot may belong to an older history of this name; everything else means the current one.
    let of_snapshot = |id: &String| manifests.iter().find(|m| m.id.starts_with(id.as_str())).map(|m| m.system_identifier);
    let wanted = if let Target::Snapshot(id) = &target { of_snapshot(id) } else { None };
    let history = wanted.and_then(|system| place.record.history(system)).or(place.record.current());
    let history = history.ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?;
    let archive = Archive::load(&place.cluster, history.system_identifier, history.wal_segment_bytes.into()).await?;
    let request = Request {
        target,
        timeline,
        inclusive: !args.exclusive,
        action: args.target_action.map(|action| match action {
            Action::Pause => TargetAction::Pause,
            Action::Promote => TargetAction::Promote,
            Action::Shutdown => TargetAction::Shutdown,
        }),
        into: std::path::absolute(&args.into)?,
        tablespaces: args.tablespace,
        tablespaces_below: args.tablespaces_below.map(std::path::absolute).transpose()?,
    };
    let plan = plan::plan(&place.cluster, &archive, &manifests, &request).await?;
    if global.json {
        output::json(&serde_json::json!({ "event": "plan", "plan": plan }));
    } else {
        show_plan(&plan);
    }
    if args.dry_run {
        return Ok(0);
    }
    let get = format!("archive-get --system-identifier {} %f \"%p\"", plan.system_identifier);
    let options = Options {
        restore_command: global.server_command(&place.config, &get)?,
        threads: context::threads(place.config.restore.threads),
        read_back: place.config.restore.read_back,
    };
    let monitor = progress::monitor(global.json);
    let began = clock::monotonic();
    let restored = execute::execute(&place.cluster, &plan, &options, monitor.clone()).await?;
    drop(monitor);
    let seconds = began.elapsed().as_secs_f64();
    if global.json {
        output::json(
            &serde_json::json!({ "event": "result", "seconds": seconds, "into": plan.into, "has_settings": restored.has_settings }),
        );
    } else {
        show_result(&plan, restored.has_settings, seconds);
    }
    Ok(0)
}

fn timeline(text: Option<&str>) -> anyhow::Result<Option<Timeline>> {
    match text {
        None | Some("latest") => Ok(None),
        Some(hex) => match u32::from_str_radix(hex, 16) {
            Ok(number) if number > 0 => Ok(Some(Timeline(number))),
            _ => {
                let problem = "write it in hex as in the names of WAL files, like 2 or 0000000A".into();
                Err(TargetError::Bad { text: hex.into(), kind: "timeline", problem }.into())
            }
        },
    }
}

fn show_plan(plan: &Plan) {
    output::line("plan");
    output::line(format!(
        "  from       snapshot {} of cluster {}, consistent at {}",
        plan.snapshot,
        plan.cluster,
        output::time(plan.snapshot_stop)
    ));
    output::line(format!("  to         {}, {}", plan.target, plan.recovery));
    if let Some(lsn) = plan.stop_lsn {
        output::line(format!("  stops at   {lsn} on timeline {}", plan.timeline));
    }
    let moment = |m: &plan::Moment| {
        let xid = m.xid.map(|xid| format!(", transaction {xid}")).unwrap_or_default();
        format!("{} ({}{xid})", output::exact_time(m.time), m.lsn)
    };
    if let Some(last) = &plan.last_transaction {
        output::line(format!("  last kept  {}", moment(last)));
    }
    if let Some(first) = &plan.first_lost {
        output::line(format!("  first gone {}", moment(first)));
    }
    output::line(format!("  into       {} (there is {})", plan.into.display(), plan.standing.words()));
    for tablespace in &plan.tablespaces {
        output::line(format!(
            "  tablespace {} from {} into {} (there is {})",
            tablespace.oid,
            tablespace.was.display(),
            tablespace.into.display(),
            tablespace.standing.words()
        ));
    }
    output::line(format!(
        "  size       {} in {}, {} to replay, PostgreSQL {}",
        output::bytes(plan.bytes),
        output::count(plan.files, "file"),
        output::count(plan.wal_segments, "WAL segment"),
        plan.major
    ));
    output::line(format!("  then       {}; archiving is off in the restored cluster", then(plan.action)));
    if plan.action == TargetAction::Pause && !plan.inclusive {
        output::line(
            "  note       while the server pauses, the transaction at the target still holds its locks: a query on what it dropped",
        );
        output::line("             waits until the server is resumed. With --target-action promote it does not.");
    }
    if plan.damaged_pages > 0 {
        output::line(format!(
            "  warning    {} pages were damaged in the database when this snapshot was taken",
            plan.damaged_pages
        ));
    }
}

fn then(action: TargetAction) -> &'static str {
    match action {
        TargetAction::Pause => "the server pauses at the target, readable; SELECT pg_wal_replay_resume() makes it writable",
        TargetAction::Promote => "the server becomes writable on a new timeline",
        TargetAction::Shutdown => "the server shuts down at the target",
    }
}

fn show_result(plan: &Plan, has_settings: bool, seconds: f64) {
    output::line(format!("restored into {} in {}; every byte was verified", plan.into.display(), output::duration(seconds)));
    if !has_settings {
        output::line("  postgresql.conf and pg_hba.conf were not in the data directory (Debian keeps them in /etc/postgresql):");
        output::line(
            "  start it with the original's settings, like: postgres -D DIRECTORY -c config_file=/etc/postgresql/15/main/postgresql.conf",
        );
    }
    output::line(format!("  start it with: pg_ctl -D {} start", output::shell_words(&[plan.into.display().to_string()])));
}
