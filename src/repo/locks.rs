//! Until when objects are locked, without asking for each of them.
//!
//! An object is locked when it is written, for as many days as are configured: a listing tells when that was. What is locked for longer
//! later is written down: `locks/<number>` names the objects, and the day. So two bounds are known of every object. At *most* until
//! then is it locked, so that no deletion is tried before. At *least* until then is it locked, so that what must stay longer is
//! found in time.
//!
//! # Where this may be wrong
//! Another number of days was configured before: each document says which, and of several the longest and the shortest count. Objects
//! from before there were locks, or before the first document: nothing is at least, and the configured days are at most. A document
//! that is lost, or locks that somebody else set: a deletion is then refused by the store, and that object stays.
//!
//! # Clocks
//! Both times are the store's, as far as it has told its time; the bounds are an hour apart for where it has not.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::document::{self, Document, first_defect};
use super::object;
use super::repository::Cluster;
use crate::storage::bucket::Lock;
use crate::storage::{Depth, ObjectInfo, ObjectKey, StorageError, list_all};

/// How wrong a clock may be with which a store was written to.
const SLACK: SignedDuration = SignedDuration::from_hours(1);
/// Keys that are locked for longer at a time.
const BATCH_KEYS: usize = 1000;

/// `locks/<number>`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    pub at: Timestamp,
    /// For how many days objects are locked when they are written.
    pub days: u32,
    /// From when on all objects were written with a lock.
    pub since: Timestamp,
    /// Until when these objects are locked.
    pub until: Timestamp,
    /// Their keys.
    pub objects: Vec<String>,
}

impl Document for Extension {
    fn defect(&self) -> Option<String> {
        let times = [self.at, self.since, self.until];
        first_defect([
            (times.into_iter().all(document::is_time), "its times are impossible"),
            // Object Lock knows a hundred years.
            (self.days <= 36_500, "its days are impossible"),
        ])
    }
}

impl Extension {
    /// What it says is of no use any more: neither of its objects nor of any that was written in its days.
    fn is_over(&self, now: Timestamp) -> bool {
        self.until < now && days_after(self.at, 2 * self.days) < now
    }
}

/// Between these an object's lock ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub least: Timestamp,
    pub most: Timestamp,
}

/// So many days later.
pub fn days_after(at: Timestamp, days: u32) -> Timestamp {
    at.checked_add(SignedDuration::from_hours(24 * i64::from(days))).unwrap_or(Timestamp::MAX)
}

/// Half as many days later.
pub fn half_days_after(at: Timestamp, days: u32) -> Timestamp {
    at.checked_add(SignedDuration::from_hours(12 * i64::from(days))).unwrap_or(Timestamp::MAX)
}

/// All that is known of the locks of a cluster's objects.
#[derive(Debug, Clone)]
pub struct Known {
    /// The store's time.
    pub now: Timestamp,
    /// For how many days objects are locked when they are written now.
    pub days: u32,
    shortest: u32,
    longest: u32,
    since: Timestamp,
    until: BTreeMap<String, Timestamp>,
    /// Whether the newest document says what is configured.
    is_noted: bool,
    last: u32,
    over: Vec<ObjectKey>,
}

