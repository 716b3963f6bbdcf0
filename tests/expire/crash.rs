//! Every storage call of an expiry fails once, in every way: what stays is whole, and the next run finishes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lastgood::config::Retention;
use lastgood::monitor::Silent;
use lastgood::repo::audit::Who;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::record::{Operation, Record};
use lastgood::storage::{Fault, Storage};
use lastgood::upkeep::expire::execute::Done;
use lastgood::upkeep::expire::{self, ExpireError, Request};

use super::servers::with_snapshots;
use crate::support::world::World;

pub fn request(keep_last: u32) -> Request {
    let rules = Retention { keep_last: Some(keep_last), ..Retention::default() };
    let who = Who { user: "somebody".into(), host: "here".into(), ..Who::default() };
    Request { rules, accept_shrink: false, forget: None, who }
}

/// One expiry of a copy through a store with troubles.
pub async fn attempt(repository: &Path, script: &Script, request: &Request) -> Result<Done, ExpireError> {
    let store: Arc<dyn Storage> = Arc::new(FaultInjection::new(DirectoryStorage::new(repository), script));
    let opened = Repository::open(store, &Keys::default()).await?.with_lease_s(1);
    let (cluster, record) = opened.registered("shop").await?;
    expire::run(&cluster, &record, request, &mut |_| {}, Arc::new(Silent)).await
}

/// The same when it is over: the lease of an attempt whose store was gone has to grow stale.
async fn again(repository: &Path, request: &Request) -> Done {
    let began = lastgood::clock::monotonic();
    loop {
        match attempt(repository, &Script::new(), request).await {
            Ok(done) => return done,
            Err(error) => {
                assert!(error.to_string().contains("is running already"), "{error}");
                assert!(began.elapsed() < crate::support::world::PATIENCE, "{error}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

fn copy(world: &World, name: &str) -> PathBuf {
    let to = world.path(name);
    let status = std::process::Command::new("cp").arg("-a").arg(world.repository()).arg(&to).status().unwrap();
    assert!(status.success());
    to
}

/// Everything but what depends on who was there.
fn objects(repository: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![repository.join("clusters")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(repository).unwrap().display().to_string()),
            }
        }
    }
    found.retain(|key| !key.contains("/leases/") && !key.contains("/gone/"));
    found.sort();
    found
}

fn sound(world: &World, repository: &Path, what: &str) {
    let said = world.run(&["--repo", repository.to_str().unwrap(), "verify"]);
    assert_eq!(said.code, 0, "{what}: {}", said.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_that_breaks_at_any_call_loses_nothing_and_is_finished_by_the_next() {
    let (world, ids) = with_snapshots(4).await;
    world.ok(&["pin", &ids[0]]);
    let whole = copy(&world, "whole");
    let script = Script::new();
    let done = attempt(&whole, &script, &request(1)).await.unwrap();
    assert_eq!(done.snapshots, 2);
    sound(&world, &whole, "undisturbed");
    let (calls, expected) = (script.calls(), objects(&whole));
    assert!(calls > 40, "{calls}");
    let mut failed = 0;
    for call in 1..=calls {
        for (kind, trouble) in
            [Trouble::Fail(Fault::Denied), Trouble::Fail(Fault::Transient), Trouble::Lie].into_iter().enumerate()
        {
            // The store is gone from here on, or fails once.
            let when = if kind == 1 { When::Call(call) } else { When::From(call) };
            let place = copy(&world, "copy");
            let broken = Script::new();
            broken.add(when, trouble);
            failed += u64::from(attempt(&place, &broken, &request(1)).await.is_err());
            if call % 5 == kind as u64 {
                sound(&world, &place, &format!("call {call}, {trouble:?}"));
            }
            again(&place, &request(1)).await;
            assert_eq!(objects(&place), expected, "call {call}, {trouble:?}");
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
    assert!(failed > calls, "the faults were felt: {failed} of {}", 3 * calls);
}

/// A refused key is one answer of many (rule 54): it is told, and what refers to it is not gone before it.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_deleted_is_told_and_tried_again() {
    let (world, _) = with_snapshots(3).await;
    // It lends nothing, so that the packs of the others go with them.
    world.backup(&["--full"]);
    for (part, is_first) in [("/snapshots/", true), ("/files/", false), ("/packs/", false), ("/segments/", false)] {
        let place = copy(&world, "copy");
        let script = Script::new();
        script.add(When::KeyContains(part.into()), Trouble::RefuseKey(Fault::Denied));
        let before = objects(&place);
        let result = attempt(&place, &script, &request(1)).await;
        // The refusal is met by the first key of the batch.
        if let Err(error) = &result {
            let said = error.to_string();
            assert!(said.contains("could not be deleted") && said.contains("expiry-host.json"), "{part}: {said}");
        }
        assert!(result.is_err(), "{part}");
        if is_first {
            let notes = |key: &String| !key.contains("/expired/");
            let after: Vec<String> = objects(&place).into_iter().filter(notes).collect();
            assert_eq!(after, before, "nothing goes that a manifest refers to");
        }
        sound(&world, &place, part);
        again(&place, &request(1)).await;
        sound(&world, &place, part);
        std::fs::remove_dir_all(&place).unwrap();
    }
}

/// First the reference, then the data (rule 47).
#[tokio::test(flavor = "multi_thread")]
async fn manifests_go_before_what_they_refer_to() {
    let (world, _) = with_snapshots(3).await;
    // It lends nothing, so that the packs of the others go with them.
    world.backup(&["--full"]);
    let store = Record::new(DirectoryStorage::new(world.repository()));
    let log = store.log();
    let (cluster, record): (Cluster, _) =
        Repository::open(Arc::new(store), &Keys::default()).await.unwrap().registered("shop").await.unwrap();
    log.clear();
    expire::run(&cluster, &record, &request(1), &mut |_| {}, Arc::new(Silent)).await.unwrap();
    let calls = log.calls();
    let first = |operation: Operation, part: &str| {
        let at = calls.iter().position(|c| c.operation == operation && c.key.contains(part));
        at.unwrap_or_else(|| panic!("{operation:?} {part}: {calls:#?}"))
    };
    let order = [
        first(Operation::Create, "/expired/"),
        first(Operation::Delete, "/snapshots/"),
        first(Operation::Delete, "/files/"),
        first(Operation::Delete, "/packs/"),
        first(Operation::Create, "/gone/"),
        first(Operation::Delete, "/index/"),
    ];
    assert!(order.is_sorted(), "{order:?}: {calls:#?}");
    let prefixes = ["clusters/shop/", "audit/"];
    let lists = calls.iter().filter(|c| c.operation == Operation::List);
    assert!(lists.into_iter().all(|call| prefixes.iter().any(|prefix| call.key.starts_with(prefix))), "{calls:#?}");
}
