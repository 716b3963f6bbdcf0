//! What a sweep takes, and what it leaves: by what pack tables name.

use std::sync::Arc;

use lastgood::repo::object;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::ObjectKey;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::Record;
use lastgood::upkeep::sweep::{Swept, sweep};

const OLD: &str = "20261101T000000Z-aaaa";
const LOST: &str = "20261102T000000Z-bbbb";
const DEAD: &str = "20261103T000000Z-cccc";
const NEWEST: &str = "20261104T000000Z-dddd";

/// Packs of an expired snapshot without a note, one without a manifest, remains, and one that needs packs of all but the remains.
async fn cluster() -> (Cluster, lastgood::storage::record::Log) {
    let store = Record::new(MemoryStorage::new());
    let log = store.log();
    let (repository, _) = Repository::open_or_create(Arc::new(store), &Keys::default(), None).await.unwrap();
    let cluster = repository.cluster("shop");
    let layout = cluster.layout();
    for id in [OLD, LOST, DEAD, NEWEST] {
        put(&cluster, layout.pack(&format!("{id}/d000001"))).await;
    }
    for id in [LOST, DEAD, NEWEST] {
        put(&cluster, layout.files(id, 1)).await;
    }
    table(&cluster, LOST, &[LOST]).await;
    table(&cluster, NEWEST, &[OLD, LOST, NEWEST]).await;
    put(&cluster, layout.manifest(NEWEST)).await;
    log.clear();
    (cluster, log)
}

async fn put(cluster: &Cluster, key: ObjectKey) {
    cluster.storage().create(&key, b"x".to_vec().into()).await.unwrap();
}

async fn table(cluster: &Cluster, id: &str, writers: &[&str]) {
    let lines: String = writers.iter().map(|writer| format!("[\"{writer}/d000001\",1]\n")).collect();
    object::put_document(cluster.vault(), &cluster.layout().pack_table(id), lines.as_bytes()).await.unwrap();
}

async fn is_there(cluster: &Cluster, id: &str) -> bool {
    cluster.storage().stat(&cluster.layout().pack(&format!("{id}/d000001"))).await.unwrap().is_some()
}

async fn left(cluster: &Cluster) -> Vec<&'static str> {
    let mut left = Vec::new();
    for id in [OLD, LOST, DEAD, NEWEST] {
        if is_there(cluster, id).await {
            left.push(id);
        }
    }
    left
}

#[tokio::test]
async fn what_a_pack_table_names_stays_whatever_else_is_lost() {
    let (cluster, log) = cluster().await;
    let swept = sweep(&cluster, "own").await.unwrap();
    assert_eq!((swept.snapshots, &swept.orphans[..], &swept.needed[..]), (1, &[LOST.to_string()][..], &[OLD.to_string()][..]));
    assert_eq!(left(&cluster).await, [OLD, LOST, NEWEST]);
    let told = swept.describe().unwrap();
    assert!(told.contains(LOST) && told.contains("verify --repair") && told.contains("expire --forget"), "{told}");
    // The note is written again, so that the next sweep reads no tables, and an expiry decides.
    assert!(cluster.storage().stat(&cluster.layout().expired(OLD)).await.unwrap().is_some());
    log.clear();
    let again = sweep(&cluster, "own").await.unwrap();
    assert_eq!((again.snapshots, again.orphans.len(), again.needed.len()), (0, 1, 0));
    assert_eq!(log.counts().read, 0, "{:?}", log.calls());
}

#[tokio::test]
async fn nothing_goes_while_a_pack_table_cannot_be_read() {
    for damage in ["of the newest", "of one without a manifest", "missing"] {
        let (cluster, _) = cluster().await;
        let key = cluster.layout().pack_table(if damage == "of one without a manifest" { LOST } else { NEWEST });
        cluster.storage().delete(std::slice::from_ref(&key)).await.unwrap();
        if damage != "missing" {
            put(&cluster, key.clone()).await;
        }
        let swept = sweep(&cluster, "own").await.unwrap();
        assert_eq!((swept.snapshots, swept.objects), (0, 0), "{damage}: {swept:?}");
        assert_eq!(left(&cluster).await, [OLD, LOST, DEAD, NEWEST], "{damage}");
        assert!(swept.describe().unwrap().contains(key.as_str()), "{damage}: {swept:?}");
    }
}

#[tokio::test]
async fn a_sweep_of_nothing_says_nothing() {
    assert_eq!(Swept::default().describe(), None);
}
