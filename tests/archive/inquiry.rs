//! What recovery asks whoever fetches ahead, besides the next segments: answers are made for one question, and no answer is an error.

use std::future::pending;
use std::sync::Arc;

use lastgood::archive::ahead::End;
use lastgood::archive::get::Got;
use lastgood::archive::inquiry::Desk;
use lastgood::clock;
use lastgood::postgres::lsn::Timeline;
use lastgood::postgres::wal::name::WalFile;
use lastgood::repo::copies::RULES;
use lastgood::repo::record::{ClusterRecord, History};
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::vault::Vault;
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::{Log, Operation, Record};
use lastgood::storage::several::{Duty, Several};
use lastgood::storage::{Body, Depth, Fault, Part, Storage, list_all};
use tokio::task::JoinHandle;

use super::ahead::{Archive, SEGMENT_BYTES, SYSTEM, behind, content, name, until};

/// An archive in a repository that knows the system, so that absence can be proven.
async fn known(last: u64) -> (Archive, Log) {
    let script = Script::new();
    let store = Record::new(MemoryStorage::new());
    let log = store.log();
    let cluster = registered(Arc::new(FaultInjection::new(store, &script))).await;
    (Archive::of(cluster, script, last).await, log)
}

/// The same, and whoever fetches ahead, who has come to its end.
async fn followed(last: u64) -> (Archive, Log, JoinHandle<End>) {
    let (archive, log) = known(last).await;
    let following = archive.follow(behind(1, 4, None), pending());
    archive.until_ready(&(2..=last).collect::<Vec<_>>()).await;
    (archive, log, following)
}

async fn registered(store: Arc<dyn Storage>) -> Cluster {
    let (repository, _) = Repository::open_or_create(store, &Default::default(), None).await.unwrap();
    let history = History {
        system_identifier: SYSTEM,
        major: 15,
        catalog_version: 202209061,
        control_version: 1300,
        block_bytes: 8192,
        wal_segment_bytes: SEGMENT_BYTES as u32,
        data_checksums: true,
        registered: clock::now(),
    };
    let record = ClusterRecord {
        format: 1,
        number: 1,
        name: "shop".into(),
        label: None,
        histories: vec![history],
        abandoned: Vec::new(),
        successors: Vec::new(),
        written: clock::now(),
        behind: None,
    };
    let cluster = repository.cluster("shop");
    assert!(cluster.put_record(&record).await.unwrap());
    cluster
}

impl Archive {
    async fn ask(&self, file: WalFile) -> Option<Got> {
        self.desk().ask(file, &self.destination()).await
    }

    fn questions(&self) -> usize {
        std::fs::read_dir(self.spool.questions()).unwrap().count()
    }

    fn got(&self) -> String {
        std::fs::read_to_string(self.destination()).unwrap()
    }
}

fn segment(number: u64) -> WalFile {
    WalFile::Segment(name(number))
}

#[tokio::test(flavor = "multi_thread")]
async fn absence_is_proven_anew_for_each_question() {
    let (archive, log, following) = followed(3).await;
    let marker = || log.calls().iter().filter(|call| call.key == "lastgood.json").count();
    for round in 1..=3 {
        let proofs = marker();
        assert_eq!(archive.ask(segment(4)).await, Some(Got::Absent), "{round}");
        assert_eq!(archive.ask(WalFile::History(Timeline(2))).await, Some(Got::Absent), "{round}");
        assert_eq!(marker() - proofs, 2, "each was proven after it was asked");
    }
    assert!(!archive.destination().exists());
    assert_eq!(archive.questions(), 0);
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_recovery_had_before_is_fetched_again() {
    let (archive, _, following) = followed(3).await;
    assert_eq!(archive.ask(segment(1)).await, Some(Got::Fetched));
    assert_eq!(archive.got(), content(1));
    assert_eq!(archive.questions(), 0);
    following.abort();
}

/// A standby at the end of the archive, which goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_went_on_is_followed() {
    let (archive, _, following) = followed(3).await;
    archive.spool.ask(name(4));
    assert_eq!(archive.ask(segment(4)).await, Some(Got::Absent));
    archive.store(4..=6).await;
    assert_eq!(archive.ask(segment(4)).await, Some(Got::Fetched));
    assert_eq!(archive.got(), content(4));
    until(|| [5, 6].iter().all(|number| archive.spool.fetched(name(*number)).exists()), || "it is not followed".into()).await;
    following.abort();
}

