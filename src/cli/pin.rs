//! `lastgood pin` and `lastgood unpin`

use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};

use super::context::{Global, Place};
use super::keys::Need;
use super::{guard, output, progress};
use crate::clock;
use crate::repo::audit::{self, Event, Outcome};
use crate::repo::expired;
use crate::repo::keep::Keep;
use crate::timeline::find::FindError;

/// Keep a snapshot whatever [retention] says
///
/// It stays restorable to where it was consistent; the WAL that follows it goes by the rules. Pinning again replaces what was said
/// before.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  lastgood pin 20261121T010000Z-ab12 --until 2027-03-31 --reason 'audit of the year'\n  lastgood unpin 20261121T010000Z-ab12"
)]
pub struct Args {
    /// Its id, or the beginning of it
    snapshot: String,
    /// The last day, in UTC, or a time with its zone; for ever when absent
    #[arg(long, value_name = "DATE", value_parser = until)]
    until: Option<Timestamp>,
    /// For those who wonder later
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Say what would be pinned, and stop
    #[arg(long)]
    dry_run: bool,
}

/// Let [retention] decide about a snapshot again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood unpin 20261121T010000Z-ab12 --reason 'the audit is over'")]
pub struct UnpinArgs {
    /// Its id, or the beginning of it
    snapshot: String,
    /// For those who wonder later
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Say what would be unpinned, and stop
    #[arg(long)]
    dry_run: bool,
}

/// A day counts to its end.
fn until(text: &str) -> Result<Timestamp, String> {
    let end_of = |day: civil::Date| day.tomorrow().ok()?.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp());
    let at = match text.parse::<civil::Date>() {
        Ok(day) if text.len() == 10 => end_of(day),
        _ => text.parse::<Timestamp>().ok(),
    };
    let at = at.ok_or("write it as 2027-03-31, or with time and zone as 2027-03-31T18:00:00Z")?;
    if at <= clock::now() { Err("it is over already".into()) } else { Ok(at) }
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let Args { snapshot, until, reason, dry_run } = args;
    let keep = Keep { pinned: true, until, reason, at: clock::now(), who: guard::who() };
    say(global, "pin", &snapshot, keep, dry_run).await
}

pub async fn unpin(global: &Global, args: UnpinArgs) -> anyhow::Result<u8> {
    let keep = Keep { pinned: false, until: None, reason: args.reason, at: clock::now(), who: guard::who() };
    say(global, "unpin", &args.snapshot, keep, args.dry_run).await
}

async fn say(global: &Global, operation: &str, wanted: &str, keep: Keep, dry_run: bool) -> anyhow::Result<u8> {
    let place = Place::open_to(global, Need::Write).await?;
    let ids = place.cluster.snapshot_ids().await?;
    let mut found: Vec<String> = ids.into_iter().filter(|id| !wanted.is_empty() && id.starts_with(wanted)).collect();
    let id = match (found.pop(), found.is_empty()) {
        (Some(id), true) => id,
        (None, _) => return Err(FindError::UnknownSnapshot { id: wanted.into() }.into()),
        (Some(last), false) => {
            found.push(last);
            return Err(FindError::AmbiguousSnapshot { id: wanted.into(), found }.into());
        }
    };
    if !dry_run {
        keep.put(&place.cluster, &id).await?;
        if keep.pinned && expired::ids(&place.cluster).await?.contains(&id) {
            let text = format!("an expiry of {id} has begun before: look with `lastgood list` whether it is still there");
            progress::monitor(global.json).warn(&text);
        }
        let detail = if keep.pinned { format!("{id} {}", keep.describe()) } else { format!("{id} {}", keep.reason) };
        let event = Event::new(operation, place.cluster.name(), Outcome::Done, detail);
        if let Err(error) = audit::append(&place.cluster, &keep.who, event).await {
            progress::monitor(global.json).warn(&format!("the audit could not be written: {error}"));
        }
    }
    let what = match keep.pinned {
        true => keep.describe(),
        false => "no longer pinned: the rules of [retention] decide".into(),
    };
    let would = if dry_run { "would be: " } else { "" };
    match global.json {
        true => output::json(&serde_json::json!({ "event": "result", "snapshot": id, "done": !dry_run, "pin": keep })),
        false => output::line(format!("{would}snapshot {id} {what}")),
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_to_their_end_and_the_past_is_refused() {
        assert_eq!(until("9000-03-31").unwrap().to_string(), "9000-04-01T00:00:00Z");
        assert_eq!(until("9000-03-31T18:00:00+02:00").unwrap().to_string(), "9000-03-31T16:00:00Z");
        for bad in ["", "31.3.9000", "9000-02-30", "9000-03-31T18:00:00", "2001-01-01", "soon"] {
            assert!(until(bad).is_err(), "{bad}");
        }
    }
}
