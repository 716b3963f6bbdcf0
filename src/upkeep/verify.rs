//! Reads what a restore would need, and says what damage costs.
//!
//! Every frame is read and proven once, however many snapshots share it: what was proven is remembered by a fingerprint of
//! eight bytes. Quick mode lists and compares lengths only.

mod wal;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::monitor::Monitor;
use crate::postgres::wal::name::WalFile;
use crate::repo::RepoError;
use crate::repo::audit;
use crate::repo::expired;
use crate::repo::fetch;
use crate::repo::frame::FrameRef;
use crate::repo::layout;
use crate::repo::manifest::{FileLine, Manifest, MapPlace, SegmentLine, What};
use crate::repo::map::FileMap;
use crate::repo::object::{self, ObjectKind, Sha};
use crate::repo::pack;
use crate::repo::pack_table::PackLine;
use crate::repo::presence;
use crate::repo::repository::Cluster;
use crate::repo::seal::{keyring, rotation};
use crate::repo::segment;
use crate::repo::validate::Lists;
use crate::storage::{Fault, ObjectKey};
use crate::timeline::archive::Archive;
use crate::timeline::catalogue;
use crate::upkeep::{documents, hidden, orphans};

/// Of so many problems a bucket is asked what was there before; each is a request.
const ASKED_PROBLEMS: usize = 200;
/// Frames proven together.
const BATCH_FRAMES: usize = 16_384;

/// Something that is not as it should be, and what that costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub object: String,
    pub what: String,
    /// Snapshots that cannot be restored whole because of it.
    pub snapshots: BTreeSet<String>,
    /// Windows that end or break at it.
    pub windows: BTreeSet<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    pub snapshots: usize,
    pub frames: u64,
    pub bytes: u64,
    pub segments: u64,
    pub problems: Vec<Problem>,
    /// True things that a person must know: damaged pages.
    pub warnings: Vec<String>,
}

pub struct Request {
    /// Existence and lengths only.
    pub quick: bool,
    /// For decompressing and proving.
    pub threads: usize,
}

/// Verifies `manifests` (with those that could not be read) and the WAL of their windows.
pub async fn verify(
    cluster: &Cluster,
    archives: &[Archive],
    manifests: Vec<(String, Result<Manifest, RepoError>)>,
    request: &Request,
    monitor: Arc<dyn Monitor>,
) -> Result<Report, RepoError> {
    let mut verifier = Verifier {
        cluster,
        request,
        monitor,
        report: Report::default(),
        problems: BTreeMap::new(),
        proven: Arc::new(Mutex::new(HashSet::new())),
        bad: BTreeMap::new(),
        packs: BTreeSet::new(),
    };
    verifier.keyring().await?;
    let mut readable = Vec::new();
    for (id, manifest) in manifests {
        verifier.report.snapshots += 1;
        match manifest {
            Ok(manifest) => readable.push(manifest),
            Err(error) if error.is_newer_epoch() => verifier.report.warnings.push(format!("{id} is left out: {error}")),
            Err(error) => verifier.costs(cluster.layout().manifest(&id).to_string(), error.to_string(), &id),
        }
    }
    let total = readable.iter().map(|m| m.totals.new_bytes).sum();
    verifier.monitor.phase("verify", total);
    for manifest in &readable {
        verifier.snapshot(manifest).await?;
    }
    for archive in archives {
        verifier.wal(archive, &readable).await?;
    }
    verifier.audit(&readable).await?;
    verifier.documents(archives).await?;
    verifier.forget_expired().await?;
    verifier.versions().await?;
    for orphan in orphans::find(cluster).await? {
        match orphan.is_noted {
            true => verifier.report.warnings.push(format!("{}: {}", orphan.object, orphan.describe())),
            false => verifier.costs(orphan.object.clone(), orphan.describe(), &orphan.snapshot),
        }
    }
    verifier.report.problems = verifier.problems.into_values().collect();
    Ok(verifier.report)
}

struct Verifier<'a> {
    cluster: &'a Cluster,
    request: &'a Request,
    monitor: Arc<dyn Monitor>,
    report: Report,
    problems: BTreeMap<String, Problem>,
    proven: Arc<Mutex<HashSet<u64>>>,
    /// Frames found bad, for the snapshots that share them: too few to count in memory, or the repository is lost.
    bad: BTreeMap<u64, (String, String)>,
    /// Packs whose tables were proven.
    packs: BTreeSet<String>,
}

