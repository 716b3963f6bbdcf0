//! The audit: who did, or tried to do, something that could cost data.
//!
//! # What
//! Entries are documents `audit/<block>/<number>`, numbered from 1, one chain for the whole repository. Each holds the SHA-256 of
//! the raw content of the one before, so an entry that is changed or missing in the middle breaks the chain. Entries cut off at the
//! end leave nothing behind in the chain itself; therefore every snapshot's manifest holds the number and hash of the entry that
//! was the last when it was committed.
//!
//! # Consistency
//! A number is taken by creating its object; who comes second reads the new end and tries the next number.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::document::{self, Document, first_defect};
use super::layout;
use super::object::{self, Sha};
use super::report;
use super::repository::Cluster;
use crate::clock;
use crate::storage::{Depth, list_all};

/// Who acts; the command line knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    pub user: String,
    /// Behind `sudo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<String>,
    pub host: String,
    pub pid: u32,
    /// Whether a person sat at a terminal.
    pub terminal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Turned away; nothing was changed.
    Refused,
    /// Began. Without a later entry that names this one, it never ended: a crash, or a power cut.
    Attempted,
    Done,
    Failed,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Refused => "refused",
            Outcome::Attempted => "attempted",
            Outcome::Done => "done",
            Outcome::Failed => "failed",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `restore`, `undo`, `release`, `expire`, `key add` …
    pub operation: String,
    pub cluster: String,
    pub outcome: Outcome,
    /// How it was confirmed: `not needed`, `typed`, `code`; absent where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<String>,
    /// The code of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The plan as it was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<serde_json::Value>,
    /// For people: why it was refused or failed, or what came of it.
    pub detail: String,
    /// The report that was written about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<report::Reference>,
    /// Of a `done` or `failed`: the number of the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
}

impl Event {
    pub fn new(operation: &str, cluster: &str, outcome: Outcome, detail: String) -> Event {
        let (operation, cluster) = (operation.to_string(), cluster.to_string());
        Event { operation, cluster, outcome, confirmed: None, code: None, plan: None, detail, report: None, attempt: None }
    }

    /// Something was turned away before anything was changed.
    pub fn refusal(operation: &str, cluster: &str, why: String) -> Event {
        Event::new(operation, cluster, Outcome::Refused, why)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub number: u64,
    /// SHA-256 of the raw content of entry `number - 1`; zeros for the first.
    pub previous: Sha,
    /// The host's clock.
    pub at: Timestamp,
    pub who: Who,
    pub event: Event,
    pub written_by: String,
}

impl Document for Entry {
    fn defect(&self) -> Option<String> {
        let is_report =
            |report: &report::Reference| crate::config::is_cluster_name(&report.cluster) && document::is_report_id(&report.id);
        first_defect([
            (document::is_time(self.at), "its time is impossible"),
            ((1..NUMBER_MAX).contains(&self.number), "its number is impossible"),
            (self.event.report.as_ref().is_none_or(is_report), "it names a report that cannot be"),
        ])
    }
}

/// The end of the chain, as a manifest remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub number: u64,
    pub sha256: Sha,
}

/// Entries have ten digits in their keys.
const NUMBER_MAX: u64 = 10_000_000_000;
/// Numbers that others may take before we give up.
const TRIES: u32 = 100;
const NOTHING: Head = Head { number: 0, sha256: Sha([0; 32]) };

/// Appends an entry and answers its number.
pub async fn append(cluster: &Cluster, who: &Who, event: Event) -> Result<u64, RepoError> {
    Ok(append_behind(cluster, who, event, None).await?.number)
}

