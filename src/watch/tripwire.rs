//! A look at what was archived since the last look.
//!
//! # Once
//! An alert's name follows from its event and rule, and it is created, never overwritten: whoever looks twice, or from two hosts,
//! raises it once. So a look begins some segments before the last one ended, and a crash in between loses nothing.

use std::sync::Arc;

use super::{deliver, rules};
use crate::clock;
use crate::config::{Alert as Settings, Tripwire};
use crate::monitor::Monitor;
use crate::postgres::lsn::Lsn;
use crate::postgres::wal::name::SegmentName;
use crate::repo::RepoError;
use crate::repo::alert::Alert;
use crate::repo::manifest::Manifest;
use crate::timeline::archive::Archive;
use crate::timeline::indexes::Local;
use crate::timeline::story::{self, Question};
use crate::timeline::told::Told;

/// Segments before the last one that was looked at that are looked at again: transactions that were open then.
const AGAIN: u64 = 16;

/// What is asked.
pub struct Look<'a> {
    pub archive: &'a Archive,
    /// Of the archive's system, oldest first.
    pub manifests: &'a [Manifest],
    /// The last segment of the last look; everything that is known is looked at when absent.
    pub watched: Option<SegmentName>,
    pub local: Local<'a>,
    pub rules: &'a Tripwire,
    pub settings: &'a Settings,
    pub host: String,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Alerts that were raised now.
    pub raised: Vec<(String, Alert)>,
    /// Routes that failed, with the reason.
    pub undelivered: Vec<String>,
    /// Something that may become an alert is not committed yet: look again at the next segment.
    pub is_pending: bool,
}

/// Looks, raises what is new, and tells of it.
pub async fn look(look: &Look<'_>, monitor: &Arc<dyn Monitor>) -> Result<Seen, RepoError> {
    let mut seen = Seen::default();
    let Some(path) = look.archive.newest() else { return Ok(seen) };
    let story = story::tell(&question(look, &path)).await?;
    seen.is_pending = story.is_pending;
    let has_names = story.names_from.is_some();
    for met in rules::judge(&story.events, look.rules, story.known_bytes, has_names) {
        let alert = alert(look, met.event, met.rule);
        if !alert.raise(look.archive.cluster()).await? {
            continue;
        }
        monitor.warn(&alert.what);
        seen.undelivered.extend(deliver::deliver(&alert, look.settings).await);
        seen.raised.push((alert.id(), alert));
    }
    Ok(seen)
}

fn question<'a>(look: &Look<'a>, path: &'a crate::postgres::history::History) -> Question<'a> {
    let bytes = look.archive.segment_bytes;
    // Names that were given since the snapshot are not looked for: of what they name nobody knows how large it was.
    let first = look.watched.and_then(|name| name.number(bytes)).unwrap_or_default().saturating_sub(AGAIN);
    Question {
        archive: look.archive,
        manifests: look.manifests,
        path,
        since: None,
        until: None,
        from: Some(Lsn(first * bytes)),
        to: None,
        many_rows: story::MANY_ROWS.min(look.rules.changed_rows),
        numbers: Some(first..=u64::MAX),
        local: look.local,
        passes_sealed: true,
    }
}

fn alert(look: &Look<'_>, event: &Told, rule: &str) -> Alert {
    let size = match (event.changed_rows, event.rows(), event.bytes()) {
        (0, 0, 0) => String::new(),
        (0, rows, bytes) => format!(" (about {rows} rows, {} MiB)", bytes.div_ceil(1 << 20)),
        _ => String::new(),
    };
    let time = event.time.map(|time| format!(" at {}", clock::seconds(time))).unwrap_or_default();
    let why = match rule {
        "many-drops" => format!("; {} drops within a minute", look.rules.drops_per_minute),
        "shrink" => format!("; together with others, {} % of the cluster", look.rules.shrink_percent),
        _ => String::new(),
    };
    Alert {
        noticed: clock::now(),
        host: look.host.clone(),
        system_identifier: look.archive.system,
        timeline: event.timeline,
        target: event.target,
        event: event.id.clone(),
        time: event.time,
        xid: event.xid,
        rule: rule.into(),
        what: format!("{} in cluster {}{size}{time}, transaction {}{why}", event.text, look.archive.cluster().name(), event.xid),
        restore: format!("lastgood --cluster {} restore --before {} --into DIRECTORY", look.archive.cluster().name(), event.id),
    }
}
