//! Expiry: removes what no rule keeps, and nothing that anything kept needs.
//!
//! # How
//! [`view`] gathers what there is; [`plan`] decides, as a pure function of that and of the rules ([`retention`], [`wal`]); the plan is
//! shown, and [`execute`] does what it says. A preview is the same without the last step (rule 51).
//!
//! # Invariants
//! - Only good snapshots count: those that can be restored by what the repository shows (packs by name and length, WAL without a
//!   gap). The newest good one stays whatever the rules say, and the newest one on the timeline that the server is on (rule 49).
//! - Days are counted back from the newest good snapshot, not from now: when backups stop, expiry stops, and a wrong clock costs
//!   nothing.
//! - Order is the order of histories, then of ids, which only grow; on one timeline the LSN decides (rule 52).
//! - What cannot be read holds everything that it might need. Of a snapshot whose manifest is missing or damaged the pack table tells
//!   what it needs, and that stays; while one pack table cannot be read, no pack goes. A person may give such a snapshot up.
//!
//! # Order, and crashes
//! For each snapshot a note `expired/<id>`, then the manifest; then a look for leases; file lists, packs that no kept snapshot
//! needs, the note where nothing is left; then WAL: what goes is written down as gone, roll-ups, segments (rule 47). Wherever it
//! is interrupted, the next run finds the rest: by the notes, by what is listed although it is gone, and by what no rule keeps.
//!
//! # Locks
//! What is locked is not tried: the plan counts it, and the day. A snapshot whose manifest is locked stays whole and listed until that day,
//! although no rule keeps it; so nothing that somebody could still restore is taken apart. Packs, lists and segments that nothing needs
//! any more wait for days of their own. What stays by a rule or a pin is locked for longer ([`locks`](super::locks)), also when nothing
//! is expired because of a refusal.
//!
//! # Others at work
//! Expiry holds the lease for backups, so no snapshot is built on one that goes. Readers take a plain lease and *then* look for
//! the manifest; expiry deletes manifests and *then* looks for leases. So either the reader finds no manifest, or expiry finds the
//! lease, and lets everything lie that the reader needs (rule 50). In the same way a person pins and then looks for the note, and
//! expiry writes the notes and then looks for pins.

pub mod execute;
pub mod locking;
pub mod plan;
pub mod retention;
pub mod view;
pub mod wal;

use std::sync::Arc;

use crate::clock;
use crate::config::Retention;
use crate::monitor::Monitor;
use crate::repo::RepoError;
use crate::repo::audit::{self, Event, Outcome, Who};
use crate::repo::expired;
use crate::repo::lease::{BACKUP, Exclusive};
use crate::repo::record::ClusterRecord;
use crate::repo::repository::Cluster;
use execute::Done;
use plan::Plan;
use view::View;

/// What the beats of an expiry say; others tell it by this from what they must wait for.
pub const OPERATION: &str = "expire";

#[derive(Debug, thiserror::Error)]
pub enum ExpireError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error("nothing is expired: {}", why.join("; "))]
    Refused { why: Vec<String> },
    #[error("{who} began while snapshots were being expired; what it needs was left, run this again when it is done")]
    Begun { who: String },
    #[error(
        "{id} is no snapshot whose manifest is missing or cannot be read{}; what is whole goes by the rules of [retention]",
        if known.is_empty() { " (there is none)".to_string() } else { format!(" (there is {})", known.join(", ")) }
    )]
    NotLost { id: String, known: Vec<String> },
    #[error("nothing was removed: to give {id} up takes a confirmation; read the plan, and pass its code: --confirm CODE")]
    Unseen { id: String },
    #[error("snapshot {snapshot} was pinned while it was about to be expired; nothing was removed, run this again")]
    Pinned { snapshot: String },
    #[error(
        "{count} objects could not be deleted, the first of them: {first}; {mend}; what is left is found again by the next run"
    )]
    Left { count: u64, first: String, mend: &'static str },
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub rules: Retention,
    /// A person has looked at the snapshot that is so much smaller than the one before.
    pub accept_shrink: bool,
    /// A snapshot without a manifest that can be read, by its id, which a person gives up. The rules are then left aside.
    pub forget: Option<String>,
    pub who: Who,
}

