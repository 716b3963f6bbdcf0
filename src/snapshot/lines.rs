//! What the file lists of a snapshot must be, line by line: one place for who restores from them and for who verifies them.
//!
//! Lines stand in the order of the walk, so none comes twice; the directory of each comes before it; links are tablespaces that the
//! manifest names; and `pg_control`, which is copied last, is there once, as a file whose map is at hand.

use std::collections::BTreeSet;

use super::take::CONTROL_PATH;
use crate::postgres::data_directory::order_key;
use crate::repo::manifest::{FileLine, Manifest, MapPlace, What, decode_path};

/// Looks at the lines of one snapshot in their order.
#[derive(Debug)]
pub struct Rules {
    tablespaces: BTreeSet<String>,
    last: Vec<u8>,
    /// The directories above the last line, outermost first.
    above: Vec<Vec<u8>>,
    has_control: bool,
}

impl Rules {
    pub fn new(manifest: &Manifest) -> Rules {
        let tablespaces = manifest.tablespaces.iter().map(|link| format!("pg_tblspc/{}", link.oid)).collect();
        Rules { tablespaces, last: Vec::new(), above: Vec::new(), has_control: false }
    }

    /// The path of the next line, in bytes; or what is wrong with it.
    pub fn admit(&mut self, line: &FileLine) -> Result<Vec<u8>, String> {
        let path = decode_path(&line.path).ok_or_else(|| format!("a file list names the path {:?}", line.path))?;
        if line.path == CONTROL_PATH {
            let is_file = matches!(&line.what, What::File { map: MapPlace::Map(_), .. });
            if !is_file || std::mem::replace(&mut self.has_control, true) {
                return Err(format!("{CONTROL_PATH} is no file with a map of its own, or comes twice"));
            }
            return Ok(path);
        }
        let key = order_key(&path, matches!(line.what, What::Directory));
        if key <= self.last {
            return Err(format!("{:?} comes twice in the file lists, or not in its place", line.path));
        }
        self.last = key;
        let parent = path.iter().rposition(|b| *b == b'/').map(|at| &path[..at]);
        while self.above.last().is_some_and(|above| !(path.starts_with(above) && path.get(above.len()) == Some(&b'/'))) {
            self.above.pop();
        }
        if self.above.last().map(Vec::as_slice) != parent {
            return Err(format!("the directory of {:?} is not in the file lists", line.path));
        }
        match &line.what {
            What::Directory => self.above.push(path.clone()),
            What::Tablespace { .. } if !self.tablespaces.contains(&line.path) => {
                return Err(format!("{:?} is a link, and no tablespace of the manifest", line.path));
            }
            What::Tablespace { .. } => self.above.push(path.clone()),
            What::File { .. } => {}
        }
        Ok(path)
    }

    /// What is missing after the last line.
    pub fn finish(&self) -> Result<(), String> {
        if self.has_control { Ok(()) } else { Err(format!("the file lists have no {CONTROL_PATH}, so it can never start")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::manifest::TablespaceLink;
    use crate::repo::map::FileMap;
    use crate::repo::object::Sha;

    fn rules() -> Rules {
        let tablespaces = [TablespaceLink { oid: "16400".into(), target: "/srv/fast".into() }];
        Rules {
            tablespaces: tablespaces.iter().map(|link| format!("pg_tblspc/{}", link.oid)).collect(),
            last: Vec::new(),
            above: Vec::new(),
            has_control: false,
        }
    }

    fn line(text: &str) -> FileLine {
        let what = match text.as_bytes().last() {
            Some(b'/') => What::Directory,
            Some(b'@') => What::Tablespace { target: "/srv/fast".into() },
            _ => What::File {
                bytes: 0,
                modified_ns: 0,
                inode: 0,
                digest: Sha([0; 32]),
                content: None,
                map: MapPlace::Map(FileMap::default()),
            },
        };
        FileLine { path: text.trim_end_matches(['/', '@']).into(), what, mode: 0o600 }
    }

    fn look(lines: &[&str]) -> Result<(), String> {
        let mut rules = rules();
        for text in lines {
            rules.admit(&line(text))?;
        }
        rules.finish()
    }

    #[test]
    fn a_walk_with_its_control_file_last_is_admitted() {
        let walk = [
            "PG_VERSION",
            "base/",
            "base/1/",
            "base/1/1247",
            "base/1/1247_fsm",
            "base/13000/",
            "base/13000/1",
            "global/",
            "global/1262",
            "pg_tblspc/",
            "pg_tblspc/16400@",
            "pg_tblspc/16400/PG_15_202209061/",
            "pg_tblspc/16400/PG_15_202209061/5",
            "pg_wal/",
            "global/pg_control",
        ];
        assert_eq!(look(&walk), Ok(()));
    }

    #[test]
    fn what_a_restore_could_not_write_is_refused() {
        let control = "global/pg_control";
        for lines in [
            vec!["a", "a", control],
            vec!["b", "a", control],
            vec!["base/1", control],
            vec!["base", "base/1", control],
            vec!["base/", "base/1/", "base/2", "base/1/5", control],
            vec!["../x", control],
            vec!["/etc/passwd", control],
            vec!["pg_tblspc/", "pg_tblspc/999@", control],
            vec!["base@", control],
            vec!["a"],
            vec![control, control],
            vec!["global/pg_control/"],
        ] {
            assert!(look(&lines).is_err(), "{lines:?}");
        }
    }
}
