//! Who else is there: other versions in one tablespace, originals of copies, servers around the target. None of them notices.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lastgood::postgres::scratch::{self, Scratch, Stop};
use lastgood::postgres::session::Session;

use super::{beside, copy, picture, stopped};
use crate::support::world::{World, programs};

/// A running server of another version beside the world's own.
async fn neighbour(world: &World, major: u32) -> (Scratch, Session) {
    let mut server =
        Scratch::new(&programs(major), &world.path("neighbour"), &world.path("neighbour.sockets"), world.user()).unwrap();
    server.initdb(&[]).unwrap();
    server.configure("fsync = off\nshared_buffers = '16MB'").unwrap();
    server.start().await.unwrap();
    let session = Session::open(&server.connection()).await.unwrap();
    session.run("SET search_path = public, pg_catalog").await.unwrap();
    (server, session)
}

fn version_directory(space: &Path, major: u32) -> PathBuf {
    let prefix = format!("PG_{major}_");
    let mut entries = std::fs::read_dir(space).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix)).unwrap()
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

/// Two versions share a tablespace's location. One is backed up, restored over and put back; the other goes on living in its directory.
async fn shared(ours: u32, theirs: u32) {
    let mut world = World::new(ours).await;
    let space = world.path("space");
    scratch::make_directory(&space, world.user()).unwrap();
    let (mut server, session) = neighbour(&world, theirs).await;
    let create = format!("CREATE TABLESPACE fast LOCATION '{}'", space.display());
    for sql in [&create, "CREATE TABLE orders TABLESPACE fast AS SELECT 1 AS x", "CHECKPOINT"] {
        session.run(sql).await.unwrap();
    }
    let their_directory = version_directory(&space, theirs);
    // Pages of theirs that are damaged are no business of ours.
    let junk = their_directory.join("5");
    scratch::make_directory(&junk, world.user()).unwrap();
    std::fs::write(junk.join("99999"), [7u8; 8192]).unwrap();
    world.sql(&create).await;
    world.sql("CREATE TABLE t TABLESPACE fast AS SELECT 1 AS x").await;
    world.backup(&[]);
    let oid = world.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    world.sql("INSERT INTO t VALUES (2)").await;
    world.archive().await;

    let below = world.path("below");
    scratch::make_directory(&below, world.user()).unwrap();
    world.ok(&[
        "restore",
        "--to",
        "latest",
        "--into",
        world.path("elsewhere").to_str().unwrap(),
        "--tablespaces-below",
        below.to_str().unwrap(),
    ]);
    let restored: Vec<_> = std::fs::read_dir(below.join(&oid)).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(restored, [version_directory(&space, ours).file_name().unwrap()], "only our own");

    session.run("INSERT INTO orders SELECT generate_series(1, 1000)").await.unwrap();
    world.server.stop(Stop::Fast);
    let before = (inode(&their_directory), inode(&version_directory(&space, ours)));
    let data = world.server.data().display().to_string();
    world.confirmed(&["restore", "--to", "latest", "--into", &data]);
    assert_eq!(inode(&their_directory), before.0);
    assert_ne!(inode(&version_directory(&space, ours)), before.1, "ours was exchanged");
    session.run("INSERT INTO orders VALUES (1)").await.unwrap();
    session.run("CHECKPOINT").await.unwrap();
    world.confirmed(&["undo", "--into", &data]);
    assert_eq!((inode(&their_directory), inode(&version_directory(&space, ours))), before);
    drop(session);
    server.stop(Stop::Immediate);
    server.start().await.unwrap();
    let session = Session::open(&server.connection()).await.unwrap();
    assert_eq!(session.value("SELECT count(*) FROM public.orders").await.unwrap(), "1002");
    world.start().await;
    assert_eq!(world.value("SELECT count(*) FROM t").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_versions_directory_in_a_shared_tablespace_is_untouched() {
    shared(15, 14).await;
    shared(16, 18).await;
}

/// A copy's links lead into the tablespaces of its original: these are never exchanged for the copy's sake.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_does_not_take_its_originals_tablespaces() {
    let mut world = World::new(15).await;
    let space = world.path("space");
    scratch::make_directory(&space, world.user()).unwrap();
    world.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    world.sql("CREATE TABLE t TABLESPACE fast AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.archive().await;
    // Where nobody would look for it.
    let far = world.path("far/away");
    scratch::make_directory(&world.path("far"), world.user()).unwrap();
    copy(world.server.data(), &far);
    std::fs::remove_file(far.join("postmaster.pid")).unwrap();
    // The original's own link is relative, as people make them.
    let oid = world.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    let link = world.server.data().join("pg_tblspc").join(oid);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("../../space", &link).unwrap();
    let into = far.to_str().unwrap();
    let original = world.server.data().display().to_string();
    let before = (inode(&version_directory(&space, 15)), picture(&far));
    let said = world.refused(
        &["restore", "--to", "latest", "--into", into],
        5,
        &["is used by the cluster in", "a server runs", &original],
    );
    assert!(said.err.contains("--tablespaces-below"), "{}", said.all());
    // Stopped, it is the original all the same.
    world.server.stop(Stop::Fast);
    world.refused(&["restore", "--to", "latest", "--into", into], 5, &["is used by the cluster in", &original]);
    assert!((inode(&version_directory(&space, 15)), picture(&far)) == before && beside(&far, "lastgood-new").is_empty());
    // Places of its own are fine; and so is the original, whatever copies lie beside it.
    let below = world.path("below");
    scratch::make_directory(&below, world.user()).unwrap();
    world.confirmed(&["restore", "--to", "latest", "--into", into, "--tablespaces-below", below.to_str().unwrap()]);
    assert_eq!(inode(&version_directory(&space, 15)), before.0);
    let kept = world.path("data.kept");
    copy(world.server.data(), &kept);
    world.confirmed(&["restore", "--to", "latest", "--into", &original]);
    // The copy is started while its links lead there: nothing is put back under it.
    let mut server = world.restored("data.kept");
    server.start().await.unwrap();
    world.refused(&["undo", "--into", &original], 5, &["is used by the cluster in", "a server runs"]);
    server.stop(Stop::Fast);
    world.confirmed(&["undo", "--into", &original]);
}

/// A server below the target would be moved with it; one above it would lose what lies in its directory.
#[tokio::test(flavor = "multi_thread")]
async fn servers_below_and_above_the_target_are_seen() {
    let world = stopped("").await;
    let target = world.path("target");
    copy(world.server.data(), &target);
    copy(world.server.data(), &target.join("inner"));
    let mut server = world.restored("target/inner");
    let restore = ["restore", "--to", "latest", "--into", target.to_str().unwrap()];
    server.start().await.unwrap();
    world.refused(&restore, 5, &["living server", "inner"]);
    // A pid file that is gone changes nothing.
    std::fs::remove_file(target.join("inner/postmaster.pid")).unwrap();
    world.refused(&restore, 5, &["living server", "inner"]);
    let above = target.join("inner/base/new");
    world.refused(&["restore", "--to", "latest", "--into", above.to_str().unwrap()], 5, &["lies in the cluster"]);
    server.stop(Stop::Immediate);
    world.confirmed(&restore);
}

/// A server of another container that listens on TCP only: its process cannot be seen, its address answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_seen_by_its_address() {
    let world = stopped("").await;
    let target = world.path("target");
    copy(world.server.data(), &target);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 8];
            if stream.read_exact(&mut asked).is_ok() {
                stream.write_all(b"N").unwrap();
            }
        }
    });
    let pid_file = |port: u16, host: &str| {
        let text = format!("4194999\n{}\n1700000000\n{port}\n\n{host}\n", target.display());
        std::fs::write(target.join("postmaster.pid"), text).unwrap();
    };
    let restore = ["restore", "--to", "latest", "--into", target.to_str().unwrap()];
    for host in ["127.0.0.1", "*", "localhost"] {
        pid_file(port, host);
        world.refused(&restore, 5, &["living server", "found by its TCP address"]);
    }
    // Nothing answers: what a crash left.
    pid_file(1, "127.0.0.1");
    world.refused(&restore, 5, &["nobody has confirmed"]);
}
