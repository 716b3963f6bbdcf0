//! Links out of the data directory: `pg_wal` on a disk of its own, and tablespaces behind links of every kind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use lastgood::postgres::scratch::{self, Stop};

use crate::support::world::World;

/// Everything below a directory, with its length.
fn picture(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        found.push((entry.path(), metadata.len()));
        if metadata.is_dir() {
            found.extend(picture(&entry.path()));
        }
    }
    found.sort();
    found
}

/// A server whose `pg_wal` is on a disk of its own, with a row that is not archived; stopped.
async fn with_wal_disk() -> (World, PathBuf) {
    let mut world = World::bare(15, &["--data-checksums"], "", None).await;
    let disk = world.path("disk");
    scratch::make_directory(&disk, world.user()).unwrap();
    let (data, own) = (world.server.data().to_path_buf(), disk.join("pg_wal"));
    fs::rename(data.join("pg_wal"), &own).unwrap();
    symlink(&own, data.join("pg_wal")).unwrap();
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let said = world.ok(&["--json", "backup"]);
    assert_eq!(said.json()["snapshot"]["wal_directory"], own.to_str().unwrap());
    assert!(!said.all().contains("is a link"), "an ordinary disk is no reason to warn: {}", said.all());
    world.sql("INSERT INTO t VALUES (2)").await;
    world.server.stop(Stop::Fast);
    (world, disk)
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_wal_keeps_a_disk_of_its_own() {
    let (mut world, disk) = with_wal_disk().await;
    let (data, own) = (world.server.data().to_path_buf(), disk.join("pg_wal"));
    let restore = ["restore", "--to", "latest", "--into", data.to_str().unwrap()];
    // Without the flag the plan says what becomes of it.
    let said = world.ok(&[&restore[..], &["--dry-run"]].concat());
    assert!(said.out.contains("was a place of its own") && said.out.contains("--wal-directory"), "{}", said.out);
    assert_eq!(world.planned(&restore).0["wal"]["was"], own.to_str().unwrap());
    // No place where anything is.
    let foreign = disk.join("foreign");
    scratch::make_directory(&foreign, world.user()).unwrap();
    fs::write(foreign.join("000000010000000000000001"), "another server's").unwrap();
    let before = (picture(&disk), picture(&data));
    for (place, words) in [
        (own.clone(), "keeps it"),
        (own.join("below"), "pg_wal of a cluster"),
        (foreign.clone(), "not empty"),
        (data.join("new"), "overlaps"),
        (world.path(""), "overlaps"),
        (world.repository().join("wal"), "the repository"),
        (world.path("spool").join("wal"), "spool"),
        (disk.join("no/such"), "does not exist"),
    ] {
        world.refused(&[&restore[..], &["--wal-directory", place.to_str().unwrap()]].concat(), 5, &[words]);
    }
    assert_eq!((picture(&disk), picture(&data)), before, "nothing was touched");
    let new = disk.join("pg_wal of today");
    let with_place = [&restore[..], &["--wal-directory", new.to_str().unwrap()]].concat();
    let said = world.confirmed(&with_place);
    assert!(said.out.contains("with a link to it"), "{}", said.out);
    assert_eq!(fs::read_link(data.join("pg_wal")).unwrap(), new);
    assert!(!new.join("lastgood.restoring").exists());
    let kept: Vec<_> = picture(&own);
    assert!(before.0.iter().filter(|(path, _)| path.starts_with(&own) && *path != own).eq(kept.iter()), "the old one's WAL");
    let (mut server, session) = world.recovered("data").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "2");
    assert!(new.join("archive_status").is_dir(), "it writes there");
    drop(session);
    server.stop(Stop::Fast);
    // Back again: each keeps its own.
    world.confirmed(&["undo", "--into", data.to_str().unwrap()]);
    assert_eq!(fs::read_link(data.join("pg_wal")).unwrap(), own);
    assert!(new.join("00000002.history").exists(), "the WAL of the one that was undone stays");
    world.start().await;
    assert_eq!(world.value("SELECT count(*) FROM t").await, "2");
    world.server.stop(Stop::Fast);
}

