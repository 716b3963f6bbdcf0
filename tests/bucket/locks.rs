//! The store alone.

use jiff::{SignedDuration, Timestamp};
use lastgood::config::{ObjectLockMode, S3};
use lastgood::storage::bucket::Bucket;
use lastgood::storage::{Created, Depth, Fault, Part, Storage, list_all};

use super::{header, key, store};
use crate::support::moto::{Kept, Moto};

const UNTIL: &str = "x-amz-object-lock-retain-until-date";
const MODE: &str = "x-amz-object-lock-mode";

fn bucket(storage: &dyn Storage) -> &dyn Bucket {
    storage.bucket().unwrap()
}

fn days(days: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * days)
}

/// The day until which an object is locked, by a HEAD that is not ours.
fn until(moto: &Moto, key: &str) -> Option<Timestamp> {
    header(moto, key, UNTIL).map(|text| text.parse().unwrap())
}

#[tokio::test]
async fn what_lasts_is_locked_when_it_is_written_and_what_passes_is_not() {
    let moto = Moto::keeping(Kept::Locks);
    let config = S3 { object_lock_days: Some(30), ..moto.config() };
    let storage = store(&config).await;
    let (lasting, passing) = (key("clusters/shop/packs/x/d000001"), key("clusters/shop/leases/backup/00000001/00000001"));
    // The store is ten days ahead of this host, and counts; that it is, its first answer has told.
    moto.travel(10);
    assert_eq!(storage.create(&passing, b"beat".to_vec().into()).await.unwrap(), Created::New);
    assert_eq!(storage.create(&lasting, b"pack".to_vec().into()).await.unwrap(), Created::New);
    let read = storage.read(&lasting, Part::Whole).await.unwrap();
    assert_eq!(read.bytes, "pack");
    assert_eq!((until(&moto, passing.as_str()), header(&moto, passing.as_str(), MODE)), (None, None));
    let modified = storage.stat(&lasting).await.unwrap().unwrap().modified;
    let ends = until(&moto, lasting.as_str()).unwrap();
    assert!((ends - days(30)).duration_since(modified).abs() < SignedDuration::from_mins(2), "{modified} {ends}");
    assert_eq!(header(&moto, lasting.as_str(), MODE).as_deref(), Some("GOVERNANCE"));
    assert_eq!(bucket(&*storage).locked_until(&lasting).await.unwrap(), Some(ends));
    assert_eq!(bucket(&*storage).locked_until(&passing).await.unwrap(), None);

    let strict = store(&S3 { object_lock_mode: Some(ObjectLockMode::Compliance), ..config }).await;
    strict.create_own(&key("clusters/shop/packs/x/d000002"), b"pack".to_vec().into()).await.unwrap();
    assert_eq!(header(&moto, "clusters/shop/packs/x/d000002", MODE).as_deref(), Some("COMPLIANCE"));
}

#[tokio::test]
async fn a_locked_object_is_told_from_a_missing_right_and_goes_on_its_day() {
    let moto = Moto::keeping(Kept::Locks);
    let storage = store(&S3 { object_lock_days: Some(30), delete_versions: true, ..moto.config() }).await;
    let (one, two) = (key("a/1"), key("a/2"));
    for key in [&one, &two] {
        storage.create(key, b"x".to_vec().into()).await.unwrap();
    }
    let lock = bucket(&*storage).lock().unwrap();
    assert!(bucket(&*storage).extend(std::slice::from_ref(&two), lock.now + days(50)).await.unwrap().is_empty());
    let refused = async || {
        let failed = storage.delete(&[one.clone(), two.clone()]).await.unwrap();
        failed.into_iter().map(|(key, error)| (key, error.fault)).collect::<Vec<_>>()
    };
    assert_eq!(refused().await, [(one.clone(), Fault::Locked), (two.clone(), Fault::Locked)]);
    moto.travel(31);
    assert_eq!(refused().await, [(two.clone(), Fault::Locked)]);
    assert_eq!(moto.versions("a/1"), (0, 0), "all of it is gone");
    moto.travel(51);
    assert!(refused().await.is_empty());
    assert_eq!(moto.versions(""), (0, 0));
}

/// An older version, the newest and a marker: all go, and those of neighbours stay.
#[tokio::test]
async fn deletion_takes_all_versions_of_the_key_and_of_no_other() {
    let moto = Moto::keeping(Kept::Versions);
    let hides = store(&moto.config()).await;
    let takes = store(&S3 { delete_versions: true, ..moto.config() }).await;
    let names = ["a/b", "a/b1", "a/b/c", "a/c", "b"];
    for _ in 0..2 {
        for name in names {
            assert_eq!(hides.create(&key(name), b"x".to_vec().into()).await.unwrap(), Created::New);
        }
        hides.delete(&names.map(key)).await.unwrap();
    }
    assert!(list_all(&*hides, "", Depth::All).await.unwrap().objects.is_empty());
    assert_eq!(moto.versions(""), (10, 10));
    hides.create(&key("a/b"), b"third".to_vec().into()).await.unwrap();
    assert!(takes.delete(&[key("a/b"), key("b"), key("never")]).await.unwrap().is_empty());
    assert_eq!(moto.versions(""), (6, 6));
    assert_eq!(moto.versions("a/b1"), (2, 2));
    assert_eq!(hides.stat(&key("a/b")).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_hidden_is_found_and_comes_back() {
    let moto = Moto::keeping(Kept::Versions);
    let storage = store(&moto.config()).await;
    for name in ["a/deleted", "a/twice", "a/sound"] {
        storage.create(&key(name), b"first".to_vec().into()).await.unwrap();
    }
    for name in ["a/deleted", "a/twice", "a/twice"] {
        moto.ask("DELETE", name);
    }
    assert!(moto.send("PUT", "a/over", "", "first").starts_with("HTTP/1.1 200"));
    assert!(moto.send("PUT", "a/over", "", "other").starts_with("HTTP/1.1 200"));
    let older = bucket(&*storage).older("a/").await.unwrap();
    let told: Vec<_> = older.iter().map(|older| (older.key.as_str(), older.bytes, older.is_deleted)).collect();
    assert_eq!(told, [("a/deleted", 5, true), ("a/over", 5, false), ("a/twice", 5, true)]);
    for name in ["a/deleted", "a/twice"] {
        let error = storage.read(&key(name), Part::Whole).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert!(bucket(&*storage).uncover(&key(name)).await.unwrap());
        assert_eq!(storage.read(&key(name), Part::Whole).await.unwrap().bytes, "first", "{name}");
    }
    for name in ["a/over", "a/sound", "a/never"] {
        assert!(!bucket(&*storage).uncover(&key(name)).await.unwrap(), "{name}");
    }
    assert_eq!(storage.read(&key("a/over"), Part::Whole).await.unwrap().bytes, "other");
}

#[tokio::test]
async fn buckets_say_what_they_keep() {
    for (kept, versions, lock) in [(Kept::Nothing, false, false), (Kept::Versions, true, false), (Kept::Locks, true, true)] {
        let moto = Moto::keeping(kept);
        let storage = store(&moto.config()).await;
        let said = bucket(&*storage).protection().await.unwrap();
        assert_eq!((said.keeps_versions, said.has_lock), (versions, lock), "{kept:?}");
    }
}
