//! `verify`: each kind of object × deleted, cut short, flipped is found, named, and its cost told.

use crate::support::world::{World, tamper};

async fn stored() -> World {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 50000) i").await;
    world.backup(&[]);
    world.sql("DELETE FROM t WHERE x % 100 = 0").await;
    world.backup(&[]);
    world.archive().await;
    let snapshot = world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"][0]["id"].as_str().unwrap().to_string();
    world.ok(&["pin", &snapshot, "--reason", "a test"]);
    // Leaves a report.
    world.ok(&["restore", "--to", "latest", "--into", world.path("restored").to_str().unwrap()]);
    world.ok(&["verify", "--budget", "1TB"]);
    world.ok(&["verify"]);
    world.ok(&["verify", "--quick"]);
    world
}

/// What may be missing without harm: the record's own checks say so elsewhere.
fn is_of_interest(key: &str) -> bool {
    let kinds = ["/packs/", "/files/", "/snapshots/", "/segments/", "/pins/", "/reports/", "/verified/"];
    kinds.iter().any(|kind| key.contains(kind))
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
        if ["/packs/", "/files/"].iter().any(|kind| key.contains(kind)) {
            found(&world, &key, "deleted");
        }
        std::fs::write(&path, &good).unwrap();
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["files", "packs", "pins", "reports", "snapshots", "verified", "wal"]);
    world.ok(&["verify"]);
}

fn found(world: &World, key: &str, how: &str) {
    let said = world.run(&["verify"]);
    assert_eq!(said.code, 7, "{key} {how}: {}", said.all());
    assert!(said.out.contains(key), "{key} {how} is not named: {}", said.all());
    let costs = ["costs snapshot", "breaks the window", "costs names", "(costs "].iter().any(|words| said.out.contains(words));
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

/// Lists that hold by their checksums, and that no restore could write: whoever made them, `verify` refuses what `restore` refuses.
#[tokio::test(flavor = "multi_thread")]
async fn lists_that_a_restore_refuses_are_refused() {
    use lastgood::repo::manifest::{FileLine, Manifest, Part, What};
    use lastgood::repo::object::{self, Sha};
    let world = World::new(15).await;
    let id = world.backup(&[])["id"].as_str().unwrap().to_string();
    let storage = std::sync::Arc::new(lastgood::storage::fs::DirectoryStorage::new(world.repository()));
    let keys = lastgood::repo::seal::keys::Keys::default();
    let cluster = lastgood::repo::repository::Repository::open(storage, &keys).await.unwrap().cluster("shop");
    let manifest = Manifest::read(&cluster, &id).await.unwrap();
    assert_eq!(manifest.file_lists.len(), 1);
    let lines = manifest.files(&cluster, 0).await.unwrap();
    let base = lines.iter().position(|line| line.path == "base" && matches!(line.what, What::Directory)).unwrap();
    type Change<'a> = &'a dyn Fn(&mut Vec<FileLine>);
    let changes: [(&str, Change); 5] = [
        ("stands there twice", &|lines| lines.insert(base, lines[base].clone())),
        ("not in its order", &|lines| lines.swap(0, 1)),
        ("in a directory that does not stand before it", &|lines| drop(lines.remove(base))),
        ("it is no tablespace", &|lines| lines[base].what = What::Tablespace { target: "/etc".into(), encoded: None }),
        ("have no pg_control", &|lines| lines.retain(|line| line.path != "global/pg_control")),
    ];
    for (number, (words, change)) in changes.into_iter().enumerate() {
        let mut lines = lines.clone();
        change(&mut lines);
        for key in [cluster.layout().files(&id, 1), cluster.layout().manifest(&id)] {
            std::fs::remove_file(world.repository().join(key.as_str())).unwrap();
        }
        // The program itself writes none of these.
        let raw: Vec<u8> = lines.iter().flat_map(|line| [object::to_json(line), b"\n".to_vec()].concat()).collect();
        object::put_document(cluster.vault(), &cluster.layout().files(&id, 1), &raw).await.unwrap();
        let file_lists = vec![Part { raw_bytes: raw.len() as u64, sha256: Sha::of(&raw) }];
        Manifest { file_lists, ..manifest.clone() }.commit(&cluster).await.unwrap();
        for key in [cluster.layout().files(&id, 1), cluster.layout().manifest(&id)] {
            let path = world.repository().join(key.as_str());
            std::os::unix::fs::chown(&path, world.user().map(|user| user.uid), world.user().map(|user| user.gid)).unwrap();
        }
        world.refused(&["verify"], 7, &[words, &format!("costs snapshot {id}")]);
        let into = world.path(&format!("into{number}"));
        world.refused(&["restore", "--to", &id, "--into", into.to_str().unwrap()], 7, &[words]);
    }
}
