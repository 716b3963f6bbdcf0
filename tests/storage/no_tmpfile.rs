//! File systems without unnamed files (NFS, some overlays): a directory there keeps the contract. None can be mounted in a
//! test, so the C library is told to refuse `O_TMPFILE`, in a child that runs this test again.

use std::path::{Path, PathBuf};
use std::process::Command;

use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::{Body, Created, Part, Storage};

use super::key;

/// Takes the place of the C library's `open`; each refusal is noted in a file.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        int refusals = next(getenv("LASTGOOD_TEST_REFUSALS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
        write(refusals, "x", 1);
        close(refusals);
        errno = EOPNOTSUPP;
        return -1;
    }
    return next(path, flags, mode);
}
"#;

fn build_shim(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success());
    library
}

/// Runs the test `name` of this binary again with the shim, and says how often an unnamed file was refused.
fn again_without_tmpfile(name: &str) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let refusals = dir.path().join("refusals");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("LASTGOOD_TEST_REFUSALS", &refusals);
    let done = command.env("LD_PRELOAD", build_shim(dir.path())).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && out.contains("1 passed"), "{out}{err}");
    std::fs::read(refusals).map_or(0, |noted| noted.len())
}

/// The whole contract holds with temporary names and links instead of unnamed files.
#[test]
fn a_directory_without_unnamed_files_conforms() {
    let refused = again_without_tmpfile("storage::directory_conforms");
    assert!(refused > 100, "{refused}");
}

/// And nothing but the object stays: no temporary name, neither after success nor after failure.
#[tokio::test]
async fn temporary_names_do_not_stay() {
    if std::env::var_os("LASTGOOD_TEST_REFUSALS").is_none() {
        let refused = again_without_tmpfile("storage::no_tmpfile::temporary_names_do_not_stay");
        assert!(refused >= 2, "{refused}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStorage::new(dir.path());
    let body = || Body::from(b"x".to_vec());
    assert_eq!(store.create(&key("a/b"), body()).await.unwrap(), Created::New);
    assert_eq!(store.create(&key("a/b"), body()).await.unwrap(), Created::AlreadyThere);
    store.create(&key("a/c"), Body::File { path: "/dev/null".into(), bytes: 10 }).await.unwrap_err();
    assert_eq!(store.read(&key("a/b"), Part::Whole).await.unwrap().bytes, "x");
    let names = std::fs::read_dir(dir.path().join("a")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["b"]);
}
