//! Several places as one store: which is asked, what counts as absent, and what a create promises.

use std::sync::Arc;
use std::time::Duration;

use lastgood::repo::RepoError;
use lastgood::repo::copies::{self, RULES};
use lastgood::repo::object;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::repo::vault::Vault;
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::Operation;
use lastgood::storage::several::{Duty, Several};
use lastgood::storage::{Created, Depth, Fault, ObjectKey, Part, Storage, list_all};

/// Makes places copies of one repository: each gets the same `lastgood.json`.
pub async fn identify(stores: &[&dyn Storage]) {
    let made = Arc::new(MemoryStorage::new());
    Repository::open_or_create(made.clone(), &Keys::default(), None).await.unwrap();
    let key = ObjectKey::new("lastgood.json");
    let record = made.read(&key, Part::Whole).await.unwrap().bytes;
    for store in stores {
        store.create(&key, record.to_vec().into()).await.unwrap();
    }
}

/// A mirror called `second`.
pub fn second(storage: Arc<dyn Storage>) -> Vec<(String, Arc<dyn Storage>)> {
    vec![("second".into(), storage)]
}

struct Pair {
    first: Arc<MemoryStorage>,
    second: Arc<MemoryStorage>,
    /// Troubles of the two.
    troubles: [Script; 2],
    both: Arc<Several>,
}

async fn pair(duty: Duty) -> Pair {
    let [first, second] = [(); 2].map(|()| Arc::new(MemoryStorage::new()));
    identify(&[&*first, &*second]).await;
    let troubles = [Script::new(), Script::new()];
    let faulty = |store: &Arc<MemoryStorage>, script: &Script| Arc::new(FaultInjection::new(store.clone(), script));
    let both = Several::new(faulty(&first, &troubles[0]), self::second(faulty(&second, &troubles[1])), duty, RULES);
    Pair { first, second, troubles, both: Arc::new(both.with_patience(Duration::from_millis(100))) }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text)
}

async fn put(store: &MemoryStorage, name: &str, content: &str) {
    store.create(&key(name), content.as_bytes().to_vec().into()).await.unwrap();
}

async fn has(store: &MemoryStorage, name: &str) -> bool {
    store.stat(&key(name)).await.unwrap().is_some()
}

/// Rule 30, whichever place is asked first.
#[tokio::test]
async fn absent_is_what_every_place_says_and_nothing_less() {
    for silent in [0, 1] {
        for trouble in [Trouble::Fail(Fault::Transient), Trouble::Fail(Fault::NoPlace), Trouble::Fail(Fault::Denied)] {
            let pair = pair(Duty::Read).await;
            put(&pair.first, "only-first", "1").await;
            put(&pair.second, "only-second", "2").await;
            for (name, content) in [("only-first", "1"), ("only-second", "2")] {
                assert_eq!(pair.both.read(&key(name), Part::Whole).await.unwrap().bytes, content);
                assert!(pair.both.stat(&key(name)).await.unwrap().is_some());
            }
            assert!(pair.both.read(&key("none"), Part::Whole).await.unwrap_err().is_not_found());
            assert!(pair.both.stat(&key("none")).await.unwrap().is_none());
            pair.troubles[silent].add(When::From(1), trouble);
            for _ in 0..3 {
                // The second time the troubled one is asked last, and still its silence is no absence.
                assert!(!pair.both.read(&key("none"), Part::Whole).await.unwrap_err().is_not_found());
                assert!(pair.both.stat(&key("none")).await.is_err());
            }
            let there = if silent == 0 { "only-second" } else { "only-first" };
            assert!(pair.both.read(&key(there), Part::Whole).await.is_ok());
        }
    }
}

