//! A holder that is paused before or after any of its writes, in process: all its requests wait, its beats too, until another backup has
//! taken the lease over and is done.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lastgood::monitor::Silent;
use lastgood::postgres::session::Session;
use lastgood::repo::RepoError;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::snapshot::SnapshotError;
use lastgood::snapshot::take::{self, Request};
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::{Body, Created, Depth, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};
use tokio::sync::watch;

use crate::support::world::{PATIENCE, World};

/// Closes itself in front of the n-th create or behind it, the lease's first one included; while it is closed nothing comes through.
#[derive(Debug)]
struct Gate {
    inner: DirectoryStorage,
    creates_left: std::sync::atomic::AtomicI64,
    is_in_front: bool,
    closed: watch::Sender<bool>,
}

impl Gate {
    async fn pass(&self) {
        self.closed.subscribe().wait_for(|closed| !closed).await.unwrap();
    }
}

#[async_trait]
impl Storage for Gate {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        true
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.pass().await;
        // How many beats there are depends on the weather.
        let counts = !key.as_str().contains("/leases/") || key.name() == "00000001";
        let is_it = counts && self.creates_left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1;
        if is_it && self.is_in_front {
            self.closed.send_replace(true);
        }
        self.pass().await;
        let created = self.inner.create(key, body).await;
        if is_it && !self.is_in_front {
            self.closed.send_replace(true);
        }
        self.pass().await;
        created
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        self.pass().await;
        self.inner.read(key, part).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        self.pass().await;
        self.inner.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        self.pass().await;
        self.inner.list(prefix, after, depth).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        self.pass().await;
        self.inner.delete(keys).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes().await
    }
}

pub(super) fn request() -> Request {
    Request {
        full: true,
        paranoid: false,
        spread_checkpoint: false,
        data_directory: None,
        threads: 2,
        compression_level: 1,
        archive_timeout: Duration::from_secs(60),
        apart: Vec::new(),
        retire: lastgood::snapshot::retire::Terms { below_percent: 25, max_bytes: 1 << 30 },
        newest: None,
        kept: Default::default(),
    }
}

pub(super) async fn backup(world: &World, store: Arc<dyn Storage>, lease_s: u64) -> Result<String, SnapshotError> {
    let session = Session::open(&world.server.connection()).await.unwrap();
    let (cluster, record) = Repository::open(store, &Keys::default()).await?.with_lease_s(lease_s).registered("shop").await?;
    // As the program does: an id that cannot be had takes another claim.
    let request = Request { newest: cluster.snapshot_ids().await?.pop(), ..request() };
    take::take(&cluster, &record, &session, &request, Arc::new(Silent)).await.map(|manifest| manifest.id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_paused_after_any_write_commits_nothing() {
    paused_at_any_write(false).await;
}

/// The fence let the write begin, and it arrives when the other backup has swept: a manifest too.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_paused_in_any_write_commits_nothing() {
    paused_at_any_write(true).await;
}

async fn paused_at_any_write(is_in_front: bool) {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 2000) i").await;
    let (mut paused, mut ended, mut orphans) = (0, 0, 0);
    for number in 1.. {
        let closed = watch::Sender::new(false);
        let gate = Arc::new(Gate {
            inner: DirectoryStorage::new(world.repository()),
            creates_left: number.into(),
            is_in_front,
            closed: closed.clone(),
        });
        let first = backup(&world, gate, 1);
        let second = async {
            let mut closing = closed.subscribe();
            let gone = tokio::time::timeout(PATIENCE, closing.wait_for(|closed| *closed)).await;
            gone.expect("it writes that much").unwrap();
            let began = lastgood::clock::monotonic();
            while world.run(&["backup"]).code != 0 {
                assert!(began.elapsed() < PATIENCE);
            }
        };
        let snapshots = || world.objects("clusters/shop/snapshots").len();
        let before = snapshots();
        tokio::pin!(first);
        tokio::select! {
            taken = &mut first => {
                // It had fewer writes than that.
                taken.unwrap();
                ended += 1;
                break;
            }
            () = second => {}
        }
        let is_committed = snapshots() == before + 2;
        closed.send_replace(false);
        // Paused behind its manifest, or in its write after the tables, which nobody sweeps: that one counts. Paused behind its claim: it held
        // nothing yet, and began anew.
        let counts = match first.await {
            Err(SnapshotError::Repo(RepoError::LeaseLost { .. })) => false,
            Ok(_) => true,
            Err(error) => panic!("write {number}: {error}"),
        };
        assert!(counts || !is_committed, "write {number}");
        paused += 1;
        assert_eq!(snapshots(), before + 1 + usize::from(counts), "write {number}");
        orphans += world.forget_orphans();
        world.ok(&["verify"]);
    }
    assert!(orphans <= 2, "only between the tables and the manifest: {orphans}");
    assert!(paused >= 6 && ended == 1, "{paused}");
}
