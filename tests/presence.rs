//! Green means restorable: what a snapshot needs and is not there is red in every command, and nothing is built on it or promised from it.

mod choice;
mod commands;
mod frozen;
mod gap;

use std::path::PathBuf;

use crate::support::world::World;

/// A cluster with two snapshots of one row more each, and WAL after them; the ids.
async fn two() -> (World, String, String) {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let first = id(&world.backup(&[]));
    world.sql("INSERT INTO t VALUES (2)").await;
    // Of its own packs, so that each can be lost alone.
    let second = id(&world.backup(&["--full"]));
    world.sql("INSERT INTO t VALUES (3)").await;
    world.archive().await;
    (world, first, second)
}

fn id(manifest: &serde_json::Value) -> String {
    manifest["id"].as_str().unwrap().to_string()
}

/// An object that is away until this is dropped.
struct Lost {
    from: PathBuf,
    to: PathBuf,
}

impl Drop for Lost {
    fn drop(&mut self) {
        std::fs::rename(&self.to, &self.from).unwrap();
    }
}

fn lose(world: &World, key: &str) -> Lost {
    let (from, to) = (world.repository().join(key), world.path("lost"));
    std::fs::rename(&from, &to).unwrap_or_else(|e| panic!("{key}: {e}"));
    Lost { from, to }
}

/// The only object whose key has all of these in it.
fn object(world: &World, parts: &[&str]) -> String {
    let found: Vec<String> =
        world.objects("clusters").into_iter().filter(|k| parts.iter().all(|part| k.contains(part))).collect();
    assert!(!found.is_empty(), "{parts:?}");
    found[0].clone()
}
