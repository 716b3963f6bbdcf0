//! `lastgood timeline`

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::context::{Global, Place};
use super::output::{self, Colour, Part};
use super::{moment, progress, restore};
use crate::clock;
use crate::postgres::lsn::SystemId;
use crate::repo::audit;
use crate::timeline::archive::Archive;
use crate::timeline::story::{self, Gap, Question, Story};
use crate::timeline::tail;
use crate::timeline::told::{Kind, Told};
use crate::timeline::windows::{self, Window};

/// Hours that are told when no beginning is given.
const HOURS: i64 = 24;
/// Bars in the sparkline of activity.
const BARS: i64 = 60;

/// Show what happened: drops, truncations, mass changes, and the command that goes back to just before each
///
/// Reads the WAL that was archived. Everyday work (checkpoints, VACUUM FULL, REINDEX) is left out unless --all or --kind asks for
/// it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lastgood timeline --since 2h\n  \
    lastgood timeline --since '2026-11-21 08:00+01:00' --kind drop,truncate --table orders\n  \
    lastgood timeline --include-pg-wal /var/lib/postgresql/15/main/pg_wal\n  \
    lastgood timeline --json | jq '.events[] | select(.kind == \"drop\") | .id'")]
pub struct Args {
    /// A time with zone, or how long ago, like 2h or 7d [default: 24h]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// A time with zone, or how long ago [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
    /// Only what touched this relation: orders, public.orders or shop.public.orders
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// Only what happened in this database
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Only these kinds, separated by commas
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    kind: Vec<Kind>,
    /// Everything, also everyday work
    #[arg(long)]
    all: bool,
    /// Rows of one relation that a transaction must change or delete to be told of
    #[arg(long, value_name = "ROWS", default_value_t = story::MANY_ROWS)]
    rows: u64,
    /// Timeline to follow, in hex as in file names, or latest
    #[arg(long, value_name = "ID")]
    timeline: Option<String>,
    /// Also read WAL that is not archived yet, from this pg_wal (or data directory) of a living or dead server
    #[arg(long, value_name = "DIRECTORY")]
    include_pg_wal: Option<PathBuf>,
}

fn kind(word: &str) -> Result<Kind, String> {
    let words = || Kind::ALL.map(Kind::word).join(", ");
    Kind::of_word(word).ok_or_else(|| format!("there are {}", words()))
}

#[derive(Serialize)]
struct Listing {
    cluster: String,
    since: Timestamp,
    until: Timestamp,
    #[serde(flatten)]
    story: Story,
    activity: BTreeMap<String, [u32; 2]>,
    windows: Vec<Window>,
    /// WAL that was turned away: of another server, or of one that left this history.
    refused: Vec<Refused>,
    /// What people did with lastgood: restores, adoptions, acknowledgements.
    done: Vec<Done>,
    /// Events that were left out because nobody knows whether they are of the table or database that is asked for.
    left_out_unnamed: usize,
    /// The data directory whose `pg_wal` was read too.
    #[serde(skip)]
    server: Option<PathBuf>,
    /// Whether it goes up to now, and only what is archived was read.
    #[serde(skip)]
    may_be_late: bool,
}

#[derive(Serialize)]
struct Refused {
    at: Timestamp,
    host: String,
    why: String,
}

#[derive(Serialize)]
struct Done {
    at: Timestamp,
    operation: String,
    outcome: audit::Outcome,
    user: String,
    host: String,
    detail: String,
}

