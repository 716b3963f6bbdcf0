//! What the wrappers add.

use std::time::Duration;

use futures::FutureExt as _;
use lastgood::clock;
use lastgood::config;
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::limit::Limit;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::{Call, Counts, Operation, Record};
use lastgood::storage::retry::{Policy, Retry};
use lastgood::storage::{Body, Created, Depth, Fault, Part, Storage};

use super::{key, policy};

fn body() -> Body {
    Body::from(b"0123456789".to_vec())
}

type Stack = Retry<Record<FaultInjection<MemoryStorage>>>;

fn stack(policy: Policy) -> (Stack, lastgood::storage::record::Log, Script) {
    let script = Script::new();
    let record = Record::new(FaultInjection::new(MemoryStorage::new(), &script));
    let log = record.log();
    (Retry::new(record, policy), log, script)
}

#[tokio::test]
async fn passing_faults_are_tried_again_for_every_operation() {
    let (store, log, script) = stack(policy());
    script.add_times(When::From(1), Trouble::Fail(Fault::Transient), 2);
    assert_eq!(store.create(&key("a"), body()).await.unwrap(), Created::New);
    assert_eq!(log.counts().create, 3);
    let again = || script.add_times(When::From(1), Trouble::Fail(Fault::Transient), 2);
    again();
    store.read(&key("a"), Part::Whole).await.unwrap();
    again();
    store.stat(&key("a")).await.unwrap();
    again();
    store.list("", None, Depth::All).await.unwrap();
    again();
    store.free_bytes().await.unwrap();
    again();
    assert!(store.delete(&[key("a")]).await.unwrap().is_empty());
    assert_eq!(log.counts(), Counts { create: 3, read: 3, stat: 3, list: 3, delete: 3, free_bytes: 3 });
}

#[tokio::test]
async fn answers_are_not_asked_for_again() {
    for fault in [Fault::NotFound, Fault::Truncated, Fault::NoPlace, Fault::Denied, Fault::Credentials, Fault::Full, Fault::Other]
    {
        let (store, log, script) = stack(policy());
        script.add(When::From(1), Trouble::Fail(fault));
        assert_eq!(store.stat(&key("a")).await.unwrap_err().fault, fault);
        assert_eq!(log.counts().stat, 1, "{fault:?}");
    }
}

#[tokio::test]
async fn it_gives_up_after_the_last_attempt_and_says_so() {
    let (store, log, script) = stack(policy());
    script.add(When::From(1), Trouble::Fail(Fault::Transient));
    let error = store.stat(&key("a")).await.unwrap_err();
    assert_eq!((error.fault, log.counts().stat), (Fault::Transient, 4));
    assert!(error.to_string().contains("injected (gave up after 4 attempts in 0."), "{error}");
}

#[tokio::test]
async fn no_call_outlasts_its_deadline() {
    let policy = Policy { attempts: 1000, call_timeout: Duration::from_millis(300), ..policy() };
    let (store, log, script) = stack(policy);
    script.add(When::From(1), Trouble::Fail(Fault::Transient));
    let began = clock::monotonic();
    store.stat(&key("a")).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!((2..1000).contains(&log.counts().stat), "{:?}", log.counts());

    // An attempt that hangs is broken off by the deadline of the call, not by its own.
    script.clear();
    script.add(When::From(1), Trouble::Freeze);
    let began = clock::monotonic();
    let error = store.stat(&key("a")).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!((error.fault, error.operation, error.key.as_str()), (Fault::Transient, "stat", "a"));
    assert!(error.detail.contains("1 attempt in 0.3 s"), "{error}");
}

#[tokio::test]
async fn a_frozen_attempt_gives_way_to_the_next() {
    let (store, _, script) = stack(Policy { attempt_timeout: Duration::from_millis(50), ..policy() });
    script.add(When::Call(1), Trouble::Freeze);
    assert_eq!(store.create(&key("a"), body()).await.unwrap(), Created::New);
    assert_eq!(script.calls(), 2);
}

#[tokio::test]
async fn of_a_deletion_only_the_keys_that_failed_for_now_are_tried_again() {
    let (store, log, script) = stack(policy());
    for name in ["fine", "later", "denied"] {
        store.create(&key(name), body()).await.unwrap();
    }
    script.add_times(When::KeyContains("later".into()), Trouble::RefuseKey(Fault::Transient), 1);
    script.add(When::KeyContains("denied".into()), Trouble::RefuseKey(Fault::Denied));
    log.clear();
    let failed = store.delete(&[key("fine"), key("later"), key("denied")]).await.unwrap();
    let failed: Vec<_> = failed.into_iter().map(|(key, error)| (key.to_string(), error.fault)).collect();
    assert_eq!(failed, [("denied".to_string(), Fault::Denied)]);
    let amounts: Vec<u64> = log.calls().iter().map(|call| call.amount).collect();
    assert_eq!(amounts, [3, 1]);
    let left = store.list("", None, Depth::All).await.unwrap();
    assert_eq!(left.objects.len(), 1);
}

