//! What a snapshot holds, file by file, put together from its maps with nothing but zstd.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use lastgood::archive::spool::Spool;
use lastgood::repo::frame::FrameRef;
use lastgood::repo::manifest::{Manifest, MapPlace, What};
use lastgood::repo::map::FileMap;
use lastgood::repo::object::Sha;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::fs::DirectoryStorage;
use lastgood::timeline::indexes::Kept;

use crate::support::world::World;

pub async fn cluster(world: &World) -> Cluster {
    let store = Arc::new(DirectoryStorage::new(world.repository()));
    Repository::open(store, &Keys::default()).await.unwrap().registered("shop").await.unwrap().0
}

/// SHA-256 of each file by its path, and of each page of a main fork. `pg_control` differs from snapshot to snapshot.
#[derive(Debug, PartialEq, Eq)]
pub struct Content(BTreeMap<String, (u64, Sha)>, BTreeMap<String, Vec<Sha>>);

impl Content {
    /// What differs, in words; `None` when nothing does.
    pub fn difference(&self, other: &Content) -> Option<String> {
        let paths: std::collections::BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let path = paths.into_iter().find(|path| self.0.get(*path) != other.0.get(*path))?;
        let (mine, theirs) = (&self.1.get(path), &other.1.get(path));
        let pages = mine.iter().zip(theirs.iter()).flat_map(|(a, b)| a.iter().zip(b.iter()).enumerate());
        let differ: Vec<usize> = pages.filter(|(_, (a, b))| a != b).map(|(page, _)| page).take(10).collect();
        Some(format!("{path}: {:?} and {:?}, pages {differ:?}", self.0.get(path), other.0.get(path)))
    }
}

struct Reader {
    packs: PathBuf,
    frames: HashMap<(Arc<str>, u64), Arc<Vec<u8>>>,
}

impl Reader {
    fn frame(&mut self, frame: &FrameRef) -> Arc<Vec<u8>> {
        let packs = &self.packs;
        let read = || {
            let mut stored = vec![0u8; frame.stored_bytes as usize];
            let file = std::fs::File::open(packs.join(&*frame.pack)).unwrap();
            file.read_exact_at(&mut stored, frame.offset).unwrap();
            Arc::new(zstd::decode_all(&stored[..]).unwrap())
        };
        self.frames.entry((frame.pack.clone(), frame.offset)).or_insert_with(read).clone()
    }

    fn file(&mut self, map: &FileMap) -> Vec<u8> {
        let mut bytes = Vec::new();
        for run in &map.runs {
            match run.0 {
                None => bytes.resize(bytes.len() + run.2 as usize, 0),
                Some(frame) => {
                    let raw = self.frame(&map.frames[frame as usize]);
                    bytes.extend_from_slice(&raw[run.1 as usize..run.1 as usize + run.2 as usize]);
                }
            }
        }
        bytes
    }
}

/// Takes off a page what any reader may write to it without WAL and without a new LSN where pages have no checksums: what is known of the
/// transactions of a tuple, that an index entry leads nowhere, room (`heap_mask` and `btree_mask` in PostgreSQL's sources). A snapshot
/// may hold it or not, as it happens to be read.
fn mask_hints(page: &mut [u8]) {
    let short = |page: &[u8], at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let (lower, special) = (usize::from(short(page, 12)), usize::from(short(page, 16)));
    if page.len() != 8192 || lower < 24 || lower > special || special > page.len() {
        return;
    }
    let is_heap = special == page.len();
    // PD_HAS_FREE_LINES and PD_PAGE_FULL; pd_prune_xid.
    page[10] &= !0b11;
    page[20..24].fill(0);
    for at in (24..lower).step_by(4) {
        let pointer = u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let (tuple, flags) = ((pointer & 0x7fff) as usize, (pointer >> 15) & 3);
        match flags {
            // LP_NORMAL: HEAP_XMIN_COMMITTED to HEAP_XMAX_INVALID of t_infomask.
            1 if is_heap && tuple + 23 <= page.len() => page[tuple + 21] &= !0x0f,
            // LP_DEAD, which is LP_NORMAL with a hint in an index.
            3 if !is_heap => page[at..at + 4].copy_from_slice(&(pointer & !(2 << 15)).to_le_bytes()),
            _ => {}
        }
    }
    // BTP_HAS_GARBAGE.
    if page.len() - special == 16 {
        page[special + 12] &= !(1 << 6);
    }
}