/// What of the audit belongs to the history of a cluster.
const TOLD_OPERATIONS: [&str; 4] = ["restore", "undo", "release", "alerts"];

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let now = clock::now();
    let since = args.since.as_deref().map(moment::time).transpose()?.unwrap_or(now - SignedDuration::from_hours(HOURS));
    let until = args.until.as_deref().map(moment::time).transpose()?.unwrap_or(now);
    anyhow::ensure!(since <= until, "--since ({}) lies after --until ({})", output::time(since), output::time(until));
    let timeline = restore::timeline(args.timeline.as_deref())?;
    let place = Place::open_any(global).await?;
    let history = place.record.current().ok_or_else(|| anyhow::anyhow!("the cluster's record names no system"))?;
    let system = history.system_identifier;
    let manifests: Vec<_> = place.manifests(global.json).await?.into_iter().filter(|m| m.system_identifier == system).collect();
    let mut archive = Archive::load(&place.cluster, system, history.wal_segment_bytes.into()).await?;
    archive.decide(&place.record);
    let windows = windows::windows(&archive, &manifests).await?.windows;
    if let Some(directory) = &args.include_pg_wal {
        archive.add_tails(not_archived(directory, system)?);
    }
    let path = moment::path(&archive, timeline)?;
    let spool = moment::spool(&place.config, system, place.config.postgres.data_directory.as_ref());
    let local = |name| spool.as_ref().and_then(|spool| spool.index(name));
    let question = Question {
        archive: &archive,
        manifests: &manifests,
        path: &path,
        since: Some(since),
        until: Some(until),
        from: None,
        to: None,
        many_rows: args.rows,
        numbers: None,
        local: &local,
        passes_sealed: true,
    };
    let monitor = progress::monitor(global.json);
    let mut story = story::tell(&question).await?;
    drop(monitor);
    let left_out_unnamed = story.events.iter().filter(|told| told.is_unnamed && !args.wants(told) && args.may_want(told)).count();
    story.events.retain(|told| args.wants(told));
    let (refused, done) = audited(&place, since, until).await?;
    let activity = story.minutes.iter().map(|(minute, (commits, aborts))| (minute_text(*minute), [*commits, *aborts])).collect();
    let may_be_late = args.until.is_none() && args.include_pg_wal.is_none();
    let listing = Listing {
        cluster: place.cluster.name().into(),
        since,
        until,
        story,
        activity,
        windows,
        refused,
        done,
        left_out_unnamed,
        server: args.server(),
        may_be_late,
    };
    if global.json {
        output::json(&listing);
    } else {
        show(&listing);
    }
    Ok(0)
}

/// The WAL in a `pg_wal`, or in that of a data directory.
fn not_archived(directory: &Path, system: SystemId) -> anyhow::Result<tail::Found> {
    let inside = directory.join("pg_wal");
    let pg_wal = if inside.is_dir() { &inside } else { directory };
    let found = tail::in_directory(pg_wal, system).map_err(|e| anyhow::anyhow!("read {}: {e}", pg_wal.display()))?;
    let is_empty = found.segments.is_empty();
    anyhow::ensure!(!is_empty, "{} holds no WAL of this cluster (system {system}); give its pg_wal", pg_wal.display());
    Ok(found)
}

/// What the audit knows of servers whose WAL was turned away, and of what people did.
async fn audited(place: &Place, since: Timestamp, until: Timestamp) -> anyhow::Result<(Vec<Refused>, Vec<Done>)> {
    let chain = audit::read(&place.cluster, &[]).await?;
    let is_asked = |entry: &audit::Entry| entry.event.cluster == place.cluster.name() && (since..=until).contains(&entry.at);
    // An attempt without an end crashed, or goes on.
    let ended: BTreeSet<u64> = chain.entries.iter().filter_map(|entry| entry.event.attempt).collect();
    let (mut refused, mut done) = (Vec::new(), Vec::new());
    for audit::Entry { number, at, who, event, .. } in chain.entries.into_iter().filter(is_asked) {
        let audit::Event { operation, outcome, detail, .. } = event;
        if operation == "archive-push" {
            refused.push(Refused { at, host: who.host, why: detail });
        } else if TOLD_OPERATIONS.contains(&operation.as_str()) && !ended.contains(&number) {
            done.push(Done { at, operation, outcome, user: who.user, host: who.host, detail });
        }
    }
    Ok((refused, done))
}

impl Args {
    fn wants(&self, told: &Told) -> bool {
        let by_kind = if self.kind.is_empty() {
            self.all || !(told.kind.is_routine() || told.is_ours)
        } else {
            self.kind.contains(&told.kind)
        };
        let by_table = self.table.as_ref().is_none_or(|name| told.touches(name));
        let by_database = self.database.as_ref().is_none_or(|name| told.database.as_ref() == Some(name));
        by_kind && by_table && by_database
    }