/// A store that failed once, in the middle, is left to the next process.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_ends_looking_ahead() {
    let (archive, _) = known(9).await;
    archive.script.add_times(When::OperationOn(Operation::Read, name(4).to_string()), Trouble::Fail(Fault::Denied), 1);
    assert_eq!(archive.follow(behind(1, 3, None), pending()).await.unwrap(), End::Absent);
    assert_eq!((archive.ready(), archive.spool.end()), (vec![2, 3], None));
    let following = archive.follow(behind(3, 3, None), pending());
    archive.until_ready(&[2, 3, 4, 5, 6]).await;
    following.abort();
}

/// Who would look elsewhere has to look for itself, and with several places everybody has to be sure for themselves.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_same_configuration_is_answered() {
    let (archive, _, following) = followed(3).await;
    let elsewhere = Desk::new(archive.spool.clone(), "elsewhere".into());
    assert_eq!(elsewhere.ask(segment(1), &archive.destination()).await, None);
    assert_eq!(elsewhere.ask(segment(4), &archive.destination()).await, None);
    assert_eq!(archive.ask(segment(1)).await, Some(Got::Fetched));
    assert_eq!(archive.questions(), 0);
    following.abort();
}

/// Which of several places count is found out when a process starts: nobody is told by another that something is in none of them.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_places_nobody_else_says_what_is_absent() {
    let (first, second) = (Arc::new(MemoryStorage::new()), Arc::new(MemoryStorage::new()));
    Archive::of(registered(first.clone()).await, Script::new(), 3).await;
    for object in list_all(&*first, "", Depth::All).await.unwrap().objects {
        let bytes = first.read(&object.key, Part::Whole).await.unwrap().bytes;
        second.create(&object.key, Body::Bytes(vec![bytes])).await.unwrap();
    }
    let both = Several::new(first, vec![("offsite".into(), second as Arc<dyn Storage>)], Duty::Read, RULES);
    let cluster = Cluster::unchecked(Vault::new(Arc::new(both), None), "shop");
    let archive = Archive::of(cluster, Script::new(), 0).await;
    let following = archive.follow(behind(1, 4, None), pending());
    archive.until_ready(&[2, 3]).await;
    assert_eq!(archive.ask(segment(1)).await, Some(Got::Fetched));
    assert_eq!(archive.ask(segment(4)).await, None);
    following.abort();
}

/// What cannot be answered is for who asks to find out, at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_no_answer() {
    let (archive, _) = known(3).await;
    assert_eq!(archive.ask(segment(1)).await, None, "nobody is at work");
    let following = archive.follow(behind(1, 4, None), pending());
    archive.until_ready(&[2, 3]).await;
    archive.script.add(When::OperationOn(Operation::Read, name(1).to_string()), Trouble::Fail(Fault::Denied));
    archive.script.add(When::OperationOn(Operation::Read, "lastgood.json".into()), Trouble::Fail(Fault::Transient));
    assert_eq!(archive.ask(segment(1)).await, None);
    assert_eq!(archive.ask(segment(9)).await, None, "not found, and nothing proven");
    assert_eq!(archive.questions(), 0);
    following.abort();
}

/// Nobody waits for a process that is no more, and nobody answers one that is no more.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_is_not_waited_for() {
    let (archive, log) = known(3).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let following = archive.follow(behind(1, 4, None), async { drop(stopped.await) });
    archive.until_ready(&[2, 3]).await;
    let is_read =
        |number| log.calls().iter().any(|call| call.operation == Operation::Read && call.key.contains(&name(number).to_string()));
    until(|| is_read(4) && is_read(5), || "it has not come to the end".into()).await;
    archive.script.add(When::OperationOn(Operation::Read, name(1).to_string()), Trouble::Freeze);
    let calls = archive.script.calls();
    let stops = async {
        until(|| archive.script.calls() > calls, || "it was not asked".into()).await;
        stop.send(()).unwrap();
    };
    let (answer, ()) = tokio::join!(archive.ask(segment(1)), stops);
    assert_eq!((answer, following.await.unwrap()), (None, End::BrokenOff));
    // Left by a process that was killed: a question, and an answer to another.
    let left = |name: &str| std::fs::write(archive.spool.questions().join(name), name).unwrap();
    left("0123.asked");
    left("4567.whole");
    let following = archive.follow(behind(1, 4, None), pending());
    until(|| archive.questions() == 0, || format!("{} are left", archive.questions())).await;
    following.abort();
}
