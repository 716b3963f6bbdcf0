//! Every storage call of a snapshot fails once, in every way: the repository stays sound, and the next snapshot succeeds.

use std::sync::Arc;
use std::time::Duration;

use lastgood::monitor::Silent;
use lastgood::postgres::session::Session;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::snapshot::SnapshotError;
use lastgood::snapshot::take::{self, Request};
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::record::Operation;
use lastgood::storage::{Fault, Storage};

use crate::support::world::World;

pub fn request() -> Request {
    Request {
        full: true,
        paranoid: false,
        spread_checkpoint: false,
        data_directory: None,
        threads: 2,
        compression_level: 1,
        archive_timeout: Duration::from_secs(60),
        apart: Vec::new(),
        retire: lastgood::snapshot::retire::Terms { below_percent: 25, max_bytes: 1 << 30 },
        newest: None,
        kept: Default::default(),
    }
}

/// One snapshot through a store with troubles; answers whether it succeeded.
async fn attempt(world: &World, script: &Script) -> bool {
    let store = FaultInjection::new(DirectoryStorage::new(world.repository()), script);
    let store: Arc<dyn Storage> = Arc::new(store);
    let session = Session::open(&world.server.connection()).await.unwrap();
    let taken = async {
        let (cluster, record) = Repository::open(store, &Keys::default()).await?.with_lease_s(1).registered("shop").await?;
        take::take(&cluster, &record, &session, &request(), Arc::new(Silent)).await.map(|_| ())
    };
    let taken: Result<(), SnapshotError> = taken.await;
    taken.is_ok()
}

/// A store that says it has what it has not: a manifest is missed by nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_the_store_loses_is_no_success() {
    let world = small().await;
    let script = Script::new();
    script.add(When::OperationOn(Operation::Create, "/snapshots/".into()), Trouble::Lose);
    assert!(!attempt(&world, &script).await, "there is no manifest, and it was called a success");
    assert!(world.objects("clusters/shop/snapshots").is_empty());
    // The lease was given up all the same. Nobody can tell this from a manifest that was lost later: nothing of it goes by itself.
    let lost = world.objects("clusters/shop/packs")[0].split('/').nth(3).unwrap().to_string();
    let packs = world.objects(&format!("clusters/shop/packs/{lost}"));
    let said = world.ok(&["backup"]);
    assert!(said.all().contains(&format!("the manifest of {lost} is missing")), "{}", said.all());
    sound(&world, "after it");
    world.refused(&["verify"], 7, &[&lost, "expire --forget"]);
    world.refused(&["check", "--no-switch"], 9, &[&format!("the manifest of {lost} is missing"), "verify --repair"]);
    assert_eq!(world.objects(&format!("clusters/shop/packs/{lost}")), packs);
    // A person gives it up, having seen what that means.
    world.refused(&["expire", "--forget", "20010101T000000Z-0000"], 6, &[&lost, "is no snapshot whose manifest"]);
    world.refused(&["expire", "--forget", &lost], 5, &["given up", "--confirm"]);
    world.refused(&["expire", "--forget", &lost, "--confirm", "0000-0000-0000"], 5, &["--confirm"]);
    assert_eq!(world.objects(&format!("clusters/shop/packs/{lost}")), packs);
    let plan = world.ok(&["--json", "expire", "--forget", &lost, "--dry-run"]).json();
    assert_eq!((&plan["plan"]["forgotten"][0], plan["plan"]["removed"].as_array().unwrap().len()), (&lost.clone().into(), 0));
    world.ok(&["expire", "--forget", &lost, "--confirm", plan["code"].as_str().unwrap()]);
    assert!(world.objects(&format!("clusters/shop/packs/{lost}")).is_empty());
    assert!(world.objects("clusters/shop/expired").is_empty());
    world.ok(&["verify"]);
}

/// A world whose cluster is small but not trivial.
async fn small() -> World {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 20000) i").await;
    world
}

