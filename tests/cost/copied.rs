//! Bytes that pass between the program and the kernel, counted by the kernel: what is read is read once, and what is stored is written
//! once, not gathered in one file and copied into another.

use crate::support::world::{Said, World, said};

/// Bytes that were read and written by system calls, by this process and the children it waited for (`proc_pid_io(5)`).
fn passed() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap();
    [field("rchar:"), field("wchar:")]
}

/// What the program says, and how many MiB it reads and writes meanwhile.
fn copied(world: &World, args: &[&str]) -> (Said, [f64; 2]) {
    let before = passed();
    let said = said(world.command(args).current_dir(world.server.data()));
    assert_eq!(said.code, 0, "{}", said.all());
    let after = passed();
    let [read, written] = [0, 1].map(|index| mib(after[index] - before[index]));
    println!("{args:?}: read {read:.2} MiB, written {written:.2} MiB");
    (said, [read, written])
}

/// MiB that the repository takes.
fn kept(world: &World) -> f64 {
    let bytes = |key: String| std::fs::metadata(world.repository().join(key)).unwrap().len();
    mib(world.objects("").into_iter().map(bytes).sum())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1048576.0
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_snapshot_and_its_restore() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT g, md5(g::text), md5((-g)::text) AS y FROM generate_series(1, 500000) g").await;
    let (said, [read, written]) = copied(&world, &["--json", "backup"]);
    let totals = &said.json()["snapshot"]["totals"];
    let [raw, stored] = ["raw_bytes", "stored_bytes"].map(|name| mib(totals[name].as_u64().unwrap()));
    println!("{raw:.2} MiB, stored {stored:.2} MiB");
    assert!(read < raw * 1.1 && written < stored * 1.1, "of {raw} MiB {read} were read, and {written} written for {stored}");
    // What is read back is another matter: of many short files that is nearly all.
    world.write_config(None, "[restore]\nread_back = \"nothing\"\n");
    let into = world.path("restored").display().to_string();
    let (_, [read, written]) = copied(&world, &["restore", "--to", "latest", "--into", &into]);
    assert!(read < stored * 1.1 && written < raw * 1.1, "of {stored} MiB {read} were read, and {written} written for {raw}");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_push_and_a_fetch() {
    let mut world = World::bare(15, &[], "archive_command = ''", None).await;
    world.start().await;
    world.ok(&["init"]);
    // So that what follows lies in one segment.
    world.session().switch_segment("cost").await.unwrap();
    world.sql("SELECT pg_logical_emit_message(true, 'c', string_agg(md5(g::text), '')) FROM generate_series(1, 400000) g").await;
    let name = world.session().switch_segment("cost").await.unwrap();
    let before = kept(&world);
    let (_, [read, written]) = copied(&world, &["archive-push", &format!("pg_wal/{name}")]);
    let stored = kept(&world) - before;
    assert!(read < 17.0 && written < stored * 1.1, "{read} MiB were read, and {written} written for {stored}");
    let (_, [read, written]) = copied(&world, &["archive-get", &name, "pg_wal/RECOVERYXLOG"]);
    assert!(read < stored * 1.1 && written < 17.0, "of {stored} MiB {read} were read, and {written} written");
}
