//! Reads the repository in portions, so that every object is read again within a set number of days.
//!
//! # What
//! A unit is a pack, the lists and tables of one snapshot, a block of at most 256 WAL segments, or all objects of a kind that no restore needs. Each run takes those that were never
//! read, then those that were read longest ago, until its budget is used up, and writes down what it read ([`verified`]). A
//! damaged unit is not written down: every run reads it again, and stays red.
//!
//! What is proven: that each object is what was written. That manifests, lists and packs fit together, [`verify`](super::verify)
//! proves as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::documents::{self, Kind};
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::fetch;
use crate::repo::object::{self, ObjectKind};
use crate::repo::pack;
use crate::repo::record::ClusterRecord;
use crate::repo::repository::Cluster;
use crate::repo::segment;
use crate::repo::verified::Verified;
use crate::repo::{expired, manifest};
use crate::storage::{Depth, ObjectInfo, ObjectKey, list_all};

/// How much one run reads; at least one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    Bytes(u64),
    Time(Duration),
}

/// What a run did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    pub units: u64,
    pub units_read: u64,
    pub bytes: u64,
    /// Since when the longest wait is: the time of the oldest reading, or of the oldest object that was never read.
    pub oldest: Option<Timestamp>,
    pub never_read: u64,
    /// Object, and what is wrong with it.
    pub problems: Vec<(String, String)>,
}

/// What is read and remembered as one.
#[derive(Debug, Clone)]
enum Unit {
    Pack {
        name: String,
        bytes: u64,
    },
    Lists {
        id: String,
    },
    Block {
        system: SystemId,
        folder: String,
    },
    /// All objects of a kind that no restore needs.
    Documents(Kind),
}

/// Reads until the budget is used up.
pub async fn run(
    cluster: &Cluster,
    record: &ClusterRecord,
    budget: Budget,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Report, RepoError> {
    let known = Verified::read(cluster).await?;
    let units = units(cluster, record).await?;
    let read_at = |key: &String| known.as_ref().and_then(|known| known.of(key));
    let mut order: Vec<(Option<Timestamp>, &String)> = units.keys().map(|key| (read_at(key), key)).collect();
    order.sort();
    let mut work = Work { cluster, threads, report: Report { units: units.len() as u64, ..Report::default() } };
    let began = clock::monotonic();
    monitor.phase("verify", if let Budget::Bytes(bytes) = budget { bytes } else { 0 });
    let mut times: BTreeMap<&String, Option<Timestamp>> = order.iter().map(|(time, key)| (*key, *time)).collect();
    let now = clock::now();
    for (_, key) in &order {
        let is_over = match budget {
            Budget::Bytes(bytes) => work.report.bytes >= bytes,
            Budget::Time(time) => began.elapsed() >= time,
        };
        if is_over && work.report.units_read > 0 {
            break;
        }
        let (bytes, problems) = (work.report.bytes, work.report.problems.len());
        work.unit(&units[*key]).await?;
        work.report.units_read += 1;
        monitor.advance(work.report.bytes - bytes);
        let is_sound = work.report.problems.len() == problems;
        times.insert(key, is_sound.then_some(now));
    }
    let mut report = work.report;
    report.never_read = times.values().filter(|time| time.is_none()).count() as u64;
    report.oldest = times.iter().map(|(key, time)| time.unwrap_or_else(|| written(&units[*key], now))).min();
    let verified = Verified::of_keys(now, times.into_iter().map(|(key, time)| (key.clone(), time)));
    Verified { oldest: report.oldest, ..verified }.put(cluster).await?;
    Ok(report)
}

/// When what was never read was written, as far as its name tells.
fn written(unit: &Unit, now: Timestamp) -> Timestamp {
    let id = match unit {
        Unit::Pack { name, .. } => name.split('/').next().unwrap_or_default(),
        Unit::Lists { id } => id,
        Unit::Block { .. } | Unit::Documents(_) => return now,
    };
    let second = id.split('-').next().unwrap_or_default();
    jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", second)
        .and_then(|parsed| parsed.to_datetime())
        .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC))
        .map_or(now, |time| time.timestamp())
}

/// Everything that committed snapshots, lent packs and WAL consist of, by a key that sorts.
async fn units(cluster: &Cluster, record: &ClusterRecord) -> Result<BTreeMap<String, Unit>, RepoError> {
    let layout = cluster.layout();
    let mut units = BTreeMap::new();
    let committed = cluster.snapshot_ids().await?;
    for id in &committed {
        units.insert(format!("{}{id}/", layout.all_files()), Unit::Lists { id: id.clone() });
    }
    let ids: BTreeSet<String> = committed.into_iter().chain(expired::ids(cluster).await?).collect();
    for id in ids {
        for object in list_all(cluster.storage(), &format!("{}{id}/", layout.all_packs()), Depth::All).await?.objects {
            let (name, bytes) = (format!("{id}/{}", object.key.name()), object.bytes);
            units.insert(object.key.to_string(), Unit::Pack { name, bytes });
        }
    }
    for history in &record.histories {
        let prefix = layout.segments(history.system_identifier);
        for block in list_all(cluster.storage(), &prefix, Depth::Folder).await?.folders {
            let folder = format!("{prefix}{block}");
            units.insert(folder.clone(), Unit::Block { system: history.system_identifier, folder });
        }
    }
    let kinds = documents::kinds(cluster, record.histories.iter().map(|history| history.system_identifier));
    // What every run of this writes anew is not worth a place in it.
    for kind in kinds.into_iter().filter(|kind| !kind.is_brief && kind.prefix != layout.verified()) {
        if !cluster.storage().list(&kind.prefix, None, Depth::All).await?.objects.is_empty() {
            units.insert(kind.prefix.clone(), Unit::Documents(kind));
        }
    }
    Ok(units)
}

