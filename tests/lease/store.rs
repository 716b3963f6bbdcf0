//! Stores that fail, that never answer, and that do not let anything be deleted.

use std::sync::Arc;
use std::time::Duration;

use lastgood::repo::lease::{BACKUP, Beat, Exclusive, Lease, at_work};
use lastgood::repo::object;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::Operation;
use lastgood::storage::{Depth, Fault, ObjectKey, list_all};

use super::gate::backup;
use crate::support::world::World;

/// Lets the newest beat be followed by one of another host, as if that held the lease; answers its key.
pub async fn beats_of_another_host(cluster: &Cluster, epoch: u32) -> ObjectKey {
    let prefix = format!("{}{epoch:08}/", cluster.layout().lease(BACKUP));
    let last = list_all(cluster.storage(), &prefix, Depth::All).await.unwrap().objects.pop().unwrap().key;
    let raw = object::get_document(cluster.vault(), &last).await.unwrap();
    let beat: Beat = object::from_json(&last, &raw).unwrap();
    let other = Beat { host: "elsewhere".into(), beat: 99_999_999, ..beat };
    let key = cluster.layout().lease_epoch(BACKUP, epoch, "99999999");
    object::put_document(cluster.vault(), &key, &object::to_json(&other)).await.unwrap();
    key
}

async fn with_faults(lease_s: u64) -> (Cluster, Script) {
    let script = Script::new();
    let store = FaultInjection::new(MemoryStorage::new(), &script);
    let (repository, _) = Repository::open_or_create(Arc::new(store), &Keys::default(), None).await.unwrap();
    (repository.with_lease_s(lease_s).cluster("shop"), script)
}

/// Who cannot beat for the length of its lease stops by itself: others may have taken it.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_cannot_beat_stops_itself() {
    for trouble in [Trouble::Fail(Fault::Transient), Trouble::Fail(Fault::Denied), Trouble::Freeze] {
        let (cluster, script) = with_faults(1).await;
        let lease = Exclusive::take(&cluster, BACKUP, "backup", "first").await.unwrap();
        assert!(lease.loss().is_none());
        script.add(When::From(1), trouble);
        let began = lastgood::clock::monotonic();
        let lost = tokio::time::timeout(Duration::from_secs(20), lease.lost()).await.expect("it notices").to_string();
        assert!(lost.contains("could not be renewed") && lost.contains("nothing was committed"), "{lost}");
        assert!(began.elapsed() > Duration::from_millis(900), "{trouble:?}: not at the first failure");
        let fenced = lease.cluster();
        script.clear();
        let refused = fenced.storage().create(&ObjectKey::new("data"), b"x".to_vec().into()).await.unwrap_err();
        assert_eq!(refused.fault, Fault::Fenced, "{trouble:?}");
        lease.release().await;
        assert!(at_work(&cluster).await.unwrap().is_empty());
    }
}

/// A short outage costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_survives_failures_shorter_than_its_lease() {
    let (cluster, script) = with_faults(3).await;
    let lease = Exclusive::take(&cluster, BACKUP, "backup", "first").await.unwrap();
    script.clear();
    script.add_times(When::OperationOn(Operation::Create, "leases".into()), Trouble::Fail(Fault::Transient), 3);
    script.add_times(When::OperationOn(Operation::List, "leases".into()), Trouble::Fail(Fault::Transient), 2);
    // Two beats more than may fail.
    let lost = tokio::time::timeout(Duration::from_millis(200 * 8), lease.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    lease.confirm().await.unwrap();
    // And one whose answer is lost on the way.
    script.add_times(When::OperationOn(Operation::Create, "leases".into()), Trouble::Lie, 1);
    let _ = lease.confirm().await;
    lease.confirm().await.unwrap();
    lease.release().await;
}

/// Taking fails at any call: the lease is free for the next, which in this process knows that the first is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_take_holds_nothing() {
    for call in 1..=8 {
        for trouble in [Trouble::Fail(Fault::Denied), Trouble::Lie] {
            let (cluster, script) = with_faults(900).await;
            script.clear();
            script.add(When::Call(call), trouble);
            match Exclusive::take(&cluster, BACKUP, "backup", "first").await {
                Ok(lease) => lease.release().await,
                Err(error) => assert!(!error.to_string().contains("running already"), "{error}"),
            }
            script.clear();
            let lease = Exclusive::take(&cluster, BACKUP, "backup", "second").await.unwrap();
            lease.confirm().await.unwrap();
            lease.release().await;
        }
    }
}

