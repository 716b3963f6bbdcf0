//! The contract of `storage/mod.rs`, sentence by sentence, for any store.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use lastgood::clock;
use lastgood::storage::{Body, Created, Depth, Fault, LIST_PAGE_KEYS, ObjectKey, Part, Storage, behind_folder, list_all};

use super::key;

/// All but the checks that take long; `below` keeps the runs on one store apart.
pub async fn small(store: &Arc<dyn Storage>, below: &str) {
    created_objects_are_seen_at_once(&**store, below).await;
    creating_never_replaces(&**store, below).await;
    one_of_many_creators_wins(store, below).await;
    bodies_of_every_kind(&**store, below).await;
    unreadable_bodies_make_nothing(&**store, below).await;
    parts_are_exact(&**store, below).await;
    empty_objects(&**store, below).await;
    absence_is_told(&**store, below).await;
    listings_are_in_byte_order(&**store, below).await;
    prefixes_may_end_in_a_name(&**store, below).await;
    folders(&**store, below).await;
    deleting(&**store, below).await;
}

/// Many keys and large objects.
pub async fn big(store: &Arc<dyn Storage>, below: &str) {
    many_keys(&**store, below).await;
    many_folders(&**store, below).await;
    large_objects(&**store, below).await;
}

async fn put(store: &dyn Storage, name: String, content: &[u8]) -> ObjectKey {
    let key = key(&name);
    assert_eq!(store.create(&key, content.to_vec().into()).await.unwrap(), Created::New, "{key}");
    key
}

async fn put_all(store: &dyn Storage, names: &[String]) {
    let creates: Vec<_> = names.iter().map(|name| put(store, name.clone(), b"x")).collect();
    futures::stream::iter(creates).buffer_unordered(8).collect::<Vec<_>>().await;
}

async fn whole(store: &dyn Storage, key: &ObjectKey) -> Bytes {
    store.read(key, Part::Whole).await.unwrap().bytes
}

async fn names(store: &dyn Storage, prefix: &str, after: Option<&str>) -> Vec<String> {
    let page = store.list(prefix, after, Depth::All).await.unwrap();
    assert!(!page.more && page.folders.is_empty());
    page.objects.into_iter().map(|object| object.key.to_string()).collect()
}

async fn created_objects_are_seen_at_once(store: &dyn Storage, below: &str) {
    let before = clock::now();
    let key = put(store, format!("{below}/seen/object"), b"content").await;
    assert_eq!(whole(store, &key).await, "content");
    let stat = store.stat(&key).await.unwrap().unwrap();
    assert_eq!((&stat.key, stat.bytes), (&key, 7));
    let age = before.duration_since(stat.modified).as_secs().abs();
    assert!(age < 600, "modified {} against now {before}", stat.modified);
    let page = store.list(&format!("{below}/seen/"), None, Depth::All).await.unwrap();
    assert_eq!(page.objects.len(), 1);
    assert_eq!((&page.objects[0].key, page.objects[0].bytes), (&key, 7));
    let age = before.duration_since(page.objects[0].modified).as_secs().abs();
    assert!(age < 600, "modified {} against now {before}", page.objects[0].modified);
}

async fn creating_never_replaces(store: &dyn Storage, below: &str) {
    let key = put(store, format!("{below}/once"), b"first").await;
    for again in ["other content", "first"] {
        assert_eq!(store.create(&key, again.as_bytes().to_vec().into()).await.unwrap(), Created::AlreadyThere);
        assert_eq!(whole(store, &key).await, "first");
    }
}

async fn one_of_many_creators_wins(store: &Arc<dyn Storage>, below: &str) {
    for round in 0..5 {
        let key = key(&format!("{below}/race/{round}"));
        let creates = (0..8).map(|n| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { store.create(&key, format!("by {n}").into_bytes().into()).await.unwrap() })
        });
        let answers: Vec<Created> = join_all(creates).await.into_iter().map(Result::unwrap).collect();
        let new: Vec<usize> = (0..8).filter(|n| answers[*n] == Created::New).collect();
        if store.conditional_create() {
            assert_eq!(new.len(), 1, "{answers:?}");
            assert_eq!(whole(&**store, &key).await, format!("by {}", new[0]));
        } else {
            // The window that `s3` documents: more than one may win, and the object is one of theirs.
            let content = whole(&**store, &key).await;
            assert!(new.iter().any(|n| content == format!("by {n}")), "{content:?}, {answers:?}");
        }
    }
}

