//! Look-ahead of recovery, in one process: what is kept ready, what is believed, and when it ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lastgood::archive::ahead::{self, Ahead, End};
use lastgood::archive::get::{self, Got};
use lastgood::archive::inquiry::Desk;
use lastgood::archive::spool::Spool;
use lastgood::clock;
use lastgood::postgres::lsn::{SystemId, Timeline};
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::repo::repository::Cluster;
use lastgood::repo::segment;
use lastgood::repo::vault::Vault;
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::Operation;

use crate::support::world::PATIENCE;

pub const SYSTEM: SystemId = SystemId(7);
pub const SEGMENT_BYTES: u64 = 16 << 20;

pub fn name(number: u64) -> SegmentName {
    SegmentName::new(Timeline(1), number, SEGMENT_BYTES)
}

/// An archive with segments 1 to `last`, and a data directory in recovery.
pub struct Archive {
    dir: tempfile::TempDir,
    cluster: Cluster,
    pub script: Script,
    pub spool: Spool,
}

impl Archive {
    async fn new(last: u64) -> Archive {
        let script = Script::new();
        let store = Arc::new(FaultInjection::new(MemoryStorage::new(), &script));
        Archive::of(Cluster::unchecked(Vault::new(store, None), "shop"), script, last).await
    }

    pub async fn of(cluster: Cluster, script: Script, last: u64) -> Archive {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("recovery.signal"), "").unwrap();
        let spool = Spool::open(&dir.path().join("spool"), "shop", SYSTEM, &data).unwrap();
        let archive = Archive { dir, cluster, script, spool };
        archive.store(1..=last).await;
        archive
    }

    pub async fn store(&self, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            let encoded = segment::encode(content(number).as_bytes(), 1, None, &[], &mut |_| {}).unwrap();
            segment::store(&self.cluster, SYSTEM, &WalFile::Segment(name(number)), encoded, segment::Said::default())
                .await
                .unwrap();
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn destination(&self) -> PathBuf {
        self.dir.path().join("RECOVERYXLOG")
    }

    pub fn desk(&self) -> Desk {
        Desk::new(self.spool.clone(), "here".into())
    }

    /// What the process does that keeps segments ready, holding its lock.
    pub fn follow(&self, ahead: Ahead, broken_off: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<End> {
        let (cluster, spool, data) = (self.cluster.clone(), self.spool.clone(), self.data());
        let desk = self.desk();
        let lock = spool.lock_fetching().expect("nobody else is at work");
        tokio::spawn(async move {
            let end = ahead::follow(&cluster, SYSTEM, ahead, &desk, &data, broken_off).await;
            drop(lock);
            end
        })
    }

    /// What `archive-get` does; whether it fetched the segment itself.
    async fn get(&self, number: u64) -> Had {
        let (name, destination) = (name(number), self.destination());
        let had = if get::from_spool(&self.spool, name, &destination).await.unwrap() {
            Had::Prefetched
        } else {
            let got = get::get(&self.cluster, SYSTEM, WalFile::Segment(name), &destination, None, Some(&self.spool)).await;
            assert_eq!(got.unwrap(), Got::Fetched);
            Had::Fetched
        };
        assert_eq!(std::fs::read_to_string(destination).unwrap(), content(number));
        had
    }

    pub fn ready(&self) -> Vec<u64> {
        (1..100).filter(|number| self.spool.fetched(name(*number)).exists()).collect()
    }

    pub async fn until_ready(&self, numbers: &[u64]) {
        until(|| self.ready() == numbers, || format!("{:?}", self.ready())).await;
    }

    /// Every file of the spool.
    fn files(&self) -> Vec<String> {
        super::walk(&self.dir.path().join("spool")).into_iter().filter(|path| path.contains("/fetched/")).collect()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Had {
    Prefetched,
    Fetched,
}

pub fn content(number: u64) -> String {
    format!("segment {number}")
}

pub fn behind(number: u64, count: usize, until: Option<u64>) -> Ahead {
    Ahead { segment: name(number), segment_bytes: SEGMENT_BYTES, count, until: until.map(name) }
}

pub async fn until(is_met: impl Fn() -> bool, said: impl Fn() -> String) {
    let began = clock::monotonic();
    while !is_met() {
        assert!(began.elapsed() < PATIENCE, "{}", said());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// One process, from the first segment to the last: each is fetched once, and never more than `count` lie there.
#[tokio::test(flavor = "multi_thread")]
async fn the_spool_is_kept_filled_until_the_archive_ends() {
    let archive = Archive::new(9).await;
    let calls = archive.script.calls();
    let following = archive.follow(behind(1, 3, None), std::future::pending());
    archive.until_ready(&[2, 3, 4]).await;
    for number in 2..=6 {
        assert_eq!(archive.get(number).await, Had::Prefetched);
        archive.until_ready(&[number + 1, number + 2, number + 3]).await;
    }
    assert_eq!(archive.get(7).await, Had::Prefetched);
    assert_eq!(following.await.unwrap(), End::Absent);
    assert_eq!((archive.get(8).await, archive.get(9).await), (Had::Prefetched, Had::Prefetched));
    // Eight segments, and the one that is absent.
    assert_eq!(archive.script.calls() - calls, 9);
}

/// Recovery that goes elsewhere is followed there, and what it has passed is removed.
#[tokio::test(flavor = "multi_thread")]
async fn recovery_that_begins_anew_is_followed() {
    let archive = Archive::new(30).await;
    let following = archive.follow(behind(20, 2, None), std::future::pending());
    archive.until_ready(&[21, 22]).await;
    archive.spool.ask(name(4));
    archive.until_ready(&[5, 6, 21, 22]).await;
    assert_eq!(archive.get(5).await, Had::Prefetched);
    archive.until_ready(&[6, 7, 21, 22]).await;
    assert_eq!(archive.get(12).await, Had::Fetched);
    archive.until_ready(&[13, 14, 21, 22]).await;
    archive.spool.ask(name(4));
    archive.until_ready(&[5, 6, 13, 14, 21, 22]).await;
    assert_eq!(archive.get(25).await, Had::Fetched);
    archive.until_ready(&[26, 27]).await;
    following.abort();
}

/// Nothing is fetched twice: who asks for a segment that is on its way waits for it, for as long as somebody brings it.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_on_its_way_is_waited_for() {
    let archive = Archive::new(3).await;
    let lock = archive.spool.lock_fetching();
    std::fs::write(archive.spool.coming(name(2)), "segm").unwrap();
    let calls = archive.script.calls();
    let arrives = async {
        tokio::task::yield_now().await;
        std::fs::write(archive.spool.coming(name(2)), content(2)).unwrap();
        std::fs::rename(archive.spool.coming(name(2)), archive.spool.fetched(name(2))).unwrap();
    };
    let (got, ()) = tokio::join!(archive.get(2), arrives);
    assert_eq!((got, archive.script.calls()), (Had::Prefetched, calls));
    // What nobody brings any more is not waited for.
    std::fs::write(archive.spool.coming(name(3)), "segm").unwrap();
    drop(lock);
    assert_eq!(archive.get(3).await, Had::Fetched);
}

/// What was fetched before the host started may be torn, because nothing is flushed; what is unfinished is nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_lay_there_before_is_not_believed() {
    let archive = Archive::new(1).await;
    let earlier = archive.spool.fetched(name(1));
    let fetched = earlier.parent().unwrap().parent().unwrap();
    for torn in [fetched.join(name(1).to_string()), fetched.join("another-start").join(name(1).to_string())] {
        std::fs::create_dir_all(torn.parent().unwrap()).unwrap();
        std::fs::write(torn, "segm").unwrap();
    }
    std::fs::write(archive.spool.coming(name(1)), "segm").unwrap();
    assert_eq!(archive.files().len(), 3);
    assert_eq!(archive.get(1).await, Had::Fetched);
    assert_eq!(archive.follow(behind(1, 3, None), std::future::pending()).await.unwrap(), End::Absent);
    assert_eq!(archive.files(), Vec::<String>::new());
}

/// Where the archive ended is not looked at again and again, but it is when it went on.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_archive_is_remembered() {
    let archive = Archive::new(3).await;
    assert_eq!(archive.follow(behind(1, 4, None), std::future::pending()).await.unwrap(), End::Absent);
    assert_eq!(archive.spool.end(), Some(name(4)));
    let is_worth_it = |number, count| behind(number, count, None).is_worth_it(&archive.spool);
    assert_eq!([1, 2, 3].map(|number| is_worth_it(number, 4)), [false; 3]);
    assert!(is_worth_it(1, 2), "there may be segments before it that are not fetched");
    assert!(is_worth_it(4, 4) && is_worth_it(5, 4), "it went on");
    let other = Ahead { segment: SegmentName::new(Timeline(2), 3, SEGMENT_BYTES), ..behind(3, 4, None) };
    assert!(other.is_worth_it(&archive.spool));
}

/// Recovery needs nothing behind its target.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_that_recovery_does_not_need() {
    let archive = Archive::new(9).await;
    let following = archive.follow(behind(1, 4, Some(3)), std::future::pending());
    archive.until_ready(&[2, 3]).await;
    assert_eq!((archive.get(2).await, archive.get(3).await), (Had::Prefetched, Had::Prefetched));
    assert_eq!(following.await.unwrap(), End::Until);
    assert!(archive.ready().is_empty());
}

/// When recovery is over, the room is given back.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_recovery_empties_the_spool() {
    let archive = Archive::new(9).await;
    let following = archive.follow(behind(1, 4, None), std::future::pending());
    archive.until_ready(&[2, 3, 4, 5]).await;
    std::fs::remove_file(archive.data().join("recovery.signal")).unwrap();
    assert_eq!(following.await.unwrap(), End::Over);
    assert_eq!(archive.files(), Vec::<String>::new());
}

