//! `verify`: each kind of object × deleted, cut short, flipped is found, named, and its cost told.

use crate::support::world::{World, tamper};

async fn stored() -> World {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 50000) i").await;
    world.backup(&[]);
    world.sql("DELETE FROM t WHERE x % 100 = 0").await;
    world.backup(&[]);
    world.archive().await;
    world.ok(&["verify"]);
    world.ok(&["verify", "--quick"]);
    world
}

/// What may be missing without harm: the record's own checks say so elsewhere.
fn is_of_interest(key: &str) -> bool {
    ["/packs/", "/files/", "/snapshots/", "/segments/"].iter().any(|kind| key.contains(kind))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_found_and_named() {
    let world = stored().await;
    let json = world.ok(&["--json", "list"]).json();
    let first = json["histories"][0]["snapshots"][0].clone();
    let needed_from = first["first_segment"].as_str().unwrap().to_string();
    let mut kinds = std::collections::BTreeSet::new();
    for key in world.objects("clusters").into_iter().filter(|k| is_of_interest(k)) {
        let path = world.repository().join(&key);
        let name = key.rsplit('/').next().unwrap().to_string();
        let before_first = key.contains("/segments/") && name < needed_from;
        if before_first {
            continue;
        }
        kinds.insert(key.split('/').nth(2).unwrap().to_string());
        let good = std::fs::read(&path).unwrap();
        let flip = |bytes: &mut Vec<u8>| {
            let middle = bytes.len() / 3;
            bytes[middle] ^= 0x10;
        };
        tamper(&path, flip);
        found(&world, &key, "flipped");
        tamper(&path, |bytes| bytes.truncate(bytes.len() / 2));
        found(&world, &key, "cut short");
        std::fs::remove_file(&path).unwrap();
        if !key.contains("/snapshots/") && !key.contains("/segments/") {
            found(&world, &key, "deleted");
        }
        std::fs::write(&path, &good).unwrap();
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["files", "packs", "snapshots", "wal"]);
    world.ok(&["verify"]);
}

fn found(world: &World, key: &str, how: &str) {
    let said = world.run(&["verify"]);
    assert_eq!(said.code, 7, "{key} {how}: {}", said.all());
    assert!(said.out.contains(key), "{key} {how} is not named: {}", said.all());
    let costs = ["costs snapshot", "breaks the window", "costs names"].iter().any(|words| said.out.contains(words));
    assert!(costs, "{key} {how}: the cost is not told: {}", said.all());
}

/// A missing segment in a snapshot's own range costs the snapshot; two frames swapped are noticed.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_segments_and_swapped_packs_are_found() {
    let world = stored().await;
    let json = world.ok(&["--json", "list"]).json();
    let needed = json["histories"][0]["snapshots"][0]["first_segment"].as_str().unwrap().to_string();
    let key = world.objects("clusters").into_iter().find(|k| k.ends_with(&needed)).unwrap();
    std::fs::rename(world.repository().join(&key), world.path("lost")).unwrap();
    world.refused(&["verify"], 7, &["costs snapshot", &needed]);
    world.refused(&["verify", "--quick"], 7, &["costs snapshot", &needed]);
    std::fs::rename(world.path("lost"), world.repository().join(&key)).unwrap();
    let packs: Vec<String> = world.objects("clusters/shop/packs").into_iter().filter(|k| k.contains("/d0")).collect();
    let [a, b] = [&packs[0], &packs[1]].map(|k| world.repository().join(k));
    std::fs::rename(&a, world.path("swap")).unwrap();
    std::fs::rename(&b, &a).unwrap();
    std::fs::rename(world.path("swap"), &b).unwrap();
    world.refused(&["verify"], 7, &["costs snapshot"]);
    world.refused(&["verify", "--quick"], 7, &["bytes instead of"]);
}

/// Rule 60: nothing to verify is not green.
#[tokio::test(flavor = "multi_thread")]
async fn silence_is_not_green() {
    let world = World::new(15).await;
    world.refused(&["verify"], 7, &["there is no snapshot"]);
    world.refused(&["check", "--no-switch"], 9, &["nothing can be restored"]);
}
