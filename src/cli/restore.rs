//! `lastgood restore`

use std::path::PathBuf;

use clap::ValueEnum;
use tokio::task::JoinHandle;

use super::context::{self, Global, Place};
use super::guard::{self, Confirm, Desk};
use super::moment::{self, Asked, Moment};
use super::{estimate, measure, output, places, progress, reached, restored, standby};
use crate::clock;
use crate::postgres::lsn::Timeline;
use crate::postgres::quiet;
use crate::postgres::settings::TargetAction;
use crate::repo::RepoError;
use crate::repo::manifest::Manifest;
use crate::repo::record::History;
use crate::restore::RestoreError;
use crate::restore::base::{self, Base, Look};
use crate::restore::beside;
use crate::restore::execute::{self, Options};
use crate::restore::guard::Approval;
use crate::restore::loss::Loss;
use crate::restore::pinned;
use crate::restore::plan::{self, Plan, Request};
use crate::restore::replaced::Replaced;
use crate::restore::standing::Occupant;
use crate::timeline::archive::Archive;
use crate::timeline::estimate::{Estimate, Experience};
use crate::timeline::target::{Target, TargetError};
use crate::timeline::told::Kind;

/// Restore to a moment: shows the plan first, and never destroys what it replaces
///
/// Into an empty place it goes ahead. A cluster that stands there is moved aside, whole, after the plan was confirmed: by its code,
/// or for production by typing the cluster's name. A living server is never touched: stop it first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lastgood restore --to latest --into /var/lib/postgresql/15/restored\n  \
    lastgood restore --to '2026-11-21 04:14:59+01:00' --into /srv/pg --dry-run\n  \
    lastgood restore --before 'drop of shop.public.orders' --into /srv/pg --target-action promote\n  \
    lastgood restore --to 0/5A001C8 --exclusive --into /srv/pg --target-action promote --start\n  \
    lastgood restore --to latest --into /srv/pg --standby --primary-conninfo 'host=db1 user=replicator' --slot db2")]
pub struct Args {
    #[command(flatten)]
    moment: Moment,
    /// Where to: a directory that is empty, does not exist yet, or holds a stopped cluster
    #[arg(long, value_name = "DIRECTORY")]
    into: PathBuf,
    /// Begin with this snapshot (its id, or the beginning of it) and no other [default: the newest that leads there and is whole]
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// Stop just before the record at the LSN, or before the transaction's commit, instead of after it
    #[arg(long)]
    exclusive: bool,
    /// What the server does at the target [default: pause; promote for latest]
    #[arg(long, value_enum, value_name = "ACTION", conflicts_with = "standby")]
    target_action: Option<Action>,
    /// Timeline to follow, in hex as in file names, or latest
    #[arg(long, value_name = "ID", conflicts_with = "standby")]
    timeline: Option<String>,
    /// New place of a tablespace
    #[arg(long, value_name = "OID=PATH", value_parser = tablespace)]
    tablespace: Vec<(String, PathBuf)>,
    /// Place all other tablespaces below this directory, by OID
    #[arg(long, value_name = "DIRECTORY")]
    tablespaces_below: Option<PathBuf>,
    /// Start the server when it is restored, follow its replay, and say whether it stands at the target
    #[arg(long, conflicts_with = "standby")]
    start: bool,
    /// Put pg_wal into this directory, which is empty or does not exist yet, and make a link to it
    #[arg(long, value_name = "DIRECTORY")]
    wal_directory: Option<PathBuf>,
    #[command(flatten)]
    standby: standby::StandbyFlags,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    Pause,
    Promote,
    Shutdown,
}

/// PostgreSQL's own.
const USUAL_PORT: u16 = 5432;

fn tablespace(text: &str) -> Result<(String, PathBuf), String> {
    let (oid, path) = text.split_once('=').ok_or("write it as OID=PATH, like 16400=/srv/fast")?;
    Ok((oid.into(), path.into()))
}

