//! One object is gone: each command says so.

use super::{id, lose, object};
use crate::support::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_only_snapshot_lacks_is_red_everywhere() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let manifest = world.backup(&[]);
    let snapshot = id(&manifest);
    world.sql("INSERT INTO t VALUES (2)").await;
    world.archive().await;
    world.ok(&["check", "--no-switch"]);
    assert!(world.ok(&["list"]).out.contains("none"));
    let (first, into) = (manifest["first_segment"].as_str().unwrap(), world.path("x"));
    let restore = ["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--dry-run"];
    for parts in [
        &["/segments/", first][..],
        &["/packs/", "d000001"],
        &["/files/", "/000001"],
        &["/files/", "/packs"],
        &["/files/", "/wal"],
    ] {
        let key = object(&world, parts);
        let _lost = lose(&world, &key);
        let name = key.rsplit('/').next().unwrap();
        let said = world.refused(&["check", "--no-switch"], 9, &["presence", &snapshot, &key, "it is missing"]);
        assert!(!said.out.contains("ok      presence"), "{key}: {said:?}");
        let said = world.ok(&["list"]);
        for words in
            ["1 object missing", "no window: nothing can be restored", &format!("snapshot {snapshot} cannot be restored")]
        {
            assert!(said.out.contains(words), "{key}: {words}: {said:?}");
        }
        let code = if key.contains("/segments/") { 6 } else { 7 };
        world.refused(&restore, code, &[name]);
        world.refused(&["verify", "--quick"], 7, &[&key, &format!("costs snapshot {snapshot}")]);
        world.refused(&["verify"], 7, &[&key, &format!("costs snapshot {snapshot}")]);
    }
    // What costs names costs no restore.
    let key = object(&world, &["/files/", "/catalogue"]);
    let lost = lose(&world, &key);
    let said = world.ok(&["check", "--no-switch"]);
    assert!(said.out.contains(&key) && said.out.contains("without names"), "{said:?}");
    world.ok(&restore);
    drop(lost);
    world.ok(&["check", "--no-switch"]);
    world.ok(&restore);
}

/// A roll-up's key says that its segments were all there once: who needs one looks for the segment itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_under_a_roll_up_is_looked_for_itself() {
    let world = World::new(15).await;
    world.backup(&[]);
    for _ in 0..34 {
        world.sql("CREATE TABLE IF NOT EXISTS t (x int); INSERT INTO t VALUES (1)").await;
        world.archive().await;
    }
    world.ok(&["verify", "--quick", "--reindex"]);
    let rollups = world.objects("clusters").into_iter().filter(|key| key.contains("/index/1/")).count();
    assert!(rollups > 0, "{:?}", world.objects("clusters"));
    let key = object(&world, &["/segments/", "000000010000000000000014"]);
    let _lost = lose(&world, &key);
    let into = world.path("x");
    world.refused(&["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--dry-run"], 7, &[&key, "it is missing"]);
    world.refused(&["verify", "--quick"], 7, &[&key]);
}
