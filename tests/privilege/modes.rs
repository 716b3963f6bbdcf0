//! Who may read what is written: nobody but its owner, whatever the umask.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;

use crate::support::world::{World, said};

/// The command with another umask than ours.
fn with_umask(mut command: Command, mask: u32) -> Command {
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(move || {
            rustix::process::umask(Mode::from_raw_mode(mask));
            Ok(())
        });
    }
    command
}

/// Everything below a place, and the place itself, with its mode.
fn walk(path: &Path, found: &mut Vec<(PathBuf, u32)>) {
    // The process that fetches ahead may still be renaming what it fetched.
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return };
    if metadata.is_symlink() {
        return;
    }
    found.push((path.into(), metadata.permissions().mode() & 0o7777));
    if metadata.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), found));
    }
}

fn modes(path: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    walk(path, &mut found);
    found.sort();
    found
}

fn all_private(path: &Path) -> usize {
    let found = modes(path);
    for (path, mode) in &found {
        let wanted = if mode & 0o100 != 0 { 0o700 } else { 0o600 };
        assert_eq!(*mode, wanted, "{} is {mode:o}", path.display());
    }
    found.len()
}

async fn nobody_else_reads_anything(mask: u32) {
    let mut world = World::bare(15, &[], "", None).await;
    world.start().await;
    let run = |args: &[&str]| {
        let said = said(with_umask(world.command(args), mask).current_dir(world.server.data()).env("TMPDIR", world.path("")));
        assert_eq!(said.code, 0, "{args:?}: {}", said.all());
    };
    run(&["init", "--apply"]);
    // The server starts archive_command with its own umask; ours are run by hand.
    world.sql("ALTER SYSTEM SET archive_command = 'false'").await;
    world.sql("SELECT pg_reload_conf()").await;
    world.sql("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 50000) i").await;
    let segment = world.session().switch_segment("test").await.unwrap();
    run(&["archive-push", &format!("pg_wal/{segment}")]);
    run(&["init", "--apply"]);
    run(&["backup"]);
    run(&["backup"]);
    world.archive().await;
    run(&["restore", "--to", "latest", "--into", world.path("restored").to_str().unwrap()]);
    let system = world.value("SELECT system_identifier FROM pg_control_system()").await;
    run(&["archive-get", "--system-identifier", &system, &segment, world.path("fetched").to_str().unwrap()]);
    assert!(all_private(&world.repository()) > 20);
    assert!(all_private(&world.path("spool")) > 4);
    assert!(all_private(&world.path("restored")) > 900);
    assert_eq!(all_private(&world.path("fetched")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_reads_anything_with_an_open_umask() {
    nobody_else_reads_anything(0o000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_reads_anything_with_a_closed_umask() {
    nobody_else_reads_anything(0o077).await;
}

/// `initdb --allow-group-access` is somebody's wish: it comes back as it was, under every umask.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_open_to_its_group_comes_back_so() {
    let world = World::with(15, &["--allow-group-access"], "", None).await;
    world.backup(&[]);
    for (mask, name) in [(0o000, "open"), (0o077, "closed")] {
        let into = world.path(name);
        let args = ["restore", "--to", "latest", "--into", into.to_str().unwrap()];
        let said = said(&mut with_umask(world.command(&args), mask));
        assert_eq!(said.code, 0, "{}", said.all());
        let (mut compared, mut shared) = (0, 0);
        for (path, mode) in modes(&into) {
            assert_eq!(mode & 0o007, 0, "{} is {mode:o}", path.display());
            let original = world.server.data().join(path.strip_prefix(&into).unwrap());
            let relation = path.components().any(|c| c.as_os_str() == "base");
            if let (true, Ok(metadata)) = (relation, std::fs::metadata(&original)) {
                assert_eq!(mode, metadata.permissions().mode() & 0o7777, "{}", path.display());
                compared += 1;
                shared += usize::from(mode & 0o040 != 0);
            }
        }
        assert!(compared > 800 && shared == compared, "{shared} of {compared}");
    }
}

/// What is written while it runs, and has gone when a walk comes: the umask holds for that too.
#[tokio::test(flavor = "multi_thread")]
async fn the_program_closes_its_own_umask() {
    let world = World::bare(15, &[], "", None).await;
    world.write_config(None, "");
    let pid_file = world.path("pid");
    let command = format!("[\"sh\", \"-c\", \"grep Umask /proc/$PPID/status > {}; echo x\"]", pid_file.display());
    let text = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), text.replace("[postgres]\n", &format!("[postgres]\npassword_command = {command}\n"))).unwrap();
    let said = said(&mut with_umask(world.command(&["check", "--no-switch"]), 0o000));
    assert_eq!(said.code, 9, "{said:?}");
    assert_eq!(std::fs::read_to_string(pid_file).unwrap().trim(), "Umask:\t0077");
}
