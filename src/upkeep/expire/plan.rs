//! What an expiry is about to do, as a value: shown, entered into the audit, then executed unchanged (rule 51).

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::locking::{Locked, Locking, locked};
use super::retention::{self, Reasons};
use super::view::{self, Lost, Pack, Snapshot, View, Wal};
use super::wal::{self, Needed};
use super::{ExpireError, execute};
use crate::clock;
use crate::config::Retention;
use crate::postgres::lsn::{SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::repo::locks::Known;
use crate::repo::manifest::Manifest;
use crate::repo::pack_table::PackLine;
use crate::repo::repository::Cluster;
use crate::timeline::listing::Runs;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub snapshot: String,
    pub consistent: Timestamp,
    pub why: Vec<String>,
    /// No rule keeps it, and until then its manifest cannot be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_until: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub snapshot: String,
    pub consistent: Timestamp,
    pub why: String,
    #[serde(skip)]
    pub manifest: Option<Box<Manifest>>,
}

/// A snapshot that is at most half as large as the one before (rule 53).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shrunk {
    pub snapshot: String,
    pub bytes: u64,
    pub before: String,
    pub bytes_before: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub objects: u64,
    pub bytes: u64,
}

impl Count {
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// Segments that go, all of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalRange {
    pub system_identifier: SystemId,
    pub first: SegmentName,
    pub last: SegmentName,
    #[serde(flatten)]
    pub count: Count,
}

/// What becomes of one history's WAL.
#[derive(Debug, Clone)]
pub struct WalPlan {
    pub system: SystemId,
    pub segment_bytes: u64,
    pub needed: Needed,
    pub goes: Runs,
    /// All that is gone when the plan is done.
    pub gone: Runs,
    /// Whether that is more than before.
    pub is_new: bool,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    pub rules: String,
    /// The time by which pins run out.
    #[serde(skip)]
    pub at: Timestamp,
    pub kept: Vec<Kept>,
    pub removed: Vec<Removed>,
    /// Expired before, and to be tidied up after.
    pub leftovers: Vec<String>,
    /// Without a manifest that can be read, and given up by a person.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forgotten: Vec<String>,
    pub lists: Count,
    pub packs: Count,
    /// Packs that stay below ids whose snapshots are gone, because newer snapshots need them.
    pub packs_on_loan: Count,
    /// Of these, those that the newest snapshot does without: they go with older ones.
    pub packs_retired: Count,
    /// Of these, those of which so little is alive that the next backups store it anew.
    pub packs_sparse: Count,
    pub wal: Vec<WalRange>,
    /// Other files of the archive that belong to segments that go.
    pub wal_files: Count,
    /// What is not tried before its day, by days.
    pub locked: Vec<Locked>,
    /// What is locked for longer, whatever else becomes of the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locking: Option<Locking>,
    pub shrunk: Vec<Shrunk>,
    /// Why nothing is done.
    pub refusals: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub going: Vec<Pack>,
    /// Under whose ids packs stay.
    #[serde(skip)]
    pub lenders: BTreeSet<String>,
    #[serde(skip)]
    pub wal_plans: Vec<WalPlan>,
    #[serde(skip)]
    pub locks: Option<Known>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        let nothing = self.removed.is_empty() && self.leftovers.is_empty() && self.forgotten.is_empty() && self.going.is_empty();
        nothing && self.wal_plans.iter().all(|wal| wal.goes.is_empty()) && self.wal_files.objects == 0
    }

    /// Stored bytes that become free.
    pub fn bytes(&self) -> u64 {
        let wal: u64 = self.wal.iter().map(|range| range.count.bytes).sum();
        self.lists.bytes + self.packs.bytes + wal + self.wal_files.bytes
    }

    /// Ids of all snapshots whose lists go.
    pub fn dead(&self) -> impl Iterator<Item = &str> {
        let expired = self.removed.iter().map(|r| r.snapshot.as_str());
        expired.chain(self.leftovers.iter().chain(&self.forgotten).map(String::as_str))
    }

    /// Counts what lies there of the lists and the WAL that go, and what of it waits.
    pub async fn measure(&mut self, cluster: &Cluster) -> Result<(), ExpireError> {
        let removed = self.removed.iter().map(|removed| removed.snapshot.clone());
        let ids: Vec<String> = removed.chain(self.forgotten.iter().cloned()).collect();
        for id in ids {
            let lists = execute::lists(cluster, &id).await?;
            self.free(lists).iter().for_each(|object| self.lists.add(object.bytes));
        }
        let waiting: Vec<(String, Timestamp)> =
            self.kept.iter().filter_map(|kept| Some((kept.snapshot.clone(), kept.locked_until?))).collect();
        for (id, until) in waiting {
            // Its lists, which are of no use without it, go when it does.
            execute::lists(cluster, &id).await?.iter().for_each(|object| self.wait(object.bytes, until));
        }
        // Most of what was expired before only lends its packs.
        for id in std::mem::take(&mut self.leftovers) {
            let lists = execute::lists(cluster, &id).await?;
            let goes = self.going.iter().any(|pack| pack.writer() == id);
            let lists = self.free(lists);
            if goes || !lists.is_empty() || !self.lenders.contains(&id) {
                lists.iter().for_each(|object| self.lists.add(object.bytes));
                self.leftovers.push(id);
            }
        }
        for wal in self.wal_plans.clone() {
            for (timeline, first, last) in wal.goes.iter() {
                let mut count = Count::default();
                for block in execute::blocks(first, last) {
                    execute::segments(cluster, &wal, timeline, block).await?.iter().for_each(|object| count.add(object.bytes));
                }
                let name = |number| SegmentName::new(timeline, number, wal.segment_bytes);
                let range = WalRange { system_identifier: wal.system, first: name(first), last: name(last), count };
                self.wal.push(range);
            }
            let files = execute::files(cluster, &wal).await?;
            self.free(files).iter().for_each(|object| self.wal_files.add(object.bytes));
        }
        Ok(())
    }
}

