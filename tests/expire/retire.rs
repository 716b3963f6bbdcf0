//! Packs of which little is alive: backups store the rest anew, and expiry removes them.

use std::sync::Arc;

use lastgood::monitor::Silent;
use lastgood::postgres::session::Session;
use lastgood::repo::manifest::{Manifest, MapPlace, What};
use lastgood::repo::pack_table::PackLine;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::snapshot::retire::Terms;
use lastgood::snapshot::take::{self, Request};
use lastgood::storage::Fault;
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::fs::DirectoryStorage;

use super::servers::rules;
use crate::changed::content::{self, compare, quiet, total};
use crate::support::world::World;

const ROUNDS: u32 = 6;
const OFF: &str = "keep_last = 2\nrewrite_below_percent = 0";

/// A text of 1472 bytes that does not compress well.
fn text(of: &str, n: u32) -> String {
    format!("(SELECT string_agg(md5({of}::text || k::text || '{n}'), '') FROM generate_series(1, 46) k)")
}

async fn table(world: &World, name: &str, rows: u32, options: &str) {
    world.sql(&format!("CREATE TABLE {name} (x int, y text) {options}")).await;
    world.sql(&format!("ALTER TABLE {name} ALTER y SET STORAGE PLAIN")).await;
    world.sql(&format!("INSERT INTO {name} SELECT i, {} FROM generate_series(1, {rows}) i", text("i", 0))).await;
    // Hints are set now, and not by whoever reads first.
    world.sql(&format!("VACUUM (FREEZE) {name}")).await;
}