async fn bodies_of_every_kind(store: &dyn Storage, below: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "from a file").unwrap();
    let unnamed = |bytes| {
        let mut file = tempfile::tempfile_in(store.scratch().as_deref().unwrap_or(dir.path())).unwrap();
        file.write_all(b"from a file").unwrap();
        Body::Unnamed { file: Arc::new(file), bytes }
    };
    let pieces = |texts: &[&'static str]| Body::Bytes(texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect());
    let cases = [
        ("file", Body::File { path: path.clone(), bytes: 11 }, "from a file"),
        // WAL files are written while they are archived elsewhere: the length given is what counts.
        ("file-start", Body::File { path, bytes: 4 }, "from"),
        ("unnamed", unnamed(11), "from a file"),
        ("unnamed-start", unnamed(4), "from"),
        ("pieces", pieces(&["one, ", "", "two, ", "three"]), "one, two, three"),
        ("no-pieces", pieces(&[]), ""),
        ("empty-pieces", pieces(&["", ""]), ""),
    ];
    for (name, body, content) in cases {
        let key = key(&format!("{below}/bodies/{name}"));
        assert_eq!(store.create(&key, body).await.unwrap(), Created::New, "{name}");
        assert_eq!(whole(store, &key).await, content, "{name}");
    }
}

async fn unreadable_bodies_make_nothing(store: &dyn Storage, below: &str) {
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short");
    std::fs::write(&short, "short").unwrap();
    for path in [short, dir.path().join("missing")] {
        let key = key(&format!("{below}/unreadable/object"));
        let error = store.create(&key, Body::File { path, bytes: 100 }).await.unwrap_err();
        // Not "not found" or "truncated": that would be told of the object.
        assert_eq!(error.fault, Fault::Other, "{error}");
        assert_eq!(store.stat(&key).await.unwrap(), None);
        assert_eq!(names(store, &format!("{below}/unreadable/"), None).await, [""; 0]);
    }
}

async fn parts_are_exact(store: &dyn Storage, below: &str) {
    let key = put(store, format!("{below}/parts"), b"0123456789").await;
    let range = |start, bytes| Part::Range { start, bytes };
    let cases = [
        (Part::Whole, "0123456789"),
        (range(0, 10), "0123456789"),
        (range(0, 1), "0"),
        (range(3, 4), "3456"),
        (range(9, 1), "9"),
        (range(4, 0), ""),
        (range(10, 0), ""),
        (Part::Tail { bytes: 3 }, "789"),
        (Part::Tail { bytes: 10 }, "0123456789"),
        (Part::Tail { bytes: 1000 }, "0123456789"),
        (Part::Tail { bytes: 0 }, ""),
    ];
    for (part, content) in cases {
        let read = store.read(&key, part).await.unwrap();
        assert_eq!((&read.bytes[..], read.object_bytes), (content.as_bytes(), 10), "{part:?}");
    }
    for part in [range(0, 11), range(5, 6), range(10, 1), range(11, 0), range(1000, 1), range(1, u64::MAX), range(u64::MAX, 2)] {
        let error = store.read(&key, part).await.unwrap_err();
        assert_eq!(error.fault, Fault::Truncated, "{part:?}: {error}");
    }
}

async fn empty_objects(store: &dyn Storage, below: &str) {
    let key = put(store, format!("{below}/empty"), b"").await;
    assert_eq!(store.stat(&key).await.unwrap().unwrap().bytes, 0);
    for part in [Part::Whole, Part::Range { start: 0, bytes: 0 }, Part::Tail { bytes: 5 }, Part::Tail { bytes: 0 }] {
        let read = store.read(&key, part).await.unwrap();
        assert_eq!((read.bytes.len(), read.object_bytes), (0, 0), "{part:?}");
    }
    let error = store.read(&key, Part::Range { start: 0, bytes: 1 }).await.unwrap_err();
    assert_eq!(error.fault, Fault::Truncated, "{error}");
}

