//! Requests of a push: it is a process for each segment, and at a distance its requests are most of its time.

use std::path::Path;
use std::sync::Arc;

use lastgood::archive::push::{self, Pushed, Request, Source};
use lastgood::repo::audit::Who;
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::Storage;
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::record::{Counts, Operation, Record};
use lastgood::storage::s3::S3Storage;

use crate::support::s3::{self, S3Server};
use crate::support::world::World;

/// A server with two segments that wait to be archived.
async fn waiting(s3: Option<(&str, lastgood::config::S3)>) -> (World, Vec<String>) {
    let mut world = World::bare(15, &[], "archive_command = ''", s3).await;
    world.start().await;
    world.ok(&["init"]);
    let mut names = Vec::new();
    for _ in 0..2 {
        world.sql("CREATE TEMP TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 1000) g; DROP TABLE t").await;
        world
            .sql("SELECT pg_logical_emit_message(true, 'cost', string_agg(md5(g::text), '')) FROM generate_series(1, 100000) g")
            .await;
        names.push(world.session().switch_segment("cost").await.unwrap());
    }
    (world, names)
}

/// Pushes a segment, and tells what was asked of the store and how many bytes went there.
async fn pushed(world: &World, store: Arc<dyn Storage>, name: &str) -> (Pushed, Counts, u64) {
    let store = Record::new(store);
    let log = store.log();
    let source = Source { storage: Arc::new(store), cluster_name: "shop".into(), keys: Keys::default() };
    let request = Request {
        path: Path::new("pg_wal").join(name),
        from: world.server.data().into(),
        spool: world.path("spool"),
        push_ahead: 0,
        compression_level: 1,
        allow_standby: false,
        who: Who::default(),
    };
    let outcome = push::push(&source, &request).await.unwrap();
    let sent = log.calls().iter().filter(|call| call.operation == Operation::Create).map(|call| call.amount).sum();
    println!("{name}: {:?}, {sent} bytes, {:?}", outcome.pushed, log.calls());
    (outcome.pushed, log.counts(), sent)
}

/// The first call of a minute proves that the repository knows the server; the next ones only store.
#[tokio::test(flavor = "multi_thread")]
async fn to_a_bucket() {
    let server = S3Server::start().await;
    let (world, names) = waiting(Some((&format!("s3://{}", s3::BUCKET), server.config()))).await;
    let store: Arc<dyn Storage> = Arc::new(S3Storage::connect(s3::BUCKET, "", &server.config()).await.unwrap());
    let (first, counts, _) = pushed(&world, store.clone(), &names[0]).await;
    assert_eq!(first, Pushed::Stored { ahead: 0 });
    assert!(counts.create == 1 && counts.read <= 2 && counts.list <= 2 && counts.stat == 0, "{counts:?}");
    let (second, counts, sent) = pushed(&world, store.clone(), &names[1]).await;
    assert_eq!(second, Pushed::Stored { ahead: 0 });
    assert_eq!(counts, Counts { create: 1, ..Counts::default() });
    // 3.2 MB of hexadecimal digits say half as much, and nothing is sent twice.
    assert!((1_500_000..2_000_000).contains(&sent), "{sent}");
    let (again, counts, _) = pushed(&world, store, &names[1]).await;
    assert_eq!(again, Pushed::Already);
    // Its proof, and then its bytes: a damaged object is never the same.
    assert!(counts.create == 1 && counts.read == 2 && counts.list == 0, "{counts:?}");
}

/// A directory may be unmounted at any time: its record is read each time.
#[tokio::test(flavor = "multi_thread")]
async fn to_a_directory() {
    let (world, names) = waiting(None).await;
    let store: Arc<dyn Storage> = Arc::new(DirectoryStorage::new(world.repository()));
    for name in &names {
        let (pushed, counts, _) = pushed(&world, store.clone(), name).await;
        assert_eq!(pushed, Pushed::Stored { ahead: 0 });
        assert!(counts.create == 1 && counts.read <= 2 && counts.list <= 2 && counts.stat == 0, "{counts:?}");
    }
}
