//! When which objects were read and proven last.
//!
//! `verified/<number>` holds all that is known, as stretches of keys in order, each with one time; the highest number counts. A key
//! in no stretch was never read. What is written later into a stretch counts as read at that time: it is due earlier for that,
//! never later.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::document::{self, Document, first_defect};
use super::object;
use super::repository::Cluster;
use crate::storage::{Depth, ObjectKey, list_all};

/// Keys from the first to the last, all read at that time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    pub first: String,
    pub last: String,
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub at: Timestamp,
    /// Nothing waits since before this: the time of the oldest reading, or of the oldest object that was never read.
    pub oldest: Option<Timestamp>,
    pub stretches: Vec<Stretch>,
}

impl Document for Verified {
    fn defect(&self) -> Option<String> {
        let mut times = self.stretches.iter().map(|stretch| stretch.at).chain([self.at]).chain(self.oldest);
        first_defect([(times.all(document::is_time), "its times are impossible")])
    }
}

impl Verified {
    /// The newest record that can be read; `None` when nothing was ever verified by portions, or nothing tells of it any more: then
    /// everything is read again.
    pub async fn read(cluster: &Cluster) -> Result<Option<Verified>, RepoError> {
        for key in last(cluster).await?.into_iter().rev() {
            let read = object::get_document(cluster.vault(), &key).await;
            match read.and_then(|raw| object::from_json(&key, &raw)) {
                Ok(verified) => return Ok(Some(verified)),
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// When a key was read last.
    pub fn of(&self, key: &str) -> Option<Timestamp> {
        let at = self.stretches.partition_point(|stretch| stretch.last.as_str() < key);
        self.stretches.get(at).filter(|stretch| stretch.first.as_str() <= key).map(|stretch| stretch.at)
    }

    /// Puts together what is known of keys, which come in order.
    pub fn of_keys(at: Timestamp, keys: impl Iterator<Item = (String, Option<Timestamp>)>) -> Verified {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut touches = false;
        for (key, read) in keys {
            match (read, stretches.last_mut().filter(|_| touches)) {
                (Some(read), Some(last)) if last.at == read => last.last = key,
                (Some(read), _) => stretches.push(Stretch { first: key.clone(), last: key, at: read }),
                (None, _) => {}
            }
            touches = read.is_some();
        }
        Verified { at, oldest: None, stretches }
    }

    /// Writes it behind what was there, and removes that where it may be. Of two who write at once, one is told.
    pub async fn put(&self, cluster: &Cluster) -> Result<(), RepoError> {
        let before = last(cluster).await?;
        let number = before.last().and_then(|key| key.name().parse::<u32>().ok()).unwrap_or(0).saturating_add(1);
        object::put_document(cluster.vault(), &cluster.layout().verified_number(number), &object::to_json(self)).await?;
        let _ = cluster.storage().delete(&before).await;
        Ok(())
    }
}

async fn last(cluster: &Cluster) -> Result<Vec<ObjectKey>, RepoError> {
    let page = list_all(cluster.storage(), &cluster.layout().verified(), Depth::All).await?;
    Ok(page.objects.into_iter().map(|object| object.key).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_tell_each_key_its_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let known = [("a", Some(1)), ("b", Some(1)), ("c", None), ("d", Some(1)), ("e", Some(2)), ("g", Some(2))];
        let keys = known.iter().map(|(key, time)| (key.to_string(), time.map(at)));
        let verified = Verified::of_keys(at(9), keys);
        assert_eq!(verified.stretches.len(), 3);
        known.iter().for_each(|(key, time)| assert_eq!(verified.of(key), time.map(at), "{key}"));
        assert_eq!((verified.of("f"), verified.of("0"), verified.of("h")), (Some(at(2)), None, None));
    }
}
