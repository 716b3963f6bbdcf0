//! Days of backups on servers whose clock is moved, with forks and a new system under the old name: after every expiry, what the
//! rules promise is restored.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use lastgood::postgres::scratch::{Scratch, Stop};
use lastgood::postgres::session::Session;

use super::servers::rules;
use crate::property::dice::Dice;
use crate::support::world::{PATIENCE, Said, World, programs, said};

const DAYS: u64 = 10;
const WINDOW_DAYS: i64 = 3;
const ROWS: &str = "SELECT coalesce(string_agg(x::text, ' ' ORDER BY x), '') FROM t";

/// A point to which the cluster can be brought back, and the rows that it had there.
#[derive(Debug, Clone)]
struct Moment {
    target: String,
    at: jiff::Timestamp,
    rows: String,
}

struct Days {
    world: World,
    bin: PathBuf,
    travel: PathBuf,
    server: Scratch,
    session: Session,
    rows: u32,
    /// Moments of the path that the server is on.
    moments: Vec<Moment>,
    /// Every snapshot that was ever taken.
    snapshots: Vec<Moment>,
    dice: Dice,
}

/// PostgreSQL's programs, of which the server sees the clock that a file tells.
fn travelling(world: &World, travel: &Path, clock: &Path) -> PathBuf {
    let bin = world.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for entry in std::fs::read_dir(programs(15)).unwrap().flatten().filter(|entry| entry.file_name() != "postgres") {
        std::os::unix::fs::symlink(entry.path(), bin.join(entry.file_name())).unwrap();
    }
    let real = programs(15).join("postgres");
    let environment = format!("LD_PRELOAD={} LASTGOOD_TEST_CLOCK_FILE={}", travel.display(), clock.display());
    std::fs::write(bin.join("postgres"), format!("#!/bin/sh\n{environment} exec {} \"$@\"\n", real.display())).unwrap();
    std::fs::set_permissions(bin.join("postgres"), std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

impl Days {
    async fn new() -> Days {
        let mut world = World::bare(15, &["--data-checksums"], "", None).await;
        let (travel, clock) = (world.path("travel.so"), world.path("clock"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/travel.c");
        let built = Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&travel).arg(source).status().unwrap();
        assert!(built.success());
        std::fs::write(&clock, "0").unwrap();
        let bin = travelling(&world, &travel, &clock);
        let (data, sockets) = (world.server.data().to_path_buf(), world.server.sockets().to_path_buf());
        world.server = Scratch::new(&bin, &data, &sockets, world.user()).unwrap();
        world.start().await;
        world.ok(&["init", "--apply"]);
        rules(&world, &format!("window_days = {WINDOW_DAYS}\nkeep_last = 1\nkeep_weekly = 2"));
        let server = Scratch::new(&bin, &data, &sockets, world.user()).unwrap();
        let server = std::mem::replace(&mut world.server, server);
        let session = world.connect().await;
        session.run("CREATE TABLE t (x int)").await.unwrap();
        let dice = Dice::new(7);
        Days { world, bin, travel, server, session, rows: 0, moments: Vec::new(), snapshots: Vec::new(), dice }
    }

    fn travel(&self, day: u64) {
        // Renamed over, so that nobody reads half of it.
        std::fs::write(self.world.path("clock-new"), (day * 86_400).to_string()).unwrap();
        std::fs::rename(self.world.path("clock-new"), self.world.path("clock")).unwrap();
    }

    fn run(&self, args: &[&str]) -> Said {
        let mut command = self.world.command(args);
        said(command.env("LD_PRELOAD", &self.travel).env("LASTGOOD_TEST_CLOCK_FILE", self.world.path("clock")))
    }

    fn ok(&self, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, 0, "lastgood {args:?}: {}\nserver:\n{}", said.all(), self.server.log());
        said
    }

    async fn moment(&self) -> Moment {
        let at: jiff::Timestamp = {
            let text = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
            self.session.value(text).await.unwrap().parse().unwrap()
        };
        Moment { target: at.to_string(), at, rows: self.session.value(ROWS).await.unwrap() }
    }

    async fn insert(&mut self) {
        for _ in 0..2 {
            self.rows += 1;
            self.session.run(&format!("INSERT INTO t VALUES ({})", self.rows)).await.unwrap();
        }
        let moment = self.moment().await;
        self.moments.push(moment);
    }

    async fn archive(&self) {
        let name = self.session.switch_segment("test").await.unwrap();
        let began = lastgood::clock::monotonic();
        while self.session.archiver().await.unwrap().last_archived.is_none_or(|last| last.len() != 24 || last < name) {
            assert!(began.elapsed() < PATIENCE, "{name} is not archived:\n{}", self.server.log());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// A working day: rows, a snapshot, rows.
    async fn day(&mut self, day: u64) {
        self.travel(day);
        self.insert().await;
        let kind: &[&str] = if day.is_multiple_of(4) { &["--full"] } else { &[] };
        let said = self.ok(&[&["--json", "backup"], kind].concat()).json();
        let taken = &said["snapshot"];
        let at = taken["stop_time"].as_str().unwrap().parse().unwrap();
        let target = format!("snapshot:{}", taken["id"].as_str().unwrap());
        self.snapshots.push(Moment { target, at, rows: self.session.value(ROWS).await.unwrap() });
        self.insert().await;
        self.insert().await;
        // A moment is reached when a later commit is known.
        self.session.run("INSERT INTO t VALUES (0)").await.unwrap();
        self.session.run("DELETE FROM t WHERE x = 0").await.unwrap();
        self.archive().await;
    }

    /// The server is brought back to a moment, and goes on from there.
    async fn fork(&mut self, name: &str, back: usize) {
        let at = self.moments.len() - back;
        self.moments.truncate(at);
        let to = self.moments.last().unwrap().target.clone();
        let into = self.world.path(name);
        self.server.stop(Stop::Fast);
        self.ok(&["restore", "--to", &to, "--target-action", "promote", "--into", into.to_str().unwrap()]);
        self.serve(&into).await;
        let began = lastgood::clock::monotonic();
        while self.session.value("SELECT pg_is_in_recovery()::text").await.unwrap() != "false" {
            assert!(began.elapsed() < PATIENCE, "{}", self.server.log());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(self.session.value(ROWS).await.unwrap(), self.moments.last().unwrap().rows);
        let args = ["release", "--data-directory", into.to_str().unwrap()];
        let plan = self.ok(&[&["--json"], &args[..], &["--dry-run"]].concat()).json();
        self.ok(&[&args[..], &["--confirm", plan["code"].as_str().unwrap()]].concat());
        // From now on it archives.
        self.serve(&into).await;
    }

    /// Somebody made the cluster anew, under the same name.
    async fn begin_anew(&mut self) {
        self.server.stop(Stop::Fast);
        let data = self.world.path("anew");
        let server = Scratch::new(&self.bin, &data, self.world.server.sockets(), self.world.user()).unwrap();
        server.initdb(&["--data-checksums"]).unwrap();
        server.configure("archive_mode = on\nwal_level = replica\nfsync = off\nshared_buffers = '16MB'").unwrap();
        self.serve(&data).await;
        let plan = self.ok(&["--json", "init", "--new-history", "--dry-run"]).json();
        self.ok(&["init", "--apply", "--new-history", "--confirm", plan["code"].as_str().unwrap()]);
        self.serve(&data).await;
        self.session.run("CREATE TABLE t (x int)").await.unwrap();
        self.moments.clear();
    }

    async fn serve(&mut self, data: &Path) {
        self.server.stop(Stop::Fast);
        self.server = Scratch::new(&self.bin, data, self.world.server.sockets(), self.world.user()).unwrap();
        self.server.start().await.unwrap_or_else(|e| panic!("{e}"));
        self.session = self.world.connect().await;
    }

    fn is_kept(&self, snapshot: &Moment) -> bool {
        let id = snapshot.target.trim_start_matches("snapshot:");
        self.world.repository().join("clusters/shop/snapshots").join(id).exists()
    }

    /// What the rules promise after an expiry: the snapshots that stay, and every moment of the last days.
    fn promised(&self) -> Vec<Moment> {
        let newest = self.snapshots.last().unwrap().at;
        let since = newest - jiff::SignedDuration::from_hours(24 * WINDOW_DAYS);
        let moments = self.moments.iter().filter(|moment| moment.at >= since && moment.at > self.first_of_path());
        self.snapshots.iter().filter(|snapshot| self.is_kept(snapshot)).chain(moments).cloned().collect()
    }

    /// Before the first snapshot of a system nothing is promised.
    fn first_of_path(&self) -> jiff::Timestamp {
        let first = self.moments.first().unwrap().at;
        self.snapshots.iter().find(|snapshot| snapshot.at > first).map_or(jiff::Timestamp::MAX, |snapshot| snapshot.at)
    }

    async fn expire(&mut self) {
        // As if the three days of what was restored were over.
        let _ = std::fs::remove_dir_all(self.world.repository().join("clusters/shop/leases"));
        self.ok(&["expire"]);
        self.ok(&["verify"]);
        let promised = self.promised();
        let into = self.world.path("planned");
        for moment in &promised {
            let said = self.run(&["restore", "--dry-run", "--to", &moment.target, "--into", into.to_str().unwrap()]);
            assert_eq!(said.code, 0, "{moment:?}: {}\n{}", said.all(), self.ok(&["list"]).out);
        }
        let one = promised[self.dice.below(promised.len())].clone();
        self.restored(&one).await;
    }

    async fn restored(&self, moment: &Moment) {
        let into = self.world.path("restored");
        self.ok(&["restore", "--to", &moment.target, "--target-action", "pause", "--into", into.to_str().unwrap()]);
        let (server, session) = self.world.recovered("restored").await;
        assert_eq!(session.value(ROWS).await.unwrap(), moment.rows, "{moment:?}");
        drop((session, server));
        std::fs::remove_dir_all(&into).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_rules_promise_is_restored_after_every_expiry() {
    let mut days = Days::new().await;
    for day in 0..DAYS {
        days.day(day).await;
        days.expire().await;
        match day {
            2 => days.fork("second", 4).await,
            4 => days.begin_anew().await,
            6 => days.fork("third", 2).await,
            _ => {}
        }
    }
    let (kept, gone): (Vec<_>, Vec<_>) = days.snapshots.iter().cloned().partition(|snapshot| days.is_kept(snapshot));
    assert!(kept.len() >= WINDOW_DAYS as usize && gone.len() >= 3, "{kept:?}\n{gone:?}");
    for moment in days.promised() {
        days.restored(&moment).await;
    }
    // What is older than the window and no snapshot is not there any more.
    let into = days.world.path("planned");
    let oldest = days.moments.iter().find(|moment| moment.at > days.first_of_path()).unwrap();
    let said = days.run(&["restore", "--dry-run", "--to", &oldest.target, "--into", into.to_str().unwrap()]);
    let is_promised = days.promised().iter().any(|moment| moment.target == oldest.target);
    assert!(!is_promised && said.code == 6, "{oldest:?}: {}", said.all());
}