    /// Whether it is of the kind that is asked for, and of no other database that is known.
    fn may_want(&self, told: &Told) -> bool {
        let by_kind = if self.kind.is_empty() { !told.kind.is_routine() } else { self.kind.contains(&told.kind) };
        by_kind && (self.table.is_some() || self.database.is_some())
    }

    /// The data directory of which WAL is read that is not archived.
    fn server(&self) -> Option<PathBuf> {
        let directory = self.include_pg_wal.as_ref()?;
        let is_pg_wal = directory.file_name().is_some_and(|name| name == "pg_wal");
        if is_pg_wal { directory.parent().map(Path::to_path_buf) } else { Some(directory.clone()) }
    }
}

fn minute_text(minute: i64) -> String {
    Timestamp::from_second(minute * 60).map_or(minute.to_string(), output::time)
}

fn show(listing: &Listing) {
    let story = &listing.story;
    let (from, to) = (output::time(listing.since), output::time(listing.until));
    let timeline = story.timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
    output::line(format!("cluster {}{timeline}: {from} to {to}", listing.cluster));
    let Some(last) = story.last_lsn else {
        if story.gaps.is_empty() {
            output::line("  no WAL of this time is in the archive: nothing is known about it");
        }
        return show_gaps(&story.gaps);
    };
    let read = output::count(story.segments, "WAL segment");
    output::entry("read", format!("{read}, up to {last}{}", at(story.last_time)));
    if listing.may_be_late {
        output::entry("", "what the server has not archived yet is not in it: --include-pg-wal DIRECTORY reads its pg_wal too");
    }
    let names = story.names_from.as_ref().map_or("no snapshot has any: numbers are shown".into(), |id| format!("as of {id}"));
    output::entry("names", names);
    output::entry("activity", format!("{}, {} rolled back", output::count(story.commits, "commit"), story.aborts));
    if let Some((bars, scale)) = sparkline(&story.minutes, listing.since, listing.until) {
        output::entry("", bars);
        output::entry("", scale);
    }
    for window in &listing.windows {
        let (from, to) = (output::time(window.from_time), output::time(window.to_time));
        output::entry("window", format!("{from} to {to}, timeline {}: any moment in it can be restored", window.timeline));
    }
    show_gaps(&story.gaps);
    for refused in &listing.refused {
        let text = format!("{} on {}: {}", output::time(refused.at), refused.host, refused.why);
        output::entry_in(Colour::Yellow, "REFUSED", &text);
    }
    for done in &listing.done {
        let Done { at, operation, outcome, user, host, detail } = done;
        output::entry(operation, format!("{} by {user} on {host}, {}: {detail}", output::time(*at), outcome.word()));
    }
    if listing.left_out_unnamed > 0 {
        let are = output::count(listing.left_out_unnamed as u64, "event");
        let text = format!(
            "{are} of relations or databases whose names are not known, left out here: without --table and --database they are shown by \
             their numbers"
        );
        output::entry_in(Colour::Yellow, "UNNAMED", &text);
    }
    if story.events.is_empty() {
        output::line("");
        return output::line("Nothing of what was asked for happened in the WAL that was read.");
    }
    story.events.iter().for_each(|told| show_event(told, listing.server.as_deref()));
    if story.is_cut {
        output::line("");
        output::line("There was more than a list can hold: ask for a shorter time.");
    }
}

fn show_gaps(gaps: &[Gap]) {
    for gap in gaps {
        let text = format!("{} to {}: {}; what happened there is not known", gap.from, gap.to, gap.reason);
        output::entry_in(Colour::Yellow, "GAP", &text);
    }
}

fn at(time: Option<Timestamp>) -> String {
    time.map(|time| format!(", the last transaction at {}", output::exact_time(time))).unwrap_or_default()
}

