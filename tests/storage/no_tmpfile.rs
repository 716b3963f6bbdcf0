//! File systems without unnamed files (NFS, some overlays), and those that have no hard links and no fsync of directories either (FAT,
//! SMB): a directory there keeps the contract. None can be mounted in a test, so the C library is told to refuse, in a child that runs
//! this test again.

use std::path::{Path, PathBuf};
use std::process::Command;

use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::{Body, Created, Part, Storage};

use super::key;

/// Takes the place of the C library's `open`, and, where that is asked for, of `link` and `fsync`; each refusal is noted in a file.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
static void refused(const char *what) {
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    int refusals = next(getenv("LASTGOOD_TEST_REFUSALS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    write(refusals, what, 1);
    close(refusals);
}
int linkat(int from, const char *old, int to, const char *new, int flags) {
    int (*next)(int, const char *, int, const char *, int) = dlsym(RTLD_NEXT, "linkat");
    if (getenv("LASTGOOD_TEST_NO_LINKS")) {
        refused("l");
        errno = EPERM;
        return -1;
    }
    return next(from, old, to, new, flags);
}
int link(const char *old, const char *new) {
    return linkat(AT_FDCWD, old, AT_FDCWD, new, 0);
}
int fsync(int fd) {
    int (*next)(int) = dlsym(RTLD_NEXT, "fsync");
    struct stat status;
    if (getenv("LASTGOOD_TEST_NO_LINKS") && fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
        refused("d");
        errno = EINVAL;
        return -1;
    }
    return next(fd);
}
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        refused("x");
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

/// Runs the test `name` of this binary again with the shim, and says what was refused: x an unnamed file, l a link, d an fsync of a
/// directory.
fn again(name: &str, without_links: bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let refusals = dir.path().join("refusals");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("LASTGOOD_TEST_REFUSALS", &refusals);
    if without_links {
        command.env("LASTGOOD_TEST_NO_LINKS", "1");
    }
    let done = command.env("LD_PRELOAD", build_shim(dir.path())).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && out.contains("1 passed"), "{out}{err}");
    std::fs::read_to_string(refusals).unwrap_or_default()
}

fn again_without_tmpfile(name: &str) -> usize {
    again(name, false).len()
}

/// And with a rename that replaces nothing instead of links, where no directory can be fsynced.
#[test]
fn a_directory_without_links_conforms() {
    let refused = again("storage::directory_conforms", true);
    for kind in ["x", "l", "d"] {
        let count = refused.matches(kind).count();
        assert!(count > 50, "{kind}: {count}");
    }
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