async fn absence_is_told(store: &dyn Storage, below: &str) {
    put(store, format!("{below}/present/object"), b"x").await;
    // The last two: a folder is no object, and nothing is below an object.
    for name in ["absent", "present/objec", "present/object1", "present", "present/object/below"] {
        let key = key(&format!("{below}/{name}"));
        assert_eq!(store.stat(&key).await.unwrap(), None, "{key}");
        for part in [Part::Whole, Part::Range { start: 0, bytes: 1 }, Part::Range { start: 0, bytes: 0 }, Part::Tail { bytes: 1 }]
        {
            let error = store.read(&key, part).await.unwrap_err();
            assert_eq!(error.fault, Fault::NotFound, "{key} {part:?}: {error}");
        }
    }
    assert_eq!(names(store, &format!("{below}/absent/"), None).await, [""; 0]);
    assert_eq!(names(store, &format!("{below}/present/object/"), None).await, [""; 0]);
}

async fn listings_are_in_byte_order(store: &dyn Storage, below: &str) {
    // '-' < '.' < '/' < '0' < '=' < 'A' < '_' < 'a': a folder's keys sort between its neighbours.
    let sorted = ["a-b", "a.b", "a/-", "a/0", "a/b/c", "a/b0", "a0", "a=", "aA", "a_", "aa", "b"];
    let sorted: Vec<String> = sorted.iter().map(|name| format!("{below}/order/{name}")).collect();
    let mut shuffled = sorted.clone();
    shuffled.reverse();
    shuffled.swap(0, 5);
    for name in shuffled {
        put(store, name, b"x").await;
    }
    let prefix = format!("{below}/order/");
    assert_eq!(names(store, &prefix, None).await, sorted);
    for at in 0..sorted.len() {
        assert_eq!(names(store, &prefix, Some(&sorted[at])).await, sorted[at + 1..], "after {}", sorted[at]);
    }
    // A key that is not there is a place to continue from too.
    assert_eq!(names(store, &prefix, Some(&format!("{prefix}a/a"))).await, sorted[4..]);
    assert_eq!(names(store, &prefix, Some(&format!("{prefix}a0x"))).await, sorted[7..]);
}

async fn prefixes_may_end_in_a_name(store: &dyn Storage, below: &str) {
    let wal = format!("{below}/wal/0000000100000000000000");
    let all = [format!("{wal}1A"), format!("{wal}1A.00000028.backup"), format!("{wal}1B")];
    for name in &all {
        put(store, name.clone(), b"x").await;
    }
    assert_eq!(names(store, &format!("{wal}1A"), None).await, all[..2]);
    assert_eq!(names(store, &format!("{wal}1A."), None).await, all[1..2]);
    assert_eq!(names(store, &format!("{wal}1"), Some(&all[1])).await, all[2..]);
    assert_eq!(names(store, &format!("{wal}1A.00000028.backup"), None).await, all[1..2]);
    // Exact names only (rule 34).
    let almost = key(&format!("{wal}1A.00000028"));
    assert_eq!(store.stat(&almost).await.unwrap(), None);
    assert!(store.read(&almost, Part::Whole).await.unwrap_err().is_not_found());
}

async fn folders(store: &dyn Storage, below: &str) {
    for name in ["a-b", "a.b/1", "a/1", "a/2/3", "a0", "b/1", "c"] {
        put(store, format!("{below}/folders/{name}"), b"x").await;
    }
    let found = async |prefix: &str| {
        let page = store.list(&format!("{below}/folders/{prefix}"), None, Depth::Folder).await.unwrap();
        let objects: Vec<String> = page.objects.iter().map(|object| object.key.name().to_string()).collect();
        (objects.join(" "), page.folders.join(" "))
    };
    assert_eq!(found("").await, ("a-b a0 c".into(), "a.b/ a/ b/".into()));
    assert_eq!(found("a/").await, ("1".into(), "2/".into()));
    assert_eq!(found("a").await, ("a-b a0".into(), ".b/ /".into()));
    assert_eq!(found("c").await, ("c".into(), String::new()));
    assert_eq!(found("d/").await, (String::new(), String::new()));
    // Behind a folder means behind all of it and nothing else.
    let prefix = format!("{below}/folders/");
    let page = store.list(&prefix, Some(&behind_folder(&prefix, "a/")), Depth::Folder).await.unwrap();
    assert_eq!((page.objects.len(), page.folders), (2, vec!["b/".to_string()]));
}

