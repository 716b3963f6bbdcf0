//! What the walk meets: errors that are no absence, disks that are not mounted, files that change, links that lead anywhere.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use lastgood::monitor::Monitor;
use lastgood::postgres::scratch;
use lastgood::postgres::session::Session;
use lastgood::repo::manifest::Manifest;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::snapshot::take;
use lastgood::storage::fs::DirectoryStorage;

use crate::support::world::World;

/// A directory in the data directory that belongs to the server's user.
fn make(world: &World, path: &Path) {
    scratch::make_directory(path, world.user()).unwrap();
}

/// Owned by the server's user, whoever runs the test.
fn write(world: &World, path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    if let Some(user) = world.user() {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

/// A file that cannot be looked at is there: the backup fails and names it, and nothing says that it is sound.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_no_absence() {
    let world = World::new(15).await;
    let database = world.server.data().join("base/1");
    // Its names can be read, and nothing about them: what a damaged inode or a dead mount answers.
    fs::set_permissions(&database, Permissions::from_mode(0o600)).unwrap();
    world.refused(&["backup"], 5, &["base/1/", "Permission denied"]);
    fs::set_permissions(&database, Permissions::from_mode(0o700)).unwrap();
    assert!(world.objects("clusters/shop/snapshots").is_empty());
    world.ok(&["backup"]);
}

/// The disk of a tablespace is not mounted: an empty directory stands there.
async fn not_mounted(major: u32) {
    let world = World::new(major).await;
    let space = world.path("space");
    make(&world, &space);
    world.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    world.sql("CREATE TABLE t TABLESPACE fast AS SELECT 1").await;
    // Nothing is left to be written there.
    world.sql("CHECKPOINT").await;
    let own = fs::read_dir(&space).unwrap().next().unwrap().unwrap().path();
    let away = world.path("away");
    fs::rename(&own, &away).unwrap();
    let name = own.file_name().unwrap().to_str().unwrap();
    world.refused(&["backup"], 5, &[space.to_str().unwrap(), name, "mounted"]);
    world.refused(&["check", "--no-switch"], 9, &["FAILED", name, "mounted"]);
    fs::rename(&away, &own).unwrap();
    world.ok(&["backup"]);
    // One that is dropped is no error.
    world.sql("DROP TABLE t").await;
    world.sql("DROP TABLESPACE fast").await;
    world.ok(&["backup"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_that_is_not_mounted_is_an_error() {
    not_mounted(13).await;
    not_mounted(18).await;
}

/// Replaces files when the walk has listed them, and before they are read: the walk warns of a link that stands right behind each.
struct Replace {
    files: Mutex<Vec<(&'static str, PathBuf, String)>>,
}

impl Monitor for Replace {
    fn phase(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn warn(&self, text: &str) {
        self.files.lock().unwrap().retain(|(link, path, content)| {
            let is_it = text.contains(link);
            if is_it {
                let new = path.with_extension("new");
                fs::write(&new, content).unwrap();
                fs::rename(&new, path).unwrap();
            }
            !is_it
        });
    }
}

/// A file that no WAL describes is replaced by a longer one after it was listed: it is stored as one of the two, whole.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_no_wal_describes_are_stored_whole() {
    let world = World::new(15).await;
    let data = world.server.data();
    let (long, longer) = ("short".repeat(3), "the longer one ".repeat(20_000));
    let files = [("zz1.link", "zz1.conf"), ("pg_logical/zz2.link", "pg_logical/zz2"), ("deep/zz3.link", "deep/zz3.conf")];
    make(&world, &data.join("deep"));
    for (link, file) in files {
        write(&world, &data.join(file), &long);
        symlink("/nowhere", data.join(link)).unwrap();
    }
    let store = Arc::new(DirectoryStorage::new(world.repository()));
    let (cluster, record) = Repository::open(store, &Keys::default()).await.unwrap().registered("shop").await.unwrap();
    let session = Session::open(&world.server.connection()).await.unwrap();
    let replace = files.map(|(link, file)| (link, data.join(file), longer.clone())).to_vec();
    let replace = Arc::new(Replace { files: Mutex::new(replace) });
    take::take(&cluster, &record, &session, &crate::crash::request(), replace.clone()).await.unwrap();
    assert!(replace.files.lock().unwrap().is_empty(), "each was replaced");
    drop(session);
    give(&world);
    world.ok(&["restore", "--to", "latest", "--into", world.path("restored").to_str().unwrap()]);
    for (_, file) in files {
        let restored = fs::read_to_string(world.path("restored").join(file)).unwrap();
        assert!(restored == longer, "{file}: {} bytes of {}", restored.len(), longer.len());
    }
}

/// What this test wrote as root belongs to the server's user.
fn give(world: &World) {
    if let Some(user) = world.user() {
        let owner = format!("{}:{}", user.uid, user.gid);
        assert!(std::process::Command::new("chown").args(["-R", &owner]).arg(world.repository()).status().unwrap().success());
    }
}

/// Links of people: each is followed once, or left out with a word; the walk ends.
#[tokio::test(flavor = "multi_thread")]
async fn links_are_followed_once_or_left_out() {
    let world = World::new(15).await;
    let data = world.server.data();
    let logs = world.path("logs");
    make(&world, &logs);
    write(&world, &logs.join("postgresql.log"), "a line\n");
    make(&world, &data.join("conf.site"));
    write(&world, &data.join("conf.site/a.conf"), "# nothing\n");
    let link = |target: &Path, name: &str| symlink(target, data.join(name)).unwrap();
    link(&logs, "log");
    // `ln -s` run twice: a link in the directory that leads to the directory.
    symlink(&logs, logs.join("logs")).unwrap();
    link(&logs, "log2");
    link(Path::new("."), "self");
    link(Path::new(".."), "up");
    link(Path::new("pg_wal"), "pg_xlog_link");
    link(Path::new("conf.site"), "conf.d");
    link(&world.repository(), "backups");
    link(Path::new("round"), "round");
    let first = world.ok(&["--json", "backup"]);
    let warned = |link: &str, words: &str| {
        let said = first.all();
        let found = said.lines().any(|line| line.contains(&format!("/{link} is a link")) && line.contains(words));
        assert!(found, "{link}: {words}: {said}");
    };
    for (link, words) in [
        ("log", "what is there is stored"),
        ("logs", "holds the link"),
        ("log2", "stored already"),
        ("self", "holds the data directory"),
        ("up", "holds the data directory"),
        ("pg_xlog_link", "PostgreSQL's own"),
        ("backups", "the repository"),
        ("round", "in a circle"),
    ] {
        warned(link, words);
    }
    let into = world.path("restored");
    world.ok(&["restore", "--to", "latest", "--into", into.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(into.join("log/postgresql.log")).unwrap(), "a line\n");
    assert_eq!(fs::read_to_string(into.join("conf.d/a.conf")).unwrap(), "# nothing\n");
    for left_out in ["log/logs", "log2", "self", "up", "pg_xlog_link", "backups", "round"] {
        assert!(fs::symlink_metadata(into.join(left_out)).is_err(), "{left_out}");
    }
}

/// A repository or a spool in the data directory would be stored in itself.
#[tokio::test(flavor = "multi_thread")]
async fn no_repository_lies_in_the_data_directory() {
    let world = World::new(15).await;
    let text = fs::read_to_string(world.config()).unwrap();
    let data = world.server.data().display().to_string();
    // Through a link too.
    symlink(&data, world.path("way")).unwrap();
    let way = world.path("way").display().to_string();
    for (own, what) in [(world.repository(), "the repository"), (world.path("spool"), "the spool")] {
        for inside in [format!("{data}/inside/deep"), format!("{way}/inside")] {
            let changed = text.replace(&own.display().to_string(), &inside);
            assert_ne!(changed, text);
            fs::write(world.config(), changed).unwrap();
            world.refused(&["init"], 5, &[what, "lies in", "to another disk"]);
            assert!(!world.server.data().join("inside").exists(), "nothing was made");
            if what == "the spool" {
                world.refused(&["backup"], 5, &[what, "lies in"]);
                world.refused(&["check", "--no-switch"], 9, &[what, "lies in"]);
            }
        }
    }
}

/// A snapshot from a time when the clock ran ahead: the next ids sort after it.
#[tokio::test(flavor = "multi_thread")]
async fn ids_go_on_after_a_clock_that_ran_ahead() {
    let world = World::new(15).await;
    let first = world.backup(&[]);
    let key = world.objects("clusters/shop/snapshots").pop().unwrap();
    let ahead = key.replace(first["id"].as_str().unwrap(), "20880101T235959Z-beef");
    assert_ne!(ahead, key);
    fs::write(world.repository().join(ahead), "no manifest").unwrap();
    give(&world);
    let said = world.ok(&["--json", "backup"]);
    assert!(said.json()["snapshot"]["id"].as_str().unwrap().starts_with("20880102T000000Z-"), "{}", said.all());
    assert!(said.all().contains("a clock ran ahead"), "{}", said.all());
    assert_eq!(said.json()["snapshot"]["parent"], first["id"], "built on what is sound");
    let last = world.backup(&[])["id"].as_str().unwrap().to_string();
    assert!(last.starts_with("20880102T000001Z-"));
    // One whose time lies in the future is not young.
    let store = Arc::new(DirectoryStorage::new(world.repository()));
    let (cluster, _) = Repository::open(store, &Keys::default()).await.unwrap().registered("shop").await.unwrap();
    let mut manifest = Manifest::read(&cluster, &last).await.unwrap();
    manifest.stop_time = "2088-01-02T00:00:00Z".parse().unwrap();
    fs::remove_file(world.repository().join(format!("clusters/shop/snapshots/{last}"))).unwrap();
    manifest.commit(&cluster).await.unwrap();
    give(&world);
    world.refused(&["check", "--no-switch"], 9, &["lies", "in the future", "clock ran ahead"]);
}
