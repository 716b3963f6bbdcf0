//! A manifest that comes when a sweep has already listed what was committed.

use std::sync::Arc;

use async_trait::async_trait;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::{Body, Created, Depth, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};
use lastgood::upkeep::sweep::sweep;

/// Lists no manifest, as a listing does that was made a moment before; everything else is as it is now.
#[derive(Debug)]
struct Before(Arc<MemoryStorage>);

#[async_trait]
impl Storage for Before {
    fn place(&self) -> &str {
        self.0.place()
    }

    fn conditional_create(&self) -> bool {
        self.0.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.0.create(key, body).await
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        self.0.read(key, part).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        self.0.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        if prefix.ends_with("/snapshots/") { Ok(Page::default()) } else { self.0.list(prefix, after, depth).await }
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        self.0.delete(keys).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.0.free_bytes().await
    }
}

#[tokio::test]
async fn a_sweep_leaves_what_was_committed_since_it_looked() {
    let memory = Arc::new(MemoryStorage::new());
    let (repository, _) = Repository::open_or_create(Arc::new(Before(memory.clone())), &Keys::default(), None).await.unwrap();
    let cluster = repository.cluster("shop");
    let layout = cluster.layout();
    let (late, never) = ("20261129T102005Z-3302", "20261129T102006Z-77aa");
    for id in [late, never] {
        for key in [layout.pack(&format!("{id}/d000001")), layout.files(id, 1)] {
            memory.create(&key, b"x".to_vec().into()).await.unwrap();
        }
    }
    memory.create(&layout.manifest(late), b"x".to_vec().into()).await.unwrap();
    let swept = sweep(&cluster, "own").await.unwrap();
    assert_eq!((swept.snapshots, swept.objects), (1, 2), "{swept:?}");
    assert!(memory.stat(&layout.files(late, 1)).await.unwrap().is_some());
    assert!(memory.stat(&layout.files(never, 1)).await.unwrap().is_none());
}
