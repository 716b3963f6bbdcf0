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

#[derive(Clone, Copy, Default)]
struct Traits {
    /// Settings outside of the data directory.
    debian: bool,
    /// They are in it, and name it.
    named: bool,
    /// The copy ends recovery at the target.
    promoted: bool,
    prepared: bool,
}

async fn copy(major: u32, traits: Traits) {
    let mut world = world(major, "max_prepared_transactions = 5").await;
    if traits.named {
        let data = world.server.data().display().to_string();
        world.server.configure(&format!("data_directory = '{data}'\nhba_file = '{data}/pg_hba.conf'")).unwrap();
    }
    let pid_file = if traits.debian { Some(move_settings(&mut world).await) } else { None };
    world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 100) i").await;
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

    let into = world.path("copy");
    let running = Running { world: &world, data: into.clone() };
    let action = if traits.promoted { "promote" } else { "pause" };
    let said = world.ok(&["restore", "--to", "latest", "--target-action", action, "--start", "--into", into.to_str().unwrap()]);
    assert!(said.out.contains("reached") && said.out.contains("the target"), "{}", said.all());
    assert!(said.out.contains("because the original is on this host"), "{}", said.all());
    assert_eq!(said.out.contains("ROLLBACK PREPARED 'it''s open'"), traits.prepared && traits.promoted, "{}", said.all());
    world.ok(&["reached", "--data-directory", into.to_str().unwrap()]);
    let session = running.session().await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "200");
    assert_eq!(session.value("SHOW data_directory").await.unwrap(), into.display().to_string());
    assert_eq!(session.value("SHOW max_logical_replication_workers").await.unwrap(), "0");
    // The original lives, in its own place, and its pid file is its own.
    assert_eq!(world.value("SELECT count(*) || current_setting('data_directory') FROM t").await, {
        format!("200{}", world.server.data().display())
    });
    assert_eq!(pid_file.as_ref().map(|path| std::fs::read_to_string(path).unwrap()), before);
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

#[tokio::test(flavor = "multi_thread")]
async fn of_13() {
    copy(13, Traits { named: true, ..Traits::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_14() {
    copy(14, Traits { debian: true, promoted: true, prepared: true, ..Traits::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_15() {
    copy(15, Traits { debian: true, prepared: true, ..Traits::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_16() {
    copy(16, Traits { named: true, promoted: true, ..Traits::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_17() {
    copy(17, Traits { promoted: true, prepared: true, ..Traits::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_18() {
    copy(18, Traits { debian: true, promoted: true, ..Traits::default() }).await;
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
    let major = 16;
    let world = world(major, "").await;
    let bin = programs(major);
    let mut source = Scratch::new(&bin, &world.path("source"), &world.path("source.sockets"), world.user()).unwrap();
    source.initdb(&[]).unwrap();
    source.configure("wal_level = logical\nfsync = off").unwrap();
    source.start().await.unwrap();
    let feed = Session::open(&source.connection()).await.unwrap();
    feed.run("CREATE TABLE public.feed (i int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE public.feed").await.unwrap();
    world.sql("CREATE TABLE feed (i int PRIMARY KEY)").await;
    let conninfo = format!("host={} port=5432 user=postgres dbname=postgres", source.sockets().display());
    world.sql(&format!("CREATE SUBSCRIPTION s CONNECTION '{conninfo}' PUBLICATION p")).await;
    feed.run("INSERT INTO public.feed SELECT generate_series(1, 10)").await.unwrap();
    let arrives = async |rows: &str| {
        let began = lastgood::clock::monotonic();
        while world.value("SELECT count(*) FROM feed").await != rows {
            assert!(began.elapsed() < PATIENCE, "{}", world.server.log());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    arrives("10").await;
    world.backup(&[]);
    world.archive().await;
    // While the original does not listen, changes wait for it.
    world.sql("ALTER SUBSCRIPTION s DISABLE").await;
    feed.run("INSERT INTO public.feed SELECT generate_series(11, 20)").await.unwrap();
    let to = world.objects("clusters/shop/snapshots")[0].rsplit('/').next().unwrap().to_string();
    let to = format!("snapshot:{to}");
    let (_copy, session) = world.restore("copy", &["--to", &to, "--target-action", "promote"]).await;
    assert_eq!(session.value("SELECT subenabled FROM pg_subscription").await.unwrap(), "t");
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%'";
    assert_eq!(session.value(workers).await.unwrap(), "0");
    assert_eq!(feed.value("SELECT count(*) FROM pg_replication_slots WHERE active").await.unwrap(), "0");
    world.sql("ALTER SUBSCRIPTION s ENABLE").await;
    arrives("20").await;
    assert_eq!(session.value("SELECT count(*) FROM feed").await.unwrap(), "10");
    world.sql("ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s").await;
}
