//! Which manifests and file lists make sense: what `verify`, `drill` and `restore` ask, before a byte is written.
//!
//! A manifest and a line are looked at when they are parsed ([`Document`]). What only shows over all lists of a snapshot is looked at
//! by [`Lists`], line by line and in memory that does not grow: the order of the walk tells doubles, and that whatever lies in a
//! directory comes behind it. A backup feeds it too, so that nothing is written that a restore would refuse.

use super::document::{self, BYTES_MAX, Document, first_defect};
use super::manifest::{self, FileLine, Manifest, MapPlace, SegmentLine, Totals, What};
use super::map::FileMap;
use super::pack_table::PackLine;
use crate::config;
use crate::postgres::lsn::Timeline;
use crate::postgres::wal::name::SegmentName;

/// Is copied last, and is the last line.
pub const CONTROL_PATH: &str = "global/pg_control";
/// Longer names than `PATH_MAX` cannot be made; encoded, a byte takes three.
const PATH_MAX: usize = 3 * 4096;
/// A file of a relation has 1 GiB; others are longer, and none is longer than a file system can hold.
const FILE_MAX: u64 = i64::MAX as u64;

impl Document for Manifest {
    fn defect(&self) -> Option<String> {
        let segment = u64::from(self.wal_segment_bytes);
        first_defect([
            (document::is_snapshot_id(&self.id), "its id is no snapshot's"),
            (config::is_cluster_name(&self.cluster), "its cluster has an impossible name"),
            ((1..1000).contains(&self.major), "its major version is impossible"),
            (document::is_block_length(self.block_bytes), "its block_bytes are no length of a page"),
            (self.blocks_per_file > 0, "its blocks_per_file are 0"),
            (
                document::is_segment_length(self.wal_segment_bytes),
                "its wal_segment_bytes are no power of two from 1 MiB to 1 GiB",
            ),
            (self.timeline > Timeline(0), "its timeline is 0"),
            (self.start_lsn.0 > 0 && self.start_lsn <= self.stop_lsn, "its stop_lsn lies before its start_lsn"),
            (document::is_lsn(self.stop_lsn), "its stop_lsn is impossible"),
            (document::is_time(self.start_time) && document::is_time(self.stop_time), "its times are impossible"),
            (self.listed_ns >= 0, "its listed_ns lie before 1970"),
            (self.parent.as_deref().is_none_or(document::is_snapshot_id), "its parent is no snapshot"),
            (!self.file_lists.is_empty(), "it has no file lists"),
            (
                self.tablespaces.iter().all(|link| is_oid(&link.oid) && is_target(&link.target, &link.encoded)),
                "a tablespace is impossible",
            ),
            (
                self.wal_directory.as_deref().is_none_or(|text| text.len() <= PATH_MAX && manifest::decode_place(text).is_some()),
                "its wal_directory is no absolute path",
            ),
            (self.totals.are_countable(), "its totals are impossible"),
        ])
        .or_else(|| {
            let number = |name: &SegmentName| name.number(segment);
            let (first, last) = (number(&self.first_segment), number(&self.last_segment));
            let holds = first == Some(self.start_lsn.segment(segment))
                && last.is_some_and(|last| last >= self.stop_lsn.last_segment_before(segment))
                && self.first_segment.timeline > Timeline(0);
            (!holds).then(|| "its segments do not reach from its start_lsn to its stop_lsn".into())
        })
    }
}

impl Totals {
    fn are_countable(&self) -> bool {
        let Totals { files, raw_bytes, new_bytes, stored_bytes, read_bytes, unread_bytes } = *self;
        [files, raw_bytes, new_bytes, stored_bytes, read_bytes, unread_bytes].iter().all(|count| *count <= BYTES_MAX)
    }
}

impl Document for SegmentLine {
    fn defect(&self) -> Option<String> {
        first_defect([(self.0.timeline > Timeline(0), "a segment is of timeline 0")])
    }
}

impl Document for PackLine {
    fn defect(&self) -> Option<String> {
        let used = self.used.is_none_or(|used| used.raw_bytes <= BYTES_MAX && used.live_bytes <= BYTES_MAX);
        first_defect([
            (document::is_pack_name(&self.name), "it names a pack that cannot be"),
            (self.bytes <= BYTES_MAX && used, "a pack has an impossible length"),
        ])
    }
}