struct Work<'a> {
    cluster: &'a Cluster,
    threads: usize,
    report: Report,
}

impl Work<'_> {
    /// Damage becomes a problem, and so does what must be thawed; a store that does not answer ends the run.
    fn judge<T>(&mut self, key: &str, result: Result<T, RepoError>) -> Result<Option<T>, RepoError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_damage() => {
                self.report.problems.push((key.into(), error.to_string()));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn unit(&mut self, unit: &Unit) -> Result<(), RepoError> {
        match unit {
            Unit::Pack { name, bytes } => {
                self.report.bytes += bytes;
                self.pack(name).await
            }
            Unit::Lists { id } => self.lists(id).await,
            Unit::Block { system, folder } => self.block(*system, folder).await,
            Unit::Documents(kind) => {
                let mut found = Vec::new();
                self.report.bytes += documents::prove(self.cluster, kind, &mut |key, error| found.push((key, error))).await?;
                let damage = found.into_iter().filter(|(_, error)| !error.is_newer_epoch());
                self.report.problems.extend(damage.map(|(key, error)| (key, format!("{error} ({})", kind.cost))));
                Ok(())
            }
        }
    }

    /// Every frame that the pack's own table names.
    async fn pack(&mut self, name: &str) -> Result<(), RepoError> {
        let key = self.cluster.layout().pack(name);
        let trailer = object::read_trailer(self.cluster.vault(), &key, ObjectKind::Pack).await;
        let frames = trailer.and_then(|trailer| pack::frames(&key, name, &trailer));
        let Some(frames) = self.judge(key.as_str(), frames)? else { return Ok(()) };
        let bad: Arc<Mutex<Option<String>>> = Arc::default();
        let visit = {
            let bad = bad.clone();
            Arc::new(move |_: usize, raw: Result<&[u8], RepoError>| -> Result<(), RepoError> {
                match raw {
                    Ok(_) => Ok(()),
                    Err(error) if error.is_damage() => {
                        bad.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            })
        };
        fetch::each(self.cluster, Arc::new(frames), self.threads, visit).await?;
        if let Some(what) = bad.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.report.problems.push((key.to_string(), what));
        }
        Ok(())
    }

    /// Manifest, lists and tables: each is held by its own checksum, and by the manifest's.
    async fn lists(&mut self, id: &str) -> Result<(), RepoError> {
        let layout = self.cluster.layout();
        let key = layout.manifest(id).to_string();
        let manifest = manifest::Manifest::read(self.cluster, id).await;
        let Some(manifest) = self.judge(&key, manifest)? else { return Ok(()) };
        let parts = [(layout.pack_table(id), &manifest.pack_table), (layout.wal_table(id), &manifest.wal_table)];
        let lists = manifest.file_lists.iter().zip(1..).map(|(part, number)| (layout.files(id, number), part));
        for (key, part) in lists.chain(parts) {
            let read = object::get_document(self.cluster.vault(), &key).await;
            let read = read.and_then(|raw| match object::Sha::of(&raw) == part.sha256 {
                true => Ok(raw.len()),
                false => Err(RepoError::damaged(&key, "it is not the one that the manifest names")),
            });
            self.report.bytes += self.judge(key.as_str(), read)?.unwrap_or(0) as u64;
        }
        Ok(())
    }

    async fn block(&mut self, system: SystemId, folder: &str) -> Result<(), RepoError> {
        use futures::StreamExt;
        let cluster = self.cluster;
        let objects: Vec<ObjectInfo> = list_all(cluster.storage(), folder, Depth::All).await?.objects;
        let segments = objects.into_iter().filter_map(|o| Some((o.key.name().parse::<SegmentName>().ok()?, o.key, o.bytes)));
        let read = |(name, key, bytes): (SegmentName, ObjectKey, u64)| async move {
            let mut sink = std::io::sink();
            (key, bytes, segment::fetch(cluster, system, &WalFile::Segment(name), &mut sink).await.map(drop))
        };
        let mut reads = futures::stream::iter(segments.collect::<Vec<_>>()).map(read).buffered(4);
        while let Some((key, bytes, read)) = reads.next().await {
            self.report.bytes += bytes;
            // Expired since it was listed.
            if read.as_ref().is_err_and(RepoError::is_not_found) && cluster.storage().stat(&key).await?.is_none() {
                continue;
            }
            self.judge(key.as_str(), read)?;
        }
        Ok(())
    }
}
