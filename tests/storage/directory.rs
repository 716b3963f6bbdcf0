//! What is special about a directory.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::{Body, Created, Depth, Fault, Part, Storage};

use super::key;

fn everything_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        found.push(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            found.extend(everything_below(&entry.path()));
        }
    }
    found
}

#[tokio::test]
async fn an_unmounted_directory_is_no_empty_repository() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStorage::new(dir.path().join("missing"));
    let object = key("a/b");
    let errors = [
        store.create(&object, Body::from(b"x".to_vec())).await.unwrap_err(),
        store.read(&object, Part::Whole).await.unwrap_err(),
        store.stat(&object).await.unwrap_err(),
        store.list("", None, Depth::All).await.unwrap_err(),
        store.list("a/", None, Depth::Folder).await.unwrap_err(),
        store.free_bytes().await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.fault, Fault::NoPlace, "{error}");
        assert!(error.to_string().contains("/missing"), "{error}");
    }
    let failed = store.delete(&[object]).await.unwrap();
    assert_eq!(failed[0].1.fault, Fault::NoPlace);
    assert!(everything_below(dir.path()).is_empty(), "and nothing made it");

    store.prepare().unwrap();
    assert_eq!(store.create(&key("a/b"), Body::from(b"x".to_vec())).await.unwrap(), Created::New);
    assert!(store.free_bytes().await.unwrap().unwrap() > 0);
}

#[tokio::test]
async fn failures_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStorage::new(dir.path());
    for path in ["missing", "/dev/null"] {
        let error = store.create(&key("deep/er/object"), Body::File { path: path.into(), bytes: 10 }).await.unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
        assert_eq!(everything_below(dir.path()), [""; 0]);
    }
}

/// What is long is written once: it gets its name where it was made. Another store, or another object, never shares the file.
#[tokio::test]
async fn a_file_without_a_name_becomes_one_object() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let stores = [DirectoryStorage::new(dirs[0].path()), DirectoryStorage::new(dirs[1].path())];
    let mut file = tempfile::tempfile_in(stores[0].scratch().unwrap()).unwrap();
    file.write_all(b"content").unwrap();
    let made = file.metadata().unwrap().ino();
    let body = Body::Unnamed { file: Arc::new(file), bytes: 7 };
    let mut inodes = Vec::new();
    for (store, name) in [(0, "a/first"), (0, "a/second"), (1, "a/first")] {
        assert_eq!(stores[store].create(&key(name), body.clone()).await.unwrap(), Created::New);
        let path = dirs[store].path().join(name);
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        inodes.push(std::fs::metadata(&path).unwrap().ino());
    }
    assert_eq!(inodes[0], made);
    assert!(inodes[1] != made && inodes[2] != made, "{inodes:?}");
    assert_eq!(stores[0].create(&key("a/first"), body).await.unwrap(), Created::AlreadyThere);
}

/// Required mirrors are written together, and may lie on one disk.
#[tokio::test(flavor = "multi_thread")]
async fn two_stores_that_get_one_file_at_once_do_not_share_it() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let stores = dirs.each_ref().map(|dir| DirectoryStorage::new(dir.path()));
    for round in 0..100 {
        let mut file = tempfile::tempfile_in(dirs[0].path()).unwrap();
        file.write_all(b"content").unwrap();
        let body = Body::Unnamed { file: Arc::new(file), bytes: 7 };
        let key = key(&format!("a/{round}"));
        let (one, two) = tokio::join!(stores[0].create(&key, body.clone()), stores[1].create(&key, body.clone()));
        assert_eq!((one.unwrap(), two.unwrap()), (Created::New, Created::New));
        let made = dirs.each_ref().map(|dir| std::fs::metadata(dir.path().join(key.as_str())).unwrap());
        assert!(made[0].ino() != made[1].ino() && made.iter().all(|made| made.nlink() == 1 && made.len() == 7), "{round}");
    }
}

#[tokio::test]
async fn files_are_private_to_the_owner_of_the_repository() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStorage::new(dir.path());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(dir.path(), Some(4321), Some(1234)).unwrap();
    }
    store.create(&key("a/b/object"), Body::from(b"x".to_vec())).await.unwrap();
    let root = std::fs::metadata(dir.path()).unwrap();
    for (name, mode) in [("a", 0o700), ("a/b", 0o700), ("a/b/object", 0o600)] {
        let made = std::fs::metadata(dir.path().join(name)).unwrap();
        assert_eq!(made.permissions().mode() & 0o7777, mode, "{name}");
        assert_eq!((made.uid(), made.gid()), (root.uid(), root.gid()), "{name}");
    }
}

#[tokio::test]
async fn foreign_files_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStorage::new(dir.path());
    std::fs::write(dir.path().join(".object.tmp-1"), "left by a crash").unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    store.create(&key("object"), Body::from(b"x".to_vec())).await.unwrap();
    let page = store.list("", None, Depth::All).await.unwrap();
    assert_eq!(page.objects.len(), 1);
    assert_eq!(page.objects[0].key.as_str(), "object");
}

/// Root may write anywhere, so for root this checks less; CI runs it as another user too.
#[tokio::test]
async fn a_directory_that_may_not_be_written_says_so() {
    if rustix::process::geteuid().is_root() {
        return read_only_as_root().await;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o500)).unwrap();
    let error = DirectoryStorage::new(dir.path()).create(&key("a"), Body::from(b"x".to_vec())).await.unwrap_err();
    assert_eq!(error.fault, Fault::Denied, "{error}");
}

/// `/proc` refuses new files even to root, with an error of its own.
async fn read_only_as_root() {
    let error = DirectoryStorage::new("/proc/self").create(&key("a"), Body::from(b"x".to_vec())).await.unwrap_err();
    assert_ne!(error.fault, Fault::Transient, "{error}");
    assert_ne!(error.fault, Fault::NoPlace, "{error}");
}

/// Deleting the last object of a folder removes the folder; a create that just made it must not fail for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_and_deleting_in_one_folder_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStorage::new(dir.path());
    let worker = |name: &'static str| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..300 {
                let object = key(&format!("folder/below/{name}"));
                store.create(&object, Body::from(b"x".to_vec())).await.unwrap();
                assert!(store.delete(&[object]).await.unwrap().is_empty());
            }
        })
    };
    for done in futures::future::join_all([worker("a"), worker("b"), worker("c")]).await {
        done.unwrap();
    }
    assert_eq!(everything_below(dir.path()), [""; 0]);
}
