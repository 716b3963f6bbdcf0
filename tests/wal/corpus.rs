//! The corpus of `tests/tools/fuzz`, cut out of the WAL of real servers; `LASTGOOD_CORPUS` names where it stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::scratch::Stop;
use lastgood::postgres::wal::manager;
use lastgood::postgres::wal::reader::{PAGE_BYTES, Walk};

use super::index::indexes;
use super::load::{self, Wal};
use crate::support::world::World;

/// Records of each kind that are kept of one server.
const OF_EACH: usize = 6;
/// A longer one only slows the fuzzer.
const MAX_BYTES: usize = 16 << 10;

struct Corpus {
    dir: PathBuf,
    count: BTreeMap<&'static str, usize>,
}

impl Corpus {
    fn put(&mut self, target: &'static str, bytes: &[u8]) {
        let dir = self.dir.join(target);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{:08x}", crc32c::crc32c(bytes))), bytes).unwrap();
        *self.count.entry(target).or_default() += 1;
    }
}

async fn collect(major: u32, corpus: &mut Corpus) {
    let mut world = World::bare(major, &["--wal-segsize=1"], load::SETTINGS, None).await;
    world.start().await;
    let known = load::play(&world, 1 << 20).await;
    for sql in [
        "CREATE DATABASE other",
        "CREATE TABLE gone AS SELECT 1 AS x",
        "TRUNCATE gone",
        "DROP TABLE gone",
        "VACUUM FULL big",
        "DROP DATABASE other",
    ] {
        world.sql(sql).await;
    }
    world.server.stop(Stop::Immediate);
    let wal = Wal::read(&world, &known);
    let (name, bytes) = &wal.files[0];
    corpus.put("pages", &bytes[..4 * PAGE_BYTES]);
    for page in bytes.chunks(PAGE_BYTES).skip(1).take(4) {
        let continues = u8::from(page[2] & 1 != 0);
        corpus.put("records", &[&[(major - 13) as u8 | continues << 3], &page[24..]].concat());
    }
    let mut kinds: BTreeMap<(u8, u8), usize> = BTreeMap::new();
    let mut walk = Walk::new(wal.segment_bytes);
    for (name, bytes) in &wal.files {
        let start = name.start(wal.segment_bytes).unwrap();
        for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
            let _ = walk.page(page, Lsn(start.0 + (number * PAGE_BYTES) as u64), &mut |record| {
                let count = kinds.entry((record.resource_manager, record.info)).or_default();
                if *count < OF_EACH && record.payload.len() <= MAX_BYTES {
                    *count += 1;
                    let head = [record.resource_manager, record.info, (major - 13) as u8];
                    corpus.put("payloads", &[&head, record.payload].concat());
                }
            });
        }
    }
    let has = |manager: u8| kinds.keys().any(|(known, _)| *known == manager);
    let wanted = [manager::TRANSACTION, manager::STORAGE, manager::HEAP, manager::XLOG, manager::STANDBY];
    assert!(wanted.into_iter().all(has), "{name}: {kinds:?}");
    for index in indexes(&wal) {
        corpus.put("index", &index.to_bytes().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corpus_has_everything_that_the_targets_take() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = std::env::var("LASTGOOD_CORPUS").map_or_else(|_| temporary.path().to_path_buf(), PathBuf::from);
    let mut corpus = Corpus { dir, count: BTreeMap::new() };
    for major in [13, 15, 18] {
        collect(major, &mut corpus).await;
    }
    // Each target of the fuzzer has a part of the corpus.
    let targets = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/targets")).unwrap().flatten();
    let targets: Vec<String> = targets.map(|t| t.path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(targets.len(), 4);
    for target in targets {
        assert!(corpus.count.get(target.as_str()).is_some_and(|count| *count >= 3), "{target}: {:?}", corpus.count);
    }
}
