//! `lastgood mirror`

use std::sync::Arc;

use super::context::{self, Global};
use super::keys::{Need, keys};
use super::quiet::Quiet;
use super::{error, output, places, progress};
use crate::archive::behind;
use crate::clock;
use crate::config::{Config, ConfigError, Mirror};
use crate::repo::repository::Repository;
use crate::storage::Storage;
use crate::storage::pace::Pace;
use crate::upkeep::mirror::{self, Report, Request, Way};

/// Copy what a mirror lacks, each object proven on the way
///
/// Compares listings, so a second run costs little and an interrupted one is run again. Nothing is overwritten and nothing is
/// deleted. Exits with 7 when something is damaged, or lies under one name with two contents.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood mirror\n  lastgood mirror --to offsite --dry-run\n  lastgood mirror --heal")]
pub struct Args {
    /// Only this mirror; all that are configured when absent
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// Before that, give back to the first repository what it lost and the mirror has
    ///
    /// What expiry has removed does not come back.
    #[arg(long)]
    heal: bool,
    /// Fill the first repository from this mirror, with everything that it has: after the first was lost
    #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "heal"])]
    from: Option<String>,
    /// Say what would be copied
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub quiet: Quiet,
}

/// From where, to where, and how.
type Journey = (Arc<dyn Storage>, Arc<dyn Storage>, Way);

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let chosen = chosen(&config, args.to.as_deref().or(args.from.as_deref()))?;
    let first = context::storage(&config).await?;
    let mut is_sound = true;
    for mirror in chosen {
        let other: Arc<dyn Storage> = Arc::new(Pace::new(places::mirror(&config, mirror).await?, mirror.bytes_per_s));
        let ways: Vec<Journey> = match (&args.from, args.heal) {
            (Some(_), _) => vec![(other, first.clone(), Way::Copy)],
            (None, true) => vec![(other.clone(), first.clone(), Way::Heal), (first.clone(), other, Way::Copy)],
            (None, false) => vec![(first.clone(), other, Way::Copy)],
        };
        for (from, to, way) in ways {
            is_sound &= go(global, &config, (mirror, way), from, to, args.dry_run).await?;
        }
    }
    Ok(if is_sound { 0 } else { error::DAMAGE })
}

fn chosen<'a>(config: &'a Config, name: Option<&str>) -> anyhow::Result<Vec<&'a Mirror>> {
    let known: Vec<&str> = config.mirror.iter().map(|mirror| mirror.name.as_str()).collect();
    let chosen: Vec<&Mirror> = config.mirror.iter().filter(|mirror| name.is_none_or(|name| name == mirror.name)).collect();
    if chosen.is_empty() {
        let (what, mend) = match name {
            Some(name) => (format!("no mirror is called {name:?}"), format!("the configuration knows: {}", known.join(", "))),
            None => ("no mirror is configured".into(), "add a [[mirror]] with name and url".into()),
        };
        return Err(ConfigError::Invalid { what, mend }.into());
    }
    Ok(chosen)
}

async fn go(
    global: &Global,
    config: &Config,
    (mirror, way): (&Mirror, Way),
    from: Arc<dyn Storage>,
    to: Arc<dyn Storage>,
    dry_run: bool,
) -> anyhow::Result<bool> {
    let (source, destination) = (from.place().to_string(), to.place().to_string());
    let repository = Repository::open(from, &keys(config, Need::Read)?).await?.with_lease_s(config.repository.lease_s);
    let note = behind::Note::of(&config.archive.spool, &mirror.name);
    let taken = (way == Way::Copy && !dry_run).then(|| note.take());
    let monitor = progress::monitor(global.json);
    let began = clock::monotonic();
    let request = Request { way, dry_run, parallel: mirror.max_requests };
    let report = mirror::mirror(&repository, to, &request, monitor.clone()).await?;
    drop(monitor);
    if let Some(taken) = taken.filter(|_| report.is_sound()) {
        taken.done();
    }
    let seconds = began.elapsed().as_secs_f64();
    if global.json {
        output::json(&serde_json::json!({ "event": "result", "mirror": mirror.name, "way": way, "from": source,
            "to": destination, "dry_run": dry_run, "seconds": seconds, "report": report }));
    } else {
        show(&report, &format!("from {source} to {destination}"), dry_run, seconds);
    }
    Ok(report.is_sound())
}

fn show(report: &Report, way: &str, dry_run: bool, seconds: f64) {
    for problem in &report.differing {
        output::line(format!("DIFFERS {}: {}", problem.object, problem.what));
    }
    for problem in &report.damaged {
        output::line(format!("DAMAGED {}: {}", problem.object, problem.what));
    }
    for snapshot in &report.withheld {
        output::line(format!("  snapshot {snapshot} was not copied: it would not be complete over there"));
    }
    let copied = output::count(report.copied, "object");
    let compared = output::count(report.compared, "key");
    let size = output::bytes(report.bytes);
    if dry_run {
        output::line(format!("{way}: {copied} ({size}) would be copied; {compared} compared"));
        return;
    }
    output::line(format!("{way}: {copied} ({size}) copied and proven in {}; {compared} compared", output::duration(seconds)));
    if report.trailer_only > 0 {
        let count = output::count(report.trailer_only, "object");
        output::line(format!("  of {count} only trailer and length could be proven: the configured key is a writer's"));
    }
    if report.only_there > 0 {
        output::line(format!("  {} are only in the copy: expired here, or lost", output::count(report.only_there, "object")));
    }
}