#[tokio::test]
async fn a_place_that_is_silent_is_passed_over_and_then_asked_last() {
    let pair = pair(Duty::Read).await;
    for store in [&pair.first, &pair.second] {
        put(store, "a", "x").await;
    }
    pair.both.read(&key("a"), Part::Whole).await.unwrap();
    assert_eq!(pair.both.served()[0].reads, 1, "the first is asked first");
    pair.troubles[0].add(When::From(1), Trouble::Freeze);
    pair.both.read(&key("a"), Part::Whole).await.unwrap();
    let calls = pair.troubles[0].calls();
    for _ in 0..5 {
        pair.both.read(&key("a"), Part::Whole).await.unwrap();
        list_all(&*pair.both, "", Depth::All).await.unwrap();
    }
    assert_eq!(pair.troubles[0].calls(), calls, "it is left alone for a while");
    let served = pair.both.served();
    assert_eq!((served[0].overtaken, served[1].reads), (1, 6), "{served:?}");
    assert!(served[0].missed, "{served:?}");
}

/// What is damaged in one place is read from the other, whichever it is.
#[tokio::test]
async fn what_is_damaged_in_one_place_is_read_from_the_other() {
    for damaged in [0, 1] {
        let pair = pair(Duty::Read).await;
        let vaults = [&pair.first, &pair.second].map(|store| Vault::plain(store.clone()));
        for vault in &vaults {
            object::put_document(vault, &key("clusters/shop/record/00000001"), b"{}").await.unwrap();
        }
        let both = Vault::plain(pair.both.clone());
        [&pair.first, &pair.second][damaged].tamper(&key("clusters/shop/record/00000001"), |bytes| bytes[3] ^= 1);
        assert_eq!(object::get_document(&both, &key("clusters/shop/record/00000001")).await.unwrap(), b"{}");
        assert_eq!(pair.both.served().iter().any(|served| served.instead > 0), damaged == 0);
        // In both: then it is damage.
        [&pair.first, &pair.second][1 - damaged].tamper(&key("clusters/shop/record/00000001"), |bytes| bytes[3] ^= 1);
        let error = object::get_document(&both, &key("clusters/shop/record/00000001")).await.unwrap_err();
        assert!(error.is_damage(), "{error}");
    }
}

#[tokio::test]
async fn new_means_that_every_place_has_it() {
    for own in [false, true] {
        let pair = pair(Duty::Write).await;
        let create = async |name: &str| match own {
            true => pair.both.create_own(&key(name), b"x".to_vec().into()).await,
            false => pair.both.create(&key(name), b"x".to_vec().into()).await,
        };
        assert_eq!(create("a").await.unwrap(), Created::New);
        assert!(has(&pair.first, "a").await && has(&pair.second, "a").await);
        for silent in [0, 1] {
            let name = format!("b{silent}");
            pair.troubles[silent].add(When::Operation(Operation::Create), Trouble::Fail(Fault::Transient));
            assert!(create(&name).await.is_err(), "never success with one of them");
            pair.troubles[silent].clear();
            let again = create(&name).await.unwrap();
            let vault = Vault::plain(pair.both.clone());
            if again == Created::AlreadyThere {
                // What the content is, is for the caller to say; then all have it.
                copies::settle(&vault, &key(&name)).await.unwrap();
            }
            assert!(has(&pair.first, &name).await && has(&pair.second, &name).await, "{own} {silent}");
        }
    }
    // Deleted is deleted everywhere; listings must not miss what one place knows.
    let pair = pair(Duty::Write).await;
    put(&pair.second, "only-second", "x").await;
    assert_eq!(list_all(&*pair.both, "only", Depth::All).await.unwrap().objects.len(), 1);
    pair.both.delete(&[key("only-second")]).await.unwrap();
    assert!(!has(&pair.second, "only-second").await);
    pair.troubles[1].add(When::From(1), Trouble::Fail(Fault::Transient));
    assert!(pair.both.list("only", None, Depth::All).await.is_err());
}

