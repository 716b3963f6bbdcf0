//! Pages of several listings of one prefix as one page.

use std::collections::BTreeMap;

use super::super::{LIST_PAGE_KEYS, ObjectInfo, Page, Tier};

enum Entry {
    Object(ObjectInfo),
    Folder(String),
}

/// Only what lies before the end of every page that goes on is complete; the rest comes with the next page.
pub fn merge(prefix: &str, pages: Vec<Page>) -> Page {
    let mut pages = pages;
    if pages.len() == 1 {
        return pages.swap_remove(0);
    }
    let end = |page: &Page| {
        let object = page.objects.last().map(|object| object.key.to_string());
        object.max(page.folders.last().map(|folder| format!("{prefix}{folder}")))
    };
    let horizon = pages.iter().filter(|page| page.more).filter_map(end).min();
    let mut is_more = pages.iter().any(|page| page.more);
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for page in pages {
        for folder in page.folders {
            entries.insert(format!("{prefix}{folder}"), Entry::Folder(folder));
        }
        for object in page.objects {
            // The longest is whole; of those, one that can be read now.
            let rank = |object: &ObjectInfo| (object.bytes, object.tier == Tier::Ready);
            let better = |entry: &Entry| matches!(entry, Entry::Object(there) if rank(there) >= rank(&object));
            if !entries.get(object.key.as_str()).is_some_and(better) {
                entries.insert(object.key.to_string(), Entry::Object(object));
            }
        }
    }
    let mut merged = Page::default();
    for (count, (at, entry)) in entries.into_iter().enumerate() {
        if count == LIST_PAGE_KEYS || horizon.as_ref().is_some_and(|horizon| at > *horizon) {
            is_more = true;
            break;
        }
        match entry {
            Entry::Object(object) => merged.objects.push(object),
            Entry::Folder(folder) => merged.folders.push(folder),
        }
    }
    merged.more = is_more;
    merged
}