impl From<Action> for TargetAction {
    fn from(action: Action) -> TargetAction {
        match action {
            Action::Pause => TargetAction::Pause,
            Action::Promote => TargetAction::Promote,
            Action::Shutdown => TargetAction::Shutdown,
        }
    }
}

/// What was asked for, and the plan that came of it.
struct Prepared {
    plan: Result<Plan, RestoreError>,
    request: Request,
    manifests: Vec<Manifest>,
    experience: JoinHandle<Result<Experience, RepoError>>,
}

/// Plans; writes nothing.
async fn prepare(args: &Args, place: &Place, json: bool) -> anyhow::Result<Prepared> {
    let asked = args.moment.asked(args.exclusive, args.snapshot.as_deref())?;
    let timeline = timeline(args.timeline.as_deref())?;
    let manifests = place.manifests(json).await?;
    // A snapshot may belong to an older history of this name; everything else means the current one.
    let of_snapshot = |id: &String| manifests.iter().find(|m| m.id.starts_with(id.as_str())).map(|m| m.system_identifier);
    let wanted = match (&asked, &args.snapshot) {
        (Asked::Target(Target::Snapshot(id)), _) | (_, Some(id)) => of_snapshot(id),
        _ => None,
    };
    let history = wanted.and_then(|system| place.record.history(system)).or(place.record.current());
    let history = history.ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?;
    let look = Look::at_newest(&place.cluster, &manifests);
    // Asked for at once, and waited for where it is needed.
    let experience = Experience::ask(&place.cluster);
    let archive = archive(place, history).await?;
    // Without a slash at its end, which would follow a link.
    let into: PathBuf = std::path::absolute(&args.into)?.components().collect();
    let moment = moment::find(asked, timeline, (&archive, &manifests), &into).await?;
    let request = Request {
        target: moment.target,
        event: moment.event,
        timeline: moment.timeline,
        inclusive: moment.inclusive.unwrap_or(!args.exclusive),
        action: args.target_action.map(TargetAction::from),
        into,
        tablespaces: args.tablespace.clone(),
        tablespaces_below: args.tablespaces_below.as_ref().map(std::path::absolute).transpose()?,
        wal_directory: args.wal_directory.as_ref().map(std::path::absolute).transpose()?,
        standby: args.standby.asked(),
        base: Base { snapshot: args.snapshot.clone(), may_pass_over: true, unreadable: place.snapshots().await?.1 },
    };
    let plan = plan::plan(&guard::around(place), archive, &manifests, look, &request).await;
    Ok(Prepared { plan, request, manifests, experience })
}

/// The plan of these arguments and how long it would take, for who proposes it.
pub async fn proposal(global: &Global, args: &Args) -> anyhow::Result<(Plan, Option<Estimate>)> {
    let place = Place::open_any(global).await?;
    let prepared = prepare(args, &place, global.json).await?;
    let plan = prepared.plan?;
    let experience = prepared.experience.await.ok().and_then(Result::ok).unwrap_or_default();
    let estimate = measure::Restore::new(&place, &experience, &plan).estimate;
    Ok((plan, estimate))
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let place = Place::open_any(global).await?;
    let desk = Desk::new("restore", &place, global);
    desk.learn_end();
    let Prepared { plan, request, manifests, experience } = prepare(&args, &place, global.json).await?;
    places::warn_of_missed(&place, global.json);
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) if guard::is_refusal(&error) && !args.confirm.dry_run => return Err(desk.refused(error, None).await),
        Err(error) => return Err(error.into()),
    };
    let seal = desk.seal(&plan, &place);
    let code = seal.code(clock::now());
    // A restore needs no estimate.
    let experience = experience.await.ok().and_then(Result::ok).unwrap_or_default();
    let measured = measure::Restore::new(&place, &experience, &plan);
    tell_plan(&plan, measured.estimate.as_ref(), &code, global.json);
    if args.confirm.dry_run {
        return Ok(0);
    }
    let living = plan.standing.occupant().and_then(|occupant| occupant.living.clone());
    if let Some(living) = living {
        return Err(desk.refused(RestoreError::Living { path: plan.into, living }, None).await);
    }
    let approval = desk.pass(&plan.into, plan.care(), &seal, &args.confirm).await?;
    let options = options(global, &place, &plan)?;
    let done = carry_out(&place, &plan, (&approval, &code), &options, &desk, measured, global.json).await;
    if let Err(error) = &done
        && let Some(RestoreError::Repo(damage)) = error.downcast_ref()
        && (damage.is_damage() || damage.is_frozen())
        && let Some(next) = base::next(&plan, &manifests, &request, damage).await
    {
        desk.note(&format!(
            "snapshot {} cannot be restored as it is; {next} leads to the same moment, and everything is there that it needs: make a new \
             plan with --snapshot {next}",
            plan.snapshot
        ));
    }
    done?;
    if args.start { reached::start(global, &place.config, &plan).await } else { Ok(0) }
}

