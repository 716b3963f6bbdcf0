//! The real program on several hosts: each has a host name of its own (a UTS namespace) and, where a test says so, a clock that is
//! hours off.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::running::Running;
use crate::support::world::{PATIENCE, Said, World, said};

const LEASES: &str = "clusters/shop/leases/backup";

/// A host for the program to run on.
struct Host {
    name: &'static str,
    clock_off_s: i64,
}

const DB1: Host = Host { name: "db1", clock_off_s: 0 };
const DB2: Host = Host { name: "db2", clock_off_s: 0 };

impl Host {
    fn command(&self, world: &World, args: &[&str]) -> Command {
        let inner = world.command(args);
        let mut command = Command::new("unshare");
        // Who is not root may have a host name of its own only together with a namespace of users.
        command.args(if world.user().is_some() { &["--uts"][..] } else { &["--uts", "--user", "--map-root-user"] });
        let become_user = match world.user() {
            Some(user) => format!("setpriv --reuid={} --regid={} --clear-groups", user.uid, user.gid),
            None => String::new(),
        };
        let script = format!("hostname {} && exec {become_user} \"$0\" \"$@\"", self.name);
        command.args(["sh", "-c", &script]).arg(inner.get_program()).args(inner.get_args());
        command.current_dir(world.path("")).stdin(Stdio::null());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if self.clock_off_s != 0 {
            command.env("LD_PRELOAD", clock_apart(world)).env("LASTGOOD_TEST_CLOCK_S", self.clock_off_s.to_string());
        }
        // The test's end must not leave a stopped process behind.
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        command
    }

    fn run(&self, world: &World, args: &[&str]) -> Said {
        said(&mut self.command(world, args))
    }

    fn start(&self, world: &World, args: &[&str]) -> Running {
        Running::start(&mut self.command(world, args))
    }
}

/// Built once for each world; the compiler is one of the tests' tools.
fn clock_apart(world: &World) -> std::path::PathBuf {
    let built = world.path("clock_apart.so");
    if !built.exists() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lease/clock_apart.c");
        let done = Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&built).arg(source).status().unwrap();
        assert!(done.success());
    }
    built
}

