//! The main job, on a directory and on a real S3 server: snapshot, archive, disaster, back at the moment before.

use lastgood::postgres::session::Session;

use crate::support::garage::{self, Garage};
use crate::support::s3::{self, S3Server};
use crate::support::world::World;

async fn count(session: &Session, table: &str) -> String {
    session.value(&format!("SELECT count(*) FROM {table}")).await.unwrap()
}

/// Snapshot, traffic, second snapshot, drop, restore to just before it.
async fn play(world: &World) {
    world.sql("CREATE TABLE orders AS SELECT i AS id, repeat('x', 100) AS what FROM generate_series(1, 20000) i").await;
    // Hint bits are set by the first reader and, with checksums, logged as page changes: get them over with.
    world.sql("VACUUM (FREEZE) orders").await;
    let first = world.backup(&[]);
    world.sql("UPDATE orders SET what = 'paid' WHERE id = 777").await;
    world.sql("INSERT INTO orders VALUES (20001, 'new')").await;
    let second = world.backup(&[]);
    let bytes = |snapshot: &serde_json::Value| snapshot["totals"]["new_bytes"].as_u64().unwrap();
    assert_eq!(second["parent"], first["id"]);
    assert!(bytes(&second) * 10 < bytes(&first), "the second snapshot costs what changed: {second}");
    world.sql("BEGIN; DROP TABLE orders").await;
    let xid = world.value("SELECT txid_current()").await;
    world.sql("COMMIT; CREATE TABLE later (x int)").await;
    world.archive().await;
    world.ok(&["verify"]);
    let (_server, session) = world.restore("restored", &["--to", &xid, "--exclusive", "--target-action", "promote"]).await;
    assert_eq!(count(&session, "orders").await, "20001");
    assert_eq!(session.value("SELECT what FROM orders WHERE id = 777").await.unwrap(), "paid");
    assert_eq!(session.value("SHOW archive_mode").await.unwrap(), "off");
    let (_old, session) = world.restore("old", &["--to", first["id"].as_str().unwrap()]).await;
    assert_eq!(session.value("SELECT length(what) FROM orders WHERE id = 777").await.unwrap(), "100");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_directory() {
    play(&World::new(15).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_garage() {
    let garage = Garage::start().await;
    let url = format!("s3://{}/pg/backups", garage::BUCKET);
    play(&World::with(15, &["--data-checksums"], "", Some((&url, garage.config()))).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_s3s() {
    let server = S3Server::start().await;
    let url = format!("s3://{}", s3::BUCKET);
    play(&World::with(15, &[], "", Some((&url, server.config()))).await).await;
}

/// The two commands' first half, as a new user sees it.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_tells_the_whole_story_and_cleans_up() {
    let program = env!("CARGO_BIN_EXE_lastgood");
    let temporary = tempfile::Builder::new().prefix("lastgood-demo-test-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let said = crate::support::world::said(std::process::Command::new(program).arg("demo").env("TMPDIR", temporary.path()));
    assert_eq!(said.code, 0, "{}", said.all());
    for words in [
        "rows before the disaster: 120000; rows restored: 120000",
        "all sound",
        "DROP TABLE orders",
        "DROP postgres.public.orders",
        "before it: lastgood restore --before",
    ] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "nothing is left behind");
}