/// What would be done; writes nothing.
pub async fn preview(cluster: &Cluster, record: &ClusterRecord, request: &Request) -> Result<Plan, ExpireError> {
    let mut view = view::gather(cluster, record, clock::now()).await?;
    let forget: Vec<String> = request.forget.iter().cloned().collect();
    if let Some(id) = forget.iter().find(|id| !view.can_be_forgotten(id)) {
        return Err(ExpireError::NotLost { id: id.clone(), known: view.lost.into_iter().map(|lost| lost.id).collect() });
    }
    let decide = |view: &View| plan::plan(view, &request.rules, request.accept_shrink, &forget);
    let mut plan = decide(&view);
    // Of a manifest that goes the store is asked itself, before anything is taken apart.
    while locking::ask(cluster, &mut view, &plan).await? {
        plan = decide(&view);
    }
    plan.measure(cluster).await?;
    plan.locking = locking::short(cluster, &view, &plan).await?;
    Ok(plan)
}

/// Plans, shows the plan, and does it.
pub async fn run(
    cluster: &Cluster,
    record: &ClusterRecord,
    request: &Request,
    show: &mut (dyn FnMut(&Plan) + Send),
    monitor: Arc<dyn Monitor>,
) -> Result<Done, ExpireError> {
    let lease = Exclusive::take(cluster, BACKUP, OPERATION, "").await?;
    let fenced = lease.cluster();
    let done = planned_and_done(&fenced, record, request, show, &*monitor).await;
    let lost = if done.is_err() { lease.explain().await } else { None };
    lease.release().await;
    match lost {
        Some(lost) => Err(lost.into()),
        None => done,
    }
}

async fn planned_and_done(
    cluster: &Cluster,
    record: &ClusterRecord,
    request: &Request,
    show: &mut (dyn FnMut(&Plan) + Send),
    monitor: &dyn Monitor,
) -> Result<Done, ExpireError> {
    let plan = preview(cluster, record, request).await?;
    show(&plan);
    locking::lock(cluster, &plan, monitor).await?;
    let event = |outcome, detail| Event::new(OPERATION, cluster.name(), outcome, detail);
    if !plan.refusals.is_empty() {
        let error = ExpireError::Refused { why: plan.refusals.clone() };
        note(cluster, request, event(Outcome::Refused, error.to_string()), monitor).await;
        return Err(error);
    }
    for small in plan.shrunk.iter().filter(|_| request.accept_shrink) {
        expired::accept(cluster, &small.snapshot, clock::now(), &request.who).await?;
    }
    if plan.is_empty() {
        return Ok(Done::waiting(&plan));
    }
    let begun = Event { plan: serde_json::to_value(&plan).ok(), ..event(Outcome::Attempted, request.rules.describe()) };
    let attempt = note(cluster, request, begun, monitor).await;
    let done = execute::execute(cluster, &plan, monitor).await;
    let (outcome, detail) = match &done {
        Ok(done) => (Outcome::Done, done.describe()),
        Err(error) => (Outcome::Failed, error.to_string()),
    };
    note(cluster, request, Event { attempt, ..event(outcome, detail) }, monitor).await;
    done
}

/// An audit that cannot be written is said; what is expired is said in the repository itself too.
async fn note(cluster: &Cluster, request: &Request, event: Event, monitor: &dyn Monitor) -> Option<u64> {
    match audit::append(cluster, &request.who, event).await {
        Ok(number) => Some(number),
        Err(error) => {
            monitor.warn(&format!("the audit could not be written: {error}"));
            None
        }
    }
}
