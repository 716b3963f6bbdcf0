//! Two listings of one prefix, side by side, in the order of keys, with a page of each in memory.

use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::storage::{Depth, ObjectInfo, Storage, StorageError};

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    Left(ObjectInfo),
    Right(ObjectInfo),
    Both(ObjectInfo, ObjectInfo),
}

struct Listing<'a> {
    storage: &'a dyn Storage,
    prefix: &'a str,
    after: Option<String>,
    page: VecDeque<ObjectInfo>,
    more: bool,
}

impl<'a> Listing<'a> {
    fn new(storage: &'a dyn Storage, prefix: &'a str) -> Self {
        Listing { storage, prefix, after: None, page: VecDeque::new(), more: true }
    }

    async fn fill(&mut self) -> Result<(), StorageError> {
        while self.page.is_empty() && self.more {
            let page = self.storage.list(self.prefix, self.after.as_deref(), Depth::All).await?;
            self.more = page.more && !page.objects.is_empty();
            self.after = page.objects.last().map(|o| o.key.to_string());
            self.page.extend(page.objects);
        }
        Ok(())
    }
}

pub struct Both<'a> {
    left: Listing<'a>,
    right: Listing<'a>,
}

impl<'a> Both<'a> {
    pub fn new(left: &'a dyn Storage, right: &'a dyn Storage, prefix: &'a str) -> Self {
        Both { left: Listing::new(left, prefix), right: Listing::new(right, prefix) }
    }

    /// The next key of either.
    pub async fn next(&mut self) -> Result<Option<Side>, StorageError> {
        futures::try_join!(self.left.fill(), self.right.fill())?;
        let order = match (self.left.page.front(), self.right.page.front()) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.key.cmp(&right.key),
        };
        let left = if order.is_le() { self.left.page.pop_front() } else { None };
        let right = if order.is_ge() { self.right.page.pop_front() } else { None };
        Ok(match (left, right) {
            (Some(left), Some(right)) => Some(Side::Both(left, right)),
            (Some(left), None) => Some(Side::Left(left)),
            (None, right) => right.map(Side::Right),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::{LIST_PAGE_KEYS, ObjectKey};

    #[tokio::test]
    async fn every_key_of_either_comes_once_and_in_order() {
        let (left, right) = (MemoryStorage::new(), MemoryStorage::new());
        let put = async |store: &MemoryStorage, number: usize| {
            let key = ObjectKey::new(format!("p/{number:06}"));
            store.create(&key, vec![0; number % 3].into()).await.unwrap();
        };
        // More than a page on each side, ending at different places.
        let count = 2 * LIST_PAGE_KEYS + 500;
        for number in 0..count {
            if number % 2 == 0 || number % 7 == 0 {
                put(&left, number).await;
            }
            if number % 3 == 0 && number < count - 700 {
                put(&right, number).await;
            }
        }
        left.create(&ObjectKey::new("q/1"), vec![].into()).await.unwrap();
        let (mut both, mut at) = (Both::new(&left, &right, "p/"), Vec::new());
        while let Some(side) = both.next().await.unwrap() {
            let (key, sides) = match side {
                Side::Left(o) => (o.key, (true, false)),
                Side::Right(o) => (o.key, (false, true)),
                Side::Both(o, other) => {
                    assert_eq!((&o.key, o.bytes), (&other.key, other.bytes));
                    (o.key, (true, true))
                }
            };
            at.push((key.name().parse::<usize>().unwrap(), sides));
        }
        let expected = (0..count)
            .map(|n| (n, (n % 2 == 0 || n % 7 == 0, n % 3 == 0 && n < count - 700)))
            .filter(|(_, sides)| *sides != (false, false));
        assert_eq!(at, expected.collect::<Vec<_>>());
    }
}