impl Known {
    /// `None` where nothing is locked.
    pub async fn load(cluster: &Cluster) -> Result<Option<Known>, RepoError> {
        let Some(lock) = cluster.storage().bucket().and_then(|bucket| bucket.lock()) else { return Ok(None) };
        let mut known = Known::of(lock);
        for info in list_all(cluster.storage(), &cluster.layout().locks(), Depth::All).await?.objects {
            known.last = known.last.max(info.key.name().parse().unwrap_or(0));
            let read = object::get_document(cluster.vault(), &info.key).await;
            match read.and_then(|raw| object::from_json(&info.key, &raw)) {
                Ok(extension) => known.add(info.key, extension),
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(known))
    }

    /// Before any document.
    pub fn of(lock: Lock) -> Known {
        let Lock { days, now } = lock;
        let (until, over) = (BTreeMap::new(), Vec::new());
        Known { now, days, shortest: days, longest: days, since: now, until, is_noted: false, last: 0, over }
    }

    /// Documents come in the order of their numbers.
    fn add(&mut self, key: ObjectKey, extension: Extension) {
        self.since = self.since.min(extension.since);
        self.is_noted = extension.days == self.days;
        if extension.is_over(self.now) {
            return self.over.push(key);
        }
        self.shortest = self.shortest.min(extension.days);
        self.longest = self.longest.max(extension.days);
        for object in extension.objects {
            let until = self.until.entry(object).or_insert(extension.until);
            *until = extension.until.max(*until);
        }
    }

    pub fn ends(&self, object: &ObjectInfo) -> Ends {
        let extended = self.until.get(object.key.as_str()).copied();
        let written =
            if object.modified < self.since { Timestamp::MIN } else { days_after(object.modified, self.shortest) - SLACK };
        Ends {
            least: written.max(extended.unwrap_or(Timestamp::MIN)),
            most: days_after(object.modified, self.longest).max(extended.unwrap_or(Timestamp::MIN)) + SLACK,
        }
    }

    /// Until when an object is locked, as far as deletions are concerned; `None` when it can be deleted.
    pub fn locked(&self, object: &ObjectInfo) -> Option<Timestamp> {
        Some(self.ends(object).most).filter(|most| *most > self.now)
    }

    /// Locks objects for longer, and writes down which. Nothing is written down that the store refused.
    pub async fn extend(&self, cluster: &Cluster, keys: &[ObjectKey], until: Timestamp) -> Result<Extended, RepoError> {
        let mut extended = Extended { objects: 0, until, first_failure: None };
        let mut objects = Vec::new();
        for batch in keys.chunks(BATCH_KEYS) {
            let failed = match cluster.storage().bucket() {
                Some(bucket) => bucket.extend(batch, until).await?,
                None => Vec::new(),
            };
            let is_done = |key: &&ObjectKey| failed.iter().all(|(other, _)| *other != **key);
            objects.extend(batch.iter().filter(is_done).map(ObjectKey::to_string));
            extended.first_failure = extended.first_failure.or_else(|| failed.into_iter().next().map(|(_, error)| error));
        }
        extended.objects = objects.len();
        if !objects.is_empty() || !self.is_noted {
            let note = Extension { at: self.now, days: self.days, since: self.since, until, objects };
            let key = cluster.layout().locks_number(self.last.saturating_add(1));
            object::put_document(cluster.vault(), &key, &object::to_json(&note)).await?;
            // Where this host may not delete, another one does.
            let _ = cluster.storage().delete(&self.over).await;
        }
        Ok(extended)
    }
}

/// What was locked for longer.
#[derive(Debug)]
pub struct Extended {
    pub objects: usize,
    pub until: Timestamp,
    /// Of those that could not be.
    pub first_failure: Option<StorageError>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Tier;

    fn at(text: &str) -> Timestamp {
        format!("2026-{text}T00:00:00Z").parse().unwrap()
    }

    fn info(key: &str, modified: Timestamp) -> ObjectInfo {
        ObjectInfo { key: ObjectKey::new(key), bytes: 1, modified, tier: Tier::Ready }
    }

    fn note(known: &mut Known, number: u32, extension: Extension) {
        known.add(ObjectKey::new(format!("locks/{number}")), extension);
    }

    #[test]
    fn an_object_is_locked_from_when_it_was_written_or_until_a_document_says() {
        let mut known = Known::of(Lock { days: 10, now: at("03-01") });
        // Nobody wrote down yet that there are locks.
        let ends = known.ends(&info("a", at("02-25")));
        assert_eq!((ends.least, ends.most), (Timestamp::MIN, at("03-07") + SLACK));
        let (since, objects) = (at("02-01"), vec!["b".to_string()]);
        note(&mut known, 1, Extension { at: since, days: 10, since, until: at("03-20"), objects });
        let ends = known.ends(&info("a", at("02-25")));
        assert_eq!((ends.least, ends.most), (at("03-07") - SLACK, at("03-07") + SLACK));
        assert_eq!(known.ends(&info("b", at("01-01"))), Ends { least: at("03-20"), most: at("03-20") + SLACK });
        assert_eq!(known.locked(&info("a", at("02-10"))), None);
        assert_eq!(known.locked(&info("b", at("02-10"))), Some(at("03-20") + SLACK));
        assert!(known.is_noted);
    }

    #[test]
    fn of_several_numbers_of_days_the_shortest_protects_and_the_longest_locks() {
        let mut known = Known::of(Lock { days: 10, now: at("03-01") });
        let since = at("01-01");
        note(&mut known, 1, Extension { at: at("02-10"), days: 40, since, until: since, objects: Vec::new() });
        assert!(!known.is_noted, "what is configured now is to be written down");
        let ends = known.ends(&info("a", at("02-25")));
        assert_eq!((ends.least, ends.most), (at("03-07") - SLACK, days_after(at("02-25"), 40) + SLACK));
        // Long after, it counts no more, and goes.
        let mut later = Known::of(Lock { days: 10, now: at("07-01") });
        note(&mut later, 1, Extension { at: at("02-10"), days: 40, since, until: since, objects: vec!["a".into()] });
        assert_eq!((later.longest, later.over.len(), later.since), (10, 1, since));
    }
}
