//! Copies what one repository has and another lacks, each object proven on the way.
//!
//! # What
//! Objects are written once, so two repositories are compared by their listings, side by side, page by page. What only the source
//! has is read, proven ([`copy`]) and created under the same key with the same bytes. Nothing is ever overwritten: what lies under
//! one key with two lengths is reported.
//!
//! # Order
//! As everything is written: data before what refers to it. The key that says which repository it is first; then packs, file lists,
//! WAL, the index over it, everything else, manifests, and the cluster's record last. A copy that is broken off is a smaller sound
//! repository, and the next run goes on where the listings differ. A manifest whose data could not be copied whole stays behind.
//!
//! # What is wanted
//! A copy takes the snapshots that are committed when it begins, and the packs that these refer to: neither what a running backup
//! has written so far, nor garbage ([`wanted`]). Healing is the other way round and stricter: what expiry has removed here must not
//! come back from there. So it goes by what is *here*: packs and lists that manifests here refer to, WAL from the oldest
//! snapshot here on, records, audit and alerts. A manifest that is gone counts as expired, and so do its own objects.
//!
//! # Leases
//! Each cluster of the source is pinned while it is copied. Leases themselves are not copied: they say what happens in one place.

mod copy;
mod listing;
mod wanted;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use serde::Serialize;

use crate::clock;
use crate::monitor::Monitor;
use crate::repo::RepoError;
use crate::repo::copies;
use crate::repo::layout;
use crate::repo::lease::Lease;
use crate::repo::object;
use crate::repo::proof::Proof;
use crate::repo::repository::{self, Cluster, Repository};
use crate::storage::{Depth, Fault, ObjectInfo, ObjectKey, Storage, list_all};

use copy::Copier;
pub use copy::prove_elsewhere;
use listing::{Both, Side};
use wanted::Wanted;

/// The pin's snapshot: all of them.
pub const ALL: &str = "all";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The destination becomes a copy of the source.
    Copy,
    /// The destination gets back from its copy what it should have.
    Heal,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub way: Way,
    /// Compare only.
    pub dry_run: bool,
    /// Objects copied at the same time.
    pub parallel: usize,
}

/// An object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub object: String,
    pub what: String,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Keys that were compared.
    pub compared: u64,
    /// Objects that were copied; in a dry run, that would be.
    pub copied: u64,
    pub bytes: u64,
    /// Of them, those of which only trailer and length could be proven, for want of a reader's key.
    pub trailer_only: u64,
    /// One name, two objects. Neither was touched.
    pub differing: Vec<Problem>,
    /// Damaged in the source, or missing in both; not copied.
    pub damaged: Vec<Problem>,
    /// Snapshots that were not copied because of that.
    pub withheld: Vec<String>,
    /// What only the destination has: expired in the source, or lost there.
    pub only_there: u64,
}

impl Report {
    pub fn is_sound(&self) -> bool {
        self.differing.is_empty() && self.damaged.is_empty()
    }
}

/// Brings `to` up to what `from` has.
pub async fn mirror(
    from: &Repository,
    to: Arc<dyn Storage>,
    request: &Request,
    monitor: Arc<dyn Monitor>,
) -> Result<Report, RepoError> {
    let is_there = recognise(from, &*to, request).await?;
    let mut run =
        Run { from, copier: Copier::new(from.vault(), to), request, monitor, report: Report::default(), bad: BTreeSet::new() };
    if request.way == Way::Copy {
        run.prefix(layout::KEYRINGS, &|_| true).await?;
        if !is_there {
            run.whole_key(&layout::repository()).await?;
        }
    }
    run.prefix(layout::AUDIT, &|_| true).await?;
    for name in from.clusters().await? {
        run.cluster(&from.cluster(&name)).await?;
    }
    Ok(run.report)
}

/// Whether the destination is this repository's copy already; an empty place may become one.
async fn recognise(from: &Repository, to: &dyn Storage, request: &Request) -> Result<bool, RepoError> {
    let place = || to.place().to_string();
    match object::absent(repository::read_record(to).await)? {
        Some(record) if record.id == from.record().id => Ok(true),
        Some(record) => {
            let (found, expected) = (record.id, from.record().id.clone());
            Err(RepoError::OtherRepository { place: place(), found, expected })
        }
        None if request.way == Way::Heal => Err(RepoError::NoRepository { place: place() }),
        None => {
            let page = to.list("", None, Depth::Folder).await?;
            let found = page.folders.into_iter().chain(page.objects.into_iter().map(|o| o.key.to_string()));
            // Keyrings come first; alone, they are what an interrupted copy left.
            match found.into_iter().find(|name| name != layout::KEYRINGS) {
                Some(found) => Err(RepoError::Foreign { place: place(), found }),
                None => Ok(false),
            }
        }
    }
}