impl Verifier<'_> {
    /// No restore needs it, but whoever changed it had a reason.
    async fn audit(&mut self, manifests: &[Manifest]) -> Result<(), RepoError> {
        let remembered: Vec<_> = manifests.iter().filter_map(|m| Some((m.id.clone(), m.audit?))).collect();
        for (entry, what) in audit::read(self.cluster, &remembered).await?.problems {
            self.problem(layout::audit_entry(entry).to_string(), what);
        }
        Ok(())
    }

    /// What an expiry took away while this went on costs nothing: the manifest went first, and a note says that it was meant.
    async fn forget_expired(&mut self) -> Result<(), RepoError> {
        let costly: BTreeSet<String> = self.problems.values().flat_map(|problem| problem.snapshots.iter().cloned()).collect();
        for id in costly {
            let is_there = self.cluster.storage().stat(&self.cluster.layout().manifest(&id)).await?.is_some();
            if is_there || !expired::ids(self.cluster).await?.contains(&id) {
                continue;
            }
            self.report.warnings.push(format!("snapshot {id} was expired while it was read, and is left out"));
            self.problems.values_mut().for_each(|problem| {
                problem.snapshots.remove(&id);
            });
            self.problems
                .retain(|object, problem| !(object.contains(&id) && problem.snapshots.is_empty() && problem.windows.is_empty()));
        }
        Ok(())
    }

    /// In a bucket with versions, what was there before; and snapshots that nobody sees because their manifests were deleted.
    async fn versions(&mut self) -> Result<(), RepoError> {
        let Some(bucket) = self.cluster.storage().bucket() else { return Ok(()) };
        match hidden::snapshots(self.cluster, bucket).await {
            Ok(hidden) => hidden.into_iter().for_each(|one| {
                self.costs(one.manifest.key.to_string(), one.describe(), &one.snapshot);
            }),
            // Who may not list versions, or has none, verifies all the same.
            Err(RepoError::Storage(error)) if matches!(error.fault, Fault::Denied | Fault::Other) => return Ok(()),
            Err(error) => return Err(error),
        }
        for problem in self.problems.values_mut().take(ASKED_PROBLEMS).filter(|problem| ObjectKey::is_valid(&problem.object)) {
            let is_told = problem.what.contains("the bucket still has");
            if let Some(before) = hidden::before(bucket, &ObjectKey::new(&problem.object)).await.filter(|_| !is_told) {
                problem.what.push_str(&format!("; {before}"));
            }
        }
        Ok(())
    }

    fn problem(&mut self, object: String, what: String) -> &mut Problem {
        // Errors name their object; a problem has it beside.
        let what = what.strip_prefix(&format!("{object} is damaged: ")).map_or(what.clone(), str::to_string);
        let empty = Problem { object: object.clone(), what, snapshots: BTreeSet::new(), windows: BTreeSet::new() };
        self.problems.entry(object).or_insert(empty)
    }

    fn costs(&mut self, object: String, what: String, snapshot: &str) {
        self.problem(object, what).snapshots.insert(snapshot.into());
    }

    /// What no restore needs.
    async fn documents(&mut self, archives: &[Archive]) -> Result<(), RepoError> {
        if self.request.quick {
            return Ok(());
        }
        for kind in documents::kinds(self.cluster, archives.iter().map(|archive| archive.system)) {
            let mut found = Vec::new();
            documents::prove(self.cluster, &kind, &mut |key, error| found.push((key, error))).await?;
            for (key, error) in found {
                match error {
                    error if kind.is_brief || error.is_newer_epoch() => {
                        self.report.warnings.push(format!("{error} ({})", kind.cost));
                    }
                    error => drop(self.problem(key, format!("{error} ({})", kind.cost))),
                }
            }
        }
        Ok(())
    }

    /// Damage becomes a problem of the report, and so does what must be thawed before anybody can tell; a store that does not answer ends the verification.
    fn damage<T>(&mut self, result: Result<T, RepoError>, snapshot: &str, object: String) -> Result<Option<T>, RepoError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_damage() || error.is_frozen() => {
                self.costs(object, error.to_string(), snapshot);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Everything that the snapshot needs is there and can be read; answers its packs.
    async fn presence(&mut self, manifest: &Manifest) -> Result<Vec<PackLine>, RepoError> {
        let presence = presence::of(self.cluster, manifest).await?;
        for lack in presence.lacks {
            self.costs(lack.key, lack.what, &manifest.id);
        }
        for frozen in presence.frozen {
            let mend = presence::thaw(self.cluster.storage().place(), &frozen.key);
            self.costs(frozen.key, format!("it is frozen in {}, and cannot be read: {mend}", frozen.class), &manifest.id);
        }
        for unknown in presence.unknown {
            self.report.warnings.push(format!("whether {} can be read is unknown: {}", unknown.key, unknown.what));
        }
        Ok(presence.packs)
    }

    async fn snapshot(&mut self, manifest: &Manifest) -> Result<(), RepoError> {
        if !manifest.damaged_pages.is_empty() {
            let (id, count) = (&manifest.id, manifest.damaged_pages.len());
            self.report.warnings.push(format!("snapshot {id} holds {count} pages that were damaged in the database already"));
        }
        let packs = self.presence(manifest).await?;
        if !self.request.quick {
            self.pack_tables(manifest, packs).await?;
        }
        self.wal_table(manifest).await?;
        self.catalogue(manifest).await?;
        if !self.request.quick {
            self.lists(manifest).await?;
        }
        Ok(())
    }

    /// What each list holds, and that a restore would take them as they are.
    async fn lists(&mut self, manifest: &Manifest) -> Result<(), RepoError> {
        let mut seen = Some(Lists::default());
        for index in 0..manifest.file_lists.len() {
            let key = self.cluster.layout().files(&manifest.id, index as u32 + 1).to_string();
            let lines = manifest.files(self.cluster, index).await;
            // Of lists of which one is missing, the rest says nothing about the whole.
            let Some(lines) = self.damage(lines, &manifest.id, key.clone())? else {
                seen = None;
                continue;
            };
            if let Some(what) = seen.as_mut().and_then(|seen| lines.iter().find_map(|line| seen.line(line))) {
                self.costs(key.clone(), what, &manifest.id);
                seen = None;
            }
            self.files(manifest, &lines).await?;
        }
        if let Some(what) = seen.and_then(|seen| seen.end(manifest)) {
            self.costs(self.cluster.layout().manifest(&manifest.id).to_string(), what, &manifest.id);
        }
        Ok(())
    }

    /// Names for the numbers in the WAL: no restore needs them, but people do.
    async fn catalogue(&mut self, manifest: &Manifest) -> Result<(), RepoError> {
        match catalogue::of_snapshot(self.cluster, manifest).await {
            Err(error) if error.is_damage() || error.is_frozen() => {
                let key = self.cluster.layout().catalogue(&manifest.id).to_string();
                self.problem(key, format!("{error} (costs names in `timeline`, and no restore)"));
                Ok(())
            }
            Err(error) if !error.is_newer_epoch() => Err(error),
            _ => Ok(()),
        }
    }

    /// Whoever has only a passphrase or an identity needs the keyring first.
    async fn keyring(&mut self) -> Result<(), RepoError> {
        if self.cluster.vault().seal().is_none() {
            return Ok(());
        }
        if keyring::list(self.cluster.storage()).await?.is_empty() {
            let what =
                "there is no keyring under keys/: no passphrase and no identity opens this repository, only exported keys do";
            self.report.warnings.push(what.into());
            return Ok(());
        }
        match rotation::current(self.cluster.vault()).await {
            Err(RepoError::Damaged { key, what }) => {
                self.problem(key.to_string(), what);
                Ok(())
            }
            Err(error) if error.is_damage() => {
                self.problem(crate::repo::layout::KEYRINGS.into(), error.to_string());
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Each pack's own table of its frames: a restore does without, and whoever has lost the file lists does not.
    async fn pack_tables(&mut self, manifest: &Manifest, packs: Vec<PackLine>) -> Result<(), RepoError> {
        use futures::StreamExt;
        let unseen: Vec<PackLine> = packs.into_iter().filter(|pack| self.packs.insert(pack.name.clone())).collect();
        let cluster = self.cluster;
        let read = |pack: PackLine| async move {
            let key = cluster.layout().pack(&pack.name);
            let trailer = object::read_trailer(cluster.vault(), &key, ObjectKind::Pack).await;
            let checked = trailer.and_then(|trailer| match trailer.head == pack.head {
                true => pack::frames(&key, &pack.name, &trailer).map(drop),
                false => Err(RepoError::damaged(&key, "its seed is not the one in the pack table")),
            });
            (key.to_string(), checked)
        };
        let mut reads = futures::stream::iter(unseen).map(read).buffered(2 * self.request.threads.max(1));
        while let Some((key, checked)) = reads.next().await {
            // One that is missing was told before.
            if !checked.as_ref().is_err_and(RepoError::is_not_found) {
                self.damage(checked, &manifest.id, key)?;
            }
        }
        Ok(())
    }

    /// The segments that make the snapshot consistent, each with the checksum that was seen when it was taken.
    async fn wal_table(&mut self, manifest: &Manifest) -> Result<(), RepoError> {
        let key = self.cluster.layout().wal_table(&manifest.id).to_string();
        let lines = manifest.wal(self.cluster).await;
        for SegmentLine(name, sha256) in self.damage(lines, &manifest.id, key)?.unwrap_or_default() {
            let file = WalFile::Segment(name);
            let key = self.cluster.layout().wal(manifest.system_identifier, &file).to_string();
            let trailer = segment::read_trailer(self.cluster, manifest.system_identifier, &file).await;
            if let Some(trailer) = self.damage(trailer, &manifest.id, key.clone())?
                && trailer.sha256 != sha256
            {
                self.costs(key, "it is not the segment that was there when the snapshot was taken".into(), &manifest.id);
            }
        }
        Ok(())
    }

    async fn files(&mut self, manifest: &Manifest, lines: &[FileLine]) -> Result<(), RepoError> {
        let mut frames = Vec::new();
        let mut far: Vec<(FrameRef, &FileLine)> = Vec::new();
        for line in lines {
            let What::File { map, .. } = &line.what else { continue };
            match map {
                MapPlace::Map(map) => frames.extend(self.map(manifest, line, map)),
                MapPlace::MapFrame { frame, .. } => far.push((frame.clone(), line)),
            }
            if frames.len() >= BATCH_FRAMES {
                self.frames(manifest, std::mem::take(&mut frames)).await?;
            }
        }
        // A few maps at a time: each may be a megabyte.
        for portion in far.chunks(16) {
            let mut sorted: Vec<FrameRef> = portion.iter().map(|(frame, _)| frame.clone()).collect();
            fetch::sort(&mut sorted);
            let maps = fetch::maps(self.cluster, Arc::new(sorted.clone())).await?;
            for (frame, map) in sorted.iter().zip(maps) {
                let key = self.cluster.layout().pack(&frame.pack).to_string();
                let Some(map) = self.damage(map, &manifest.id, key)? else { continue };
                for (_, line) in portion.iter().filter(|(f, _)| f == frame) {
                    frames.extend(self.map(manifest, line, &map));
                }
            }
            self.frames(manifest, std::mem::take(&mut frames)).await?;
        }
        self.frames(manifest, frames).await
    }

    /// A map that fits its file; its frames.
    fn map(&mut self, manifest: &Manifest, line: &FileLine, map: &FileMap) -> Vec<FrameRef> {
        if let Some(what) = line.map_defect(map) {
            let key = self.cluster.layout().manifest(&manifest.id).to_string();
            self.costs(key, format!("{:?}: {what}", line.path), &manifest.id);
            return Vec::new();
        }
        map.frames.clone()
    }

    async fn frames(&mut self, manifest: &Manifest, mut frames: Vec<FrameRef>) -> Result<(), RepoError> {
        let mut bad_again = Vec::new();
        {
            let proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
            let bad = &self.bad;
            frames.retain(|frame| {
                let fingerprint = fingerprint(frame);
                if let Some(known) = bad.get(&fingerprint) {
                    bad_again.push(known.clone());
                    return false;
                }
                !proven.contains(&fingerprint)
            });
        }
        for (object, what) in bad_again {
            self.costs(object, what, &manifest.id);
        }
        fetch::sort(&mut frames);
        let frames = Arc::new(frames);
        let found = Arc::new(Mutex::new(Vec::new()));
        let visit = {
            let (frames, found, proven, monitor) = (frames.clone(), found.clone(), self.proven.clone(), self.monitor.clone());
            Arc::new(move |index: usize, raw: Result<&[u8], RepoError>| -> Result<(), RepoError> {
                let frame: &FrameRef = &frames[index];
                match raw {
                    Ok(_) => drop(proven.lock().unwrap_or_else(PoisonError::into_inner).insert(fingerprint(frame))),
                    Err(error) => found.lock().unwrap_or_else(PoisonError::into_inner).push((frame.clone(), error.to_string())),
                }
                monitor.advance(u64::from(frame.raw_bytes));
                Ok(())
            })
        };
        self.report.frames += frames.len() as u64;
        self.report.bytes += frames.iter().map(|f| u64::from(f.raw_bytes)).sum::<u64>();
        fetch::each(self.cluster, frames, self.request.threads, visit).await?;
        let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
        for (frame, what) in found {
            let object = self.cluster.layout().pack(&frame.pack).to_string();
            self.bad.insert(fingerprint(&frame), (object.clone(), what.clone()));
            self.costs(object, what, &manifest.id);
        }
        Ok(())
    }
}

/// Eight bytes that tell this frame, at this place, from all others.
fn fingerprint(frame: &FrameRef) -> u64 {
    let mut bytes = frame.sha256.0.to_vec();
    bytes.extend_from_slice(frame.pack.as_bytes());
    bytes.extend_from_slice(&frame.offset.to_le_bytes());
    bytes.extend_from_slice(&frame.stored_bytes.to_le_bytes());
    bytes.extend_from_slice(&frame.raw_bytes.to_le_bytes());
    u64::from_le_bytes(Sha::of(&bytes).0[..8].try_into().expect("eight bytes"))
}