async fn deleting(store: &dyn Storage, below: &str) {
    let kept = put(store, format!("{below}/delete/kept"), b"x").await;
    let gone = put(store, format!("{below}/delete/gone/1"), b"x").await;
    let never = key(&format!("{below}/delete/never"));
    for _ in 0..2 {
        assert!(store.delete(&[gone.clone(), never.clone()]).await.unwrap().is_empty());
    }
    assert!(store.delete(&[]).await.unwrap().is_empty());
    assert_eq!(store.stat(&gone).await.unwrap(), None);
    assert_eq!(names(store, &format!("{below}/delete/"), None).await, [kept.as_str()]);
    // A key that was deleted is free again, its folder too.
    put(store, gone.to_string(), b"second life").await;
    assert_eq!(whole(store, &gone).await, "second life");
}

async fn many_keys(store: &dyn Storage, below: &str) {
    let all: Vec<String> = (0..2500).map(|n| format!("{below}/many/{:02}/{n:05}", n / 100)).collect();
    put_all(store, &all).await;
    let prefix = format!("{below}/many/");
    let (mut after, mut pages, mut found) = (None::<String>, Vec::new(), Vec::new());
    loop {
        let page = store.list(&prefix, after.as_deref(), Depth::All).await.unwrap();
        pages.push(page.objects.len());
        found.extend(page.objects.into_iter().map(|object| object.key.to_string()));
        after = found.last().cloned();
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, [LIST_PAGE_KEYS, LIST_PAGE_KEYS, 500]);
    assert_eq!(found, all);
    let batch: Vec<ObjectKey> = all[..1500].iter().map(|name| key(name)).collect();
    assert!(store.delete(&batch).await.unwrap().is_empty());
    let left = list_all(store, &prefix, Depth::All).await.unwrap();
    let left: Vec<String> = left.objects.into_iter().map(|object| object.key.to_string()).collect();
    assert_eq!(left, all[1500..]);
}

/// A page that ends with a folder continues behind it without losing the folder's neighbours.
async fn many_folders(store: &dyn Storage, below: &str) {
    let mut all: Vec<String> = (0..1100).map(|n| format!("{below}/wide/{n:04}/object")).collect();
    // What follows the thousandth entry directly: '0' follows '/'.
    all.push(format!("{below}/wide/09990"));
    put_all(store, &all).await;
    let found = list_all(store, &format!("{below}/wide/"), Depth::Folder).await.unwrap();
    let folders: HashSet<&String> = found.folders.iter().collect();
    assert_eq!((found.folders.len(), folders.len()), (1100, 1100));
    assert!(found.folders.is_sorted());
    let objects: Vec<&str> = found.objects.iter().map(|object| object.key.name()).collect();
    assert_eq!(objects, ["09990"]);
}

async fn large_objects(store: &dyn Storage, below: &str) {
    const PIECE: usize = 4 << 20;
    // Each word is its own offset, so that misplaced bytes show.
    let content: Vec<u8> = (0..10 * PIECE as u64 / 8).flat_map(|n| (8 * n).to_le_bytes()).collect();
    let content = Bytes::from(content);
    let pieces = (0..10).map(|n| content.slice(n * PIECE..(n + 1) * PIECE)).collect();
    let key = key(&format!("{below}/large"));
    assert_eq!(store.create(&key, Body::Bytes(pieces)).await.unwrap(), Created::New);
    let read = store.read(&key, Part::Whole).await.unwrap();
    assert!(read.bytes == content, "{} bytes came back", read.bytes.len());
    let range = Part::Range { start: 17_000_001, bytes: 9_000_000 };
    let read = store.read(&key, range).await.unwrap();
    assert!(read.bytes == content[17_000_001..26_000_001] && read.object_bytes == content.len() as u64);
}
