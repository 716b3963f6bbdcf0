//! Every file of a copy is another one for the file system. What is stored of it is what changed all the same, and no page of before comes
//! through.

use std::path::Path;
use std::process::Command;

use lastgood::postgres::scratch::{Scratch, Stop};
use lastgood::postgres::session::Session;

use super::content::{EVERYTHING, compare, total};
use crate::support::world::{World, said};

/// How a server came to its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copied {
    /// `lastgood restore`, and released.
    Restored,
    /// A standby that `pg_basebackup` made, promoted when its primary was gone.
    Rebuilt,
}

/// A table of some 25 MiB that nobody touches but for four rows, and its snapshot.
async fn world(major: u32, more: &[&str]) -> World {
    let world = World::with(major, more, "autovacuum = off", None).await;
    world.sql("CREATE TABLE t AS SELECT i AS id, repeat('x', 100) AS what FROM generate_series(1, 150000) i").await;
    world.sql("CREATE INDEX ON t (id)").await;
    world.sql("VACUUM (FREEZE) t").await;
    world.archive().await;
    world.backup(&[]);
    world.sql("UPDATE t SET what = 'changed' WHERE id IN (1, 70000, 140000, 149999)").await;
    world.archive().await;
    world
}

fn base_backup(world: &World) {
    let mut command = world.server.command("pg_basebackup");
    command.args(["-X", "stream", "-c", "fast", "-U", "postgres", "-h"]).arg(world.server.sockets());
    let done = said(command.arg("-D").arg(world.path("copy")));
    assert_eq!(done.code, 0, "{}", done.all());
    world.write_private("copy/recovery.signal", "");
    let auto = world.path("copy/postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    std::fs::write(&auto, format!("{text}restore_command = 'false'\n")).unwrap();
}

/// The copy is the cluster from now on.
async fn taken_over(world: &mut World, how: Copied) -> (Scratch, Session) {
    if how == Copied::Rebuilt {
        base_backup(world);
        world.server.stop(Stop::Fast);
    } else {
        world.server.stop(Stop::Fast);
        let into = world.path("copy");
        world.ok(&["restore", "--to", "latest", "--target-action", "promote", "--into", into.to_str().unwrap()]);
    }
    let (mut server, _) = world.recovered("copy").await;
    if how == Copied::Restored {
        world.release("copy");
        server.stop(Stop::Fast);
        server.start().await.unwrap();
    }
    let config = std::fs::read_to_string(world.config()).unwrap();
    let (old, new) = (world.server.sockets().display().to_string(), server.sockets().display().to_string());
    std::fs::write(world.config(), config.replace(&format!("\"{old}\""), &format!("\"{new}\""))).unwrap();
    let session = Session::open(&server.connection()).await.unwrap();
    session.run("SET search_path = public, pg_catalog").await.unwrap();
    (server, session)
}

async fn costs_what_changed(major: u32, more: &[&str], how: Copied, bound: u64) {
    let mut world = world(major, more).await;
    let (_server, session) = taken_over(&mut world, how).await;
    session.run("UPDATE t SET what = 'by the copy' WHERE id = 100").await.unwrap();
    let size: u64 = session.value("SELECT pg_database_size('postgres')").await.unwrap().parse().unwrap();
    let taken = world.ok(&["--json", "backup"]);
    let snapshot = &taken.json()["snapshot"];
    assert!(snapshot["parent"].is_string() && !taken.all().contains(EVERYTHING), "{}", taken.all());
    let (read, new) = (total(snapshot, "read_bytes"), total(snapshot, "new_bytes"));
    // Each page was looked at, and few were stored.
    assert!(read > size / 2 && new < bound, "PostgreSQL {major}, {how:?}: {new} of {size} are new, {read} were read");
    // From then on its files are known.
    session.run("UPDATE t SET what = 'again' WHERE id = 200").await.unwrap();
    let next = world.ok(&["--json", "backup"]).json()["snapshot"].clone();
    assert!(total(&next, "read_bytes") < size / 4, "{next}");
    world.ok(&["verify"]);
    let to = format!("snapshot:{}", next["id"].as_str().unwrap());
    let (_again, session) = world.restore("again", &["--to", &to]).await;
    let counts = "SELECT count(*) || ' ' || count(*) FILTER (WHERE what = 'changed') || ' ' || \
                  count(*) FILTER (WHERE what IN ('by the copy', 'again')) || ' ' || count(*) FILTER (WHERE what = repeat('x', 100)) FROM t";
    assert_eq!(session.value(counts).await.unwrap(), "150000 4 2 149994");
}

const CHECKSUMS: &[&str] = &["--data-checksums"];

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_costs_what_changed() {
    for major in [13, 18] {
        costs_what_changed(major, CHECKSUMS, Copied::Restored, 4 << 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_standby_costs_what_changed() {
    costs_what_changed(15, CHECKSUMS, Copied::Rebuilt, 4 << 20).await;
}

/// Without checksums nothing vouches for what a page holds: everything is stored, as it is.
#[tokio::test(flavor = "multi_thread")]
async fn without_checksums_a_copy_is_stored_whole() {
    let mut world = world(15, &[]).await;
    let (_server, session) = taken_over(&mut world, Copied::Rebuilt).await;
    let size: u64 = session.value("SELECT pg_table_size('t')").await.unwrap().parse().unwrap();
    let snapshot = world.ok(&["--json", "backup"]).json()["snapshot"].clone();
    assert!(total(&snapshot, "new_bytes") > size, "{snapshot}");
}

/// The same files under other inodes.
pub fn move_files(data: &Path) {
    let beside = data.with_extension("moved");
    let done = said(Command::new("cp").arg("-a").arg(data).arg(&beside));
    assert_eq!(done.code, 0, "{}", done.all());
    std::fs::remove_dir_all(data).unwrap();
    std::fs::rename(&beside, data).unwrap();
}

/// Relations and a database that came again under the numbers of others, in a copy: nothing of the old ones is in the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn no_older_page_comes_through() {
    let mut world = World::with(15, CHECKSUMS, "autovacuum = off", None).await;
    world.sql("CREATE TABLE cut AS SELECT i AS id, repeat('old', 50) AS what FROM generate_series(1, 20000) i").await;
    for (name, word) in [("one", "first"), ("two", "second")] {
        world.sql(&format!("CREATE DATABASE {name}")).await;
        let inside = world.session().in_database(name).await.unwrap();
        inside
            .run(&format!("CREATE TABLE public.t AS SELECT '{word}' || i AS what FROM generate_series(1, 20000) i"))
            .await
            .unwrap();
    }
    world.sql("CHECKPOINT").await;
    world.sql("CREATE DATABASE d OID 20001 TEMPLATE one STRATEGY file_copy").await;
    world.archive().await;
    world.backup(&[]);
    // Older than the parent's pages: what stands in the template was written before.
    world.sql("DROP DATABASE d").await;
    world.sql("CREATE DATABASE d OID 20001 TEMPLATE two STRATEGY file_copy").await;
    // VACUUM cuts the file, and it grows again by pages of which WAL names only those that got rows.
    world.sql("DELETE FROM cut WHERE id > 10").await;
    world.sql("VACUUM cut").await;
    world.sql("INSERT INTO cut SELECT i, 'new' FROM generate_series(20001, 40000) i").await;
    world.server.stop(Stop::Fast);
    move_files(world.server.data());
    world.start().await;
    let (_, said) = compare(&world, "--full").await;
    assert!(!said.contains(EVERYTHING) && !said.contains("warning"), "{said}");
}