fn options(global: &Global, place: &Place, plan: &Plan) -> anyhow::Result<Options> {
    // A standby needs all that comes.
    let last = plan.last_segment().filter(|_| plan.standby.is_none());
    let until = last.map(|name| format!(" --until {name}")).unwrap_or_default();
    let get = format!("archive-get --system-identifier {}{until} %f \"%p\"", plan.system_identifier);
    Ok(Options {
        restore_command: global.server_command(&place.config, &get)?,
        port: beside::port(plan, place.config.postgres.port.unwrap_or(USUAL_PORT)),
        threads: context::threads(place.config.restore.threads),
        read_back: place.config.restore.read_back,
    })
}

/// Restores, keeps the audit and the report of it, and says what came of it.
async fn carry_out(
    place: &Place,
    plan: &Plan,
    (approval, code): (&Approval, &str),
    options: &Options,
    desk: &Desk<'_>,
    measured: measure::Restore,
    json: bool,
) -> anyhow::Result<()> {
    let monitor = progress::monitor(json);
    let began = clock::monotonic();
    // Before anything is touched.
    let (attempt, pinned) = tokio::join!(desk.attempted(plan, approval, code), pinned::pin(&place.cluster, plan, &*monitor));
    let mut done = match pinned {
        Ok(pinned) => execute::execute(&place.cluster, plan, approval, pinned, options, monitor.clone()).await,
        Err(error) => Err(error),
    };
    drop(monitor);
    let seconds = began.elapsed().as_secs_f64();
    let expected = measured.estimate.as_ref().map(|estimate| estimate.restore);
    let pin = done.as_mut().ok().and_then(|restored| restored.pin.take());
    // The server still has to fetch its WAL.
    let left = async {
        if let Some(pin) = pin {
            pin.leave("recovery after restore", pinned::RECOVERY_HOLD).await;
        }
    };
    if done.is_err() && plan.standing.occupant().is_some() && plan.root().exists() {
        let (into, root) = (plan.into.display(), plan.root());
        desk.note(&format!(
            "{into} stands there as before; what was built of the new one is in {}, and the next try clears it",
            root.display()
        ));
    }
    places::tell_served(place, json);
    let told = async {
        let report = measured.report(done.is_ok(), seconds, json).await;
        let detail = |done: &execute::Restored| match &done.aside {
            Some(aside) => format!("what stood there is now {}", aside.display()),
            None => String::new(),
        };
        desk.ended_with(attempt, done, report, detail).await
    };
    let (restored, ()) = tokio::join!(told, left);
    let restored = restored?;
    restored::tell(plan, &restored, options.port, (seconds, expected), json);
    Ok(())
}