/// In which order the folders of a cluster are copied; `None` for what is of one place only.
fn turn(folder: &str) -> Option<u8> {
    match folder {
        "leases/" | "locks/" => None,
        "packs/" => Some(0),
        "files/" => Some(1),
        "wal/" => Some(2),
        "snapshots/" => Some(8),
        "record/" => Some(9),
        _ => Some(5),
    }
}

struct Run<'a> {
    from: &'a Repository,
    copier: Copier,
    request: &'a Request,
    monitor: Arc<dyn Monitor>,
    report: Report,
    /// What could not be copied of the current cluster's snapshots.
    bad: BTreeSet<String>,
}

impl Run<'_> {
    async fn cluster(&mut self, cluster: &Cluster) -> Result<(), RepoError> {
        let lease = if self.request.dry_run { None } else { self.pin(cluster).await? };
        let copied = self.cluster_pinned(cluster).await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        copied
    }

    /// A source that may only be read is copied without a lease.
    async fn pin(&self, cluster: &Cluster) -> Result<Option<Lease>, RepoError> {
        match Lease::take(cluster, &format!("mirror-{}", clock::random_hex(4)), ALL).await {
            Ok(lease) => Ok(Some(lease)),
            Err(RepoError::Storage(error)) if matches!(error.fault, Fault::Denied | Fault::ReadOnly | Fault::Full) => {
                self.monitor.warn(&format!("{error}; the copy goes on without a lease: let nothing expire meanwhile"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn cluster_pinned(&mut self, cluster: &Cluster) -> Result<(), RepoError> {
        self.bad.clear();
        let whose = match self.request.way {
            Way::Copy => cluster.clone(),
            Way::Heal => cluster.through(self.copier.to().clone()),
        };
        let mut wanted = Wanted::of(&whose, self.request.way).await?;
        for (id, what) in wanted.unreadable() {
            self.report.damaged.push(Problem { object: cluster.layout().manifest(&id).to_string(), what });
        }
        let root = format!("{}{}/", layout::CLUSTERS, cluster.name());
        let page = list_all(cluster.storage(), &root, Depth::Folder).await?;
        let mut folders: Vec<(u8, String)> = page.folders.into_iter().filter_map(|f| Some((turn(&f)?, f))).collect();
        folders.sort();
        for (_, folder) in folders {
            let prefix = format!("{root}{folder}");
            match folder.as_str() {
                "packs/" => self.packs(&prefix, &mut wanted).await?,
                "wal/" => self.wal(cluster, &prefix, &wanted).await?,
                "snapshots/" => self.snapshots(cluster, &prefix, &wanted).await?,
                _ => self.prefix(&prefix, &|key| wanted.wants(&folder, key)).await?,
            }
        }
        Ok(())
    }

    /// Packs that are wanted and in neither place are holes.
    async fn packs(&mut self, prefix: &str, wanted: &mut Wanted) -> Result<(), RepoError> {
        let seen = std::sync::Mutex::new(Vec::new());
        let wants = |key: &ObjectKey| {
            let fingerprint = wanted.pack(key.as_str().strip_prefix(prefix).unwrap_or_default());
            let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            seen.extend(fingerprint);
            fingerprint.is_some()
        };
        self.prefix(prefix, &wants).await?;
        wanted.found(&seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
        Ok(())
    }

    /// The index last: a roll-up's key says that its segments are there.
    async fn wal(&mut self, cluster: &Cluster, prefix: &str, wanted: &Wanted) -> Result<(), RepoError> {
        for system in list_all(cluster.storage(), prefix, Depth::Folder).await?.folders {
            let root = format!("{prefix}{system}");
            let mut kinds = list_all(cluster.storage(), &root, Depth::Folder).await?.folders;
            kinds.sort_by_key(|kind| kind == "index/");
            for kind in kinds {
                self.prefix(&format!("{root}{kind}"), &|key| wanted.wants_wal(&system, &kind, key)).await?;
            }
        }
        Ok(())
    }

    /// Those that are complete over there by now.
    async fn snapshots(&mut self, cluster: &Cluster, prefix: &str, wanted: &Wanted) -> Result<(), RepoError> {
        let withheld = wanted.incomplete(cluster, &self.bad).await?;
        for (id, pack) in &withheld {
            self.report.withheld.push(id.clone());
            if let Some(pack) = pack {
                let object = cluster.layout().pack(pack).to_string();
                let is_told = self.report.damaged.iter().any(|problem| problem.object == object);
                if !is_told {
                    self.report.damaged.push(Problem { object, what: "it is missing in both".into() });
                }
            }
        }
        let wants = |key: &ObjectKey| wanted.wants("snapshots/", key) && !withheld.contains_key(key.name());
        self.prefix(prefix, &wants).await
    }

    /// Compares all below a prefix, and copies what is wanted, before anything behind it is begun.
    async fn prefix(&mut self, prefix: &str, wants: &(dyn Fn(&ObjectKey) -> bool + Sync)) -> Result<(), RepoError> {
        self.monitor.phase(
            &format!("{} {}", if self.request.way == Way::Heal { "heal" } else { "copy" }, prefix.trim_end_matches('/')),
            0,
        );
        let to = self.copier.to().clone();
        let mut both = Both::new(&**self.from.storage(), &*to, prefix);
        loop {
            let mut missing = Vec::new();
            // A page at a time: while it is copied, nothing more is listed.
            while missing.len() < crate::storage::LIST_PAGE_KEYS {
                let Some(side) = both.next().await? else { break };
                self.report.compared += 1;
                match side {
                    Side::Left(object) if wants(&object.key) => missing.push(object),
                    Side::Left(_) => {}
                    Side::Right(_) => self.report.only_there += 1,
                    Side::Both(left, right) => {
                        let is_wanted = wants(&left.key);
                        if left.bytes != right.bytes && is_wanted && !self.is_same(&left.key).await? {
                            self.differs(&left, &right);
                        }
                    }
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            self.copy(missing).await?;
        }
    }

    /// Damage in one of them is a difference, too.
    async fn is_same(&self, key: &ObjectKey) -> Result<bool, RepoError> {
        match copies::same_content(self.from.vault(), &self.copier.there(), key).await {
            Err(error) if error.is_damage() || error.is_newer_epoch() => Ok(false),
            same => same,
        }
    }

    fn differs(&mut self, left: &ObjectInfo, right: &ObjectInfo) {
        let (here, there) = (self.from.storage().place(), self.copier.to().place());
        let what = format!("it has {} bytes in {here} and {} in {there}; both stay", left.bytes, right.bytes);
        self.bad.insert(left.key.to_string());
        self.report.differing.push(Problem { object: left.key.to_string(), what });
    }

    async fn whole_key(&mut self, key: &ObjectKey) -> Result<(), RepoError> {
        match self.from.storage().stat(key).await? {
            Some(info) => self.copy(vec![info]).await,
            None => Ok(()),
        }
    }

    async fn copy(&mut self, missing: Vec<ObjectInfo>) -> Result<(), RepoError> {
        if self.request.dry_run {
            self.report.copied += missing.len() as u64;
            self.report.bytes += missing.iter().map(|o| o.bytes).sum::<u64>();
            return Ok(());
        }
        let copier = &self.copier;
        let copy = |object: ObjectInfo| async move {
            let copied = copier.copy(&object).await;
            (object, copied)
        };
        let mut copies = futures::stream::iter(missing).map(copy).buffer_unordered(self.request.parallel.max(1));
        while let Some((object, copied)) = copies.next().await {
            match copied {
                Ok(Some(proof)) => {
                    self.report.copied += 1;
                    self.report.bytes += object.bytes;
                    self.report.trailer_only += u64::from(proof == Proof::Trailer);
                    self.monitor.advance(object.bytes);
                }
                // Gone since it was listed: whoever removed it had removed what refers to it before.
                Ok(None) => {}
                Err(error @ RepoError::Conflict { .. }) => {
                    self.bad.insert(object.key.to_string());
                    self.report.differing.push(Problem { object: object.key.to_string(), what: error.to_string() });
                }
                Err(error) if error.is_damage() => {
                    self.bad.insert(object.key.to_string());
                    self.report.damaged.push(Problem { object: object.key.to_string(), what: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
