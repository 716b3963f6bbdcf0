//! A bad backup never passes: each damage makes the drill fail, with a report that names the cause.

use std::os::unix::fs::FileExt;

use lastgood::postgres::page;
use lastgood::postgres::scratch::Stop;
use lastgood::repo::object::document;

use super::{configure, drills, fails, filled, passes};
use crate::support::world::{World, tamper};

fn key(world: &World, wanted: impl Fn(&str) -> bool) -> String {
    world.objects("clusters").into_iter().find(|key| wanted(key)).unwrap()
}

/// Raw content of a document, as standard tools read it.
fn raw(world: &World, key: &str) -> Vec<u8> {
    zstd::decode_all(std::fs::File::open(world.repository().join(key)).unwrap()).unwrap()
}

/// Changes one object, wants a failure with these words, and puts it back.
fn spoiled(world: &World, key: &str, words: &[&str], spoil: impl FnOnce(&mut Vec<u8>)) {
    let path = world.repository().join(key);
    let good = std::fs::read(&path).unwrap();
    tamper(&path, spoil);
    fails(world, &[], words);
    std::fs::write(&path, good).unwrap();
}

/// Takes one object away, wants a failure with these words, and puts it back.
fn gone(world: &World, key: &str, words: &[&str]) {
    let path = world.repository().join(key);
    std::fs::rename(&path, world.path("gone")).unwrap();
    fails(world, &[], words);
    std::fs::rename(world.path("gone"), path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_packs_and_manifests_fail() {
    let world = filled(15, "").await;
    passes(&world, &[]);
    let pack = key(&world, |key| key.contains("/packs/") && key.contains("/d0"));
    spoiled(&world, &pack, &[&pack], |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    gone(&world, &pack, &[&pack]);
    // Two frames of the same length in each other's place: each is whole, and neither belongs there.
    let list = key(&world, |key| key.contains("/files/") && key.ends_with("/000001"));
    let (one, two) = two_frames(&String::from_utf8(raw(&world, &list)).unwrap(), &pack);
    spoiled(&world, &pack, &[&pack], |bytes| {
        let (first, second) = (bytes[one.0..one.0 + one.1].to_vec(), bytes[two.0..two.0 + two.1].to_vec());
        bytes[one.0..one.0 + two.1].copy_from_slice(&second);
        let end = two.0 + two.1;
        bytes[end - first.len()..end].copy_from_slice(&first);
    });
    let manifest = key(&world, |key| key.contains("/snapshots/"));
    spoiled(&world, &manifest, &["cannot be read"], |bytes| {
        let middle = bytes.len() / 3;
        bytes[middle] ^= 1;
    });
    // Falsified with a right checksum of its own.
    let falsified = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value = serde_json::from_slice(&raw(&world, &manifest)).unwrap();
        change(&mut value);
        document(&serde_json::to_vec(&value).unwrap(), None)
    };
    let other = falsified(&|value| value["file_lists"][0]["sha256"] = "00".repeat(32).into());
    spoiled(&world, &manifest, &["it is not the one that the manifest names"], |bytes| *bytes = other);
    let other = falsified(&|value| value["root"] = "00".repeat(32).into());
    spoiled(&world, &manifest, &["root"], |bytes| *bytes = other);
    let label = falsified(&|value| {
        let label = value["backup_label"].as_str().unwrap().replace("START WAL LOCATION: 0/", "START WAL LOCATION: 7/");
        value["backup_label"] = label.into();
    });
    spoiled(&world, &manifest, &["backup_label"], |bytes| *bytes = label);
    passes(&world, &[]);
}

/// Offset and length of two neighbouring frames of a pack, from a file list.
fn two_frames(list: &str, pack: &str) -> ((usize, usize), (usize, usize)) {
    let mut frames = std::collections::BTreeSet::new();
    for line in list.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for frame in line["map"]["frames"].as_array().into_iter().flatten() {
            let fields: Vec<u64> = match frame {
                serde_json::Value::Array(fields) => fields.iter().filter_map(serde_json::Value::as_u64).collect(),
                other => ["offset", "bytes"].iter().filter_map(|name| other[*name].as_u64()).collect(),
            };
            frames.insert((fields[0] as usize, fields[1] as usize));
        }
    }
    let frames: Vec<(usize, usize)> = frames.into_iter().collect();
    let pair = frames.windows(2).find(|pair| pair[0].0 + pair[0].1 == pair[1].0 && pair[0].1 != pair[1].1);
    pair.map(|pair| (pair[0], pair[1])).unwrap_or_else(|| panic!("no neighbours in {pack}: {frames:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_wal_and_a_missing_history_fail() {
    let mut world = filled(15, "").await;
    let snapshot = world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"][0].clone();
    let needed = snapshot["first_segment"].as_str().unwrap().to_string();
    world.sql("INSERT INTO orders VALUES (0, 'more')").await;
    world.archive().await;
    let segments: Vec<String> = world.objects("clusters/shop/wal").into_iter().filter(|key| key.contains("/segments/")).collect();
    let of_snapshot = segments.iter().position(|key| key.ends_with(&needed)).unwrap();
    gone(&world, &segments[of_snapshot], &[&needed]);
    // In the middle of what follows: an older moment could still be reached, and that is not what was asked.
    assert!(segments.len() > of_snapshot + 2, "{segments:?}");
    let middle = &segments[segments.len() - 2];
    let name = middle.rsplit('/').next().unwrap();
    gone(&world, middle, &[name, "is missing"]);
    spoiled(&world, middle, &[name], |bytes| {
        let third = bytes.len() / 3;
        bytes[third] ^= 1;
    });
    // A second timeline, whose history file is lost: an older one must not be taken for the newest.
    let data = world.path("promoted");
    world.ok(&["restore", "--to", "latest", "--into", data.to_str().unwrap()]);
    world.server.stop(Stop::Fast);
    let (server, session) = world.recovered("promoted").await;
    session.run("CREATE TABLE later AS SELECT 1 AS x").await.unwrap();
    world.confirmed(&["release", "--data-directory", data.to_str().unwrap()]);
    drop(session);
    drop(server);
    let mut server = world.restored("promoted");
    server.start().await.unwrap();
    let session = lastgood::postgres::session::Session::open(&server.connection()).await.unwrap();
    let name = session.switch_segment("later").await.unwrap();
    while !world.objects("clusters/shop/wal").iter().any(|key| key.ends_with(&name)) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    passes(&world, &[]);
    let history = key(&world, |key| key.ends_with("00000002.history"));
    gone(&world, &history, &["00000002.history is missing"]);
}

/// A server that is told to stop early says in its log that it stopped at its target.
#[tokio::test(flavor = "multi_thread")]
async fn replay_that_stops_early_fails() {
    let world = filled(15, "").await;
    let plan = world.ok(&["--json", "drill", "--dry-run"]).json();
    let early = plan["plan"]["found"]["snapshot"]["stop_lsn"].as_str().map(str::to_string);
    let early = early.unwrap_or_else(|| {
        world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"][0]["stop_lsn"].as_str().unwrap().to_string()
    });
    let bin = world.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let real = crate::support::world::programs(15);
    let script = format!(
        "#!/bin/bash\nprevious=\nfor word in \"$@\"; do\n\
         [ \"$previous\" = -D ] && sed -i \"s|^recovery_target_lsn = '[0-9].*|recovery_target_lsn = '{early}'|\" \"$word/postgresql.auto.conf\"\n\
         previous=$word\ndone\nexec {}/postgres \"$@\"\n",
        real.display()
    );
    std::fs::write(bin.join("postgres"), script).unwrap();
    std::fs::set_permissions(bin.join("postgres"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let section =
        format!("\n[drill]\ndirectory = \"{}\"\n[drill.programs]\n15 = \"{}\"\n", drills(&world).display(), bin.display());
    world.write_config(None, &section);
    fails(&world, &[], &["target: replay stopped early"]);
    configure(&world, 15, "");
    passes(&world, &[]);
}

/// A page of an index that is wrong and carries a right checksum, written by the disk and not by PostgreSQL, before the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_corruption_of_an_index_fails() {
    let mut world = World::with(15, &["--data-checksums"], "autovacuum = off", None).await;
    configure(&world, 15, "");
    world.sql("CREATE TABLE orders AS SELECT i AS id FROM generate_series(1, 5000) i").await;
    world.sql("CREATE INDEX by_id ON orders (id)").await;
    let path = world.server.data().join(world.value("SELECT pg_relation_filepath('by_id')").await);
    world.server.stop(Stop::Fast);
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut leaf = vec![0u8; page::PAGE_BYTES];
    // Block 0 is the meta page, 1 the first leaf. Two of its entries change places.
    file.read_exact_at(&mut leaf, page::PAGE_BYTES as u64).unwrap();
    let line = |at: usize| 24 + 4 * at;
    let (one, two) = (leaf[line(10)..line(11)].to_vec(), leaf[line(20)..line(21)].to_vec());
    leaf[line(10)..line(11)].copy_from_slice(&two);
    leaf[line(20)..line(21)].copy_from_slice(&one);
    let sum = page::checksum(&leaf, 1);
    leaf[8..10].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&leaf, page::PAGE_BYTES as u64).unwrap();
    world.start().await;
    let taken = world.backup(&[]);
    assert_eq!(taken["damaged_pages"].as_array().map_or(0, Vec::len), 0, "nobody saw it");
    world.archive().await;
    let report = fails(&world, &[], &["amcheck: public.by_id in database postgres", "item order"]);
    assert!(report["findings"].as_array().unwrap().iter().any(|f| f["subject"] == "pages" && f["level"] == "ok"));
}

/// A page that is damaged and whose checksum says so, and a table whose file was emptied under the server.
#[tokio::test(flavor = "multi_thread")]
async fn damage_of_the_database_itself_fails() {
    let mut world = World::with(15, &["--data-checksums"], "autovacuum = off", None).await;
    configure(&world, 15, "");
    world.sql("CREATE TABLE orders AS SELECT i AS id, md5(i::text) AS what FROM generate_series(1, 50000) i").await;
    world.sql("CREATE TABLE other AS SELECT * FROM orders; ANALYZE").await;
    let path = |name: &'static str| {
        let (world, data) = (&world, world.server.data().to_path_buf());
        async move { data.join(world.value(&format!("SELECT pg_relation_filepath('{name}')")).await) }
    };
    let (orders, other) = (path("orders").await, path("other").await);
    world.server.stop(Stop::Fast);
    tamper(&orders, |bytes| bytes[3 * 8192 + 5000] ^= 1);
    tamper(&other, |bytes| bytes.truncate(0));
    world.start().await;
    let said = world.run(&["--json", "backup"]);
    assert_eq!(said.code, 7, "{}", said.all());
    world.archive().await;
    fails(
        &world,
        &[],
        &[
            "pages: the checksum of block 3 of",
            "catalogue: table postgres.public.other had",
            "amcheck: public.orders in database postgres",
        ],
    );
}

/// Nothing at all is no reason to be green.
#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_fails() {
    let world = World::new(15).await;
    configure(&world, 15, "");
    fails(&world, &[], &["there is no snapshot yet"]);
    world.refused(&["drill", "--dry-run"], 11, &["there is no snapshot yet"]);
}