async fn archive(place: &Place, history: &History) -> anyhow::Result<Archive> {
    let system = history.system_identifier;
    let mut archive = Archive::load(&place.cluster, system, history.wal_segment_bytes.into()).await?;
    archive.decide(&place.record);
    Ok(archive)
}

/// The plan, how long it will take, and how it passes the guard.
fn tell_plan(plan: &Plan, estimate: Option<&Estimate>, code: &str, json: bool) {
    if json {
        let care = plan.care();
        output::json(&serde_json::json!({ "event": "plan", "plan": plan, "care": care, "code": code, "estimate": estimate }));
        return;
    }
    show_plan(plan);
    output::entry("estimate", estimate::words(estimate));
    // While a server runs there, no code helps.
    if plan.standing.occupant().is_none_or(|occupant| occupant.living.is_none()) {
        guard::show(plan.care(), code);
    }
}

pub(super) fn timeline(text: Option<&str>) -> anyhow::Result<Option<Timeline>> {
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
    output::entry(
        "from",
        format!("snapshot {} of cluster {}, consistent at {}", plan.snapshot, plan.cluster, output::time(plan.snapshot_stop)),
    );
    for passed in &plan.passed_over {
        output::entry("SKIPPED", format!("the newer snapshot {}: {}", passed.snapshot, passed.why));
    }
    if let Some(event) = &plan.event {
        let side = if plan.inclusive { "behind" } else { "before" };
        let time = event.time.map(|time| format!(", committed at {}", output::exact_time(time))).unwrap_or_default();
        let xid = if event.xid == 0 { String::new() } else { format!(", transaction {}", event.xid) };
        output::entry(side, format!("{}{xid}{time} ({})", event.text, event.id));
    }
    output::entry("to", format!("{}, {}", plan.target, plan.recovery));
    if let Some(lsn) = plan.stop_lsn {
        output::entry("stops at", format!("{lsn} on timeline {}", plan.timeline));
    }
    let moment = |m: &plan::Moment| {
        let xid = m.xid.map(|xid| format!(", transaction {xid}")).unwrap_or_default();
        format!("{} ({}{xid})", output::exact_time(m.time), m.lsn)
    };
    if let Some(last) = &plan.last_transaction {
        output::entry("last kept", moment(last));
    }
    if let Some(first) = &plan.first_lost {
        output::entry("first gone", moment(first));
    }
    output::entry("into", format!("{} (there is {})", plan.into.display(), plan.standing.words()));
    if let (Some(occupant), Some(replaced)) = (plan.standing.occupant(), &plan.replaced) {
        show_occupant(occupant);
        show_replaced(replaced, replaced.loss.as_ref(), "committed after the target");
    }
    for tablespace in &plan.tablespaces {
        output::entry(
            "tablespace",
            format!(
                "{} from {} into {} (there is {})",
                tablespace.oid,
                tablespace.was.display(),
                tablespace.into.display(),
                tablespace.standing.words()
            ),
        );
    }
    output::entry(
        "size",
        format!(
            "{} in {}, {} to replay, PostgreSQL {}",
            output::bytes(plan.bytes),
            output::count(plan.files, "file"),
            output::count(plan.wal_segments, "WAL segment"),
            plan.major
        ),
    );
    standby::show_wal(plan);
    match &plan.standby {
        Some(standby) => standby::show(standby),
        None => {
            output::entry("then", then(plan.action));
            output::entry("off", format!("in it, until it is released: {}", quiet::WORDS));
        }
    }
    // Who only changed rows locks nobody out.
    let is_of_rows = plan.event.as_ref().is_some_and(|event| matches!(event.kind, Kind::Delete | Kind::Update));
    if plan.action == TargetAction::Pause && !plan.inclusive && !is_of_rows {
        output::entry(
            "note",
            "while the server pauses, the transaction at the target still holds its locks: a query on what it dropped waits until the \
             server is resumed. With --target-action promote it does not.",
        );
    }
    plan.notes.iter().for_each(|note| output::entry("note", note));
    for warning in &plan.warnings {
        output::entry("warning", warning);
    }
    if plan.damaged_pages > 0 {
        output::entry(
            "warning",
            format!("{} pages were damaged in the database when this snapshot was taken", plan.damaged_pages),
        );
    }
}

