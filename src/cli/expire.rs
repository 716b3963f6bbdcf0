//! `lastgood expire`

use super::context::{Global, Place};
use super::guard::Desk;
use super::keys::Need;
use super::quiet::Quiet;
use super::{guard, output, progress};
use crate::config::Retention;
use crate::restore::guard::Care;
use crate::upkeep::expire::execute::Done;
use crate::upkeep::expire::plan::{Count, Plan};
use crate::upkeep::expire::{self, ExpireError, Request};

/// Remove snapshots and WAL that no rule of [retention] keeps
///
/// Shows what goes, what stays and why, and then does exactly that. The newest snapshot that can be restored never goes, nor does
/// anything that a kept one needs. Without [retention] nothing is ever removed. Exits with 5 when it refuses: an alert is not
/// acknowledged, the newest snapshot is much smaller than the one before, or another backup runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood expire --dry-run\n  lastgood expire --json | jq .plan.removed\n  \
    lastgood expire --forget 20261121T010000Z-ab12")]
pub struct Args {
    /// Show the plan, and stop
    #[arg(long)]
    dry_run: bool,
    /// A person has looked: the snapshot that is so much smaller than the one before is right
    #[arg(long)]
    accept_shrink: bool,
    /// Remove what is left of a snapshot whose manifest is missing or damaged, instead of what the rules say
    ///
    /// Such a snapshot cannot be restored, and stays until its manifest comes back (`lastgood verify --repair`) or somebody gives it
    /// up. Packs that other snapshots need stay. Takes the code of the plan.
    #[arg(long, value_name = "ID", conflicts_with = "accept_shrink")]
    forget: Option<String>,
    /// The code of the plan, which was shown with it: for automations, good for 15 minutes
    #[arg(long, value_name = "CODE", requires = "forget")]
    confirm: Option<String>,
    #[command(flatten)]
    pub quiet: Quiet,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let place = Place::open_to(global, Need::Write).await?;
    if let Some(id) = &args.forget {
        return forget(global, &place, id, &args).await;
    }
    let rules = place.config.retention.clone();
    // Where objects are locked, what stays for ever must be locked for longer all the same.
    let has_locks = place.cluster.storage().bucket().is_some_and(|bucket| bucket.lock().is_some());
    if !rules.is_configured() && !has_locks {
        let text = "no retention is configured, so nothing is ever removed; set what to keep under [retention]";
        match global.json {
            true => output::json(&serde_json::json!({ "event": "result", "configured": false, "message": text })),
            false => output::line(text),
        }
        return Ok(0);
    }
    let request = Request { rules, accept_shrink: args.accept_shrink, forget: None, who: guard::who() };
    if args.dry_run {
        let plan = expire::preview(&place.cluster, &place.record, &request).await?;
        show(&plan, global.json);
        return Ok(0);
    }
    execute(global, &place, &request).await
}

/// Gives up a snapshot whose manifest is missing or damaged.
async fn forget(global: &Global, place: &Place, id: &str, args: &Args) -> anyhow::Result<u8> {
    let request = Request { rules: Retention::default(), accept_shrink: false, forget: Some(id.to_string()), who: guard::who() };
    let plan = expire::preview(&place.cluster, &place.record, &request).await?;
    let desk = Desk::new("expire", place, global);
    let going: Vec<&str> = plan.going.iter().map(|pack| pack.name.as_str()).collect();
    let seal = desk.seal(&(&plan.forgotten, &plan.leftovers, plan.lists, going), place);
    let code = seal.code(crate::clock::now());
    if global.json {
        output::json(&serde_json::json!({ "event": "plan", "plan": plan, "bytes": plan.bytes(), "code": code }));
    } else {
        show(&plan, false);
        guard::show(&Care::Code, &code);
    }
    if args.dry_run {
        return Ok(0);
    }
    if !desk.has_seen(&seal, args.confirm.as_deref())? {
        return Err(ExpireError::Unseen { id: id.into() }.into());
    }
    execute(global, place, &request).await
}

/// Plans again under the lease, shows that plan, and does it.
async fn execute(global: &Global, place: &Place, request: &Request) -> anyhow::Result<u8> {
    let json = global.json;
    let monitor = progress::monitor(json);
    let done = expire::run(&place.cluster, &place.record, request, &mut |plan| show(plan, json), monitor.clone()).await;
    drop(monitor);
    let done = done?;
    if json {
        output::json(&serde_json::json!({ "event": "result", "configured": true, "done": done }));
    } else {
        tell(&done);
    }
    Ok(0)
}

fn tell(done: &Done) {
    let (snapshots, objects) = (output::count(done.snapshots, "snapshot"), output::count(done.objects, "object"));
    let bytes = output::bytes(done.bytes);
    match (done.objects > 0, done.is_hidden_only) {
        (false, _) => {}
        (true, false) => output::line(format!("removed {snapshots}, {objects}: {bytes} are free again")),
        (true, true) => output::line(format!(
            "removed {snapshots}, {objects}: the bucket keeps {bytes} as older versions; see delete_versions, or give it a lifecycle rule"
        )),
    }
    if done.locked.objects > 0 {
        let until = done.locked_until.map(|until| format!(" until {}", output::time(until))).unwrap_or_default();
        output::line(format!(
            "left {}, {}: locked{until}",
            output::count(done.locked.objects, "object"),
            output::bytes(done.locked.bytes)
        ));
    }
}

/// What waits, and what is made to.
fn show_locks(plan: &Plan) {
    let count = plan.locked_count();
    if let (Some(first), Some(last)) = (plan.locked.first(), plan.locked.last()) {
        let until = match first.until == last.until {
            true => format!("until {}; the next expire after that removes them", output::time(last.until)),
            false => format!(
                "the first until {}, the last until {}; the next expire after each removes them",
                output::time(first.until),
                output::time(last.until)
            ),
        };
        output::entry(
            "locked",
            format!("{}, {} are locked {until}", output::count(count.objects, "object"), output::bytes(count.bytes)),
        );
    }
    if let Some(locking) = plan.locking.as_ref().filter(|locking| locking.objects > 0) {
        let what = output::count(locking.objects as u64, "object");
        output::entry("locks", format!("{what} that stay longer are locked until {}", output::time(locking.until)));
    }
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
    for id in &plan.forgotten {
        output::entry("given up", format!("{id}, whose manifest is missing or damaged"));
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
    show_locks(plan);
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