/// The same content sealed twice has other bytes, and is the same; other content under one name is a conflict, and stays.
#[tokio::test]
async fn one_name_with_two_contents_is_a_conflict() {
    let pair = pair(Duty::Write).await;
    let name = key("clusters/shop/record/00000001");
    let other = Vault::plain(pair.second.clone());
    object::put_document(&other, &name, b"theirs").await.unwrap();
    let both = Vault::plain(pair.both.clone());
    let error = object::put_document(&both, &name, b"ours").await.unwrap_err();
    assert!(matches!(error, RepoError::Apart { .. }), "{error}");
    assert_eq!(object::get_document(&other, &name).await.unwrap(), b"theirs");
    // A mirror that had it before, in the same words, is in step.
    let same = key("clusters/shop/record/00000002");
    object::put_document(&other, &same, b"{}").await.unwrap();
    object::put_document(&both, &same, b"{}").await.unwrap();
    assert!(has(&pair.first, same.as_str()).await);
}

#[tokio::test]
async fn leases_and_probes_stay_in_the_first() {
    let pair = pair(Duty::Write).await;
    pair.troubles[1].add(When::From(1), Trouble::Fail(Fault::Transient));
    for name in ["clusters/shop/leases/backup/00000001/00000001", "probe/ab"] {
        assert_eq!(pair.both.create(&key(name), b"x".to_vec().into()).await.unwrap(), Created::New);
        assert!(pair.both.stat(&key(name)).await.unwrap().is_some());
        pair.both.delete(&[key(name)]).await.unwrap();
        assert!(!has(&pair.first, name).await);
    }
    assert!(pair.both.list("clusters/shop/leases/", None, Depth::All).await.unwrap().objects.is_empty());
    // A reader's pins go wherever they can: each place is expired by itself.
    let reading = self::pair(Duty::Read).await;
    let pin = "clusters/shop/leases/restore-1/00000001";
    reading.both.create(&key(pin), b"x".to_vec().into()).await.unwrap();
    assert!(has(&reading.first, pin).await && has(&reading.second, pin).await);
    reading.troubles[0].add(When::From(1), Trouble::Freeze);
    reading.both.create(&key("clusters/shop/leases/restore-2/00000001"), b"x".to_vec().into()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_copy_is_left_out() {
    // Another repository, and a place that is none yet.
    for is_other in [true, false] {
        let [first, second] = [(); 2].map(|()| Arc::new(MemoryStorage::new()));
        identify(&[&*first]).await;
        if is_other {
            identify(&[&*second]).await;
        }
        put(&second, "theirs", "x").await;
        let both = Several::new(first.clone(), self::second(second.clone()), Duty::Read, RULES);
        assert!(both.read(&key("theirs"), Part::Whole).await.unwrap_err().is_not_found());
        assert!(list_all(&both, "theirs", Depth::All).await.unwrap().objects.is_empty());
        assert!(both.served()[1].excluded.is_some());
        assert_eq!(both.copies().len(), 1);
        let strict = Several::new(first, self::second(second), Duty::Write, RULES);
        let refused = copies::prove_places(&strict).await.unwrap_err().to_string();
        let words = if is_other { "another repository" } else { "`lastgood mirror` makes one" };
        assert!(refused.contains(words), "{refused}");
    }
}

/// Of two lengths the longer counts: a store that lost the end of an object must not hide the whole one.
#[tokio::test]
async fn listings_are_those_of_all_places_page_by_page() {
    let pair = pair(Duty::Read).await;
    for number in 0..2600 {
        let name = format!("p/{}/{number:05}", number / 700);
        if number % 3 != 0 {
            put(&pair.first, &name, "x").await;
        }
        if number % 2 == 0 {
            put(&pair.second, &name, "longer").await;
        }
    }
    let all = list_all(&*pair.both, "p/", Depth::All).await.unwrap().objects;
    let expected: Vec<usize> = (0..2600).filter(|n| n % 3 != 0 || n % 2 == 0).collect();
    assert_eq!(all.iter().map(|o| o.key.name().parse::<usize>().unwrap()).collect::<Vec<_>>(), expected);
    assert!(all.iter().all(|o| o.bytes == if o.key.name().parse::<usize>().unwrap() % 2 == 0 { 6 } else { 1 }));
    assert_eq!(list_all(&*pair.both, "p/", Depth::Folder).await.unwrap().folders, ["0/", "1/", "2/", "3/"]);
}