/// The same for who knows what was the end a moment ago; answers the new one. An end that others have passed is looked for again.
pub async fn append_behind(cluster: &Cluster, who: &Who, event: Event, end: Option<Head>) -> Result<Head, RepoError> {
    let mut tries = 0;
    let mut known = end;
    loop {
        let head = match known.take() {
            Some(head) => head,
            None => head(cluster).await?,
        };
        let entry = Entry {
            number: head.number + 1,
            previous: head.sha256,
            at: clock::now(),
            who: who.clone(),
            event: event.clone(),
            written_by: concat!("lastgood ", env!("CARGO_PKG_VERSION")).into(),
        };
        let key = layout::audit_entry(entry.number);
        let raw = object::to_json(&entry);
        match object::put_document(cluster.vault(), &key, &raw).await {
            Ok(_) => return Ok(Head { number: entry.number, sha256: Sha::of(&raw) }),
            // Somebody else took the number.
            Err(RepoError::Conflict { .. }) if tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// The number in a name; one behind which there could be no other is none.
fn number(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number| (1..NUMBER_MAX).contains(number))
}

/// The last entry.
pub async fn head(cluster: &Cluster) -> Result<Head, RepoError> {
    let blocks = list_all(cluster.storage(), layout::AUDIT, Depth::Folder).await?;
    let Some(block) = blocks.folders.last() else { return Ok(NOTHING) };
    let page = list_all(cluster.storage(), &format!("{}{block}", layout::AUDIT), Depth::All).await?;
    let Some(last) = page.objects.last() else { return Ok(NOTHING) };
    let number = number(last.key.name()).ok_or_else(|| RepoError::damaged(&last.key, "its name is no number"))?;
    match object::get_document(cluster.vault(), &last.key).await {
        Ok(raw) => Ok(Head { number, sha256: Sha::of(&raw) }),
        // The next entry cannot vouch for it; reading the chain names it.
        Err(error) if error.is_damage() => Ok(Head { number, ..NOTHING }),
        Err(error) => Err(error),
    }
}

/// What was read, and everything that is wrong with it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Chain {
    pub entries: Vec<Entry>,
    /// Number of the entry that it is about, and what.
    pub problems: Vec<(u64, String)>,
}

/// Reads the whole chain, and compares it with what manifests remember of it.
pub async fn read(cluster: &Cluster, remembered: &[(String, Head)]) -> Result<Chain, RepoError> {
    let mut chain = Chain::default();
    let mut heads: BTreeMap<u64, Option<Sha>> = BTreeMap::from([(0, Some(NOTHING.sha256))]);
    let blocks = list_all(cluster.storage(), layout::AUDIT, Depth::Folder).await?;
    for block in &blocks.folders {
        for found in list_all(cluster.storage(), &format!("{}{block}", layout::AUDIT), Depth::All).await?.objects {
            let Some(number) = number(found.key.name()) else { continue };
            let (last, before) = heads.last_key_value().map_or((0, None), |(last, before)| (*last, *before));
            if last + 1 < number {
                let until = if last + 2 == number { String::new() } else { format!(", and all up to {}", number - 1) };
                chain.problems.push((last + 1, format!("it is missing{until}")));
            }
            match object::get_document(cluster.vault(), &found.key).await {
                Ok(raw) => {
                    heads.insert(number, Some(Sha::of(&raw)));
                    // Whoever wrote what cannot be read had the keys: the chain goes on behind it.
                    let entry: Entry = match object::from_json(&found.key, &raw) {
                        Ok(entry) => entry,
                        Err(error) => {
                            chain.problems.push((number, format!("it cannot be read: {error}")));
                            continue;
                        }
                    };
                    if entry.number != number {
                        chain.problems.push((number, format!("{} says that it is entry {}", found.key, entry.number)));
                    }
                    if last + 1 == number && before.is_some_and(|before| before != entry.previous) {
                        chain.problems.push((last, format!("it was changed: entry {number} holds another hash of it")));
                    }
                    chain.entries.push(entry);
                }
                Err(error) if error.is_damage() || error.is_newer_epoch() => {
                    chain.problems.push((number, format!("it cannot be read: {error}")));
                    heads.insert(number, None);
                }
                Err(error) => return Err(error),
            }
        }
    }
    let last = heads.last_key_value().map_or(0, |(last, _)| *last);
    for (snapshot, head) in remembered {
        match heads.get(&head.number) {
            Some(Some(found)) if *found == head.sha256 => {}
            _ if head.number > last => {
                let what = format!("snapshot {snapshot} saw {} entries, and there are {last}", head.number);
                chain.problems.push((head.number, format!("the end of the audit was removed: {what}")));
            }
            _ => chain.problems.push((head.number, format!("it is not the entry that snapshot {snapshot} saw"))),
        }
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::repo::repository::Repository;
    use crate::repo::seal::keys::Keys;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::record::{Counts, Record};

    #[tokio::test]
    async fn an_end_that_others_passed_is_looked_for_again_and_one_that_holds_is_not() {
        let store = Record::new(MemoryStorage::new());
        let log = store.log();
        let (repository, _) = Repository::open_or_create(Arc::new(store), &Keys::default(), None).await.unwrap();
        let cluster = repository.cluster("shop");
        let who = Who { user: "dba".into(), on_behalf_of: None, host: "db1".into(), pid: 1, terminal: false };
        let event = |text: &str| Event::new("restore", "shop", Outcome::Attempted, text.into());
        let first = append_behind(&cluster, &who, event("ours"), None).await.unwrap();
        log.clear();
        let second = append_behind(&cluster, &who, event("ours again"), Some(first)).await.unwrap();
        assert_eq!(log.counts(), Counts { create: 1, ..Counts::default() });
        append(&cluster, &who, event("somebody else's")).await.unwrap();
        let last = append_behind(&cluster, &who, event("behind that"), Some(second)).await.unwrap();
        let chain = read(&cluster, &[("a snapshot".into(), last)]).await.unwrap();
        assert_eq!((last.number, chain.entries.len(), chain.problems), (4, 4, vec![]));
    }
}
