//! The newest snapshot is damaged, an older one and the WAL are not: which one a plan begins with, and what a backup is built on.

use super::{id, lose, object, two};
use crate::support::world::{World, tamper};

fn plan(world: &World, more: &[&str]) -> serde_json::Value {
    let into = world.path("x");
    let args = ["--json", "restore", "--into", into.to_str().unwrap(), "--dry-run"];
    world.ok(&[&args, more].concat()).json()["plan"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_passes_over_what_is_proven_damaged_and_says_so() {
    let (world, first, second) = two().await;
    assert_eq!(plan(&world, &["--to", "latest"])["snapshot"], second.as_str());
    let into = world.path("x");
    let restore = ["restore", "--to", "latest", "--into", into.to_str().unwrap()];
    for parts in [&["/files/", "/000001"][..], &["/packs/", "d000001"], &["/files/", "/packs"]] {
        let key = object(&world, &[parts, &[second.as_str()]].concat());
        let _lost = lose(&world, &key);
        let plan = plan(&world, &["--to", "latest"]);
        assert_eq!(plan["snapshot"], first.as_str(), "{key}");
        assert_eq!(plan["passed_over"][0]["snapshot"], second.as_str(), "{key}");
        assert!(plan["passed_over"][0]["why"].as_str().unwrap().contains(&key), "{plan}");
        // Nothing that was named is exchanged, and `check` stays red.
        world.refused(&[&restore[..], &["--snapshot", second.as_str()]].concat(), 7, &[&key, "was named"]);
        world.refused(&["restore", "--to", &second, "--into", into.to_str().unwrap()], 7, &[&key]);
        world.refused(&["check", "--no-switch"], 9, &[&second, &format!("begins with {first} instead")]);
    }
    // A moment before it has nothing to do with it.
    let lsn = world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"][1]["start_lsn"].as_str().unwrap().to_string();
    let key = object(&world, &["/files/", "/000001", &second]);
    {
        let _lost = lose(&world, &key);
        let before = plan(&world, &["--to", &lsn]);
        assert!(before["snapshot"] == first.as_str() && before["passed_over"].is_null(), "{before}");
        // The older one too: no way is left, and the newest is the one that is named.
        let other = world.repository().join(object(&world, &["/files/", "/000001", &first]));
        std::fs::rename(&other, world.path("other")).unwrap();
        world.refused(&restore, 7, &[&key, "no other snapshot leads there"]);
        std::fs::rename(world.path("other"), &other).unwrap();
        // A manifest that cannot be read is passed over as well.
        let (_server, session) = world.restore("x", &["--to", "latest"]).await;
        assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "3");
    }
    let manifest = world.repository().join(object(&world, &["/snapshots/", &second]));
    tamper(&manifest, |bytes| bytes.truncate(bytes.len() / 2));
    let into = world.path("y");
    let said = world.ok(&["--json", "restore", "--into", into.to_str().unwrap(), "--to", "latest", "--dry-run"]).json();
    assert_eq!((&said["plan"]["snapshot"], &said["plan"]["passed_over"][0]["snapshot"]), (&first.into(), &second.into()));
}

/// The store did not answer: nothing is proven, and nothing is passed over.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_store_is_no_absence() {
    use std::os::unix::fs::PermissionsExt;
    let (world, _, second) = two().await;
    let directory = world.repository().join("clusters/shop/files").join(&second);
    let mode = |mode| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o000);
    let into = world.path("x");
    world.refused(&["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--dry-run"], 4, &["permission denied"]);
    let said = world.run(&["check", "--no-switch"]);
    assert!(said.code != 0 && !said.all().contains("missing"), "{said:?}");
    world.refused(&["backup"], 4, &["permission denied"]);
    mode(0o700);
    world.ok(&["check", "--no-switch"]);
}

/// What the plan cannot know without reading stops the restore; the next plan is told where to begin.
#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_found_on_the_way_names_the_way_out() {
    let (world, first, second) = two().await;
    let pack = world.repository().join(object(&world, &["/packs/", "d000001", &second]));
    tamper(&pack, |bytes| {
        let middle = bytes.len() / 3;
        bytes[middle] ^= 0x10;
    });
    let into = world.path("x");
    let restore = ["restore", "--to", "latest", "--into", into.to_str().unwrap()];
    world.refused(&restore, 7, &["is damaged", &format!("--snapshot {first}")]);
    let (_server, session) = world.restore("x", &["--to", "latest", "--snapshot", &first]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_not_built_on_what_lacks_something() {
    let (world, first, second) = two().await;
    let key = object(&world, &["/files/", "/000001", &second]);
    {
        let _lost = lose(&world, &key);
        let said = world.ok(&["--json", "backup"]);
        let third = said.json()["snapshot"].clone();
        assert_eq!(third["parent"], first.as_str(), "{said:?}");
        assert!(said.all().contains(&key) && said.all().contains(&format!("built on {first} instead")), "{said:?}");
        world.ok(&["verify", &id(&third)]);
        world.refused(&["verify"], 7, &[&key]);
    }
    let third = world.backup(&[]);
    assert_ne!(third["parent"], first.as_str(), "the newest is whole again");
}
