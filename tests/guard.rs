//! The guard: nothing good is destroyed, and what is replaced can be brought back.

mod attacks;
mod matrix;
mod names;
mod neighbours;
mod rescue;
mod rivals;
mod undo;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lastgood::repo::object::Sha;

use crate::support::world::World;

/// Everything in a directory: kind, mode, owner, times and content. Two equal ones are byte-identical and untouched.
pub fn picture(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    look(dir, dir, &mut found);
    found
}

fn look(root: &Path, path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return };
    let content = match () {
        () if metadata.is_symlink() => format!("link to {}", std::fs::read_link(path).unwrap().display()),
        () if metadata.is_dir() => "directory".to_string(),
        () if metadata.is_file() => Sha::of(&std::fs::read(path).unwrap()).to_string(),
        () => "special".to_string(),
    };
    let times = (metadata.mtime(), metadata.mtime_nsec());
    let name = path.strip_prefix(root).unwrap().to_path_buf();
    found.insert(name, format!("{content} {:o} {} {} {times:?}", metadata.mode(), metadata.uid(), metadata.len()));
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            look(root, &entry.unwrap().path(), found);
        }
    }
}

/// The directories beside `path` whose names begin with its own: `path.replaced-…` and the like.
pub fn beside(path: &Path, word: &str) -> Vec<PathBuf> {
    let begin = format!("{}.{word}", path.file_name().unwrap().to_str().unwrap());
    let entries = std::fs::read_dir(path.parent().unwrap()).unwrap().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().unwrap().starts_with(&begin)).map(|e| e.path()).collect();
    found.sort();
    found
}

/// A copy of a directory that keeps everything, owners and times included.
pub fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// A cluster with a snapshot and three transactions after it, the last of them not archived; the server is stopped.
pub async fn stopped(label: &str) -> World {
    let mut world = World::bare(15, &[], "archive_timeout = 0", None).await;
    if !label.is_empty() {
        relabel(&world, label);
    }
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (2)").await;
    world.archive().await;
    world.sql("INSERT INTO t VALUES (3)").await;
    world.server.stop(lastgood::postgres::scratch::Stop::Immediate);
    world
}

/// Writes a label into the configuration.
pub fn relabel(world: &World, label: &str) {
    world.write_config(None, "");
    let text = std::fs::read_to_string(world.config()).unwrap();
    let labelled = text.replace("name = \"shop\"\n", &format!("name = \"shop\"\nlabel = \"{label}\"\n"));
    std::fs::write(world.config(), labelled).unwrap();
}

/// The program with the terminal as its standard input.
pub fn on_tty(world: &World, args: &[&str]) -> std::process::Command {
    let mut command = world.command(args);
    command.stdin(std::process::Stdio::inherit());
    command
}

/// Plays a person: runs the program at a terminal, types `lines` one after the other as they are asked for, and answers exit code and
/// what was on the screen.
pub fn at_terminal(world: &World, args: &[&str], lines: &[&str]) -> (i32, String) {
    let mut session = rexpect::session::spawn_command(on_tty(world, args), Some(60_000)).unwrap();
    let mut screen = String::new();
    for line in lines {
        screen.push_str(&session.exp_regex("(to stop: |name: )").unwrap().0);
        session.send_line(line).unwrap();
    }
    screen.push_str(&session.exp_eof().unwrap());
    let code = match session.process().wait().unwrap() {
        rexpect::process::WaitStatus::Exited(_, code) => code,
        other => panic!("{other:?}"),
    };
    (code, screen)
}