/// Decides everything; asks nothing. `forget` are those of [`View::lost`] that a person has given up.
pub fn plan(view: &View, rules: &Retention, accept_shrink: bool, forget: &[String]) -> Plan {
    let mut plan = Plan { rules: rules.describe(), at: clock_of(view), locks: view.locks.clone(), ..Plan::default() };
    plan.shrunk = shrunk(view);
    refuse(view, accept_shrink, forget, &mut plan);
    let reasons = reasons(view, rules, forget, &mut plan);
    let kept: Vec<&Snapshot> = reasons.keys().map(|at| &view.snapshots[*at]).collect();
    let mut waiting: Vec<&Snapshot> = Vec::new();
    for (at, snapshot) in view.snapshots.iter().enumerate() {
        let kept = |why: Vec<String>, locked_until| Kept {
            snapshot: snapshot.id.clone(),
            consistent: snapshot.stop_time,
            why,
            locked_until,
        };
        match (reasons.get(&at), locked(view, snapshot.lock)) {
            (Some(why), _) => plan.kept.push(kept(why.clone(), None)),
            (None, Some(until)) => {
                waiting.push(snapshot);
                plan.kept
                    .push(kept(vec![format!("no rule keeps it, and it is locked until {}", clock::seconds(until))], Some(until)));
            }
            (None, None) => plan.removed.push(Removed {
                snapshot: snapshot.id.clone(),
                consistent: snapshot.stop_time,
                why: snapshot.flaw.clone().unwrap_or_else(|| "no rule keeps it".into()),
                manifest: snapshot.manifest.clone(),
            }),
        }
    }
    let held = ghosts(view, rules, forget, &mut plan);
    let lost = lost(view, forget, &mut plan);
    let living: Vec<&Snapshot> = kept.iter().chain(&held).copied().collect();
    packs(view, rules, &Needing { living: &living, waiting: &waiting, lost: &lost }, &mut plan);
    let living: Vec<&Snapshot> = living.into_iter().chain(waiting).collect();
    for wal in &view.wal {
        let needed = needed(view, rules, wal, &reasons, &living, &lost);
        let mut goes = wal::unneeded(wal, &needed);
        for stored in &wal.stored {
            if let Some(until) = locked(view, Some(stored.lock)).filter(|_| goes.around(stored.timeline, stored.number).is_some())
            {
                goes.remove(stored.timeline, stored.number, stored.number);
                plan.wait(stored.bytes, until);
            }
        }
        let mut gone = wal.gone.clone();
        goes.iter().for_each(|(timeline, first, last)| gone.add(timeline, first, last));
        let is_new = gone != wal.gone;
        plan.wal_plans.push(WalPlan { system: wal.system, segment_bytes: wal.segment_bytes, needed, goes, gone, is_new });
    }
    plan
}

