//! Frames into packs, packs into the store.
//!
//! Reading threads add frames to one open pack; a full one goes through a short channel to tasks that store it. When the store
//! is slow the channel fills and the readers wait: memory stays bounded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::aligned::Pool;
use crate::repo::RepoError;
use crate::repo::frame::FrameRef;
use crate::repo::object::Sha;
use crate::repo::pack::{CHUNK_BYTES, FinishedPack, PackBuilder};
use crate::repo::pack_table::{PackLine, Used};
use crate::repo::repository::Cluster;
use crate::storage::Created;

/// Packs on their way to the store besides the open one: enough that a distant store's latency is hidden, few enough for memory.
const IN_FLIGHT: usize = 3;

/// The store gave up, or the snapshot was cancelled; the reason is with the task that stores.
#[derive(Debug)]
pub struct Cancelled;

/// Where frames of one kind go (`d`: data, `m`: maps).
#[derive(Debug)]
pub struct Packer {
    cluster: Cluster,
    snapshot: String,
    kind: char,
    open: Mutex<Open>,
    buffers: Pool,
    finished: mpsc::Sender<FinishedPack>,
}

#[derive(Debug)]
struct Open {
    builder: PackBuilder,
    number: u32,
}

impl Packer {
    pub fn new(cluster: &Cluster, snapshot: &str, kind: char, finished: mpsc::Sender<FinishedPack>) -> Packer {
        let buffers = Pool::new(CHUNK_BYTES);
        let builder = builder(cluster, &name(snapshot, kind, 1), &buffers);
        Packer {
            cluster: cluster.clone(),
            snapshot: snapshot.into(),
            kind,
            open: Mutex::new(Open { builder, number: 1 }),
            buffers,
            finished,
        }
    }

    /// Adds a frame; waits when too many packs are on their way. Not for async code.
    pub fn add(&self, stored: &[u8], raw_bytes: u32, sha256: Sha) -> Result<FrameRef, Cancelled> {
        let mut frames = Vec::with_capacity(1);
        self.add_all([(stored, raw_bytes, sha256)], &mut frames)?;
        Ok(frames.swap_remove(0))
    }

    /// Adds frames one behind the other (unless the pack is full in between), so that what belongs together in a file is read and
    /// written together. Their places go to `frames`.
    pub fn add_all<'a>(
        &self,
        stored: impl IntoIterator<Item = (&'a [u8], u32, Sha)>,
        frames: &mut Vec<FrameRef>,
    ) -> Result<(), Cancelled> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (stored, raw_bytes, sha256) in stored {
            frames.push(open.builder.add(stored, raw_bytes, sha256));
            if open.builder.is_full() {
                self.send(&mut open)?;
            }
        }
        Ok(())
    }

    fn send(&self, open: &mut Open) -> Result<(), Cancelled> {
        open.number += 1;
        let next = builder(&self.cluster, &name(&self.snapshot, self.kind, open.number), &self.buffers);
        let full = std::mem::replace(&mut open.builder, next);
        self.finished.blocking_send(full.finish()).map_err(|_| Cancelled)
    }

    /// Sends the last, partly filled pack. Not for async code.
    pub fn finish(&self) -> Result<(), Cancelled> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.builder.is_empty() { Ok(()) } else { self.send(&mut open) }
    }
}

fn builder(cluster: &Cluster, name: &str, buffers: &Pool) -> PackBuilder {
    PackBuilder::new(name, cluster.vault().sealer(&cluster.layout().pack(name)), buffers)
}

fn name(snapshot: &str, kind: char, number: u32) -> String {
    format!("{snapshot}/{kind}{number:06}")
}

/// The channel between packers and [`store_all`].
pub fn channel() -> (mpsc::Sender<FinishedPack>, mpsc::Receiver<FinishedPack>) {
    mpsc::channel(1)
}

/// Stores packs as they come, [`IN_FLIGHT`] at a time; answers their lines of the pack table by name.
pub async fn store_all(
    cluster: Cluster,
    mut packs: mpsc::Receiver<FinishedPack>,
) -> Result<BTreeMap<Arc<str>, PackLine>, RepoError> {
    let mut stored = BTreeMap::new();
    let mut running = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            done = running.join_next(), if !running.is_empty() => {
                let (name, line) = flatten(done)?;
                stored.insert(name, line);
            }
            pack = packs.recv(), if running.len() < IN_FLIGHT => match pack {
                Some(pack) => { running.spawn(store(cluster.clone(), pack)); }
                None => break,
            },
        }
    }
    while let Some(done) = running.join_next().await {
        let (name, line) = flatten(Some(done))?;
        stored.insert(name, line);
    }
    Ok(stored)
}

type Stored = Result<(Arc<str>, PackLine), RepoError>;

fn flatten(done: Option<Result<Stored, tokio::task::JoinError>>) -> Stored {
    match done {
        Some(Ok(stored)) => stored,
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        None => unreachable!("asked only while tasks run"),
    }
}

async fn store(cluster: Cluster, pack: FinishedPack) -> Stored {
    let key = cluster.layout().pack(&pack.name);
    // What is alive of it is known when all maps are.
    let used = Some(Used { raw_bytes: pack.raw_bytes, live_bytes: 0 });
    let line = PackLine { name: pack.name.to_string(), bytes: pack.body.len(), head: pack.head, used };
    if cluster.storage().create_own(&key, pack.body).await? == Created::New {
        return Ok((pack.name, line));
    }
    // Snapshot ids are unique: an attempt of ours arrived after all, or something is very wrong.
    match cluster.storage().stat(&key).await? {
        Some(there) if there.bytes == line.bytes => Ok((pack.name, line)),
        _ => Err(RepoError::Conflict { key }),
    }
}