/// A server that shuts down ends it in the middle, and nothing unfinished stays.
#[tokio::test(flavor = "multi_thread")]
async fn breaking_off_leaves_nothing_unfinished() {
    let archive = Archive::new(9).await;
    archive.script.add(When::OperationOn(Operation::Read, name(4).to_string()), Trouble::Freeze);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let following = archive.follow(behind(1, 4, None), async { drop(stopped.await) });
    archive.until_ready(&[2, 3, 5]).await;
    until(|| archive.spool.coming(name(4)).exists(), || "nothing is on its way".into()).await;
    stop.send(()).unwrap();
    assert_eq!(following.await.unwrap(), End::BrokenOff);
    assert_eq!(archive.files().len(), 3, "{:?}", archive.files());
}

/// Look-ahead is bounded in bytes, whatever a segment's size, and is never nothing.
#[test]
fn the_window_is_bounded_in_bytes() {
    let window = |megabytes: u64, count| Ahead { segment_bytes: megabytes << 20, ..behind(1, count, None) }.window();
    assert_eq!([window(16, 16), window(64, 16), window(16, 1000), window(256, 16), window(1024, 16)], [16, 16, 64, 4, 1]);
}

/// A disk on which others may run short is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_little_room_is_left_alone() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no small file system can be made here, so this promise is not tested in this run");
        return;
    }
    let archive = Archive::new(9).await;
    let small = Mounted::new(archive.dir.path(), 40);
    let spool = Spool::open(&small.0, "shop", SYSTEM, &archive.data()).unwrap();
    let desk = Desk::new(spool.clone(), "here".into());
    let follow = async |count| {
        let ahead = behind(1, count, Some(2));
        let broken_off = async { until(|| spool.fetched(name(2)).exists(), || "nothing came".into()).await };
        ahead::follow(&archive.cluster, SYSTEM, ahead, &desk, &archive.data(), broken_off).await
    };
    assert_eq!(follow(16).await, End::Absent, "40 MB are less than 16 segments");
    assert!(!spool.fetched(name(2)).exists());
    assert_eq!(follow(2).await, End::BrokenOff);
}

/// A small file system of its own.
struct Mounted(PathBuf);

impl Mounted {
    fn new(dir: &Path, megabytes: u32) -> Mounted {
        let at = dir.join("small");
        std::fs::create_dir(&at).unwrap();
        let size = format!("size={megabytes}m,mode=777");
        let done = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).status().unwrap();
        assert!(done.success());
        Mounted(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}