/// Sorts out what was expired before: the rest is tidied up, but for what somebody reads, and what was noted as expired and would be
/// kept now. An expiry that was broken off leaves its note; when the manifest is lost later, that note is no reason to go on.
fn ghosts<'a>(view: &'a View, rules: &Retention, forget: &[String], plan: &mut Plan) -> Vec<&'a Snapshot> {
    let is_read = |ghost: &Snapshot| view.readers.iter().any(|reader| reader.snapshot == ghost.id);
    let mut held = Vec::new();
    for ghost in &view.ghosts {
        if is_read(ghost) {
            held.push(ghost);
        } else if !forget.contains(&ghost.id) && is_wanted(view, rules, ghost, plan.at) {
            plan.notes.push(format!(
                "the manifest of {} is missing; an expiry had noted it once, and now it would be kept: nothing of it goes \
                 (`lastgood verify --repair`, or `lastgood expire --forget {}`)",
                ghost.id, ghost.id
            ));
            held.push(ghost);
        } else {
            plan.leftovers.push(ghost.id.clone());
        }
    }
    plan.leftovers.extend(view.dim_ghosts.iter().cloned());
    held
}

/// Whether what was noted as expired would be kept now. Without its table it is taken apart already.
fn is_wanted(view: &View, rules: &Retention, ghost: &Snapshot, at: Timestamp) -> bool {
    if ghost.packs.is_none() {
        return false;
    }
    if view.pins.get(&ghost.id).is_some_and(|pin| pin.holds(at)) || !rules.is_configured() {
        return true;
    }
    let mut all: Vec<Snapshot> = view.snapshots.iter().chain([ghost]).cloned().collect();
    view::order(&mut all, &view.wal.iter().map(|wal| wal.system).collect::<Vec<_>>());
    let Some(place) = all.iter().position(|snapshot| snapshot.id == ghost.id) else { return false };
    retention::keep(rules, &all).contains_key(&place)
}

/// What stays for the sake of manifests that may come back.
fn lost<'a>(view: &'a View, forget: &[String], plan: &mut Plan) -> Vec<&'a Lost> {
    let (gone, lost): (Vec<&Lost>, Vec<&Lost>) = view.lost.iter().partition(|lost| forget.contains(&lost.id));
    plan.forgotten = gone.iter().map(|lost| lost.id.clone()).collect();
    for lost in &lost {
        let why = match &lost.unreadable {
            Some(why) => format!("cannot be read ({why})"),
            None => "is missing".into(),
        };
        let extent = match lost.packs {
            Some(_) => "what it needs stays, and the WAL from there on",
            None => "and its pack table cannot be read: no pack goes",
        };
        plan.notes.push(format!(
            "the manifest of snapshot {} {why}: {extent} (`lastgood verify --repair`, or `lastgood expire --forget {}`)",
            lost.id, lost.id
        ));
    }
    lost
}

/// Why nothing may be expired now (rules 49, 50 and 53).
fn refuse(view: &View, accept_shrink: bool, forget: &[String], plan: &mut Plan) {
    if view.snapshots.iter().all(|snapshot| snapshot.flaw.is_some()) {
        plan.refusals
            .push("no snapshot can be restored, so nothing may go; `lastgood list` and `lastgood verify` say why".into());
    }
    if !view.alerts.is_empty() {
        let what = view.alerts.join(", ");
        plan.refusals
            .push(format!("an alert is not acknowledged, and old snapshots may be what is needed (`lastgood alerts`): {what}"));
    }
    for Shrunk { snapshot, bytes, before, bytes_before } in plan.shrunk.iter().filter(|_| !accept_shrink) {
        plan.refusals.push(format!(
            "snapshot {snapshot} holds {bytes} bytes, and the one before, {before}, {bytes_before}: if a person has looked and that is \
             right, run `lastgood expire --accept-shrink` once"
        ));
    }
    for (id, what) in &view.hidden {
        plan.refusals.push(format!("snapshot {id} is hidden, and what it needs would go: {what}"));
    }
    let is_held = |id: &String| view.lost.iter().any(|lost| lost.id == *id) && !forget.contains(id);
    let is_known = |id: &String| view.snapshots.iter().chain(&view.ghosts).any(|snapshot| snapshot.id == *id) || is_held(id);
    for reader in view.readers.iter().filter(|reader| !is_known(&reader.snapshot)) {
        plan.refusals.push(format!("what is needed by one who is at work is not known ({})", reader.who));
    }
}

