//! Requests to the store: what a store charges for, and what latency multiplies.

use std::sync::Arc;

use lastgood::monitor::Silent;
use lastgood::postgres::session::Session;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::snapshot::take::{self, Request};
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::record::{Counts, Log, Operation, Record};

use crate::support::world::World;

async fn recorded(world: &World) -> (Cluster, lastgood::repo::record::ClusterRecord, Log) {
    let store = Record::new(DirectoryStorage::new(world.repository()));
    let log = store.log();
    let (cluster, record) = Repository::open(Arc::new(store), &Keys::default()).await.unwrap().registered("shop").await.unwrap();
    log.clear();
    (cluster, record, log)
}

/// Requests that do not come from waiting for WAL, of which there are as many as the wait is long.
fn counts(log: &Log) -> Counts {
    let mut counts = log.counts();
    counts.read -= log.calls().iter().filter(|call| call.operation == Operation::Read && call.key.contains("/wal/")).count();
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn of_snapshots() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g").await;
    let session = Session::open(&world.server.connection()).await.unwrap();
    let mut newest = None;
    // Of the snapshot that is built on, the folder of its lists and the block of its WAL are listed too: 2 more than its packs.
    for (full, creates, reads, lists) in [(true, 10, 2, 12), (false, 10, 6, 15)] {
        let (cluster, record, log) = recorded(&world).await;
        let kept = crate::changed::content::kept(&world).await;
        // Told, as the command line does; else two in one second begin twice.
        let request = Request { full, kept, newest, ..crate::crash::request() };
        newest = Some(take::take(&cluster, &record, &session, &request, Arc::new(Silent)).await.unwrap().id);
        let counts = counts(&log);
        println!("full: {full}, {counts:?}");
        assert!(counts.create <= creates && counts.read <= reads && counts.list <= lists, "full: {full}, {counts:?}");
        // Whether the store kept the manifest.
        assert!(counts.stat == 1 && counts.delete <= 2, "full: {full}, {counts:?}");
    }
}

/// A page that did not change is neither sent nor hashed again: what a second snapshot of the same stores, is lists.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_snapshot_stores_what_changed() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 200000) g").await;
    let session = Session::open(&world.server.connection()).await.unwrap();
    let mut stored = Vec::new();
    for full in [true, false] {
        let (cluster, record, log) = recorded(&world).await;
        let kept = crate::changed::content::kept(&world).await;
        let request = Request { full, kept, ..crate::crash::request() };
        let taken = take::take(&cluster, &record, &session, &request, Arc::new(Silent)).await.unwrap();
        let sent: u64 = log.calls().iter().filter(|call| call.operation == Operation::Create).map(|call| call.amount).sum();
        println!("full: {full}, sent {sent} bytes, {:?}", taken.totals);
        stored.push(sent);
    }
    assert!(stored[1] * 10 < stored[0], "{stored:?}");
}