/// On a host that may not delete, everything works and only marks stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_may_not_delete_takes_beats_and_releases() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let script = Script::new();
    script.add(When::Operation(Operation::Delete), Trouble::Fail(Fault::Denied));
    let store = || Arc::new(FaultInjection::new(DirectoryStorage::new(world.repository()), &script));
    let first = backup(&world, store(), 1).await.unwrap();
    let second = backup(&world, store(), 1).await.unwrap();
    assert!(first < second);
    let left = world.objects("clusters/shop/leases/backup");
    for epoch in ["00000001", "00000002"] {
        let of_epoch = |name: &str| left.iter().any(|k| k.ends_with(&format!("{epoch}/{name}")));
        assert!(of_epoch("00000001") && of_epoch("released"), "{left:?}");
    }
    assert!(!world.ok(&["check"]).out.contains("at work"));
    // Who may delete tidies up.
    world.ok(&["backup"]);
    let left = world.objects("clusters/shop/leases");
    assert!(left.len() == 1 && left[0].ends_with("00000003/released"), "{left:?}");
    world.ok(&["verify"]);
}

/// A beat that cannot be read blocks as long as a lease, not for ever and not not at all; what a newer version writes is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_foreign_leases_are_handled() {
    let (cluster, _script) = with_faults(900).await;
    let put = async |key: &str| {
        let key = ObjectKey::new(format!("{}{key}", cluster.layout().leases()));
        cluster.storage().create(&key, b"nonsense".to_vec().into()).await.unwrap();
        key
    };
    put("backup/00000001/of-a-newer-version").await;
    put("backup/a/b/c/d").await;
    let damaged = put("backup/00000001/00000001").await;
    let refused = Exclusive::take(&cluster, BACKUP, "backup", "first").await.unwrap_err().to_string();
    assert!(refused.contains("unknown") && refused.contains("900 s"), "{refused}");
    cluster.storage().delete(&[damaged]).await.unwrap();
    Exclusive::take(&cluster, BACKUP, "backup", "first").await.unwrap().release().await;
}

/// What restores read is pinned beside a backup, and excludes nobody.
#[tokio::test(flavor = "multi_thread")]
async fn pins_stand_beside_exclusive_leases() {
    let (cluster, _script) = with_faults(900).await;
    let pin = Lease::take(&cluster, "restore-ab12", "20261121T010000Z-ab12").await.unwrap();
    let lease = Exclusive::take(&cluster, BACKUP, "backup", "20261121T020000Z-cd34").await.unwrap();
    let living = at_work(&cluster).await.unwrap();
    let said: Vec<String> = living.iter().map(|work| work.describe()).collect();
    assert!(said.len() == 2 && said[1].contains("restore-ab12 20261121T010000Z-ab12"), "{said:?}");
    pin.release().await;
    assert_eq!(at_work(&cluster).await.unwrap().len(), 1);
    lease.release().await;
}

/// However often a pin has beaten: released it leaves nothing, left standing it leaves one beat.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_beat_often_leaves_nothing_behind_or_one_beat() {
    let (cluster, _script) = with_faults(1).await;
    let names = async || {
        let page = list_all(cluster.storage(), &cluster.layout().leases(), Depth::All).await.unwrap();
        page.objects.into_iter().map(|object| object.key.name().parse::<u32>().unwrap()).collect::<Vec<_>>()
    };
    for hold in [None, Some(Duration::from_secs(3600))] {
        let pin = Lease::take(&cluster, "restore-ab12", "20261121T010000Z-ab12").await.unwrap();
        while names().await.last().is_none_or(|beat| *beat < 5) {
            tokio::task::yield_now().await;
        }
        match hold {
            None => pin.release().await,
            Some(hold) => pin.leave("recovery after restore", hold).await,
        }
        let left = names().await;
        assert!(if hold.is_none() { left.is_empty() } else { left.len() == 1 && left[0] > 5 }, "{hold:?}: {left:?}");
    }
}