/// What the server never touches again is old enough to be trusted by its times.
fn age(world: &World, path: &std::path::Path) {
    if let Some(user) = world.user() {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
    assert!(std::process::Command::new("touch").args(["-d", "1 hour ago"]).arg(path).status().unwrap().success());
}

/// Half of the pages of `hot` change, all over it, and beside it comes a table that nobody touches again.
async fn round(world: &World, n: u32) {
    let cold = format!("cold{n}");
    table(world, &cold, 750, "").await;
    let half = format!("abs(hashint4(x / 2 + 100000 * {n})) % 2 = 0");
    world.sql(&format!("UPDATE hot SET y = {} WHERE {half}", text("x", n))).await;
    world.sql("CHECKPOINT").await;
    let path = world.value(&format!("SELECT pg_relation_filepath('{cold}')")).await;
    for fork in ["", "_vm", "_fsm"] {
        age(world, &world.server.data().join(format!("{path}{fork}")));
    }
}

/// Two snapshots are kept; those of earlier rounds left packs that newer ones need a little of. Answers all ids.
async fn worn(is_large: bool) -> (World, Vec<String>) {
    let world = World::new(15).await;
    rules(&world, OFF);
    table(&world, "hot", 4000, "WITH (fillfactor = 40)").await;
    if is_large {
        table(&world, "wide", 9000, "WITH (fillfactor = 20)").await;
    }
    world.sql("CHECKPOINT").await;
    let mut ids = vec![world.backup(&[])["id"].as_str().unwrap().to_string()];
    for n in 1..=ROUNDS {
        if n == 1 && is_large {
            world.sql(&format!("UPDATE wide SET y = {} WHERE x % 300 = 7", text("x", n))).await;
            for name in ["extra.bin", "global/extra.bin"] {
                let bytes: Vec<u8> = (0..300_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
                std::fs::write(world.server.data().join(name), &bytes[..300_000]).unwrap();
                age(&world, &world.server.data().join(name));
            }
        }
        round(&world, n).await;
        ids.push(world.backup(&[])["id"].as_str().unwrap().to_string());
        world.archive().await;
        world.ok(&["expire"]);
    }
    assert_eq!(world.objects("clusters/shop/snapshots").len(), 2);
    (world, ids)
}

async fn manifest(world: &World, id: &str) -> (Manifest, Vec<PackLine>) {
    let cluster = content::cluster(world).await;
    let manifest = Manifest::read(&cluster, id).await.unwrap();
    let packs = manifest.packs(&cluster).await.unwrap();
    (manifest, packs)
}

fn plan(world: &World) -> serde_json::Value {
    world.ok(&["--json", "expire", "--dry-run"]).json()["plan"].clone()
}

fn stored(world: &World) -> u64 {
    let bytes = |key: &String| std::fs::metadata(world.repository().join(key)).unwrap().len();
    world.objects("clusters/shop/packs").iter().map(bytes).sum()
}

fn packs_of(world: &World, id: &str) -> Vec<String> {
    world.objects(&format!("clusters/shop/packs/{id}"))
}

fn tables() -> Vec<String> {
    (1..=ROUNDS).map(|n| format!("cold{n}")).chain(["hot".into()]).collect()
}

async fn sum(session: &Session, table: &str) -> String {
    session.value(&format!("SELECT md5(string_agg(md5(y), '' ORDER BY x)) FROM {table}")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn mostly_dead_packs_are_retired_and_every_snapshot_restores() {
    let (world, ids) = worn(true).await;
    // Off means off: what little is alive of the first rounds holds all of their packs.
    let before = plan(&world);
    assert!(before["packs_on_loan"]["objects"].as_u64().unwrap() >= 4, "{before:#}");
    assert_eq!((&before["packs_sparse"]["objects"], &before["packs_retired"]["objects"]), (&0.into(), &0.into()));
    let bytes_before = stored(&world);
    rules(&world, "keep_last = 2");
    let said = world.ok(&["expire", "--dry-run"]).out;
    assert!(said.contains("of these are mostly dead"), "{said}");
    let waiting = plan(&world)["packs_sparse"].clone();
    assert!(waiting["objects"].as_u64().unwrap() >= 2, "{waiting}");
    // The same files as a snapshot that stores everything, of which little was read.
    let (taken, _) = compare(&world, "--full").await;
    let retired = &taken["retired"];
    assert!(retired["packs"].as_u64().unwrap() >= 2 && retired["waiting_packs"] == 0, "{retired}");
    assert_eq!(retired["stored_bytes"], waiting["bytes"]);
    let rewritten = retired["rewritten_bytes"].as_u64().unwrap();
    assert!(rewritten > 2_000_000 && total(&taken, "new_bytes") * 10 > 9 * rewritten, "{retired} {}", taken["totals"]);
    assert!(total(&taken, "read_bytes") < 2 * rewritten, "{retired} {}", taken["totals"]);
    let id = taken["id"].as_str().unwrap();
    let (_, packs) = manifest(&world, id).await;
    assert!(!packs.iter().any(|pack| ids[1..3].contains(&pack.writer().to_string())), "{packs:?}");
    assert!(packs.iter().any(|pack| pack.writer() == ids[0]) && packs.iter().all(|pack| pack.used.is_some()), "{packs:?}");
    // They stay for the older ones, and go with them.
    world.ok(&["expire"]);
    let after = plan(&world);
    assert!(after["packs_retired"]["objects"].as_u64().unwrap() >= 2, "{after:#}");
    assert!(world.ok(&["expire", "--dry-run"]).out.contains("the newest does without them"));
    assert!(!packs_of(&world, &ids[1]).is_empty() && !packs_of(&world, &ids[2]).is_empty());
    world.ok(&["verify"]);
    world.sql("UPDATE hot SET y = 'last' WHERE x = 4000").await;
    let last = world.backup(&[]);
    world.archive().await;
    world.ok(&["expire"]);
    assert!(packs_of(&world, &ids[1]).is_empty() && packs_of(&world, &ids[2]).is_empty());
    assert!(!packs_of(&world, &ids[0]).is_empty(), "of which much is alive");
    assert!(stored(&world) < bytes_before, "{} and {bytes_before}", stored(&world));
    world.ok(&["verify"]);
    for (name, id) in [("older", id), ("newer", last["id"].as_str().unwrap())] {
        let (_server, session) = world.restore(name, &["--to", &format!("snapshot:{id}")]).await;
        for table in tables().iter().filter(|table| *table != "hot").chain([&"wide".to_string()]) {
            assert_eq!(sum(&session, table).await, sum(world.session(), table).await, "{name}: {table}");
        }
        let changed = session.value("SELECT count(*) FROM hot WHERE y = 'last'").await.unwrap();
        assert_eq!(changed, if name == "older" { "0" } else { "1" });
        for file in ["extra.bin", "global/extra.bin"] {
            let bytes = |root: &std::path::Path| std::fs::read(root.join(file)).unwrap();
            assert!(bytes(&world.path(name)) == bytes(world.server.data()), "{name}: {file}");
        }
    }
}

/// Raw bytes of tables that a snapshot stored itself.
async fn own_bytes(world: &World, id: &str, paths: &[String]) -> u64 {
    let cluster = content::cluster(world).await;
    let (manifest, _) = manifest(world, id).await;
    let mut own = 0;
    for list in 0..manifest.file_lists.len() {
        for line in manifest.files(&cluster, list).await.unwrap() {
            let What::File { map, .. } = &line.what else { continue };
            if !paths.contains(&line.path) {
                continue;
            }
            let is_own = |pack: &str| pack.starts_with(id);
            own += match map {
                MapPlace::Map(map) => {
                    map.live_bytes().iter().filter(|(pack, _)| is_own(pack)).map(|(_, bytes)| bytes).sum::<u64>()
                }
                MapPlace::MapFrame { packs, live_bytes, .. } => {
                    packs.iter().zip(live_bytes).filter(|(pack, _)| is_own(pack)).map(|(_, bytes)| bytes).sum()
                }
            };
        }
    }
    own
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_holds_and_a_pinned_snapshot_makes_it_pointless() {
    let (world, ids) = worn(false).await;
    quiet(&world).await;
    rules(&world, "keep_last = 2\nrewrite_max_bytes = 0");
    let newest = world.backup(&[]);
    assert!(newest["retired"].is_null());
    let (_, packs) = manifest(&world, newest["id"].as_str().unwrap()).await;
    let is_gone = |pack: &&PackLine| ids[..5].contains(&pack.writer().to_string());
    let used = packs.iter().filter(is_gone).filter_map(|pack| pack.used.filter(|used| used.is_below(25)));
    let sparse: Vec<u64> = used.map(|used| used.live_bytes).collect();
    // Each fits by itself: a quarter of the largest.
    let of_rounds = packs.iter().filter(|pack| pack.writer() != ids[0]).filter_map(|pack| pack.used);
    let limit = of_rounds.map(|used| used.raw_bytes).max().unwrap() / 4;
    assert!(sparse.len() >= 2 && sparse.iter().sum::<u64>() > limit, "{limit} {sparse:?}");
    // It needs them all, and stays.
    world.ok(&["pin", &ids[6], "--until", "9000-01-01"]);
    rules(&world, &format!("keep_last = 2\nrewrite_max_bytes = {limit}"));
    assert!(world.backup(&[])["retired"].is_null());
    world.ok(&["unpin", &ids[6]]);

    let mut paths = Vec::new();
    for table in tables() {
        paths.push(world.value(&format!("SELECT pg_relation_filepath('{table}')")).await);
    }
    let mut left = sparse.len() as u64;
    let (mut backups, mut moved) = (0, 0);
    while left > 0 {
        quiet(&world).await;
        let taken = world.backup(&[]);
        let retired = &taken["retired"];
        let count = |what: &str| retired[what].as_u64().unwrap();
        let own = own_bytes(&world, taken["id"].as_str().unwrap(), &paths).await;
        assert!(own <= count("rewritten_bytes") && count("rewritten_bytes") <= limit, "{own} {limit} {retired}");
        assert!(backups > 0 || count("waiting_packs") + count("packs") >= left, "{left} {retired}");
        assert!(count("packs") > 0, "{retired}");
        left = count("waiting_packs");
        (backups, moved) = (backups + 1, moved + own);
        world.archive().await;
        world.ok(&["expire"]);
        world.ok(&["verify"]);
    }
    assert!(backups >= 2 && moved > 1_000_000, "{backups} {moved}");
    let said = world.ok(&["backup"]).out;
    assert!(!said.contains("does without"), "{said}");
    world.archive().await;
    world.ok(&["expire"]);
    for id in &ids[1..3] {
        assert!(packs_of(&world, id).is_empty(), "{id}");
    }
    let (_server, session) = world.restore("restored", &["--to", "latest"]).await;
    for table in tables() {
        assert_eq!(sum(&session, &table).await, sum(world.session(), &table).await, "{table}");
    }
}

/// A store that fails under a snapshot that retires packs: older snapshots need what they needed, and the next one does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_under_a_retirement_loses_nothing() {
    let (world, ids) = worn(false).await;
    let terms = Terms { below_percent: 25, max_bytes: 1 << 30 };
    let attempt = async |script: &Script| {
        let store = FaultInjection::new(DirectoryStorage::new(world.repository()), script);
        let session = Session::open(&world.server.connection()).await.unwrap();
        let kept = content::kept(&world).await;
        let opened = Repository::open(Arc::new(store), &Keys::default()).await.ok()?.with_lease_s(1);
        let (cluster, record) = opened.registered("shop").await.ok()?;
        let request = Request { full: false, retire: terms, kept, ..crate::crash::request() };
        take::take(&cluster, &record, &session, &request, Arc::new(Silent)).await.ok()
    };
    let undo = |taken: &Manifest| {
        crate::crash::undo(&world, &taken.id);
    };
    let script = Script::new();
    let taken = attempt(&script).await.unwrap();
    assert!(taken.retired.as_ref().is_some_and(|retired| retired.packs >= 2), "{:?}", taken.retired);
    undo(&taken);
    let (calls, mut failed) = (script.calls(), 0);
    for call in (1..=calls).step_by(2) {
        let broken = Script::new();
        let trouble = if call % 4 == 1 { Trouble::Fail(Fault::Transient) } else { Trouble::Lie };
        broken.add(When::Call(call), trouble);
        match attempt(&broken).await {
            Some(taken) => undo(&taken),
            None => failed += 1,
        }
        if call % 5 == 0 {
            crate::crash::sound(&world, &format!("call {call}"));
        }
    }
    assert!(failed * 3 > calls / 2, "the faults were felt: {failed} of {calls}");
    assert!(!packs_of(&world, &ids[1]).is_empty());
    rules(&world, "keep_last = 2");
    let taken = world.backup(&[]);
    assert!(taken["retired"]["packs"].as_u64().unwrap() >= 2, "{taken}");
    crate::crash::sound(&world, "at the end");
    let (_server, session) = world.restore("restored", &["--to", "latest"]).await;
    for table in tables() {
        assert_eq!(sum(&session, &table).await, sum(world.session(), &table).await, "{table}");
    }
}
