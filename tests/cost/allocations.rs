//! Allocations: buffers are used again, so that a frame costs next to none.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lastgood::aligned::Pool;
use lastgood::config::ReadBack;
use lastgood::monitor::Silent;
use lastgood::repo::frame::{COMPRESSED_MAX_BYTES, Compressor, FRAME_BYTES, FrameRef};
use lastgood::repo::map::MapBuilder;
use lastgood::repo::object::Sha;
use lastgood::repo::pack::{CHUNK_BYTES, PackBuilder};
use lastgood::repo::repository::Cluster;
use lastgood::repo::vault::Vault;
use lastgood::restore::write::{Target, Terms, Writer};
use lastgood::storage::Storage;
use lastgood::storage::memory::MemoryStorage;

/// Counts, and leaves the work to the system's allocator. nextest gives each test a process of its own, so the count is a test's.
pub struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `alloc` above, which is the system's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for `alloc` and `dealloc`.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

const FRAMES: usize = 400;

/// Frames like pages of tables: half of it random.
fn raw(number: usize) -> Vec<u8> {
    let word = |n: usize| (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    (0..FRAME_BYTES / 16).flat_map(|n| [word(number * FRAME_BYTES + n), [7; 8]].concat()).collect()
}

fn pack(name: &str, pool: &Pool) -> (Vec<FrameRef>, lastgood::repo::pack::FinishedPack, f64) {
    let raw = raw(1);
    let mut compressor = Compressor::new(1);
    let mut stored = vec![0; COMPRESSED_MAX_BYTES];
    let mut builder = PackBuilder::new(name, None, pool);
    let mut frames = Vec::with_capacity(FRAMES);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for number in 0..FRAMES {
        let bytes = compressor.compress_to(&raw, &mut stored);
        // What it is does not matter here, but that each is another one.
        let mut sha256 = Sha::of(&raw);
        sha256.0[..8].copy_from_slice(&(number as u64).to_le_bytes());
        frames.push(builder.add(&stored[..bytes], raw.len() as u32, sha256));
    }
    let each = (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / FRAMES as f64;
    (frames, builder.finish(), each)
}

#[test]
fn of_compressing_into_packs() {
    let pool = Pool::new(CHUNK_BYTES);
    let (_, finished, each) = pack("20261121T010000Z-ab12/d000001", &pool);
    drop(finished);
    let (_, _, again) = pack("20261121T010000Z-ab12/d000002", &pool);
    println!("{each} and {again} allocations a frame");
    // The table of frames and the list of chunks grow; the second time the buffers are there.
    assert!(each < 0.3 && again < 0.15, "{each} {again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_restoring() {
    let store: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let cluster = Cluster::unchecked(Vault::plain(store), "shop");
    let raw = raw(1);
    let pool = Pool::new(CHUNK_BYTES);
    let name = "20261121T010000Z-ab12/d000001";
    let mut builder = PackBuilder::new(name, None, &pool);
    let stored = Compressor::new(1).compress(&raw);
    let mut map = MapBuilder::default();
    for _ in 0..FRAMES {
        let frame = builder.add(&stored, raw.len() as u32, Sha::of(&raw));
        map.frame(&frame, 0, raw.len() as u64);
    }
    cluster.storage().create(&cluster.layout().pack(name), builder.finish().body).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let terms = Terms { owner: None, threads: 2, read_back: ReadBack::Sample, monitor: Arc::new(Silent) };
    let map = map.finish();
    let target = Target { path: dir.path().join("16384"), bytes: map.bytes(), mode: 0o600, map };
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let writer = Writer::start(&cluster, &terms);
    let handed_over = writer.batch(vec![target]).await;
    writer.finish(handed_over).await.unwrap();
    let each = (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / FRAMES as f64;
    println!("{each} allocations a frame");
    assert!(std::fs::read(dir.path().join("16384")).unwrap() == raw.repeat(FRAMES));
    assert!(each < 2.0, "{each}");
}