/// Every sudden drop between neighbours that nobody accepted.
fn shrunk(view: &View) -> Vec<Shrunk> {
    let mut found = Vec::new();
    let good: Vec<&Snapshot> = view.snapshots.iter().filter(|snapshot| snapshot.flaw.is_none()).collect();
    for pair in good.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        // The drop that a person saw may have been at a snapshot between these two that is gone since.
        let accepted = view.accepted.iter().any(|id| *id > before.id && *id <= after.id);
        if after.raw_bytes.saturating_mul(2) <= before.raw_bytes && !accepted {
            found.push(Shrunk {
                snapshot: after.id.clone(),
                bytes: after.raw_bytes,
                before: before.id.clone(),
                bytes_before: before.raw_bytes,
            });
        }
    }
    found
}

/// Every snapshot that stays, with all reasons.
fn reasons(view: &View, rules: &Retention, forget: &[String], plan: &mut Plan) -> Reasons {
    let snapshots = &view.snapshots;
    let mut reasons = if rules.is_configured() { retention::keep(rules, snapshots) } else { Reasons::new() };
    let mut want = |at: usize, why: String| reasons.entry(at).or_default().push(why);
    if !rules.is_configured() {
        let why = if forget.is_empty() { "no retention is configured" } else { "the rules of [retention] are left aside" };
        plan.notes.push(format!("{why}, so nothing is removed by them"));
        (0..snapshots.len()).for_each(|at| want(at, why.into()));
    }
    if !plan.refusals.is_empty() {
        // Shown all the same: what would go when the reason is gone.
        plan.notes.push("nothing of this is done before that is settled".into());
    }
    for wal in &view.wal {
        if let Some(at) = wal::last_on_newest(wal, snapshots) {
            want(at, "the newest on the server's timeline".into());
        }
        if let Some(days) = rules.window_days {
            let anchors = anchors(view, wal, days);
            anchors.into_iter().for_each(|at| want(at, format!("moments of the last {days} days need it")));
        }
    }
    for (at, snapshot) in snapshots.iter().enumerate() {
        if let Some(pin) = view.pins.get(&snapshot.id).filter(|pin| pin.holds(plan.at)) {
            want(at, pin.describe());
        }
        for reader in view.readers.iter().filter(|reader| reader.snapshot == snapshot.id) {
            want(at, format!("in use: {}", reader.who));
        }
    }
    for reasons in reasons.values_mut() {
        let mut seen = BTreeSet::new();
        reasons.retain(|reason| seen.insert(reason.clone()));
    }
    reasons
}

/// The host's clock, or the database's when it was last heard of: a host that is ahead must not let pins run out.
fn clock_of(view: &View) -> Timestamp {
    let newest = view.snapshots.iter().filter(|s| s.flaw.is_none()).map(|s| s.stop_time).max();
    newest.map_or(view.now, |newest| newest.min(view.now))
}

fn anchors(view: &View, wal: &Wal, days: u32) -> Vec<usize> {
    let newest = view.snapshots.iter().rfind(|s| s.flaw.is_none());
    newest.map_or(Vec::new(), |newest| wal::anchors(wal, &view.snapshots, newest.stop_time, days))
}

/// Whose packs stay.
struct Needing<'a> {
    living: &'a [&'a Snapshot],
    /// Until their locks end.
    waiting: &'a [&'a Snapshot],
    lost: &'a [&'a Lost],
}

impl Needing<'_> {
    /// Whose pack table cannot be read: it may name any pack.
    fn unknown(&self) -> Option<&str> {
        let snapshots = self.living.iter().chain(self.waiting).find(|snapshot| snapshot.packs.is_none());
        let lost = || self.lost.iter().find(|lost| lost.packs.is_none());
        snapshots.map(|snapshot| snapshot.id.as_str()).or_else(|| lost().map(|lost| lost.id.as_str()))
    }
}

