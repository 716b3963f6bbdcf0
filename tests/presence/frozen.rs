//! A lifecycle rule of the bucket moved objects to an archive class.

use lastgood::storage::{Depth, list_all};

use super::id;
use crate::bucket::store;
use crate::support::moto::{BUCKET, Moto};
use crate::support::world::World;

/// Moves an object to a class, as a lifecycle rule does.
fn freeze(moto: &Moto, key: &str, class: &str) {
    let headers =
        format!("x-amz-copy-source: /{BUCKET}/{key}\r\nx-amz-storage-class: {class}\r\nx-amz-metadata-directive: COPY\r\n");
    let answer = moto.send("PUT", key, &headers, "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_thawed_is_named_before_anything_is_tried() {
    let moto = Moto::start();
    let world = World::with(15, &[], "", Some((&format!("s3://{BUCKET}"), moto.config()))).await;
    world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i").await;
    let first = id(&world.backup(&[]));
    world.sql("INSERT INTO t VALUES (0)").await;
    world.archive().await;
    let storage = store(&moto.config()).await;
    let packs = list_all(&*storage, "clusters/shop/packs/", Depth::All).await.unwrap().objects;
    let into = world.path("x");
    let plan = ["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--dry-run"];
    // Read as any other.
    packs.iter().for_each(|pack| freeze(&moto, pack.key.as_str(), "GLACIER_IR"));
    world.ok(&["verify", "--quick"]);
    packs.iter().for_each(|pack| freeze(&moto, pack.key.as_str(), "GLACIER"));
    let thaw = format!("aws s3api restore-object --bucket {BUCKET} --key {}", packs[0].key);
    for verify in [&["verify", "--quick"][..], &["verify"]] {
        let said = world.refused(verify, 7, &["frozen in GLACIER", &thaw, &format!("costs snapshot {first}")]);
        assert!(!said.all().contains("permission denied"), "{said:?}");
    }
    world.refused(&plan, 7, &["GLACIER", &thaw, "archive class"]);
    world.refused(&["check", "--no-switch"], 9, &[&first, "frozen in GLACIER", &thaw]);
    assert!(world.ok(&["list"]).out.contains("frozen"));
    let said = world.ok(&["--json", "backup"]);
    assert!(said.json()["snapshot"]["parent"].is_null() && said.all().contains("frozen in GLACIER"), "{said:?}");
    let second = id(&said.json()["snapshot"]);
    world.ok(&["verify", &second]);
    world.refused(&["restore", "--to", "latest", "--snapshot", &first, "--into", into.to_str().unwrap()], 7, &["GLACIER"]);
    // A restored copy is shown: they can be read.
    for pack in &packs {
        let days = "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Days>3</Days></RestoreRequest>";
        let answer = moto.send("POST", &format!("{}?restore", pack.key), "", days);
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    }
    world.ok(&["verify"]);
    assert!(world.run(&["check", "--no-switch"]).out.contains("ok      presence"));
    world.ok(&["restore", "--to", &first, "--into", into.to_str().unwrap()]);
}

/// Of a class with archive tiers a listing does not tell which objects are in them; each is asked.
#[tokio::test(flavor = "multi_thread")]
async fn of_intelligent_tiering_each_object_is_asked() {
    let moto = Moto::start();
    let world = World::with(15, &[], "", Some((&format!("s3://{BUCKET}"), moto.config()))).await;
    world.backup(&[]);
    let storage = store(&moto.config()).await;
    let packs = list_all(&*storage, "clusters/shop/packs/", Depth::All).await.unwrap().objects;
    packs.iter().for_each(|pack| freeze(&moto, pack.key.as_str(), "INTELLIGENT_TIERING"));
    let before = moto.asked("\"HEAD /");
    assert!(world.run(&["check", "--no-switch"]).out.contains("ok      presence"));
    assert!(moto.asked("\"HEAD /") - before >= packs.len());
    world.ok(&["verify"]);
}