fn then(action: TargetAction) -> &'static str {
    match action {
        TargetAction::Pause => "the server pauses at the target, readable; SELECT pg_wal_replay_resume() makes it writable",
        TargetAction::Promote => "the server becomes writable on a new timeline",
        TargetAction::Shutdown => "the server shuts down at the target",
    }
}

/// What is known of a cluster that stands somewhere.
pub fn show_occupant(occupant: &Occupant) {
    let version = occupant.major.map_or("of an unknown version".to_string(), |major| format!("PostgreSQL {major}"));
    let size = format!("{} in {}", output::bytes(occupant.bytes), output::count(occupant.files, "file"));
    match &occupant.control {
        Some(control) => {
            let state = control.state.words();
            output::entry("", format!("system {}, {version}, {size}", control.system_identifier));
            output::entry("", format!("{state}, timeline {}, checkpoint {}", control.timeline, control.checkpoint));
        }
        None => output::entry("", format!("{version}, {size}; its pg_control cannot be read")),
    }
    if let Some(at) = occupant.last_change {
        output::entry("", format!("last written to {}", output::time(at)));
    }
    if let Some(living) = &occupant.living {
        output::entry("", format!("A SERVER RUNS THERE ({living}); it must be stopped first"));
    }
    if occupant.unreleased {
        output::entry("", "it was restored by lastgood and never released");
    }
}

/// Whose it is, what only it has, and what would be lost.
pub fn show_replaced(replaced: &Replaced, loss: Option<&Loss>, which: &str) {
    match (&replaced.owner, &replaced.label) {
        (Some(owner), Some(label)) => output::entry("", format!("it is the cluster {owner:?}, labelled {label}")),
        (Some(owner), None) => output::entry("", format!("it is the cluster {owner:?}")),
        (None, _) => output::entry("", "the repository does not know it: what is in it is nowhere else"),
    }
    let unarchived = &replaced.unarchived;
    if !unarchived.is_empty() {
        let torn = if unarchived.torn.is_some() { ", the last one torn" } else { "" };
        let count = output::count(unarchived.count() as u64, "WAL segment");
        let then = match &replaced.not_archived_because {
            None => "archived first".to_string(),
            Some(why) => format!("not archived, because {why}; it stays in the directory"),
        };
        output::entry("unarchived", format!("{count}{torn}: {then}"));
    } else if let Some(why) = &replaced.not_archived_because {
        output::entry("unarchived", format!("WAL is not saved: {why}"));
    }
    if let Some(parted) = &unarchived.parted {
        output::entry(
            "APART",
            format!(
                "its WAL from {} on ({}) is of another history than the archive's under the same names (its volume was set back, or \
                 another server archives under this name): it is not archived and stays in the directory, and what the archive has \
                 from there on is the other server's",
                parted.from,
                output::count(parted.segments, "segment")
            ),
        );
    }
    show_loss(loss, which);
}

/// What would be lost.
pub fn show_loss(loss: Option<&Loss>, which: &str) {
    if let Some(loss) = loss {
        let least = if loss.at_least { "at least " } else { "" };
        let last = loss.last.map(|at| format!(", the last at {}", output::exact_time(at))).unwrap_or_default();
        match (&loss.unknown, loss.transactions) {
            (Some(why), _) => output::entry("LOST", format!("unknown: {why}")),
            (None, 0) if loss.at_least => output::entry("LOST", "unknown: not all of its WAL is there"),
            (None, 0) => output::entry("lost", "no transaction"),
            (None, count) => output::entry("LOST", format!("{least}{}{last}: {which}", output::count(count, "transaction"))),
        }
    }
}
