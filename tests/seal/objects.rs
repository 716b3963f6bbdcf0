//! Every byte of small sealed objects, of each kind, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood::aligned::Pool;
use lastgood::repo::fetch;
use lastgood::repo::frame::{Compressor, FrameRef};
use lastgood::repo::object::{self, ObjectKind, Sha};
use lastgood::repo::pack::{self, PackBuilder};
use lastgood::repo::pack_table::PackLine;
use lastgood::repo::repository::Cluster;
use lastgood::repo::seal::Seal;
use lastgood::repo::seal::crypto::Secret;
use lastgood::repo::seal::epoch::EpochKey;
use lastgood::repo::vault::Vault;
use lastgood::repo::{RepoError, segment};
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::Record;
use lastgood::storage::{ObjectKey, Part, Storage};

fn seal() -> Arc<Seal> {
    let keys = BTreeMap::from([(1, EpochKey::from_root(Secret::new([7; 32])))]);
    Arc::new(Seal::new(&"ab".repeat(16), &"cd".repeat(16), keys))
}

fn cluster(storage: Arc<dyn Storage>, seal: Arc<Seal>) -> Cluster {
    Cluster::unchecked(Vault::new(storage, Some(seal)), "shop")
}

/// Changes each byte in turn, and wants `check` to notice; then moves the object to `elsewhere`, and cuts it.
async fn noticed<F, Fut>(memory: &MemoryStorage, key: &ObjectKey, check: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    assert!(check().await, "{key} is good at first");
    let length = memory.read(key, Part::Whole).await.unwrap().bytes.len();
    for at in 0..length {
        memory.tamper(key, |bytes| bytes[at] ^= 4);
        assert!(!check().await, "{key}: byte {at} of {length}");
        memory.tamper(key, |bytes| bytes[at] ^= 4);
    }
    let whole = memory.read(key, Part::Whole).await.unwrap().bytes.to_vec();
    for change in [whole[..length - 1].to_vec(), whole[1..].to_vec(), [&[0], &whole[..]].concat(), [&whole[..], &[0]].concat()] {
        memory.tamper(key, |bytes| *bytes = change);
        assert!(!check().await, "{key}: cut or longer");
    }
    memory.tamper(key, |bytes| *bytes = whole);
    assert!(check().await);
}

#[tokio::test]
async fn no_byte_of_a_document_can_be_changed() {
    let memory = Arc::new(MemoryStorage::new());
    let vault = Vault::new(memory.clone(), Some(seal()));
    let key = ObjectKey::new("clusters/shop/record/00000001");
    object::put_document(&vault, &key, b"{\"a\":1}").await.unwrap();
    object::put_document(&vault, &key, b"{\"a\":1}").await.unwrap();
    assert!(matches!(object::put_document(&vault, &key, b"{\"a\":2}").await, Err(RepoError::Conflict { .. })));
    noticed(&memory, &key, || async { object::get_document(&vault, &key).await.is_ok() }).await;
    let plain = Vault::plain(memory.clone());
    assert!(matches!(object::get_document(&plain, &key).await, Err(RepoError::Sealed { .. })));
    let other = ObjectKey::new("clusters/shop/record/00000002");
    memory.create(&other, memory.read(&key, Part::Whole).await.unwrap().bytes.to_vec().into()).await.unwrap();
    assert!(object::get_document(&vault, &other).await.unwrap_err().to_string().contains("moved or renamed"));
    let third = ObjectKey::new("clusters/shop/record/00000003");
    memory.create(&third, object::document(b"{}", None).into()).await.unwrap();
    assert!(object::get_document(&vault, &third).await.unwrap_err().to_string().contains("is not sealed"));
}

async fn a_pack(cluster: &Cluster, name: &str) -> (ObjectKey, Vec<FrameRef>, PackLine) {
    let key = cluster.layout().pack(name);
    let mut builder = PackBuilder::new(name, cluster.vault().sealer(&key), &Pool::new(pack::CHUNK_BYTES));
    let mut add = |raw: &[u8]| builder.add(&Compressor::new(1).compress(raw), raw.len() as u32, Sha::of(raw));
    let frames = vec![add(b"first frame"), add(b"other frame"), add(b"third")];
    let finished = builder.finish();
    let line = PackLine { name: name.into(), bytes: finished.body.len(), head: finished.head, used: None };
    cluster.storage().create(&key, finished.body).await.unwrap();
    (key, frames, line)
}

