//! Somebody deletes and overwrites in a bucket with versions: it is seen, and comes back.

use lastgood::config::S3;
use lastgood::storage::{Depth, list_all};

use super::store;
use crate::support::moto::{BUCKET, Kept, Moto};
use crate::support::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_snapshot_is_seen_and_not_swept_and_comes_back() {
    let moto = Moto::keeping(Kept::Versions);
    let config = S3 { delete_versions: true, ..moto.config() };
    let world = World::with(15, &[], "", Some((&format!("s3://{BUCKET}"), config.clone()))).await;
    world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i").await;
    let first = world.backup(&[])["id"].as_str().unwrap().to_string();
    world.sql("INSERT INTO t VALUES (0)").await;
    let second = world.backup(&["--full"])["id"].as_str().unwrap().to_string();
    let check = world.run(&["check", "--no-switch"]);
    assert!(check.out.contains("what is deleted from here goes with all of them"), "{check:?}");

    let manifest = format!("clusters/shop/snapshots/{first}");
    assert!(moto.ask("DELETE", &manifest).starts_with("HTTP/1.1 204"));
    let list = world.ok(&["list"]);
    assert!(!list.out.contains(&first) && list.out.contains(&second), "{list:?}");
    world.refused(&["check", "--no-switch"], 9, &[&first, "deleted, and not by", "verify --repair"]);
    world.refused(&["verify"], 7, &[&manifest, "the bucket still has the version of", &format!("costs snapshot {first}")]);
    // Its packs look like those of a snapshot that was never finished, and versions would be deleted with them.
    let packs = format!("clusters/shop/packs/{first}/");
    let before = moto.versions(&packs);
    let said = world.ok(&["backup"]);
    assert!(said.all().contains(&format!("somebody deleted the manifest of {first}")), "{said:?}");
    assert_eq!(moto.versions(&packs), before);
    world.write_config(Some((&format!("s3://{BUCKET}"), config.clone())), "\n[retention]\nkeep_last = 1\n");
    world.refused(&["expire"], 5, &[&first, "is hidden"]);
    assert_eq!(moto.versions(&packs), before);

    let said = world.ok(&["verify", "--repair"]);
    assert!(said.out.contains(&format!("repaired {manifest}, from an older version in the same bucket")), "{said:?}");
    assert!(world.ok(&["list"]).out.contains(&first));
    world.ok(&["verify"]);
    // An honest expiry leaves nothing hidden behind.
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("are free again"), "{said:?}");
    assert_eq!((moto.versions(&packs), moto.versions(&manifest)), ((0, 0), (0, 0)));
    world.ok(&["verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pack_comes_back_and_an_overwritten_one_is_told() {
    let moto = Moto::keeping(Kept::Versions);
    let world = World::with(15, &[], "", Some((&format!("s3://{BUCKET}"), moto.config()))).await;
    world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i").await;
    world.backup(&[]);
    let storage = store(&moto.config()).await;
    let packs = list_all(&*storage, "clusters/shop/packs/", Depth::All).await.unwrap().objects;
    let pack = packs.last().unwrap().key.to_string();
    moto.ask("DELETE", &pack);
    world.refused(
        &["verify"],
        7,
        &[&format!("DAMAGED {pack}: it is missing; deleted "), "`lastgood verify --repair` brings back"],
    );
    assert!(world.ok(&["verify", "--repair"]).out.contains(&format!("repaired {pack}")));
    world.ok(&["verify"]);

    moto.send("PUT", &pack, "", "not a pack");
    let said = world.refused(&["verify", "--repair"], 7, &[&pack, "overwritten ", "put that back"]);
    assert!(said.out.contains(&format!("left     {pack}")), "{said:?}");
    // Without the right setting, what is deleted is hidden, and that is what is said.
    world.backup(&["--full"]);
    world.write_config(Some((&format!("s3://{BUCKET}"), moto.config())), "\n[retention]\nkeep_last = 1\n");
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("as older versions; see delete_versions") && !said.out.contains("free again"), "{said:?}");
}