/// Waits until the repository has a key below `prefix` that `wanted` likes.
async fn appears(world: &World, prefix: &str, wanted: impl Fn(&str) -> bool) {
    let began = lastgood::clock::monotonic();
    while !world.objects(prefix).iter().any(|key| wanted(key)) {
        assert!(began.elapsed() < PATIENCE, "{prefix}: {:?}", world.objects(prefix));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn world(lease_s: Option<u64>) -> World {
    let world = World::new(15).await;
    if let Some(lease_s) = lease_s {
        let text = std::fs::read_to_string(world.config()).unwrap();
        std::fs::write(world.config(), text.replace("[repository]\n", &format!("[repository]\nlease_s = {lease_s}\n"))).unwrap();
    }
    world.sql("CREATE TABLE t AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 50000) i").await;
    world
}

fn snapshots(world: &World) -> usize {
    world.objects("clusters/shop/snapshots").len()
}

/// Tries until the lease may be taken; every other answer than "held" is wrong.
async fn succeeds_once_stale(world: &World, host: &Host) -> Duration {
    let began = lastgood::clock::monotonic();
    loop {
        let said = host.run(world, &["backup"]);
        if said.code == 0 {
            return began.elapsed();
        }
        assert!(said.code == 5 && said.err.contains("is running already"), "{}", said.all());
        assert!(began.elapsed() < PATIENCE, "never taken over: {}", said.all());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_backup_is_refused_with_who_holds_the_lease() {
    let world = world(None).await;
    let first = DB1.start(&world, &["backup"]);
    appears(&world, LEASES, |_| true).await;
    first.pause();
    let who = format!("process {} of user {} on host db1", first.id(), world.user().map_or("root", |_| "postgres"));
    let words = ["is running already", who.as_str(), "since 20", "last heartbeat", "wait until it is done", "900 s"];
    for said in [world.run(&["backup"]), DB1.run(&world, &["backup"]), DB2.run(&world, &["backup"])] {
        assert_eq!(said.code, 5, "{}", said.all());
        for word in words {
            assert!(said.err.contains(word), "{word}: {}", said.all());
        }
    }
    // It fails for the lack of snapshots.
    let said = world.run(&["check"]);
    assert!(said.out.contains("at work") && said.out.contains(&who), "{}", said.all());
    first.signal(Signal::CONT);
    let said = first.end();
    assert_eq!(said.code, 0, "{}", said.all());
    world.ok(&["backup"]);
    assert_eq!(snapshots(&world), 2);
    // What stays is the mark of the last epoch.
    let left = world.objects("clusters/shop/leases");
    assert!(left.len() == 1 && left[0].ends_with("/released"), "{left:?}");
    assert!(!world.ok(&["check"]).out.contains("at work"));
    world.ok(&["verify"]);
}

/// On the same host nobody waits for a process that is gone; on another host the lease has to grow stale, as long as it says itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_holders_lease_is_taken_over() {
    let world = world(Some(2)).await;
    for other in [&DB1, &DB2] {
        let first = DB1.start(&world, &["backup"]);
        appears(&world, LEASES, |key| key.ends_with("/00000001")).await;
        first.pause();
        let died = lastgood::clock::monotonic();
        first.kill();
        // The taker's own setting does not matter: the lease says two seconds.
        let text = std::fs::read_to_string(world.config()).unwrap();
        std::fs::write(world.config(), text.replace("lease_s = 2", "lease_s = 3600")).unwrap();
        if other.name == DB1.name {
            let said = other.run(&world, &["backup"]);
            assert_eq!(said.code, 0, "{}", said.all());
        } else {
            succeeds_once_stale(&world, other).await;
            assert!(died.elapsed() > Duration::from_millis(1900), "{:?}", died.elapsed());
        }
        std::fs::write(world.config(), text).unwrap();
    }
    assert_eq!(snapshots(&world), 2);
    world.ok(&["verify"]);
}

/// The number of a beat; 0 for all else. After many of them its holder has nothing left to do but to wait.
fn beat_of(key: &str) -> u32 {
    key.rsplit('/').next().and_then(|name| name.parse().ok()).unwrap_or(0)
}

/// A backup waits for its first segment, holding its lease, as long as this file is there.
async fn holds_archiving(world: &World) -> PathBuf {
    let hold = world.path("hold");
    let archive_command = world.value("SHOW archive_command").await;
    let waiting = format!("while test -e {}; do sleep 0.1; done; {archive_command}", hold.display());
    world.sql(&format!("ALTER SYSTEM SET archive_command = '{}'", waiting.replace('\'', "''"))).await;
    world.sql("SELECT pg_reload_conf()").await;
    hold
}

/// A backup that waits for its first segment and has beaten more than `beats` times; `hold` is there then. On a machine that is starved
/// for longer than the lease it may have lost that before, and another takes its place.
async fn beats(world: &World, host: &Host, hold: &Path, beats: u32) -> Running {
    std::fs::write(hold, "").unwrap();
    let began = lastgood::clock::monotonic();
    loop {
        assert!(began.elapsed() < PATIENCE, "never held for long: {:?}", world.objects(LEASES));
        let known = world.objects(LEASES);
        let mut backup = host.start(world, &["backup"]);
        while !backup.has_ended() {
            if world.objects(LEASES).iter().any(|key| beat_of(key) > beats && !known.contains(key)) {
                return backup;
            }
            assert!(began.elapsed() < PATIENCE, "{:?}", world.objects(LEASES));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let said = backup.end();
        assert!(said.code == 5, "{}", said.all());
    }
}

/// A clock that is hours off neither steals a lease that beats, nor respects a dead one for hours.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_apart_decide_nothing() {
    let world = world(Some(2)).await;
    let hold = holds_archiving(&world).await;
    for clock_off_s in [5 * 3600, -5 * 3600] {
        let off = Host { name: "db2", clock_off_s };
        let said = off.run(&world, &["check", "--no-switch"]);
        assert!(said.out.contains("this host's clock is") && said.out.contains("18000"), "the clock is off: {}", said.all());
        // Three times as long as a lease lives without beats.
        let first = beats(&world, &DB1, &hold, 60).await;
        for _ in 0..3 {
            let said = off.run(&world, &["backup"]);
            assert!(said.code == 5 && said.err.contains("on host db1"), "{}", said.all());
        }
        first.kill();
        std::fs::remove_file(&hold).unwrap();
        let took = succeeds_once_stale(&world, &off).await;
        assert!(took < Duration::from_secs(60), "{took:?}");
    }
    // A holder whose clock is off is known by the store's clock, too.
    let off = Host { name: "db3", clock_off_s: -5 * 3600 };
    let first = beats(&world, &off, &hold, 15).await;
    first.pause();
    std::fs::remove_file(&hold).unwrap();
    let said = DB1.run(&world, &["backup"]);
    assert!(said.code == 5 && said.err.contains("on host db3"), "{}", said.all());
    succeeds_once_stale(&world, &DB1).await;
    first.signal(Signal::CONT);
    let said = first.end();
    assert!(said.code == 5 && said.err.contains("on host db1"), "{}", said.all());
    world.ok(&["verify"]);
}

/// Picks an object by its key.
type Pick = fn(&str) -> bool;

/// One is paused for longer than its lease, another takes over and completes; the first wakes up and commits nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_wakes_up_after_its_lease_was_taken_stops() {
    let world = world(Some(2)).await;
    let hold = holds_archiving(&world).await;
    let is_held = |key: &str| beat_of(key) > 15;
    let is_pack = |key: &str| key.contains("/d000001");
    let is_any = |_: &str| true;
    let places: [(&str, Pick); 3] = [(LEASES, is_held), ("clusters/shop/packs", is_pack), ("clusters/shop/files", is_any)];
    for (turn, (prefix, is_it)) in places.into_iter().enumerate() {
        let known = world.objects(prefix);
        if prefix == LEASES {
            std::fs::write(&hold, "").unwrap();
        }
        let first = DB1.start(&world, &["backup", "--full"]);
        appears(&world, prefix, |key| is_it(key) && !known.iter().any(|k| k == key)).await;
        first.pause();
        let _ = std::fs::remove_file(&hold);
        assert_eq!(snapshots(&world), turn, "paused before its end");
        succeeds_once_stale(&world, &DB2).await;
        let before = world.objects("clusters/shop");
        world.sql(&format!("INSERT INTO t VALUES ({turn}, 'after')")).await;
        first.signal(Signal::CONT);
        let said = first.end();
        assert_eq!(said.code, 5, "{}", said.all());
        for word in
            ["this backup's lease was taken by process", "on host db2", "while this process was paused", "nothing was committed"]
        {
            assert!(said.err.contains(word), "{word}: {}", said.all());
        }
        assert_eq!(snapshots(&world), turn + 1, "{prefix}");
        // What it was writing at that moment may still arrive, two packs and a list at most; nothing that it began since.
        let late: Vec<String> = world.objects("clusters/shop").into_iter().filter(|key| !before.contains(key)).collect();
        let late: Vec<&String> = late.iter().filter(|k| !k.contains("/wal/") && !k.contains("/leases/")).collect();
        assert!(late.len() <= 3 && late.iter().all(|k| k.contains("/packs/") || k.contains("/files/")), "{late:?}");
        world.ok(&["verify"]);
    }
    // The next backup sweeps it.
    world.ok(&["backup"]);
    let ids: Vec<String> =
        world.objects("clusters/shop/snapshots").iter().map(|k| k.rsplit('/').next().unwrap().into()).collect();
    for key in world.objects("clusters/shop/packs").iter().chain(&world.objects("clusters/shop/files")) {
        assert!(ids.iter().any(|id| key.contains(id.as_str())), "{key} belongs to no snapshot");
    }
    world.archive().await;
    let (_server, session) = world.restore("restored", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*), count(DISTINCT x) FROM t WHERE y <> 'after'").await.unwrap(), "50000");
    let rest = "SELECT (SELECT count(*) FROM t WHERE y = 'after') || ' ' || (SELECT count(*) FROM t WHERE y = md5(x::text))";
    assert_eq!(session.value(rest).await.unwrap(), "3 50000");
    // But for the server that was restored, which is given time to fetch its WAL.
    let checked = world.ok(&["check"]).out;
    let kept: Vec<&str> = checked.lines().filter(|line| line.starts_with("ok      kept ")).collect();
    assert!(kept.len() == 1 && kept[0].contains("may still replay") && !checked.contains("at work"), "{checked}");
}

/// A pause longer than the lease that nobody used: the holder may go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_nobody_used_costs_nothing() {
    let world = world(Some(1)).await;
    let first = DB1.start(&world, &["backup"]);
    appears(&world, LEASES, |_| true).await;
    first.pause();
    let at = |world: &World| world.objects(LEASES);
    let before = at(&world);
    // As long as it takes until the lease would be taken by whoever asks.
    let began = lastgood::clock::monotonic();
    while began.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(at(&world), before, "paused");
    }
    first.signal(Signal::CONT);
    let said = first.end();
    assert_eq!(said.code, 0, "{}", said.all());
    world.ok(&["verify"]);
}

