//! Directories that are no part of a cluster although they may lie in one, or be reached from one by a link: repositories and spools.

use std::io;
use std::path::{Path, PathBuf};

/// A directory of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    /// In words: `the repository`.
    pub what: String,
    pub path: PathBuf,
}

impl Apart {
    /// Whether it is `dir`, lies in it, or holds it. `dir` is a path without links.
    pub fn overlaps(&self, dir: &Path) -> bool {
        let own = real(&self.path);
        own.starts_with(dir) || dir.starts_with(&own)
    }

    /// Whether it is `dir` or lies in it. `dir` is a path without links.
    pub fn is_in(&self, dir: &Path) -> bool {
        real(&self.path).starts_with(dir)
    }
}

/// The path without links, dots and slashes at its end. What does not exist yet is placed in the nearest directory above it that does.
/// Where nothing can be asked (a dead mount), the path as it is written counts.
pub fn real(path: &Path) -> PathBuf {
    let written: PathBuf = std::path::absolute(path).unwrap_or_else(|_| path.into()).components().collect();
    for above in written.ancestors() {
        match above.canonicalize() {
            Ok(found) => return found.join(written.strip_prefix(above).unwrap_or(Path::new(""))).components().collect(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_yet_is_where_its_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("repository/10")).unwrap();
        std::os::unix::fs::symlink(root.join("repository"), root.join("way")).unwrap();
        assert_eq!(real(&root.join("way/new/data/")), root.join("repository/new/data"));
        let repository = Apart { what: "the repository".into(), path: root.join("way/") };
        for place in ["repository/x", "repository", ""] {
            assert!(repository.overlaps(&real(&root.join(place))), "{place}");
        }
        for place in ["repository-2", "other"] {
            assert!(!repository.overlaps(&real(&root.join(place))), "one is not inside ten: {place}");
        }
        assert!(repository.is_in(&root) && !repository.is_in(&root.join("repository/10")));
    }
}
