//! Reads in flight: many short ones, so that a distant store's latency is paid once, and few long ones, so that memory stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use lastgood::repo::RepoError;
use lastgood::repo::fetch;
use lastgood::repo::frame::{COMPRESSED_MAX_BYTES, Compressor, FRAME_BYTES, FrameRef};
use lastgood::repo::object::Sha;
use lastgood::repo::repository::Cluster;
use lastgood::repo::vault::Vault;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::{Body, Created, Depth, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};

/// Lets every read that could begin begin before the first one ends, and remembers how much was under way at most.
#[derive(Debug, Default)]
struct Crowd {
    inner: MemoryStorage,
    reads: AtomicU64,
    bytes: AtomicU64,
    most_reads: AtomicU64,
    most_bytes: AtomicU64,
}

#[async_trait]
impl Storage for Crowd {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        true
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.inner.create(key, body).await
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let read = self.inner.read(key, part).await?;
        let bytes = read.bytes.len() as u64;
        self.most_reads.fetch_max(self.reads.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        self.most_bytes.fetch_max(self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        self.reads.fetch_sub(1, Ordering::SeqCst);
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        Ok(read)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        self.inner.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        self.inner.list(prefix, after, depth).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        self.inner.delete(keys).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes().await
    }
}

/// `packs` packs of `frames` frames that do not compress, all alike, read as `parts` lists side by side; reads in flight at most, and
/// their bytes.
async fn crowd(packs: usize, frames: usize, parts: usize) -> (u64, u64) {
    let mut state = 1u64;
    let raw: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(FRAME_BYTES)
    .collect();
    let mut stored = vec![0; COMPRESSED_MAX_BYTES];
    let length = Compressor::new(1).compress_to(&raw, &mut stored);
    stored.truncate(length);
    let pieces = vec![bytes::Bytes::from(stored); frames];
    let store = Arc::new(Crowd::default());
    let cluster = Cluster::unchecked(Vault::new(store.clone(), None), "shop");
    let mut wanted = Vec::new();
    for number in 0..packs {
        let name = format!("20261121T010000Z-ab12/d{number:06}");
        store.create(&cluster.layout().pack(&name), Body::Bytes(pieces.clone())).await.unwrap();
        wanted.extend((0..frames).map(|frame| FrameRef {
            pack: name.as_str().into(),
            offset: (frame * length) as u64,
            stored_bytes: length as u32,
            raw_bytes: FRAME_BYTES as u32,
            sha256: Sha::of(&raw),
        }));
    }
    fetch::sort(&mut wanted);
    let seen = Arc::new(AtomicU64::new(0));
    let visit = {
        let seen = seen.clone();
        Arc::new(move |fetched: fetch::Fetched| {
            seen.fetch_add(fetched.frames().len() as u64, Ordering::SeqCst);
            Ok::<_, RepoError>(())
        })
    };
    let bounds = fetch::Bounds::new(2);
    let part = |frames: &[FrameRef]| fetch::reads(&cluster, Arc::new(frames.to_vec()), &bounds, visit.clone());
    futures::future::try_join_all(wanted.chunks(packs * frames / parts).map(part)).await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), (packs * frames) as u64);
    (store.most_reads.load(Ordering::SeqCst), store.most_bytes.load(Ordering::SeqCst))
}

#[tokio::test]
async fn short_reads_go_out_together_and_long_ones_stay_few() {
    let (short, bytes) = crowd(200, 1, 1).await;
    assert!(short >= 32, "{short} short reads at once");
    assert!(bytes <= 48 << 20, "{bytes}");
    for parts in [1, 4] {
        let (long, bytes) = crowd(16, 60, parts).await;
        assert!((4..=7).contains(&long), "{long} long reads at once");
        assert!(bytes <= 48 << 20, "{bytes}");
    }
}