/// Segments that the server has finished, as their paths.
fn finished(world: &World) -> Vec<String> {
    let wal = world.server.data().join("pg_wal");
    let marks = std::fs::read_dir(wal.join("archive_status")).unwrap().flatten();
    let names = marks.filter_map(|entry| entry.file_name().into_string().ok());
    let segments = names.filter_map(|name| name.strip_suffix(".ready").or(name.strip_suffix(".done")).map(str::to_string));
    let there = segments.filter(|name| name.len() == 24 && wal.join(name).exists());
    there.map(|name| wal.join(name).display().to_string()).collect()
}

/// Two hosts push the same WAL and take snapshots and know nothing of each other. In each turn a backup and a push are paused for
/// longer than a lease lives, and wake up when the other host has gone on.
#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_archive_and_back_up_at_once_and_wake_up_with_stale_leases() {
    let world = world(Some(1)).await;
    let mut dice = crate::property::dice::Dice::new(3);
    let (mut taken, mut refused) = (0, 0);
    for turn in 0..6 {
        let slow = dice.below(2);
        let [sleeper, other] = if slow == 0 { [&DB1, &DB2] } else { [&DB2, &DB1] };
        let known = world.objects("clusters/shop").len();
        let mut backup = sleeper.start(&world, &["backup"]);
        // Anywhere between its first object and its last.
        let at = known + 1 + dice.below(12);
        let began = lastgood::clock::monotonic();

        while world.objects("clusters/shop").len() < at && snapshots(&world) == taken {
            assert!(began.elapsed() < PATIENCE && !backup.has_ended());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        backup.pause();
        world.sql(&format!("INSERT INTO t VALUES ({turn}, 'during'); SELECT pg_switch_wal()")).await;
        // The server pushes them too.
        for path in finished(&world).iter().rev().take(3) {
            let paused = sleeper.start(&world, &["archive-push", path]);
            paused.pause();
            let said = other.run(&world, &["archive-push", path]);
            assert_eq!(said.code, 0, "{}", said.all());
            paused.signal(Signal::CONT);
            let said = paused.end();
            assert_eq!(said.code, 0, "{}", said.all());
        }
        succeeds_once_stale(&world, other).await;
        world.sql(&format!("INSERT INTO t VALUES ({turn}, 'after')")).await;
        backup.signal(Signal::CONT);
        let said = backup.end();
        match said.code {
            0 => taken += 1,
            5 => refused += 1,
            _ => panic!("{}", said.all()),
        }
        taken += 1;
        assert!(said.code == 0 || said.err.contains("nothing was committed"), "{}", said.all());
        assert_eq!(snapshots(&world), taken, "{}", said.all());
        world.forget_orphans();
        world.ok(&["verify"]);
    }
    // Whose tables are there already is paused too late to lose anything: nobody sweeps them, and its manifest makes it whole.
    assert!(refused >= 2, "{refused} of 6 woke up too late");
    world.archive().await;
    let listed = world.ok(&["list"]).out;
    assert!(!listed.contains("gap"), "{listed}");
    for id in world.objects("clusters/shop/snapshots") {
        let target = format!("snapshot:{}", id.rsplit('/').next().unwrap());
        world.ok(&["restore", "--dry-run", "--to", &target, "--into", world.path("planned").to_str().unwrap()]);
    }
    let (_server, session) = world.restore("restored", &["--to", "latest"]).await;
    let rows =
        "SELECT count(*) FILTER (WHERE y = md5(x::text)) || ' ' || count(*) FILTER (WHERE y IN ('during', 'after')) FROM t";
    assert_eq!(session.value(rows).await.unwrap(), "50000 12");
    world.ok(&["audit"]);
}
