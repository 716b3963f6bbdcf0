//! What lies in a directory, as keys in their order.

use std::fs;
use std::io;
use std::path::Path;

use super::info;
use crate::storage::{Depth, LIST_PAGE_KEYS, ObjectInfo, ObjectKey};

/// A walk through the directory tree in the byte order of keys.
pub struct Walk<'a> {
    pub root: &'a Path,
    pub prefix: &'a str,
    pub after: &'a str,
    pub depth: Depth,
}

impl Walk<'_> {
    /// Adds what is below `folder` (empty or ending in `/`) until one more than a page is found.
    pub fn folder(&self, folder: &str, found: &mut Vec<ObjectInfo>) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(folder)) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut keys = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // A directory sorts with its slash, as its keys do.
            let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
            let key = format!("{folder}{name}{slash}");
            if ObjectKey::is_valid(key.trim_end_matches('/')) {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        for key in keys {
            if found.len() > LIST_PAGE_KEYS {
                return Ok(());
            }
            let is_folder = key.ends_with('/');
            // A folder may be on the way to the prefix or to `after`; a file is only itself.
            let in_prefix = key.starts_with(self.prefix) || (is_folder && self.prefix.starts_with(key.as_str()));
            let on_the_way = is_folder && self.after.starts_with(key.as_str());
            let passed = key.as_str() <= self.after && !on_the_way;
            if !in_prefix || passed {
                continue;
            }
            if is_folder {
                self.enter(&key, found)?;
                continue;
            }
            match fs::metadata(self.root.join(&key)) {
                Ok(metadata) => found.push(info(ObjectKey::new(key), &metadata)),
                // Deleted since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn enter(&self, folder: &str, found: &mut Vec<ObjectInfo>) -> io::Result<()> {
        let is_below_prefix = folder.len() > self.prefix.len();
        if self.depth == Depth::All || !is_below_prefix {
            return self.folder(folder, found);
        }
        // By folder, one key below is enough to show it.
        let mut below = Vec::new();
        Walk { depth: Depth::All, ..*self }.folder(folder, &mut below)?;
        found.extend(below.into_iter().next());
        Ok(())
    }
}
