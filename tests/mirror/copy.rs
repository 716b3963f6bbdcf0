//! `lastgood mirror`: a verified copy of what the other lacks.

use std::path::{Path, PathBuf};

use crate::support::world::{World, tamper};

/// A world whose configuration has a mirror `offsite` in a directory.
pub async fn mirrored(lines: &str) -> World {
    let world = World::new(15).await;
    configure(&world, lines);
    world
}

pub fn configure(world: &World, lines: &str) {
    lastgood::postgres::scratch::make_directory(&there(world), world.user()).unwrap();
    let mirror = format!("\n[[mirror]]\nname = \"offsite\"\nurl = \"{}\"\n{lines}\n", there(world).display());
    world.write_config(None, &mirror);
}

/// Where the mirror is.
pub fn there(world: &World) -> PathBuf {
    world.path("offsite")
}

/// Keys below a directory.
pub fn keys(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

/// Keys that a copy should have.
fn copied_keys(world: &World) -> Vec<String> {
    keys(&world.repository()).into_iter().filter(|key| !key.contains("/leases/") && !key.starts_with("probe/")).collect()
}

/// Works with the mirror as the only repository.
pub fn from_mirror<'a>(there: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [&["--repo", there], args].concat()
}

async fn grow(world: &World, rounds: u32) {
    for round in 0..rounds {
        world.sql(&format!("INSERT INTO t SELECT {round}, md5(i::text) FROM generate_series(1, 2000) i")).await;
        world.backup(&[]);
        world.archive().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_the_same_bytes_and_restores() {
    let world = mirrored("").await;
    world.sql("CREATE TABLE t (x int, y text)").await;
    grow(&world, 2).await;
    // Nothing is written by a dry run, not even the key that names the repository.
    let said = world.ok(&["--json", "mirror", "--dry-run"]).json();
    assert!(said["report"]["copied"].as_u64().unwrap() > 10, "{said}");
    assert!(keys(&there(&world)).is_empty());
    world.ok(&["mirror", "--to", "offsite"]);
    assert_eq!(keys(&there(&world)), copied_keys(&world));
    for key in keys(&there(&world)) {
        assert_eq!(
            std::fs::read(there(&world).join(&key)).unwrap(),
            std::fs::read(world.repository().join(&key)).unwrap(),
            "{key}"
        );
    }
    // Again: nothing to do. More: only that.
    assert_eq!(world.ok(&["--json", "mirror"]).json()["report"]["copied"], 0);
    let before = keys(&there(&world)).len();
    grow(&world, 1).await;
    let copied = world.ok(&["--json", "mirror"]).json()["report"]["copied"].as_u64().unwrap();
    assert_eq!(keys(&there(&world)).len() as u64, before as u64 + copied);
    assert_eq!(keys(&there(&world)), copied_keys(&world));
    let place = there(&world).display().to_string();
    world.ok(&from_mirror(&place, &["verify"]));
    let into = world.path("restored").display().to_string();
    world.ok(&from_mirror(&place, &["restore", "--to", "latest", "--into", &into]));
    let (_server, session) = world.recovered("restored").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "6000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_off_copy_is_sound_and_goes_on() {
    let world = mirrored("").await;
    world.sql("CREATE TABLE t (x int, y text)").await;
    grow(&world, 2).await;
    world.ok(&["mirror"]);
    let all = keys(&there(&world));
    // As if it had been broken off at each kind: what comes later in the order of writes is not there yet.
    for gone in [
        &["/record/"][..],
        &["/record/", "/snapshots/"],
        &["/record/", "/snapshots/", "/wal/"],
        &["/record/", "/snapshots/", "/wal/", "/packs/"],
    ] {
        for key in all.iter().filter(|key| gone.iter().any(|kind| key.contains(kind))) {
            std::fs::remove_file(there(&world).join(key)).unwrap();
        }
        world.ok(&["mirror"]);
        assert_eq!(keys(&there(&world)), all);
    }
    // A folder that is something else is left alone.
    std::fs::remove_dir_all(there(&world)).unwrap();
    lastgood::postgres::scratch::make_directory(&there(&world), world.user()).unwrap();
    std::fs::write(there(&world).join("photo.jpg"), "x").unwrap();
    world.refused(&["mirror"], 5, &["photo.jpg", "no lastgood repository"]);
    // So is another repository.
    let other = World::new(15).await;
    std::fs::remove_file(there(&world).join("photo.jpg")).unwrap();
    std::fs::copy(other.repository().join("lastgood.json"), there(&world).join("lastgood.json")).unwrap();
    std::os::unix::fs::chown(there(&world).join("lastgood.json"), world.user().map(|u| u.uid), world.user().map(|u| u.gid))
        .unwrap();
    world.refused(&["mirror"], 5, &["is another repository"]);
    world.refused(&["mirror", "--to", "onsite"], 3, &["no mirror is called \"onsite\"", "offsite"]);
}

/// Each object is proven on the way: damage is not copied, and a snapshot that would be incomplete over there stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_not_copied() {
    let world = mirrored("").await;
    world.sql("CREATE TABLE t (x int, y text)").await;
    grow(&world, 1).await;
    let all = copied_keys(&world);
    for kind in ["/packs/", "/files/", "/snapshots/", "/segments/", "/record/"] {
        let key = all.iter().find(|key| key.contains(kind)).unwrap();
        let path = world.repository().join(key);
        let good = std::fs::read(&path).unwrap();
        tamper(&path, |bytes| {
            let middle = bytes.len() / 3;
            bytes[middle] ^= 0x10;
        });
        if kind != "/record/" {
            world.refused(&["mirror"], 7, &["DAMAGED", key]);
        } else {
            world.refused(&["mirror"], 7, &[key]);
        }
        let copied = keys(&there(&world));
        assert!(!copied.contains(key), "{key}");
        if ["/packs/", "/files/"].contains(&kind) {
            assert!(!copied.iter().any(|key| key.contains("/snapshots/")), "{kind}: {copied:?}");
        }
        std::fs::write(&path, &good).unwrap();
        std::fs::remove_dir_all(there(&world)).unwrap();
        lastgood::postgres::scratch::make_directory(&there(&world), world.user()).unwrap();
    }
    world.ok(&["mirror"]);
    assert_eq!(keys(&there(&world)), copied_keys(&world));
    // One name, two objects: both are named, both stay.
    let key = all.iter().find(|key| key.contains("/segments/")).unwrap();
    let path = there(&world).join(key);
    tamper(&path, |bytes| bytes.truncate(bytes.len() - 1));
    let said = world.refused(&["mirror"], 7, &["DIFFERS", key, "both stay"]);
    assert!(
        said.out.contains(&world.repository().display().to_string()) && said.out.contains(&there(&world).display().to_string())
    );
    assert_eq!(std::fs::metadata(&path).unwrap().len() + 1, std::fs::metadata(world.repository().join(key)).unwrap().len());
}

/// What was lost comes back; what was expired does not.
#[tokio::test(flavor = "multi_thread")]
async fn healing_brings_back_what_was_lost_and_not_what_was_expired() {
    let world = mirrored("").await;
    world.sql("CREATE TABLE t (x int, y text)").await;
    grow(&world, 3).await;
    world.ok(&["mirror"]);
    let all = copied_keys(&world);
    let json = world.ok(&["--json", "list"]).json();
    let snapshots = json["histories"][0]["snapshots"].as_array().unwrap();
    let [first, second] = [0, 1].map(|n| snapshots[n]["id"].as_str().unwrap().to_string());
    let from = snapshots[1]["first_segment"].as_str().unwrap().to_string();
    let remove = |key: &String| std::fs::remove_file(world.repository().join(key)).unwrap();
    // Expired: the first snapshot's manifest and lists, the WAL before the second. Packs that later ones need stay.
    let name = |key: &str| key.rsplit('/').next().unwrap().to_string();
    let is_expired = |key: &&String| {
        key.contains(&format!("snapshots/{first}"))
            || key.contains(&format!("files/{first}"))
            || (key.contains("/segments/") && name(key) < from)
    };
    let expired: Vec<&String> = all.iter().filter(is_expired).collect();
    assert!(expired.len() > 3);
    expired.iter().for_each(|key| remove(key));
    // Lost: one of each kind that is needed still.
    let lost: Vec<&String> = ["packs/", &format!("files/{second}"), "/segments/", "/record/"]
        .map(|kind| all.iter().rev().find(|key| key.contains(kind) && !is_expired(key)).unwrap())
        .to_vec();
    lost.iter().filter(|key| !key.contains("/record/")).for_each(|key| remove(key));
    world.refused(&["verify"], 7, &[]);
    world.ok(&["mirror", "--heal"]);
    let healed = copied_keys(&world);
    let missing: Vec<&String> = all.iter().filter(|key| !healed.contains(key)).collect();
    assert_eq!(missing, expired, "exactly what was expired is missing");
    world.ok(&["verify"]);
    assert_eq!(keys(&there(&world)), all, "the mirror keeps what it has");
    // The first is lost altogether: everything comes back from the mirror, because that is what was said.
    std::fs::remove_dir_all(world.repository()).unwrap();
    lastgood::postgres::scratch::make_directory(&world.repository(), world.user()).unwrap();
    world.refused(&["mirror", "--heal"], 4, &["holds no lastgood repository"]);
    world.ok(&["mirror", "--from", "offsite"]);
    assert_eq!(copied_keys(&world), all);
    world.ok(&["verify"]);
    world.ok(&["backup"]);
}

/// Sealed objects are copied as they are stored, and proven as far as the key at hand opens them.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_repository_is_copied_as_stored() {
    let mut world = World::bare(15, &["--no-sync"], "", None).await;
    std::fs::write(world.path("passphrase"), "correct horse battery staple\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(world.path("passphrase"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let [passphrase, key] = ["passphrase", "writer.key"].map(|name| world.path(name).display().to_string());
    let writer = format!("[encryption]\nargon2_memory_kib = 64\nkey_file = \"{key}\"\n");
    let reader = format!("{writer}passphrase_file = \"{passphrase}\"\n");
    configure(&world, &reader);
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.sql("CREATE TABLE t (x int, y text)").await;
    grow(&world, 1).await;
    // With a writer's key, packs of data are proven by trailer and length, and that is said.
    configure(&world, &writer);
    let said = world.ok(&["mirror"]);
    assert!(said.out.contains("only trailer and length could be proven"), "{}", said.all());
    configure(&world, &reader);
    assert_eq!(world.ok(&["--json", "mirror"]).json()["report"]["copied"], 0);
    assert_eq!(keys(&there(&world)), copied_keys(&world));
    let place = there(&world).display().to_string();
    world.ok(&from_mirror(&place, &["verify"]));
}