/// Sorts the packs of snapshots that are gone or go: what is needed stays, and for a while what `waiting` needs, or a lock holds.
/// A pack goes only when every pack table that counts was read, and none names it.
fn packs(view: &View, rules: &Retention, needing: &Needing<'_>, plan: &mut Plan) {
    let mut needed = vec![false; view.packs.len()];
    let of_lost = needing.lost.iter().filter_map(|lost| lost.packs.as_ref());
    let of_living = needing.living.iter().filter_map(|snapshot| snapshot.packs.as_ref());
    of_living.chain(of_lost).flatten().for_each(|at| needed[*at as usize] = true);
    let mut wait: Vec<Option<Timestamp>> = view.packs.iter().map(|pack| locked(view, pack.lock)).collect();
    for snapshot in needing.waiting {
        let until = locked(view, snapshot.lock);
        snapshot.packs.iter().flatten().for_each(|at| wait[*at as usize] = wait[*at as usize].max(until));
    }
    let unknown = needing.unknown();
    let dead: BTreeSet<String> = plan.dead().map(str::to_string).collect();
    let waiting: BTreeSet<&str> = needing.waiting.iter().map(|snapshot| snapshot.id.as_str()).collect();
    for ((pack, needed), wait) in view.packs.iter().zip(needed).zip(wait) {
        if let Some(until) = wait.filter(|_| !needed && (dead.contains(pack.writer()) || waiting.contains(pack.writer()))) {
            plan.wait(pack.bytes, until);
            plan.lenders.insert(pack.writer().to_string());
            continue;
        }
        if !dead.contains(pack.writer()) {
            continue;
        }
        if needed || unknown.is_some() {
            plan.packs_on_loan.add(pack.bytes);
            loan(view, rules, pack, plan);
            if !plan.lenders.contains(pack.writer()) {
                plan.lenders.insert(pack.writer().to_string());
            }
        } else {
            plan.packs.add(pack.bytes);
            plan.going.push(pack.clone());
        }
    }
    if let Some(id) = unknown.filter(|_| !dead.is_empty()) {
        plan.notes.push(format!("the pack table of snapshot {id} cannot be read, so no pack is removed"));
    }
}

/// What becomes of a pack that stays below the id of a snapshot that is gone.
fn loan(view: &View, rules: &Retention, pack: &Pack, plan: &mut Plan) {
    let Some(newest) = &view.newest else { return };
    let line = newest.binary_search_by(|line| line.name.as_str().cmp(&pack.name)).ok().map(|at| &newest[at]);
    let is_off = rules.rewrite_max_bytes == 0;
    let is_sparse = |line: &PackLine| !is_off && line.used.is_some_and(|used| used.is_below(rules.rewrite_below_percent));
    match line {
        None => plan.packs_retired.add(pack.bytes),
        Some(line) if is_sparse(line) => plan.packs_sparse.add(pack.bytes),
        Some(_) => {}
    }
}

fn needed(view: &View, rules: &Retention, wal: &Wal, reasons: &Reasons, living: &[&Snapshot], lost: &[&Lost]) -> Needed {
    let mut needed = Needed::default();
    let of_system: Vec<&&Snapshot> = living.iter().filter(|snapshot| snapshot.system == wal.system).collect();
    // A cluster without a snapshot is about to get one.
    needed.all = !rules.is_configured() || (wal.is_current && of_system.is_empty());
    lost.iter().for_each(|lost| needed.add_lost(wal, lost));
    for snapshot in &of_system {
        needed.add_own(wal, snapshot);
        if view.readers.iter().any(|reader| reader.snapshot == snapshot.id) {
            needed.add_futures(wal, snapshot);
        }
    }
    let mut roots: BTreeSet<usize> = BTreeSet::new();
    match rules.window_days {
        Some(days) => roots.extend(anchors(view, wal, days)),
        // From the oldest that the rules keep; a pin keeps a snapshot and not all that came after it.
        None => {
            let by_rule = retention::keep(rules, &view.snapshots);
            roots.extend(by_rule.into_keys().filter(|at| reasons.contains_key(at)));
        }
    }
    roots.extend(wal::last_on_newest(wal, &view.snapshots));
    let newest = view.snapshots.iter().rposition(|s| s.flaw.is_none());
    roots.extend(newest);
    for at in roots.into_iter().filter(|at| view.snapshots[*at].system == wal.system) {
        needed.add_futures(wal, &view.snapshots[at]);
    }
    let unknown: Vec<Timeline> = wal.paths.iter().filter(|(_, path)| path.is_none()).map(|(timeline, _)| *timeline).collect();
    unknown.into_iter().for_each(|timeline| needed.runs.add(timeline, 0, u64::MAX));
    needed
}