/// Main forks, in which readers write hints.
fn is_relation(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap();
    ["base/", "global/", "pg_tblspc/"].iter().any(|below| path.starts_with(below))
        && name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

pub async fn of(world: &World, id: &str) -> Content {
    let cluster = cluster(world).await;
    let manifest = Manifest::read(&cluster, id).await.unwrap();
    let mut reader = Reader { packs: world.repository().join("clusters/shop/packs"), frames: HashMap::new() };
    let mut content = Content(BTreeMap::new(), BTreeMap::new());
    for list in 0..manifest.file_lists.len() {
        for line in manifest.files(&cluster, list).await.unwrap() {
            let What::File { map, .. } = &line.what else { continue };
            if line.path == "global/pg_control" {
                continue;
            }
            let map = match map {
                MapPlace::Map(map) => map.clone(),
                MapPlace::MapFrame { frame, .. } => serde_json::from_slice(&reader.frame(frame)).unwrap(),
            };
            let mut bytes = reader.file(&map);
            if !manifest.data_checksums && is_relation(&line.path) {
                bytes.chunks_mut(8192).for_each(mask_hints);
            }
            content.0.insert(line.path.clone(), (bytes.len() as u64, Sha::of(&bytes)));
            content.1.insert(line.path, bytes.chunks(8192).map(Sha::of).collect());
        }
    }
    content
}

/// The indexes that the host of this world kept.
pub async fn kept(world: &World) -> Kept {
    let system = world.session().facts().await.unwrap().system_identifier;
    let (root, data) = (world.path("spool"), world.server.data().to_path_buf());
    Kept::new(move |segment| Spool::existing(&root, "shop", system, &data).ok()?.index(segment))
}

/// Everything that a snapshot's own session does to catalogs is done, and everything is on disk.
pub async fn quiet(world: &World) {
    for _ in 0..2 {
        lastgood::postgres::catalogue::take(world.session()).await.unwrap();
    }
    world.sql("CHECKPOINT").await;
}

/// A snapshot with `args`, its content, and then it is as if it had never been.
pub async fn without_trace(world: &World, args: &[&str]) -> Content {
    let snapshot = world.backup(args);
    let id = snapshot["id"].as_str().unwrap();
    let content = of(world, id).await;
    crate::crash::undo(world, id);
    content
}

/// A snapshot through the WAL index: its manifest and everything that was said.
pub fn indexed(world: &World) -> (serde_json::Value, String) {
    let said = world.ok(&["--json", "backup"]);
    (said.json()["snapshot"].clone(), said.all())
}

pub fn total(snapshot: &serde_json::Value, what: &str) -> u64 {
    snapshot["totals"][what].as_u64().unwrap()
}

/// Words of the note that says that everything was read.
pub const EVERYTHING: &str = "every changed file is read";

/// Compares a snapshot through the index with one that reads and stores everything. The server is quiet.
pub async fn compare(world: &World, reference: &str) -> (serde_json::Value, String) {
    quiet(world).await;
    let expected = without_trace(world, &[reference]).await;
    let (snapshot, said) = indexed(world);
    let found = of(world, snapshot["id"].as_str().unwrap()).await;
    if let Some(difference) = expected.difference(&found) {
        panic!("{reference} and the index differ in {difference}\n{said}");
    }
    (snapshot, said)
}
