//! The format: readable with standard tools, and as `docs/format.md` says to the byte.

use std::process::Command;

use lastgood::aligned::Pool;
use lastgood::repo::frame::Compressor;
use lastgood::repo::layout::Layout;
use lastgood::repo::object::{self, Sha};
use lastgood::repo::pack::{CHUNK_BYTES, PackBuilder};
use lastgood::repo::seal::crypto::Secret;
use lastgood::repo::seal::epoch::EpochKey;
use lastgood::repo::seal::{Seal, keyring, text};
use lastgood::storage::{Body, ObjectKey};

use crate::support::world::World;

/// Runs a line of shell and answers what it printed.
fn shell(line: &str) -> String {
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// With `zstd`, `sha256sum`, `dd` and `jq` alone: a segment, a manifest, and a table's file put together from its map.
#[tokio::test(flavor = "multi_thread")]
async fn standard_tools_are_enough() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, repeat('y', 50) AS y FROM generate_series(1, 5000) i").await;
    let path = world.value("SELECT pg_relation_filepath('t')").await;
    let snapshot = world.backup(&[]);
    let id = snapshot["id"].as_str().unwrap();
    let base = format!("{}/clusters/shop", world.repository().display());
    // The manifest is JSON, and vouches for its file list.
    let list = format!("{base}/files/{id}/000001");
    let promised = shell(&format!("zstd -dcq {base}/snapshots/{id} | jq -r '.file_lists[0].sha256'"));
    assert_eq!(shell(&format!("zstd -dcq {list} | sha256sum | cut -d' ' -f1")), promised);
    // A segment is the segment.
    let segment = snapshot["first_segment"].as_str().unwrap();
    let stored = world.objects("clusters/shop/wal").into_iter().find(|k| k.ends_with(segment)).unwrap();
    assert_eq!(shell(&format!("zstd -dcq {}/{stored} | wc -c", world.repository().display())), "16777216");
    // A pack gives the raw bytes of its frames, and each frame has the SHA-256 that the map says.
    let line = shell(&format!("zstd -dcq {list} | jq -c 'select(.path == \"{path}\")'"));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let map = match line.get("map") {
        Some(map) => map.clone(),
        None => {
            let frame = &line["map_frame"]["frame"];
            let (pack, offset, bytes) = (frame[0].as_str().unwrap(), &frame[1], &frame[2]);
            let cut = format!(
                "dd if={base}/packs/{pack} iflag=skip_bytes,count_bytes skip={offset} count={bytes} status=none | zstd -dcq"
            );
            serde_json::from_str(&shell(&cut)).unwrap()
        }
    };
    let mut commands = String::new();
    for run in map["runs"].as_array().unwrap() {
        let frame = &map["frames"][run[0].as_u64().unwrap() as usize];
        let (pack, offset, bytes, sha) = (frame[0].as_str().unwrap(), &frame[1], &frame[2], frame[4].as_str().unwrap());
        let cut =
            format!("dd if={base}/packs/{pack} iflag=skip_bytes,count_bytes skip={offset} count={bytes} status=none | zstd -dcq");
        assert_eq!(shell(&format!("{cut} | sha256sum | cut -d' ' -f1")), sha);
        commands.push_str(&format!("{cut} | tail -c +{} | head -c {};", run[1].as_u64().unwrap() + 1, run[2]));
    }
    world.sql("CHECKPOINT").await;
    let by_hand = shell(&format!("({commands}) | sha256sum"));
    let original = shell(&format!("sha256sum < {}", world.server.data().join(&path).display()));
    assert_eq!(by_hand, original);
    let whole = shell(&format!("zstd -dcq {base}/packs/{id}/d000001 | wc -c"));
    assert_eq!(whole, snapshot["totals"]["new_bytes"].as_u64().map(|n| (n + 8192).to_string()).unwrap(), "and pg_control");
}

/// The block after a mark in `docs/format.md`.
fn block(name: &str) -> String {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/format.md")).unwrap();
    let rest = docs.split(&format!("<!-- worked-example: {name} -->")).nth(1).unwrap();
    rest.split("```").nth(1).unwrap().split_once('\n').unwrap().1.to_string()
}

/// The hex digits of a block, without its comments.
fn example(name: &str) -> String {
    block(name).lines().flat_map(|l| l.split('#').next().unwrap().chars()).filter(|c| !c.is_whitespace()).collect()
}

/// The same two objects sealed, and the key as text. The examples were made by `tests/tools/unseal.py`, which shares no code.
#[test]
fn the_sealed_example_is_true() {
    let bytes = |from: u8| Secret::new(std::array::from_fn(|index| from + index as u8));
    let key = EpochKey::from_root(bytes(0));
    let key_id = keyring::key_id(key.verify());
    assert_eq!(key_id, "ce03e3fe86ff53e227f80373a31419a5");
    let seal = Seal::new("72d43c07332f5c65edd550217f538236", &key_id, [(1, key)].into());
    assert_eq!(*text::write(&seal), block("key text"));
    let record = ObjectKey::new("clusters/shop/record/00000001");
    let document = object::document(b"{\"hello\":\"world\"}\n", Some(&seal.sealer_from(&record, &bytes(32))));
    assert_eq!(hex::encode(document), example("sealed document"));
    let name = "20261121T010000Z-ab12/d000001";
    let sealer = seal.sealer_from(&Layout::new("shop").pack(name), &bytes(64));
    assert_eq!(hex::encode(packed(PackBuilder::new(name, Some(sealer), &Pool::new(CHUNK_BYTES)))), example("sealed pack"));
}

fn packed(mut pack: PackBuilder) -> Vec<u8> {
    for raw in [&b"first frame\n"[..], b"second frame\n"] {
        pack.add(&Compressor::new(1).compress(raw), raw.len() as u32, Sha::of(raw));
    }
    let Body::Bytes(pieces) = pack.finish().body else { panic!("a pack is in memory") };
    pieces.concat()
}

/// The example objects of `docs/format.md` are what the code writes.
#[test]
fn the_worked_example_is_true() {
    let document = object::document(b"{\"hello\":\"world\"}\n", None);
    assert_eq!(hex::encode(document), example("document"));
    let pack = packed(PackBuilder::new("20261121T010000Z-ab12/d000001", None, &Pool::new(CHUNK_BYTES)));
    assert_eq!(hex::encode(pack), example("pack"));
}

/// Same content, same root: whatever the compression, and in whichever repository.
#[tokio::test(flavor = "multi_thread")]
async fn the_root_depends_on_content_alone() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) x").await;
    let mut roots = std::collections::BTreeSet::new();
    let mut digests = std::collections::BTreeSet::new();
    let path = world.value("SELECT pg_relation_filepath('t')").await;
    for level in [1, 12] {
        world.write_config(None, &format!("\n[snapshot]\ncompression_level = {level}\nthreads = 1\n"));
        let snapshot = world.backup(&["--full"]);
        let list = format!("{}/clusters/shop/files/{}/000001", world.repository().display(), snapshot["id"].as_str().unwrap());
        digests.insert(shell(&format!("zstd -dcq {list} | jq -r 'select(.path == \"{path}\") | .digest'")));
        roots.insert(snapshot["root"].as_str().unwrap().to_string());
    }
    assert_eq!(digests.len(), 1, "an unchanged table has the same digest");
    assert_eq!(roots.len(), 2, "and the whole cluster moved on: pg_control and WAL positions differ");
}
