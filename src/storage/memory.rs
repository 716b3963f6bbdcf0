//! A store in memory, for tests and for what is looked at before it goes on: the contract and nothing else.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use super::{
    Body, Created, Depth, Fault, LIST_PAGE_KEYS, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError, Tier,
};

#[derive(Debug, Default)]
pub struct MemoryStorage {
    objects: Mutex<BTreeMap<ObjectKey, (Bytes, Timestamp)>>,
}

impl MemoryStorage {
    pub fn new() -> Self {
        Self::default()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, (Bytes, Timestamp)>> {
        self.objects.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Replaces an object behind the contract's back, to test how damage is found.
    pub fn tamper(&self, key: &ObjectKey, change: impl FnOnce(&mut Vec<u8>)) {
        let mut objects = self.objects();
        let (bytes, at) = objects.get(key).cloned().expect("no such object to tamper with");
        let mut raw = bytes.to_vec();
        change(&mut raw);
        objects.insert(key.clone(), (raw.into(), at));
    }

    fn error(&self, operation: &'static str, key: &str, fault: Fault) -> StorageError {
        StorageError { operation, place: self.place().into(), key: key.into(), fault, detail: String::new() }
    }
}

/// Cuts `part` out of a whole object; the rule all stores share. `None` when the object is too short.
pub(super) fn cut(bytes: &Bytes, part: Part) -> Option<Bytes> {
    let length = bytes.len() as u64;
    match part {
        Part::Whole => Some(bytes.clone()),
        Part::Range { start, bytes: wanted } => {
            let end = start.checked_add(wanted)?;
            (end <= length).then(|| bytes.slice(start as usize..end as usize))
        }
        Part::Tail { bytes: wanted } => Some(bytes.slice((length - wanted.min(length)) as usize..)),
    }
}

/// Turns keys in order into one page; the rule the memory and directory stores share.
pub(super) fn paginate(prefix: &str, keys: impl Iterator<Item = ObjectInfo>, depth: Depth) -> Page {
    let mut page = Page::default();
    for object in keys {
        let rest = &object.key.as_str()[prefix.len()..];
        let folder = match (depth, rest.find('/')) {
            (Depth::Folder, Some(at)) => Some(rest[..=at].to_string()),
            _ => None,
        };
        if folder.is_some() && folder.as_ref() == page.folders.last() {
            continue;
        }
        if page.objects.len() + page.folders.len() == LIST_PAGE_KEYS {
            page.more = true;
            break;
        }
        match folder {
            Some(folder) => page.folders.push(folder),
            None => page.objects.push(object),
        }
    }
    page
}

#[async_trait]
impl Storage for MemoryStorage {
    fn place(&self) -> &str {
        "memory"
    }

    fn conditional_create(&self) -> bool {
        true
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let bytes = match &body {
            Body::Bytes(pieces) if pieces.len() == 1 => pieces[0].clone(),
            Body::Bytes(pieces) => pieces.concat().into(),
            Body::File { bytes, .. } | Body::Unnamed { bytes, .. } => {
                let path = body.path().unwrap_or_default();
                let mut read = std::fs::read(path).map_err(|_| self.error("create", key.as_str(), Fault::Other))?;
                if (read.len() as u64) < *bytes {
                    return Err(self.error("create", key.as_str(), Fault::Other));
                }
                read.truncate(*bytes as usize);
                read.into()
            }
        };
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Ok(Created::AlreadyThere);
        }
        objects.insert(key.clone(), (bytes, crate::clock::now()));
        Ok(Created::New)
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let found = self.objects().get(key).cloned();
        let (bytes, _) = found.ok_or_else(|| self.error("read", key.as_str(), Fault::NotFound))?;
        let object_bytes = bytes.len() as u64;
        let bytes = cut(&bytes, part).ok_or_else(|| self.error("read", key.as_str(), Fault::Truncated))?;
        Ok(Read { bytes, object_bytes })
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        let objects = self.objects();
        Ok(objects.get(key).map(|(bytes, modified)| ObjectInfo {
            key: key.clone(),
            bytes: bytes.len() as u64,
            modified: *modified,
            tier: Tier::Ready,
        }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        let objects = self.objects();
        let keys = objects
            .iter()
            .filter(|(key, _)| key.as_str().starts_with(prefix) && after.is_none_or(|a| key.as_str() > a))
            .map(|(key, (bytes, modified))| ObjectInfo {
                key: key.clone(),
                bytes: bytes.len() as u64,
                modified: *modified,
                tier: Tier::Ready,
            });
        Ok(paginate(prefix, keys, depth))
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        let mut objects = self.objects();
        for key in keys {
            objects.remove(key);
        }
        Ok(Vec::new())
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