/// Killed at the end of the work, it is run again; what an interrupted restore left in the place is nobody's to delete but a person's.
#[tokio::test(flavor = "multi_thread")]
async fn remains_in_a_wal_directory_are_not_deleted() {
    let (world, disk) = with_wal_disk().await;
    let (into, new) = (world.path("copy"), disk.join("new"));
    scratch::make_directory(&new, world.user()).unwrap();
    fs::write(new.join("lastgood.restoring"), "").unwrap();
    std::os::unix::fs::chown(new.join("lastgood.restoring"), world.user().map(|u| u.uid), None).unwrap();
    let args = ["restore", "--to", "latest", "--into", into.to_str().unwrap(), "--wal-directory", new.to_str().unwrap()];
    fs::write(new.join("000000010000000000000009"), "a segment").unwrap();
    world.refused(&args, 5, &["an interrupted restore left files", "empty it by hand"]);
    assert_eq!(fs::read_to_string(new.join("000000010000000000000009")).unwrap(), "a segment");
    fs::remove_file(new.join("000000010000000000000009")).unwrap();
    world.ok(&args);
    let (_server, session) = world.recovered("copy").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "2");
}

/// A place whose name is bytes: shown as well as that goes, and found again.
#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_whose_path_is_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let mut world = World::new(15).await;
    let text = world.path("space");
    scratch::make_directory(&text, world.user()).unwrap();
    world.sql(&format!("CREATE TABLESPACE odd LOCATION '{}'", text.display())).await;
    world.sql("CREATE TABLE t TABLESPACE odd AS SELECT 1 AS x").await;
    let link = world.server.data().join("pg_tblspc").join(world.value("SELECT max(oid) FROM pg_tablespace").await);
    world.server.stop(Stop::Fast);
    let odd = world.path("").join(std::ffi::OsStr::from_bytes(b"sp\xe4ce"));
    fs::rename(&text, &odd).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(&odd, &link).unwrap();
    world.start().await;
    let snapshot = world.backup(&[]);
    assert!(snapshot["tablespaces"][0]["encoded"].as_str().unwrap().ends_with("/sp%E4ce"), "{snapshot}");
    world.server.stop(Stop::Fast);
    // Over it, back again, and on a host where nothing is.
    let data = world.server.data().to_path_buf();
    world.confirmed(&["restore", "--to", "latest", "--into", data.to_str().unwrap()]);
    let (mut server, session) = world.recovered("data").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "1");
    drop(session);
    server.stop(Stop::Fast);
    world.confirmed(&["undo", "--into", data.to_str().unwrap()]);
    fs::rename(&odd, world.path("elsewhere")).unwrap();
    let (_copy, session) = world.restore("copy", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "1");
    assert!(odd.is_dir());
}

/// A relative link, one to a link, and a place whose path leads through a link: stored, restored over themselves, and elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_behind_links_of_every_kind() {
    let mut world = World::new(15).await;
    scratch::make_directory(&world.path("real"), world.user()).unwrap();
    symlink(world.path("real"), world.path("way")).unwrap();
    for name in ["plain", "relative", "chain"] {
        let place = world.path("real").join(name);
        scratch::make_directory(&place, world.user()).unwrap();
        let location = if name == "plain" { world.path("way").join(name) } else { place };
        world.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", location.display())).await;
        world.sql(&format!("CREATE TABLE in_{name} TABLESPACE {name} AS SELECT 1 AS x")).await;
    }
    let mut links = Vec::new();
    for name in ["relative", "chain"] {
        let oid = world.value(&format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'")).await;
        links.push(world.server.data().join("pg_tblspc").join(oid));
    }
    world.server.stop(Stop::Fast);
    links.iter().for_each(|link| fs::remove_file(link).unwrap());
    symlink("../../real/relative", &links[0]).unwrap();
    symlink(world.path("real/chain"), world.path("second")).unwrap();
    symlink(world.path("second"), &links[1]).unwrap();
    world.start().await;
    let rows = "SELECT count(*) FROM in_plain, in_relative, in_chain";
    assert_eq!(world.value(rows).await, "1");
    world.backup(&[]);
    world.sql("INSERT INTO in_chain VALUES (2)").await;
    world.archive().await;
    let spaces = world.path("spaces");
    scratch::make_directory(&spaces, world.user()).unwrap();
    let (_copy, session) = world.restore("copy", &["--to", "latest", "--tablespaces-below", spaces.to_str().unwrap()]).await;
    assert_eq!(session.value(rows).await.unwrap(), "2");
    world.server.stop(Stop::Fast);
    let data = world.server.data().display().to_string();
    world.confirmed(&["restore", "--to", "latest", "--into", &data]);
    let (mut server, session) = world.recovered("data").await;
    assert_eq!(session.value(rows).await.unwrap(), "2");
    drop(session);
    server.stop(Stop::Fast);
    world.confirmed(&["undo", "--into", &data]);
    world.start().await;
    assert_eq!(world.value(rows).await, "2");
    world.server.stop(Stop::Fast);
}