fn show_event(told: &Told, server: Option<&Path>) {
    let time = match told.time {
        Some(time) => {
            let local = time.to_zoned(TimeZone::system());
            let here = if local.offset().is_zero() { String::new() } else { local.strftime(" (%H:%M:%S %Z)").to_string() };
            format!("{}{here}", output::exact_time(time))
        }
        None => "at a time that no record tells".into(),
    };
    let text = if told.kind.is_destructive() { Part::In(Colour::Red, &told.text) } else { Part::Plain(&told.text) };
    output::line("");
    output::parts(&[Part::Plain(&time), Part::Plain("  "), text]);
    let mut facts = Vec::new();
    if told.xid != 0 {
        facts.push(format!("transaction {}", told.xid));
    }
    facts.push(if told.first_lsn < told.lsn { format!("{} to {}", told.first_lsn, told.lsn) } else { told.lsn.to_string() });
    if told.changed_rows == 0 && told.rows() > 0 {
        facts.push(format!("about {}", output::count(told.rows(), "row")));
    }
    if told.bytes() > 0 {
        facts.push(format!("about {}", output::bytes(told.bytes())));
    }
    output::line(format!("    {}", facts.join(", ")));
    if told.is_incomplete {
        output::line("    not all of it may be known: it began in a gap, or there was more than is kept");
    }
    if !told.beside.is_empty() {
        output::line("    before it this is not there either, because the same transaction did it:");
        told.beside.iter().for_each(|beside| output::line(format!("      {beside}")));
    }
    if told.kind.is_routine() {
        return;
    }
    match server.filter(|_| !told.is_archived) {
        // Its id is found only by who reads from the same beginning.
        _ if told.kind == Kind::Unknown => {
            output::line(format!("    before it: lastgood restore --to xid:{} --exclusive --into DIRECTORY", told.xid));
        }
        None => output::line(format!("    before it: lastgood restore --before {} --into DIRECTORY", told.id)),
        Some(server) => {
            let (server, id) = (server.display(), &told.id);
            output::line("    its WAL is not archived yet. Where PostgreSQL runs, first run SELECT pg_switch_wal(), then");
            output::line(format!("    before it: lastgood restore --before {id} --into DIRECTORY"));
            output::line(format!("    Where it is stopped, over it: lastgood restore --before {id} --into {server}"));
        }
    }
}

/// Commits in equal parts of the time, as bars; and what a bar stands for.
fn sparkline(minutes: &BTreeMap<i64, (u32, u32)>, since: Timestamp, until: Timestamp) -> Option<(String, String)> {
    const HEIGHTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let minute = |time: Timestamp| time.as_second().div_euclid(60);
    let (first, last) = (minute(since).max(*minutes.keys().next()?), minute(until).min(*minutes.keys().next_back()?));
    let width = ((last - first + 1) + BARS - 1).div_euclid(BARS).max(1);
    let mut sums = vec![0u64; ((last - first) / width + 1).try_into().ok()?];
    for (at, (commits, _)) in minutes.range(first..=last) {
        sums[usize::try_from((at - first) / width).ok()?] += u64::from(*commits);
    }
    // One bar compares nothing.
    let most = *sums.iter().max().filter(|most| **most > 0 && sums.len() > 1)?;
    // What is not nothing shows.
    let bar = |sum: &u64| HEIGHTS[(sum * 8).div_ceil(most) as usize];
    let unit = if width == 1 { "a minute".to_string() } else { format!("{width} minutes") };
    let scale = format!("{} to {}, a bar is {unit}, the highest {most} commits", minute_text(first), minute_text(last));
    Some((format!("|{}|", sums.iter().map(bar).collect::<String>()), scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_of_traffic_shows() {
        let at = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
        let minutes = BTreeMap::from([(100, (80, 0)), (101, (40, 1)), (103, (1, 0)), (104, (80, 0))]);
        let (bars, scale) = sparkline(&minutes, at(0), at(1000)).unwrap();
        assert_eq!(bars, "|█▄ ▁█|");
        assert!(scale.ends_with("a bar is a minute, the highest 80 commits"), "{scale}");
        let many: BTreeMap<i64, (u32, u32)> = (0..6000).map(|minute| (minute, (3, 0))).collect();
        let (bars, scale) = sparkline(&many, at(0), at(10_000)).unwrap();
        assert_eq!((bars.chars().count(), scale.contains("100 minutes")), (62, true), "{bars} {scale}");
        assert!(sparkline(&BTreeMap::new(), at(0), at(5)).is_none());
        assert!(sparkline(&BTreeMap::from([(100, (80, 0))]), at(0), at(1000)).is_none());
    }
}