/// The next snapshot, by another process. A store that was gone took no release, and the process of that attempt, ours, lives:
/// its lease has to grow stale.
async fn backup_once_free(world: &World) {
    let began = lastgood::clock::monotonic();
    loop {
        let said = world.run(&["backup"]);
        if said.code == 0 {
            return;
        }
        assert!(said.code == 5 && said.err.contains("is running already"), "{}", said.all());
        assert!(began.elapsed() < crate::support::world::PATIENCE, "{}", said.all());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whatever is committed is whole. A snapshot that was broken off between its tables and its manifest looks like one whose manifest was
/// lost: it is named, and nothing else is.
pub fn sound(world: &World, what: &str) {
    let said = world.run(&["--json", "verify"]);
    let report = &said.json()["report"];
    let is_orphan = |problem: &serde_json::Value| problem["what"].as_str().unwrap().contains("the rest of its snapshot is there");
    let problems = report["problems"].as_array().unwrap();
    assert!(problems.iter().all(is_orphan), "{what}: {}", said.all());
    assert!(said.code == if problems.is_empty() && report["snapshots"] != 0 { 0 } else { 7 }, "{what}: {}", said.all());
}

/// As if a snapshot had never been taken.
pub fn undo(world: &World, id: &str) {
    let cluster = world.repository().join("clusters/shop");
    std::fs::remove_file(cluster.join("snapshots").join(id)).unwrap();
    std::fs::remove_dir_all(cluster.join("files").join(id)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_at_any_call_loses_nothing() {
    let world = small().await;
    let script = Script::new();
    assert!(attempt(&world, &script).await);
    let calls = script.calls();
    assert!(calls > 12, "{calls}");
    let mut failed = 0;
    for call in 1..=calls {
        let once = Script::new();
        once.add(When::Call(call), Trouble::Fail(Fault::Transient));
        failed += u64::from(!attempt(&world, &once).await);
        let gone = Script::new();
        gone.add(When::From(call), Trouble::Fail(Fault::Denied));
        // Only what tidies up after the manifest may fail without harm.
        failed += u64::from(!attempt(&world, &gone).await);
        if call % 4 == 0 {
            sound(&world, &format!("call {call}"));
        }
    }
    assert!(failed > calls, "the faults were felt: {failed} of {}", 2 * calls);
    sound(&world, "at the end");
    backup_once_free(&world).await;
    let (_server, session) = world.restore("restored", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "20000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_at_any_stage_loses_nothing() {
    let world = small().await;
    let script = Script::new();
    assert!(attempt(&world, &script).await);
    let whole: u64 =
        world.objects("clusters/shop/packs").iter().map(|k| std::fs::metadata(world.repository().join(k)).unwrap().len()).sum();
    let mut stopped = 0;
    for room in [0, 100, 1000, whole / 4, whole / 2, whole - 100, whole, whole + 20_000, whole + 60_000] {
        let full = Script::new();
        full.full_after(room);
        stopped += u64::from(!attempt(&world, &full).await);
        sound(&world, &format!("{room} bytes"));
    }
    assert!(stopped >= 7, "{stopped}");
    backup_once_free(&world).await;
    sound(&world, "at the end");
}

/// An answer that never comes ends nothing half: the operation is given up from outside, and the next one succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_freezes_can_be_given_up() {
    let world = small().await;
    let script = Script::new();
    assert!(attempt(&world, &script).await);
    let calls = script.calls();
    for call in (3..=calls).step_by(4) {
        for trouble in [Trouble::Freeze, Trouble::DoThenFreeze] {
            let frozen = Script::new();
            frozen.add(When::From(call), trouble);
            let ended = tokio::time::timeout(Duration::from_millis(700), attempt(&world, &frozen)).await;
            assert!(ended.is_err() || ended == Ok(true), "call {call}");
            sound(&world, &format!("call {call}"));
        }
    }
    backup_once_free(&world).await;
    sound(&world, "at the end");
}

/// A pack that arrived although its answer was lost is found to be ours by the next attempt.
#[tokio::test(flavor = "multi_thread")]
async fn packs_whose_answers_are_lost_are_no_conflict() {
    use lastgood::storage::record::Operation;
    use lastgood::storage::retry::Retry;
    let world = small().await;
    let script = Script::new();
    script.add_times(When::OperationOn(Operation::Create, "/packs/".into()), Trouble::Lie, 1);
    let store = Retry::new(FaultInjection::new(DirectoryStorage::new(world.repository()), &script), crate::storage::policy());
    let session = Session::open(&world.server.connection()).await.unwrap();
    let repository = Repository::open(Arc::new(store), &Keys::default()).await.unwrap();
    let (cluster, record) = repository.registered("shop").await.unwrap();
    take::take(&cluster, &record, &session, &request(), Arc::new(Silent)).await.unwrap();
    sound(&world, "after a lie about a pack");
}

/// The order of writes: nothing refers to what is not there yet, and the manifest is last.
#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_is_written_last() {
    use lastgood::storage::record::Record;
    let world = small().await;
    let store = Record::new(DirectoryStorage::new(world.repository()));
    let log = store.log();
    let store: Arc<dyn Storage> = Arc::new(store);
    let session = Session::open(&world.server.connection()).await.unwrap();
    let (cluster, record) = Repository::open(store, &Keys::default()).await.unwrap().registered("shop").await.unwrap();
    log.clear();
    take::take(&cluster, &record, &session, &request(), Arc::new(Silent)).await.unwrap();
    let calls = log.calls();
    let of_data = |key: &str| !key.contains("/leases/");
    let creates: Vec<String> =
        calls.iter().filter(|c| c.operation == Operation::Create && of_data(&c.key)).map(|c| c.key.clone()).collect();
    let place = |what: &str| creates.iter().rposition(|k| k.contains(what)).unwrap_or_else(|| panic!("{what}: {creates:?}"));
    assert!(place("/packs/") < place("/snapshots/") && place("/files/") < place("/snapshots/"));
    assert_eq!(place("/snapshots/"), creates.len() - 1, "{creates:?}");
    // No listing but short prefixes, and few requests: what a store charges for.
    let counts = log.counts();
    assert!(counts.list <= 14 && counts.create <= 14, "{counts:?}");
    // Right before it, the lease was asked for; then only whether it was kept, and the lease is given up.
    let manifest = calls.iter().position(|c| c.operation == Operation::Create && c.key.contains("/snapshots/")).unwrap();
    let about_lease = |call: Option<&lastgood::storage::record::Call>| call.is_some_and(|c| c.key.contains("/leases/backup/"));
    // The tables that say that it is complete are written beside that question.
    let is_table = |call: &&lastgood::storage::record::Call| call.key.ends_with("/packs") || call.key.ends_with("/wal");
    let asked = calls[..manifest].iter().rev().find(|call| !is_table(call));
    let tables = calls[..manifest].iter().rev().take(5).filter(is_table).count();
    assert_eq!(tables, 2, "{calls:#?}");
    let (kept, rest): (Vec<_>, Vec<_>) = calls[manifest + 1..].iter().partition(|call| call.key == calls[manifest].key);
    assert!(kept.len() == 1 && kept[0].operation == Operation::Stat, "{calls:#?}");
    assert!(about_lease(asked) && rest.iter().all(|call| about_lease(Some(call))), "{calls:#?}");
    assert!(!rest.is_empty(), "{calls:#?}");
    for call in log.calls().iter().filter(|c| c.operation == Operation::List) {
        assert!(call.key.starts_with("clusters/shop/") || call.key.starts_with("audit/"), "{call:?}");
    }
}
