//! What was changed, exchanged, cut or replayed in an encrypted repository is found and named.

use super::*;

/// Like `verify`, with a reader's key file: nothing is asked of a passphrase.
async fn stored() -> (World, String, String) {
    let world = encrypted(with_passphrase).await;
    let (first, second) = filled(&world).await;
    world.ok(&["key", "export", "--to", &world.path("reader").display().to_string()]);
    configure(&world, &format!("key_file = \"{}\"", world.path("reader").display()));
    world.ok(&["verify"]);
    (world, first, second)
}

fn found(world: &World, key: &str, how: &str) {
    let said = world.run(&["verify"]);
    assert!(said.code == 7 && said.all().contains(key), "{key} {how}: {}", said.all());
}

/// Several bytes of every object, from the first to the last: content, head, sealed body, footer.
#[tokio::test(flavor = "multi_thread")]
async fn no_byte_can_be_changed_unseen() {
    let (world, ..) = stored().await;
    let from =
        world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"][0]["first_segment"].as_str().unwrap().to_string();
    let mut kinds = std::collections::BTreeSet::new();
    for key in world.objects("") {
        let name = key.rsplit('/').next().unwrap();
        // Nothing refers to these: what no snapshot needs, and what only people read.
        if key.contains("/backup/") || key == "lastgood.json" || (key.contains("/segments/") && *name < *from) {
            continue;
        }
        let path = world.repository().join(&key);
        let length = std::fs::metadata(&path).unwrap().len() as usize;
        let kind = key.split('/').nth(2).unwrap_or("keys").to_string() + &name[..1];
        // All of one of each kind, the ends of the others.
        let steps = if kinds.insert(kind) { 9 } else { 1 };
        for step in 0..=steps {
            let at = (length - 1) * step / steps;
            tamper(&path, |bytes| bytes[at] ^= 0x40);
            found(&world, &key, &format!("byte {at} of {length}"));
            tamper(&path, |bytes| bytes[at] ^= 0x40);
        }
    }
    assert!(kinds.len() >= 6, "{kinds:?}");
    world.ok(&["verify"]);
}

/// Every pair of the same kind, exchanged; old ones under new names; and the ends cut off.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_moved_renamed_replayed_or_cut() {
    let (world, first, second) = stored().await;
    let at = |key: &str| world.repository().join(key);
    let segments: Vec<String> =
        world.objects("clusters/shop/wal").into_iter().filter(|k| k.contains("/segments/")).rev().collect();
    let pairs = [
        (format!("clusters/shop/snapshots/{first}"), format!("clusters/shop/snapshots/{second}")),
        (format!("clusters/shop/files/{first}/000001"), format!("clusters/shop/files/{second}/000001")),
        (format!("clusters/shop/files/{first}/packs"), format!("clusters/shop/files/{second}/packs")),
        (format!("clusters/shop/files/{first}/wal"), format!("clusters/shop/files/{second}/wal")),
        (format!("clusters/shop/packs/{first}/d000001"), format!("clusters/shop/packs/{second}/d000001")),
        (segments[0].clone(), segments[1].clone()),
    ];
    for (a, b) in &pairs {
        let (in_a, in_b) = (std::fs::read(at(a)).unwrap(), std::fs::read(at(b)).unwrap());
        std::fs::write(at(a), &in_b).unwrap();
        std::fs::write(at(b), &in_a).unwrap();
        found(&world, a, "exchanged");
        found(&world, b, "exchanged");
        // The older one under the newer name: a replay.
        std::fs::write(at(a), &in_a).unwrap();
        found(&world, b, "replayed");
        for cut in [1, 48, in_b.len() / 2] {
            std::fs::write(at(b), &in_b[..in_b.len() - cut]).unwrap();
            found(&world, b, "cut short");
        }
        std::fs::write(at(b), &in_b).unwrap();
    }
    // Two frames of one pack, exchanged, with everything else as it was.
    let into = world.path("into").display().to_string();
    tamper(&at(&pairs[4].0), |bytes| bytes.swap(10, 11));
    world.refused(&["restore", "--into", &into, "--to", &format!("snapshot:{first}")], 7, &["does not open", &pairs[4].0]);
    tamper(&at(&pairs[4].0), |bytes| bytes.swap(10, 11));
    world.ok(&["verify"]);
    // A keyring under the next one's name, and an older one's content under its own.
    std::fs::rename(at("keys/000001-000001"), at("keys/000001-000002")).unwrap();
    world.refused(&["verify"], 7, &["keys/000001-000002", "it says it is number 1 of epoch 1"]);
    configure(&world, &format!("passphrase_file = \"{}\"", world.path("passphrase").display()));
    world.refused(&["list"], 7, &["keys/000001-000002"]);
}
