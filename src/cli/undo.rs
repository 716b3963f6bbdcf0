//! `lastgood undo`

use std::path::PathBuf;

use super::context::{Global, Place};
use super::guard::{self, Confirm, Desk};
use super::{output, progress, restore};
use crate::restore::RestoreError;
use crate::restore::undo::{self, Plan};
use crate::timeline::archive::Archive;

/// Put back the cluster that a restore moved aside
///
/// What stands in the place now is moved aside in turn, with its WAL saved: nothing is deleted, and an undo can be undone. Takes
/// back an exchange that was interrupted, too. Asks as a restore does.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lastgood undo --into /var/lib/postgresql/15/main --dry-run\n  \
    lastgood undo --into /var/lib/postgresql/15/main")]
pub struct Args {
    /// The data directory in which the restored cluster stands
    #[arg(long, value_name = "DIRECTORY")]
    into: PathBuf,
    #[command(flatten)]
    confirm: Confirm,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let place = Place::open(global).await?;
    let history = place.record.current().ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?;
    let archive = Archive::load(&place.cluster, history.system_identifier, history.wal_segment_bytes.into()).await?;
    let desk = Desk::new("undo", &place, global);
    let plan =
        undo::plan(&guard::around(&place), archive, &std::path::absolute(&args.into)?.components().collect::<PathBuf>()).await?;
    let seal = desk.seal(&plan, &place);
    let code = seal.code(crate::clock::now());
    if global.json {
        output::json(&serde_json::json!({ "event": "plan", "plan": plan, "care": plan.care(), "code": code }));
    } else {
        show(&plan);
        if plan.living().is_none() {
            guard::show(plan.care(), &code);
        }
    }
    if args.confirm.dry_run {
        return Ok(0);
    }
    if let Some((path, living)) = plan.living() {
        return Err(desk.refused(RestoreError::Living { path, living }, None).await);
    }
    let approval = desk.pass(&plan.into, plan.care(), &seal, &args.confirm).await?;
    let attempt = desk.attempted(&plan, &approval, &code).await;
    let monitor = progress::monitor(global.json);
    let done = undo::execute(&plan, &approval, &*monitor).await;
    drop(monitor);
    let undone = desk.ended(attempt, done, |done| format!("what stood there is now {}", done.aside.display())).await?;
    if global.json {
        output::json(&serde_json::json!({ "event": "result", "into": plan.into, "undone": undone }));
        return Ok(0);
    }
    output::line(format!("put back into {}", plan.into.display()));
    output::entry("what stood", format!("there is now {}; `lastgood undo` once more brings it back", undone.aside.display()));
    output::line(format!("  start it with: pg_ctl -D {} start", output::shell_words(&[plan.into.display().to_string()])));
    Ok(0)
}

fn show(plan: &Plan) {
    output::line("plan");
    output::entry("undo", format!("the {}, done {}", plan.switched.what, output::time(plan.switched.at)));
    output::entry("put back", format!("{} into {}", plan.old_at.display(), plan.into.display()));
    restore::show_occupant(&plan.old);
    if plan.never_started {
        output::entry("aside", "what an interrupted exchange left, which was never started");
        return;
    }
    output::entry("aside", "what stands there now:");
    restore::show_occupant(&plan.present);
    restore::show_replaced(&plan.replaced, plan.loss.as_ref(), "that cluster made, which the old one does not have");
}