/// The raw bytes of all frames, or the first error.
async fn fetched(cluster: &Cluster, frames: &[FrameRef]) -> Result<Vec<Vec<u8>>, RepoError> {
    let found = Arc::new(std::sync::Mutex::new(vec![Vec::new(); frames.len()]));
    let slots = found.clone();
    let visit = Arc::new(move |index: usize, raw: Result<&[u8], RepoError>| -> Result<(), RepoError> {
        slots.lock().unwrap()[index] = raw?.to_vec();
        Ok(())
    });
    fetch::each(cluster, Arc::new(frames.to_vec()), 4, visit).await?;
    let found = found.lock().unwrap().clone();
    Ok(found)
}

#[tokio::test]
async fn no_byte_of_a_pack_can_be_changed() {
    for name in ["s/d000001", "s/m000001"] {
        let memory = Arc::new(MemoryStorage::new());
        let cluster = cluster(memory.clone(), seal());
        let (key, frames, _) = a_pack(&cluster, name).await;
        noticed(&memory, &key, || async {
            let trailer = object::read_trailer(cluster.vault(), &key, ObjectKind::Pack).await;
            let table = trailer.and_then(|trailer| pack::frames(&key, name, &trailer));
            table.is_ok_and(|table| table == frames) && fetched(&cluster, &frames).await.is_ok()
        })
        .await;
        assert_eq!(fetched(&cluster, &frames).await.unwrap()[1], b"other frame");
        // Two frames of one length change places, and the map is told so: the position is part of the seal.
        let (a, b) = (frames[0].clone(), frames[1].clone());
        assert_eq!(a.stored_bytes, b.stored_bytes);
        memory.tamper(&key, |bytes| {
            let (first, second) = bytes[..2 * a.stored_bytes as usize].split_at_mut(a.stored_bytes as usize);
            first.swap_with_slice(second);
        });
        let moved = [FrameRef { offset: b.offset, ..a.clone() }, FrameRef { offset: a.offset, ..b.clone() }];
        for frame in moved {
            assert!(fetched(&cluster, &[frame]).await.unwrap_err().to_string().contains("does not open"));
        }
    }
}

/// A pack table saves the request for a pack's seed; without one it is asked for once, and not for each frame.
#[tokio::test]
async fn a_frame_costs_one_request() {
    let record = Record::new(MemoryStorage::new());
    let log = record.log();
    let record: Arc<dyn Storage> = Arc::new(record);
    let first = cluster(record.clone(), seal());
    let (_, frames, line) = a_pack(&first, "s/d000001").await;
    let reads = || log.counts().read;
    let again = cluster(record.clone(), seal());
    let before = reads();
    for frame in &frames {
        fetched(&again, std::slice::from_ref(frame)).await.unwrap();
    }
    assert_eq!(reads() - before, frames.len() + 1, "one for the seed");
    let told = cluster(record.clone(), seal());
    told.vault().remember(&told, &[line]);
    let before = reads();
    for frame in &frames {
        fetched(&told, std::slice::from_ref(frame)).await.unwrap();
    }
    assert_eq!(reads() - before, frames.len());
}

#[tokio::test]
async fn no_byte_of_a_wal_file_can_be_changed() {
    let memory = Arc::new(MemoryStorage::new());
    let seal = seal();
    let cluster = cluster(memory.clone(), seal.clone());
    let system = lastgood::postgres::lsn::SystemId(7);
    let writer = Cluster::unchecked(Vault::new(memory.clone(), Some(Arc::new(seal.to_writer()))), "shop");
    for name in ["000000010000000000000001", "00000002.history", "000000010000000000000001.00000028.backup"] {
        let file = name.parse().unwrap();
        let key = cluster.layout().wal(system, &file);
        let encoded =
            || segment::encode(&b"the content of a file"[..], 1, writer.vault().sealer(&key), &[], &mut |_| {}).unwrap();
        let stored = segment::store(&writer, system, &file, encoded(), segment::Said::default()).await.unwrap();
        assert_eq!(stored, segment::Stored::New);
        assert_eq!(
            segment::store(&writer, system, &file, encoded(), segment::Said::default()).await.unwrap(),
            segment::Stored::Same
        );
        noticed(&memory, &key, || async {
            let mut out = Vec::new();
            let fetched = segment::fetch(&cluster, system, &file, &mut out).await;
            fetched.is_ok() && out == b"the content of a file"
        })
        .await;
        // A writer sees the same, where it cannot read.
        noticed(&memory, &key, || async {
            segment::store(&writer, system, &file, encoded(), segment::Said::default()).await.is_ok()
        })
        .await;
        let read = segment::fetch(&writer, system, &file, &mut std::io::sink()).await;
        assert_eq!(matches!(read, Err(RepoError::WriterKey { .. })), name.len() == 24, "{name}: {read:?}");
        assert!(segment::read_trailer(&writer, system, &file).await.unwrap().stored_sha256.is_some());
    }
}
