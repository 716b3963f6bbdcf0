//! `lastgood release`

use std::path::PathBuf;

use super::context::{Global, Place};
use super::guard::{self, Confirm, Desk};
use super::keys::Need;
use super::{output, progress};
use crate::restore::release::{self, Left, Plan};
use crate::timeline::archive::Archive;

/// Declare a restored cluster the successor: it may archive from now on
///
/// A restored cluster does not archive, so that it cannot poison the archive of its original. Release it when it takes over:
/// after its promotion, and when the original will never run again. The same brings a server back that goes on with an older
/// timeline after an undo.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood release --data-directory /var/lib/postgresql/15/main --dry-run")]
pub struct Args {
    #[command(flatten)]
    confirm: Confirm,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let place = Place::open_all(global, Need::Read).await?;
    let Some(directory) = place.config.postgres.data_directory.clone() else {
        let what = "the cluster to release is not named".to_string();
        let mend = "pass its directory with --data-directory".to_string();
        return Err(crate::config::ConfigError::Invalid { what, mend }.into());
    };
    let directory: PathBuf = std::path::absolute(directory)?;
    let history = place.record.current().ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?;
    let mut archive = Archive::load(&place.cluster, history.system_identifier, history.wal_segment_bytes.into()).await?;
    archive.decide(&place.record);
    let desk = Desk::new("release", &place, global);
    let plan = match release::plan(&guard::around(&place), archive, &directory).await {
        Ok(plan) => plan,
        Err(error) if guard::is_refusal(&error) && !args.confirm.dry_run => return Err(desk.refused(error, None).await),
        Err(error) => return Err(error.into()),
    };
    // What changes while a server runs is no part of what is confirmed.
    let seal = desk.seal(&(&plan.directory, &plan.cluster, plan.timeline, plan.restored, plan.gives_up()), &place);
    let code = seal.code(crate::clock::now());
    if global.json {
        output::json(&serde_json::json!({ "event": "plan", "plan": plan, "care": plan.care(), "code": code }));
    } else {
        show(&plan);
    }
    if !plan.is_needed() {
        return Ok(0);
    }
    if !global.json {
        guard::show(plan.care(), &code);
    }
    if args.confirm.dry_run {
        return Ok(0);
    }
    let approval = desk.pass(&plan.directory, plan.care(), &seal, &args.confirm).await?;
    let attempt = desk.attempted(&plan, &approval, &code).await;
    let monitor = progress::monitor(global.json);
    let done = release::execute(&place.cluster, &plan, &approval, &*monitor).await;
    drop(monitor);
    let saved = desk.ended(attempt, done, |_| format!("timeline {} goes on", plan.timeline)).await?;
    if global.json {
        output::json(&serde_json::json!({ "event": "result", "directory": plan.directory, "archived": saved }));
        return Ok(0);
    }
    output::line(format!("{} is the cluster {:?} from now on", plan.directory.display(), plan.cluster));
    if plan.restored {
        output::line("  restart the server (archive_mode needs it), then run: lastgood backup, and lastgood check");
    }
    Ok(0)
}

fn show_left(left: &Left) {
    if let Some(why) = &left.loss.unknown {
        output::entry("", format!("how many transactions come after that is unknown: {why};"));
        output::entry("", "they stay in the archive, no restore follows them by itself, and its server is refused from now on");
        return;
    }
    if left.loss.transactions == 0 && !left.loss.at_least {
        output::entry("", "nothing that is archived comes after that; what its server did not archive is unknown;");
        output::entry("", "no restore follows it by itself, and its server is refused from now on");
        return;
    }
    let least = if left.loss.at_least { "at least " } else { "" };
    let last = left.loss.last.map(|at| format!(", the last at {}", output::exact_time(at))).unwrap_or_default();
    output::entry("", format!("with {least}{} behind that{last};", output::count(left.loss.transactions, "transaction")));
    output::entry("", "they stay in the archive, no restore follows them by itself, and its server is refused from now on");
}

fn show(plan: &Plan) {
    output::line("plan");
    output::entry("release", format!("{} as cluster {:?}, timeline {}", plan.directory.display(), plan.cluster, plan.timeline));
    if let Some(left) = &plan.overtakes {
        output::entry("overtakes", format!("timeline {}, which it left at {}", left.timeline, left.at));
        show_left(left);
    }
    for left in &plan.leaves_behind {
        let released = if left.was_released { ", WHICH WAS RELEASED AS THE SUCCESSOR" } else { "" };
        output::entry("abandons", format!("timeline {}, which parted at {}{released}", left.timeline, left.at));
        show_left(left);
    }
    if plan.is_needed() && !plan.unarchived.is_empty() {
        let count = output::count(plan.unarchived.count() as u64, "WAL segment");
        output::entry("archives", format!("{count} that it has written since, and its history file"));
    }
    if plan.restored {
        output::entry("then", "archiving is on after the next restart of the server");
    }
    if !plan.is_needed() {
        output::entry("nothing", "to do: it is the archive's own cluster");
    }
}
