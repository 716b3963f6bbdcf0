//! `lastgood expire`

use super::context::{Global, Place};
use super::keys::Need;
use super::{guard, output, progress};
use crate::upkeep::expire::plan::{Count, Plan};
use crate::upkeep::expire::{self, Request};

/// Remove snapshots and WAL that no rule of [retention] keeps
///
/// Shows what goes, what stays and why, and then does exactly that. The newest snapshot that can be restored never goes, nor does
/// anything that a kept one needs. Without [retention] nothing is ever removed. Exits with 5 when it refuses: an alert is not
/// acknowledged, the newest snapshot is much smaller than the one before, or another backup runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood expire --dry-run\n  lastgood expire --json | jq .plan.removed")]
pub struct Args {
    /// Show the plan, and stop
    #[arg(long)]
    dry_run: bool,
    /// A person has looked: the snapshot that is so much smaller than the one before is right
    #[arg(long)]
    accept_shrink: bool,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let place = Place::open_to(global, Need::Write).await?;
    let rules = place.config.retention.clone();
    if !rules.is_configured() {
        let text = "no retention is configured, so nothing is ever removed; set what to keep under [retention]";
        match global.json {
            true => output::json(&serde_json::json!({ "event": "result", "configured": false, "message": text })),
            false => output::line(text),
        }
        return Ok(0);
    }
    let request = Request { rules, accept_shrink: args.accept_shrink, who: guard::who() };
    if args.dry_run {
        let plan = expire::preview(&place.cluster, &place.record, &request).await?;
        show(&plan, global.json);
        return Ok(0);
    }
    let json = global.json;
    let monitor = progress::monitor(json);
    let done = expire::run(&place.cluster, &place.record, &request, &mut |plan| show(plan, json), monitor.clone()).await;
    drop(monitor);
    let done = done?;
    if json {
        output::json(&serde_json::json!({ "event": "result", "configured": true, "done": done }));
    } else if done.objects > 0 {
        output::line(format!(
            "removed {}, {}: {} are free again",
            output::count(done.snapshots, "snapshot"),
            output::count(done.objects, "object"),
            output::bytes(done.bytes)
        ));
    }
    Ok(0)
}

fn show(plan: &Plan, json: bool) {
    if json {
        output::json(&serde_json::json!({ "event": "plan", "plan": plan, "bytes": plan.bytes() }));
        return;
    }
    output::line(format!("plan, by {}", plan.rules));
    for kept in &plan.kept {
        output::entry("stays", format!("{} ({}): {}", kept.snapshot, output::time(kept.consistent), kept.why.join("; ")));
    }
    for removed in &plan.removed {
        output::entry("goes", format!("{} ({}): {}", removed.snapshot, output::time(removed.consistent), removed.why));
    }
    for id in &plan.leftovers {
        output::entry("rest of", format!("{id}, which was expired before"));
    }
    let size = |count: &Count, what: &str| format!("{}, {}", output::count(count.objects, what), output::bytes(count.bytes));
    if plan.packs.objects > 0 {
        output::entry("packs", format!("{} that nothing needs any more", size(&plan.packs, "pack")));
    }
    if plan.packs_on_loan.objects > 0 {
        let what = size(&plan.packs_on_loan, "pack");
        output::entry(
            if plan.packs.objects > 0 { "" } else { "packs" },
            format!("{what} of snapshots that are gone stay, because newer ones need them"),
        );
    }
    if plan.packs_retired.objects > 0 {
        let what = size(&plan.packs_retired, "pack");
        output::entry("", format!("{what} of these go with older snapshots: the newest does without them"));
    }
    if plan.packs_sparse.objects > 0 {
        let what = size(&plan.packs_sparse, "pack");
        output::entry("", format!("{what} of these are mostly dead: backups store the rest anew, up to rewrite_max_bytes each"));
    }
    for range in &plan.wal {
        output::entry("WAL", format!("{} to {}: {}", range.first, range.last, size(&range.count, "segment")));
    }
    for note in &plan.notes {
        output::entry("note", note);
    }
    for refusal in &plan.refusals {
        output::entry("REFUSED", refusal);
    }
    match plan.is_empty() {
        true => output::line("nothing goes"),
        false => output::line(format!("{} become free", output::bytes(plan.bytes()))),
    }
}