#[tokio::test]
async fn no_more_calls_at_once_than_the_limit() {
    let script = Script::new();
    script.add(When::KeyContains("slow".into()), Trouble::Freeze);
    let store = Limit::new(FaultInjection::new(MemoryStorage::new(), &script), 3);
    let slow_key = key("slow");
    let mut slow: Vec<_> = (0..5).map(|_| store.stat(&slow_key)).collect();
    for call in &mut slow {
        assert!(call.now_or_never().is_none());
    }
    assert_eq!(script.calls(), 3, "two wait for their turn");
    assert!(store.stat(&key("quick")).now_or_never().is_none());
    // Whoever gives up makes room, waiting or not.
    slow.clear();
    assert_eq!(store.stat(&key("quick")).await.unwrap(), None);
    assert_eq!(Limit::new(MemoryStorage::new(), 0).stat(&key("a")).await.unwrap(), None);
}

#[tokio::test]
async fn calls_are_recorded_with_their_bytes() {
    let store = Record::new(MemoryStorage::new());
    store.create(&key("a"), body()).await.unwrap();
    store.read(&key("a"), Part::Tail { bytes: 3 }).await.unwrap();
    store.read(&key("b"), Part::Whole).await.unwrap_err();
    store.list("a", None, Depth::All).await.unwrap();
    let call = |operation, key: &str, amount, is_ok| Call { operation, key: key.into(), amount, is_ok };
    let expected = [
        call(Operation::Create, "a", 10, true),
        call(Operation::Read, "a", 3, true),
        call(Operation::Read, "b", 0, false),
        call(Operation::List, "a", 1, true),
    ];
    assert_eq!(store.calls(), expected);
    assert_eq!(store.counts(), Counts { create: 1, read: 2, list: 1, ..Counts::default() });
    store.log().clear();
    assert_eq!(store.counts(), Counts::default());
}

#[tokio::test]
async fn troubles_come_as_scripted() {
    let script = Script::new();
    let store = FaultInjection::new(MemoryStorage::new(), &script);
    script.add(When::Call(2), Trouble::Fail(Fault::Denied)).add(When::Every(3), Trouble::Lie);
    assert_eq!(store.create(&key("a"), body()).await.unwrap(), Created::New);
    assert_eq!(store.create(&key("b"), body()).await.unwrap_err().fault, Fault::Denied);
    assert_eq!(store.create(&key("c"), body()).await.unwrap_err().fault, Fault::Transient);
    let page = store.list("", None, Depth::All).await.unwrap();
    let names: Vec<&str> = page.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(names, ["a", "c"], "what was lied about was done");

    script.clear();
    script.add(When::OperationOn(Operation::Read, "a".into()), Trouble::Cut { bytes: 4 });
    let read = store.read(&key("a"), Part::Whole).await.unwrap();
    assert_eq!((&read.bytes[..], read.object_bytes), (&b"0123"[..], 10));
    assert_eq!(store.read(&key("c"), Part::Whole).await.unwrap().bytes.len(), 10);

    script.clear();
    script.add(When::From(2), Trouble::DoThenFreeze);
    assert_eq!(store.stat(&key("a")).await.unwrap().map(|info| info.bytes), Some(10));
    assert!(store.create(&key("d"), body()).now_or_never().is_none());
    assert!(store.stat(&key("a")).now_or_never().is_none());
    script.clear();
    assert!(store.stat(&key("d")).await.unwrap().is_some());

    script.clear();
    script.full_after(25);
    assert_eq!(store.create(&key("e"), body()).await.unwrap(), Created::New);
    assert_eq!(store.create(&key("f"), body()).await.unwrap(), Created::New);
    assert_eq!(store.create(&key("g"), body()).await.unwrap_err().fault, Fault::Full);
    assert_eq!(store.stat(&key("g")).await.unwrap(), None);
    assert_eq!(script.calls(), 4);
}

/// A lost answer makes the retry find its own object; only `s3` can tell, the wrapper must not pretend to.
#[tokio::test]
async fn a_lost_answer_is_already_there_for_stores_that_cannot_tell() {
    let (store, log, script) = stack(policy());
    script.add_times(When::Operation(Operation::Create), Trouble::Lie, 1);
    assert_eq!(store.create(&key("a"), body()).await.unwrap(), Created::AlreadyThere);
    assert_eq!(log.counts().create, 2);
}

#[test]
fn the_policy_comes_from_the_configuration() {
    let policy = Policy::from(&config::S3 { attempt_timeout_s: 7, call_timeout_s: 70, ..config::S3::default() });
    assert_eq!((policy.attempt_timeout.as_secs(), policy.call_timeout.as_secs()), (7, 70));
}