impl Document for FileLine {
    fn defect(&self) -> Option<String> {
        let canonical = || manifest::decode_path(&self.path).is_some_and(|bytes| manifest::encode_path(&bytes) == self.path);
        let named = |what: &str| Some(format!("the line of {:?}: {what}", self.path));
        if self.path.len() > PATH_MAX || !canonical() {
            return named("its path leads elsewhere");
        }
        if self.mode > 0o7777 {
            return named("its mode is impossible");
        }
        match &self.what {
            What::Directory => None,
            What::Tablespace { target, encoded } => {
                let oid = self.path.strip_prefix("pg_tblspc/");
                (!oid.is_some_and(is_oid) || !is_target(target, encoded)).then(|| named("it is no tablespace"))?
            }
            What::File { bytes, map, .. } => match map {
                _ if *bytes > FILE_MAX => named("its length is impossible"),
                MapPlace::Map(map) => self.map_defect(map).and_then(|what| named(&what)),
                MapPlace::MapFrame { packs, live_bytes, .. } => {
                    let are_packs = packs.iter().all(|pack| document::is_pack_name(pack));
                    let are_live = live_bytes.is_empty() || live_bytes.len() == packs.len();
                    let are_countable = live_bytes.iter().all(|bytes| *bytes <= BYTES_MAX);
                    (!are_packs || !are_live || !are_countable).then(|| named("its packs are impossible"))?
                }
            },
        }
    }
}

impl FileLine {
    /// Why this map is not the one of the file, if so.
    pub fn map_defect(&self, map: &FileMap) -> Option<String> {
        let What::File { bytes, digest, .. } = &self.what else { return Some("it is no file, and has a map".into()) };
        if let Some(defect) = map.defect() {
            return Some(defect);
        }
        let fits = map.bytes() == *bytes && map.digest() == *digest;
        (!fits).then(|| "its map does not fit the file".into())
    }
}

fn is_oid(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|oid| oid > 0 && oid.to_string() == text)
}

fn is_target(text: &str, encoded: &Option<String>) -> bool {
    let is_place = |text: &String| text.len() <= PATH_MAX && manifest::decode_place(text).is_some();
    !text.is_empty() && text.len() <= PATH_MAX && !text.contains('\0') && encoded.as_ref().is_none_or(is_place)
}

/// The lines of all lists of a snapshot, one after the other.
#[derive(Debug)]
pub struct Lists {
    /// The directories in which the next line may lie: the name, and the last that was seen in it.
    open: Vec<(Vec<u8>, Vec<u8>)>,
    files: u64,
    bytes: u64,
    tablespaces: Vec<String>,
    has_control: bool,
}

impl Default for Lists {
    fn default() -> Self {
        Lists { open: vec![Default::default()], files: 0, bytes: 0, tablespaces: Vec::new(), has_control: false }
    }
}

impl Lists {
    /// What is wrong with the next line, if anything.
    pub fn line(&mut self, line: &FileLine) -> Option<String> {
        let named = |what: &str| Some(format!("the line of {:?}: {what}", line.path));
        if self.has_control {
            return named("it stands behind that of pg_control, which is the last");
        }
        if let What::File { bytes, .. } = line.what {
            self.files += 1;
            self.bytes = self.bytes.saturating_add(bytes);
        }
        if line.path == CONTROL_PATH {
            self.has_control = true;
            return if matches!(line.what, What::File { .. }) { None } else { named("it is no file") };
        }
        let Some(path) = manifest::decode_path(&line.path) else { return named("its path leads elsewhere") };
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], &path[..]),
        };
        while self.open.last().is_some_and(|(open, _)| open != parent) {
            self.open.pop();
        }
        let Some((_, last)) = self.open.last_mut() else {
            // The walk leaves a directory for good, so whatever comes now would stand in one that is not there.
            self.open.push(Default::default());
            return named("it lies in a directory that does not stand before it");
        };
        let mut key = name.to_vec();
        if matches!(line.what, What::Directory) {
            key.push(b'/');
        }
        let bare = |key: &[u8]| key.strip_suffix(b"/").unwrap_or(key).to_vec();
        if key <= *last || bare(&key) == bare(last) {
            return named("it stands there twice, or not in its order");
        }
        *last = key;
        match &line.what {
            What::File { .. } => {}
            What::Directory => self.open.push((path, Vec::new())),
            What::Tablespace { .. } => {
                self.tablespaces.push(line.path.clone());
                self.open.push((path, Vec::new()));
            }
        }
        None
    }

    /// What is wrong now that there are no more lines, if anything.
    pub fn end(&self, manifest: &Manifest) -> Option<String> {
        let links = manifest.tablespaces.iter().map(|link| format!("pg_tblspc/{}", link.oid));
        first_defect([
            (self.has_control, "its file lists have no pg_control"),
            (links.eq(self.tablespaces.iter().cloned()), "its tablespaces are not those of its file lists"),
            (
                (self.files, self.bytes) == (manifest.totals.files, manifest.totals.raw_bytes),
                "its totals are not those of its file lists",
            ),
        ])
    }
}
