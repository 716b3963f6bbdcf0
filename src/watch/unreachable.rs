//! Telling somebody that a standby cannot fetch WAL. It stays alive, so nothing else shows it.
//!
//! The archive cannot be reached, so this is kept nowhere: it is told, and told again while it lasts.

use jiff::Timestamp;
use serde::Serialize;

use super::deliver;
use crate::clock;
use crate::config::Alert as Settings;

/// The rule's name in alerts.
pub const RULE: &str = "standby-archive";

/// What is sent, in the words of the other alerts.
#[derive(Debug, Serialize)]
struct Told<'a> {
    noticed: Timestamp,
    host: &'a str,
    rule: &'static str,
    what: String,
}

/// Tells that the standby of `cluster` on this host cannot fetch, since when and why. Answers routes that failed.
pub async fn tell(cluster: &str, host: &str, since: Timestamp, why: &str, settings: &Settings) -> Vec<String> {
    let what = format!(
        "the standby of cluster {cluster} on {host} cannot fetch WAL from the archive since {}: {why}; it goes on with what it streams, \
         and asks again",
        clock::seconds(since)
    );
    deliver::deliver(&Told { noticed: clock::now(), host, rule: RULE, what }, settings).await
}
