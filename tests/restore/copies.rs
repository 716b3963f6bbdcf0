//! Restored servers: they reach their target, start nothing but themselves, and act on nobody until they are released.

use std::path::{Path, PathBuf};

use lastgood::postgres::scratch::{Scratch, Stop};
use lastgood::postgres::session::{Connection, Session};

use crate::support::world::{PATIENCE, World, programs};

/// A server whose copies find their programs and keep their sockets in the world's own directory.
pub async fn world(major: u32, settings: &str) -> World {
    let mut world = World::bare(major, &[], settings, None).await;
    let sockets = world.server.sockets().display().to_string();
    world.server.configure(&format!("unix_socket_directories = '{sockets}'\nlisten_addresses = ''")).unwrap();
    let drills = world.path("drills");
    let more =
        format!("[drill]\ndirectory = \"{}\"\n[drill.programs]\n{major} = \"{}\"\n", drills.display(), programs(major).display());
    world.write_config(None, &more);
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.server.stop(Stop::Fast);
    world.start().await;
    world
}

/// A copy that `restore --start` has started: it is stopped by its pid.
pub struct Running<'a> {
    pub world: &'a World,
    pub data: PathBuf,
}

impl Running<'_> {
    fn pid_file(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_string()).collect()
    }

    pub async fn session(&self) -> Session {
        let lines = self.pid_file();
        let port = lines[3].parse().unwrap();
        let there = Connection { host: Some(lines[4].clone()), port: Some(port), ..self.world.server.connection() };
        let session = Session::open(&there).await.unwrap();
        session.run("SET search_path = public, pg_catalog").await.unwrap();
        session
    }

    fn stop(&self) {
        let Some(pid) = self.pid_file().first().and_then(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) else { return };
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let began = lastgood::clock::monotonic();
        while self.data.join("postmaster.pid").exists() {
            assert!(began.elapsed() < PATIENCE, "{} does not stop", self.data.display());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn own(world: &World, path: &Path) {
    if let Some(user) = world.user() {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

/// As Debian has it: settings outside of the data directory, which name it.
async fn move_settings(world: &mut World) -> PathBuf {
    let (etc, data) = (world.path("etc"), world.server.data().to_path_buf());
    world.server.stop(Stop::Fast);
    std::fs::create_dir(&etc).unwrap();
    own(world, &etc);
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        std::fs::rename(data.join(name), etc.join(name)).unwrap();
    }
    let conf = etc.join("postgresql.conf");
    let pid_file = world.path("external.pid");
    let more = format!(
        "data_directory = '{}'\nhba_file = '{etc}/pg_hba.conf'\nident_file = '{etc}/pg_ident.conf'\nexternal_pid_file = '{}'\n",
        data.display(),
        pid_file.display(),
        etc = etc.display(),
    );
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, text + &more).unwrap();
    world.server.set_arguments(vec!["-c".into(), format!("config_file={}", conf.display())]);
    world.start().await;
    pid_file
}

/// Where the settings of the original are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// In the data directory, as initdb makes them.
    Plain,
    /// There too, and they name it.
    Named,
    /// Outside of it, as Debian has them.
    Debian,
}

#[derive(Debug, Clone, Copy)]
struct Traits {
    layout: Layout,
    /// The copy ends recovery at the target.
    promoted: bool,
    /// A prepared transaction is open at the target.
    prepared: bool,
    /// The original is a logical subscriber.
    subscriber: bool,
    /// `pg_wal` is on a disk of its own, and shall be in the copy.
    own_wal: bool,
}

/// A server whose table `feed` another one subscribes to.
struct Publisher {
    _server: Scratch,
    session: Session,
}

impl Publisher {
    async fn start(world: &World, major: u32) -> Publisher {
        let bin = programs(major);
        let mut server = Scratch::new(&bin, &world.path("source"), &world.path("source.sockets"), world.user()).unwrap();
        server.initdb(&[]).unwrap();
        server.configure("wal_level = logical\nfsync = off").unwrap();
        server.start().await.unwrap();
        let session = Session::open(&server.connection()).await.unwrap();
        session.run("CREATE TABLE public.feed (i int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE public.feed").await.unwrap();
        world.sql("CREATE TABLE feed (i int PRIMARY KEY)").await;
        let conninfo = format!("host={} port=5432 user=postgres dbname=postgres", server.sockets().display());
        world.sql(&format!("CREATE SUBSCRIPTION s CONNECTION '{conninfo}' PUBLICATION p")).await;
        let publisher = Publisher { _server: server, session };
        publisher.adds(world, 1, 10).await;
        publisher
    }

    /// Adds rows, and waits until the original has them.
    async fn adds(&self, world: &World, from: u32, to: u32) {
        self.session.run(&format!("INSERT INTO public.feed SELECT generate_series({from}, {to})")).await.unwrap();
        self.arrives(world, to).await;
    }

    async fn arrives(&self, world: &World, rows: u32) {
        let began = lastgood::clock::monotonic();
        while world.value("SELECT count(*) FROM feed").await != rows.to_string() {
            assert!(began.elapsed() < PATIENCE, "{}", world.server.log());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

const WORKERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%'";

async fn move_wal(world: &mut World) {
    let (there, here) = (world.server.data().join("pg_wal"), world.path("wal"));
    world.server.stop(Stop::Fast);
    std::fs::rename(&there, &here).unwrap();
    std::os::unix::fs::symlink(&here, &there).unwrap();
    world.start().await;
}

async fn copy(major: u32, traits: Traits) {
    let mut world = world(major, "max_prepared_transactions = 5").await;
    if traits.layout == Layout::Named {
        let data = world.server.data().display().to_string();
        world.server.configure(&format!("data_directory = '{data}'\nhba_file = '{data}/pg_hba.conf'")).unwrap();
    }
    if traits.own_wal {
        move_wal(&mut world).await;
    }
    let pid_file = if traits.layout == Layout::Debian { Some(move_settings(&mut world).await) } else { None };
    world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 100) i").await;
    let publisher = if traits.subscriber { Some(Publisher::start(&world, major).await) } else { None };
    world.backup(&[]);
    for (name, value) in [("max_connections", 250), ("max_locks_per_transaction", 99), ("max_prepared_transactions", 7)] {
        world.sql(&format!("ALTER SYSTEM SET {name} = {value}")).await;
    }
    world.server.stop(Stop::Fast);
    world.start().await;
    world.sql("INSERT INTO t SELECT generate_series(101, 200)").await;
    if traits.prepared {
        world.sql("BEGIN; INSERT INTO t VALUES (1000); PREPARE TRANSACTION 'it''s open'").await;
    }
    world.archive().await;
    let before = pid_file.as_ref().map(|path| std::fs::read_to_string(path).unwrap());

    let (into, wal) = (world.path("copy"), world.path("copy.wal"));
    let running = Running { world: &world, data: into.clone() };
    let action = if traits.promoted { "promote" } else { "pause" };
    let mut args = vec!["restore", "--to", "latest", "--target-action", action, "--start", "--into", into.to_str().unwrap()];
    if traits.own_wal {
        args.extend(["--wal-directory", wal.to_str().unwrap()]);
    }
    let said = world.ok(&args);
    assert!(said.out.contains("reached") && said.out.contains("the target"), "{}", said.all());
    assert!(said.out.contains("because the original is on this host"), "{}", said.all());
    assert_eq!(said.out.contains("ROLLBACK PREPARED 'it''s open'"), traits.prepared && traits.promoted, "{}", said.all());
    assert_eq!(std::fs::read_link(into.join("pg_wal")).ok(), traits.own_wal.then_some(wal));
    world.ok(&["reached", "--data-directory", into.to_str().unwrap()]);
    let session = running.session().await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "200");
    assert_eq!(session.value("SHOW data_directory").await.unwrap(), into.display().to_string());
    assert_eq!(session.value("SHOW max_logical_replication_workers").await.unwrap(), "0");
    // The original lives, in its own place, its pid file is its own, and it gets what it subscribes to.
    assert_eq!(world.value("SELECT count(*) || current_setting('data_directory') FROM t").await, {
        format!("200{}", world.server.data().display())
    });
    assert_eq!(pid_file.as_ref().map(|path| std::fs::read_to_string(path).unwrap()), before);
    if let Some(publisher) = &publisher {
        publisher.adds(&world, 11, 20).await;
        assert_eq!(session.value("SELECT count(*) FROM feed").await.unwrap(), "10");
        assert_eq!(session.value(WORKERS).await.unwrap(), "0");
    }
    drop(session);
    running.stop();
    if !traits.promoted {
        return;
    }
    // Adoption takes back what held until then, and nothing else.
    world.release("copy");
    let text = std::fs::read_to_string(into.join("postgresql.auto.conf")).unwrap();
    for gone in ["max_logical_replication_workers", "hot_standby", "port =", "log_directory", "archive_mode = 'off'", "recovery_"]
    {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    for stays in ["archive_mode = 'on'", "archive_command = "] {
        assert!(text.contains(stays), "{stays}: {text}");
    }
}

// Of each two traits every pair of values is met in one of the six; `make soak` plays them all on each version.

#[tokio::test(flavor = "multi_thread")]
async fn of_13() {
    copy(13, Traits { layout: Layout::Named, promoted: false, prepared: true, subscriber: true, own_wal: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_14() {
    copy(14, Traits { layout: Layout::Debian, promoted: true, prepared: true, subscriber: false, own_wal: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_15() {
    copy(15, Traits { layout: Layout::Debian, promoted: false, prepared: false, subscriber: true, own_wal: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_16() {
    copy(16, Traits { layout: Layout::Named, promoted: true, prepared: false, subscriber: false, own_wal: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_17() {
    copy(17, Traits { layout: Layout::Plain, promoted: true, prepared: true, subscriber: true, own_wal: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_18() {
    copy(18, Traits { layout: Layout::Plain, promoted: false, prepared: false, subscriber: false, own_wal: false }).await;
}

/// Everything with everything: 288 copies.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes an hour: make soak"]
async fn of_every_kind() {
    let two = [false, true];
    for major in 13..=18 {
        for layout in [Layout::Plain, Layout::Named, Layout::Debian] {
            for (promoted, prepared) in two.into_iter().flat_map(|one| two.map(|other| (one, other))) {
                for (subscriber, own_wal) in two.into_iter().flat_map(|one| two.map(|other| (one, other))) {
                    let traits = Traits { layout, promoted, prepared, subscriber, own_wal };
                    eprintln!("PostgreSQL {major}, {traits:?}");
                    copy(major, traits).await;
                }
            }
        }
    }
}

/// A copy with a limit below what the WAL tells pauses short of its target and answers all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_short_of_the_target_is_told() {
    for major in [14, 18] {
        let mut world = world(major, "").await;
        world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 100) i").await;
        world.backup(&[]);
        world.sql("ALTER SYSTEM SET max_connections = 250").await;
        world.server.stop(Stop::Fast);
        world.start().await;
        world.sql("INSERT INTO t SELECT generate_series(101, 200)").await;
        world.archive().await;
        let into = world.path("copy");
        world.ok(&["restore", "--to", "latest", "--target-action", "pause", "--into", into.to_str().unwrap()]);
        let auto = into.join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&auto).unwrap();
        assert!(text.contains("max_connections = '250'"), "{text}");
        std::fs::write(&auto, text.replace("max_connections = '250'", "max_connections = '100'")).unwrap();
        let mut server = world.restored("copy");
        server.start().await.unwrap();
        let said = world.run(&["reached", "--wait", "--data-directory", into.to_str().unwrap()]);
        assert_eq!(said.code, 6, "{}", said.all());
        for words in ["SHORT", "max_connections is 100 here, and the original had 250"] {
            assert!(said.out.contains(words), "{words}: {}", said.all());
        }
        server.stop(Stop::Fast);
        let said =
            world.refused(&["reached", "--data-directory", into.to_str().unwrap()], 6, &["DOWN", "recovery has not ended"]);
        assert!(!said.out.contains("the target:"), "{}", said.all());
    }
}

/// The server's own hint suggests to remove the label, and a cluster manager takes the settings of recovery away: neither may start a
/// server that begins too late, or replays what was to be left out.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_label_or_its_settings_it_does_not_start() {
    for major in [13, 15, 18] {
        let world = world(major, "").await;
        world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i").await;
        world.backup(&[]);
        world.sql("SELECT pg_create_restore_point('good'); DELETE FROM t").await;
        world.archive().await;
        for without in [&["backup_label"][..], &["backup_label", "recovery.signal"], &["postgresql.auto.conf"]] {
            let name = without.join("+");
            let into = world.path(&name);
            world.ok(&["restore", "--to", "name:good", "--into", into.to_str().unwrap()]);
            without.iter().for_each(|file| std::fs::remove_file(into.join(file)).unwrap());
            let mut server = world.restored(&name);
            server.spawn().unwrap();
            let began = lastgood::clock::monotonic();
            while !server.has_exited() {
                assert!(began.elapsed() < PATIENCE, "PostgreSQL {major} lives without {name}: {}", server.log());
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            assert!(!server.log().contains("consistent recovery state"), "PostgreSQL {major} without {name}: {}", server.log());
        }
        // With both it comes to its target, and pg_control is right from then on.
        let (mut server, session) = world.restore("whole", &["--to", "name:good", "--target-action", "promote"]).await;
        assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "1000");
        session.run("CHECKPOINT").await.unwrap();
        server.stop(Stop::Immediate);
        server.start().await.unwrap();
    }
}

/// A promoted copy of a logical subscriber would take the changes that wait for the original, for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_subscriber_takes_nothing() {
    let world = world(16, "").await;
    let publisher = Publisher::start(&world, 16).await;
    world.backup(&[]);
    world.archive().await;
    // While the original does not listen, changes wait for it.
    world.sql("ALTER SUBSCRIPTION s DISABLE").await;
    publisher.session.run("INSERT INTO public.feed SELECT generate_series(11, 20)").await.unwrap();
    let to = world.objects("clusters/shop/snapshots")[0].rsplit('/').next().unwrap().to_string();
    let to = format!("snapshot:{to}");
    let (_copy, session) = world.restore("copy", &["--to", &to, "--target-action", "promote"]).await;
    assert_eq!(session.value("SELECT subenabled FROM pg_subscription").await.unwrap(), "t");
    assert_eq!(session.value(WORKERS).await.unwrap(), "0");
    assert_eq!(publisher.session.value("SELECT count(*) FROM pg_replication_slots WHERE active").await.unwrap(), "0");
    world.sql("ALTER SUBSCRIPTION s ENABLE").await;
    publisher.arrives(&world, 20).await;
    assert_eq!(session.value("SELECT count(*) FROM feed").await.unwrap(), "10");
    world.sql("ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s").await;
}
