//! The program's side: a repository in memory, data directories with what the program reads of them, and its own code on both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lastgood::archive::push::{self, PushError, Pushed, Source};
use lastgood::config::Retention;
use lastgood::lineage::compare::{self, Compared};
use lastgood::monitor::Silent;
use lastgood::postgres::data_directory::RESTORED_MARK;
use lastgood::postgres::lsn::Timeline;
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::repo::audit::Who;
use lastgood::repo::manifest::{ListWriter, Manifest, SegmentLine, put_table};
use lastgood::repo::object::Sha;
use lastgood::repo::pack_table::PackLine;
use lastgood::repo::record::ClusterRecord;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::repo::segment;
use lastgood::restore::base::Base;
use lastgood::restore::guard::{self, Brought, Seal};
use lastgood::restore::plan::{self, Plan};
use lastgood::restore::release;
use lastgood::restore::replaced::Around;
use lastgood::restore::salvage;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::{Depth, ObjectKey, Storage, list_all};
use lastgood::timeline::archive::Archive;
use lastgood::timeline::tail;
use lastgood::timeline::target::Target;
use lastgood::upkeep::expire;

use super::truth::{MAJOR, Server, State, Truth};
use crate::support::wal_writer::{SEGMENT, control_file, lsn};

const NAME: &str = "shop";

/// What a snapshot's files hold, as the truth knows it.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Before the first record that is replayed.
    pub before: State,
    /// Where the copy is consistent.
    pub consistent: State,
}

pub struct Stage {
    dir: tempfile::TempDir,
    pub storage: Arc<MemoryStorage>,
    pub repository: Repository,
    pub cluster: Cluster,
    pub taken: BTreeMap<String, Taken>,
}

impl Stage {
    pub async fn new(truth: &Truth) -> Stage {
        let storage = Arc::new(MemoryStorage::new());
        let (repository, _) = Repository::open_or_create(storage.clone(), &Keys::default(), None).await.unwrap();
        let cluster = repository.cluster(NAME);
        let record = serde_json::json!({
            "format": 1, "number": 1, "name": NAME, "written": truth.now,
            "histories": [{
                "system_identifier": truth.system, "major": MAJOR, "catalog_version": 202209061, "control_version": 1300,
                "block_bytes": 8192, "wal_segment_bytes": SEGMENT, "data_checksums": true, "registered": truth.now,
            }],
        });
        assert!(cluster.put_record(&serde_json::from_value(record).unwrap()).await.unwrap());
        let dir = tempfile::Builder::new().prefix("lastgood-history-").tempdir_in("/tmp").unwrap();
        Stage { dir, storage, repository, cluster, taken: BTreeMap::new() }
    }

    pub fn directory(&self, server: &Server) -> PathBuf {
        self.dir.path().join(format!("place{}", server.place))
    }

    /// Bytes in a file of their own, to be linked to where they are wanted.
    fn link(&self, bytes: &[u8], to: &Path) {
        let known = self.dir.path().join(format!("content-{}", Sha::of(bytes)));
        if !known.exists() {
            fs::write(&known, bytes).unwrap();
        }
        if fs::hard_link(&known, to).is_err() {
            fs::remove_file(to).unwrap();
            fs::hard_link(&known, to).unwrap();
        }
    }

    /// Lays a data directory out; of its WAL these files.
    fn lay(&self, server: &Server, wanted: impl Fn(&str) -> bool) -> PathBuf {
        let dir = self.directory(server);
        let pg_wal = dir.join("pg_wal");
        if !dir.exists() {
            fs::create_dir_all(dir.join("global")).unwrap();
            fs::create_dir_all(dir.join("base")).unwrap();
            fs::create_dir_all(pg_wal.join("archive_status")).unwrap();
            fs::write(dir.join("PG_VERSION"), format!("{MAJOR}\n")).unwrap();
        }
        for entry in fs::read_dir(&pg_wal).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            fs::remove_file(entry.path()).unwrap();
        }
        let checkpoint = server.records.last().map_or(0, |record| record.lsn);
        fs::write(dir.join("global/pg_control"), control_file(server.wal.system, server.timeline(), checkpoint)).unwrap();
        if server.timeline() > 1 {
            fs::write(pg_wal.join(format!("{:08X}.history", server.timeline())), server.history_text()).unwrap();
        }
        for (name, bytes) in server.files.iter().filter(|(name, _)| wanted(name)) {
            self.link(bytes, &pg_wal.join(name));
        }
        let mark = dir.join(RESTORED_MARK);
        match server.is_restored {
            true => fs::write(mark, "").unwrap(),
            false => drop(fs::remove_file(mark)),
        }
        dir
    }

    /// `archive_command` for one file. Between two calls more time passes than the program believes what it found out before.
    pub async fn push(&self, server: &Server, file: WalFile) -> Result<Pushed, PushError> {
        let name = file.to_string();
        let dir = self.lay(server, |other| other == name);
        if let Some((before, bytes)) = before(server, file) {
            self.link(bytes, &dir.join("pg_wal").join(before.to_string()));
        }
        let spool = self.dir.path().join(format!("spool{}", server.place));
        forget(&spool);
        let source = Source { storage: self.storage.clone(), cluster_name: NAME.into(), keys: Keys::default() };
        let request = push::Request {
            path: format!("pg_wal/{name}").into(),
            from: dir,
            spool,
            push_ahead: 0,
            compression_level: 1,
            allow_standby: false,
            who: Who::default(),
        };
        push::push(&source, &request).await.map(|outcome| outcome.pushed)
    }

    pub async fn record(&self) -> ClusterRecord {
        self.cluster.record().await.unwrap().unwrap()
    }

    pub async fn archive(&self, truth: &Truth) -> Archive {
        let mut archive = Archive::load(&self.cluster, truth.system, SEGMENT).await.unwrap();
        archive.decide(&self.record().await);
        archive
    }

    pub async fn manifests(&self) -> Vec<Manifest> {
        self.cluster.manifests().await.unwrap().into_iter().filter_map(|(_, manifest)| manifest.ok()).collect()
    }

    /// The archived segments, each with its content.
    pub async fn segments(&self, truth: &Truth) -> BTreeMap<SegmentName, Sha> {
        let prefix = self.cluster.layout().segments(truth.system);
        let mut segments = BTreeMap::new();
        for object in list_all(self.cluster.storage(), &prefix, Depth::All).await.unwrap().objects {
            let Ok(name) = object.key.name().parse::<SegmentName>() else { continue };
            let trailer = segment::read_trailer(&self.cluster, truth.system, &WalFile::Segment(name)).await.unwrap();
            segments.insert(name, trailer.sha256);
        }
        segments
    }

    /// Ends of WAL that are not archived whole, as a restore would provide them.
    pub async fn tails(&self, archive: &Archive) -> BTreeMap<SegmentName, Arc<Vec<u8>>> {
        let stored = tail::stored(&self.cluster, archive.system).await.unwrap();
        let mut tails = BTreeMap::new();
        for name in stored.into_keys().filter(|name| archive.tail(*name).is_some()) {
            let mut bytes = Vec::new();
            archive.fetch(name, &mut bytes).await.unwrap();
            tails.insert(name, Arc::new(bytes));
        }
        tails
    }

    /// Expires by a rule; what was left for another time is no failure.
    pub async fn expire(&self, keep: u32) -> Result<(), String> {
        let rules = Retention { keep_last: Some(keep), ..Retention::default() };
        let request = expire::Request { rules, accept_shrink: true, forget: None, who: Who::default() };
        let done = expire::run(&self.cluster, &self.record().await, &request, &mut |_| {}, Arc::new(Silent)).await;
        done.map(drop).map_err(|error| error.to_string())
    }

    /// Whether a file of this name is archived, whatever it holds.
    pub async fn has(&self, truth: &Truth, file: WalFile) -> bool {
        self.storage.stat(&self.cluster.layout().wal(truth.system, &file)).await.unwrap().is_some()
    }

    /// Everything that belongs to WAL.
    pub async fn objects(&self, truth: &Truth) -> Vec<ObjectKey> {
        let layout = self.cluster.layout();
        let mut keys = Vec::new();
        for prefix in [layout.segments(truth.system), layout.histories(truth.system)] {
            keys.extend(list_all(&*self.storage, &prefix, Depth::All).await.unwrap().objects.into_iter().map(|o| o.key));
        }
        keys
    }

    /// What `backup` asks before it commits: each segment of the copy is archived, as this server has it.
    pub async fn proves(&self, server: &Server, segments: &[WalFile]) -> bool {
        let pg_wal = self.lay(server, |_| true).join("pg_wal");
        for file in segments {
            let WalFile::Segment(name) = *file else { continue };
            let compared = compare::whole(&self.cluster, server.wal.system, name, pg_wal.join(name.to_string())).await;
            if !matches!(compared, Ok(Compared::Same(_))) {
                return false;
            }
        }
        let history = WalFile::History(server.path().timeline());
        server.timeline() == 1 || segment::read_trailer(&self.cluster, server.wal.system, &history).await.is_ok()
    }

    /// Commits a snapshot of a server between two positions.
    pub async fn commit(&mut self, truth: &Truth, server: &Server, (start, stop): (u64, u64), taken: Taken) {
        let id = format!("{}-{:04}", truth.now.strftime("%Y%m%dT%H%M%SZ"), self.taken.len());
        let name = |position: u64| SegmentName::new(server.path().timeline(), position / SEGMENT, SEGMENT);
        let (first, last) = (name(start), name(stop - 1));
        let mut lines = Vec::new();
        for number in start / SEGMENT..=(stop - 1) / SEGMENT {
            let name = SegmentName::new(server.path().timeline(), number, SEGMENT);
            lines.push(SegmentLine(name, Sha::of(&server.files[&name.to_string()])));
        }
        let layout = self.cluster.layout();
        let packs = put_table::<PackLine>(&self.cluster, &layout.pack_table(&id), &[]).await.unwrap();
        let wal = put_table(&self.cluster, &layout.wal_table(&id), &lines).await.unwrap();
        let (file_lists, root) = ListWriter::new(&self.cluster, &id).finish().await.unwrap();
        let manifest = serde_json::json!({
            "format": 1, "id": id, "cluster": NAME, "system_identifier": truth.system, "major": MAJOR, "version": "15.0",
            "control_version": 1300, "catalog_version": 202209061, "block_bytes": 8192, "blocks_per_file": 131072,
            "wal_segment_bytes": SEGMENT, "data_checksums": true, "timeline": server.timeline(), "start_lsn": lsn(start),
            "stop_lsn": lsn(stop), "start_time": truth.now, "stop_time": truth.now, "listed_ns": 0, "from_standby": false,
            "backup_label": format!("START WAL LOCATION: {} (file {first})\n", lsn(start)), "tablespaces": [],
            "data_directory": "/data", "owner": "postgres", "group": "postgres", "mode": 448, "file_lists": file_lists,
            "pack_table": packs, "wal_table": wal, "first_segment": first, "last_segment": last,
            "totals": { "files": 0, "raw_bytes": 1000, "new_bytes": 0, "stored_bytes": 0, "read_bytes": 0 }, "root": root,
            "written_by": "the simulator of histories",
        });
        let manifest: Manifest = serde_json::from_value(manifest).unwrap();
        manifest.commit(&self.cluster).await.unwrap();
        self.taken.insert(id, taken);
    }

    /// `lastgood release`, confirmed. Answers why not, where it refuses.
    pub async fn release(&self, truth: &Truth, server: &Server) -> Result<(), String> {
        let dir = self.lay_whole(server);
        let record = self.record().await;
        let around = self.around(&record);
        let plan = release::plan(&around, self.archive(truth).await, &dir).await.map_err(|e| e.to_string())?;
        let seal = Seal::of(&plan, "host");
        let brought = Brought { code: Some(seal.code(lastgood::clock::now())), typed: None };
        let approval = guard::pass(&dir, "released", plan.care(), &seal, &brought).map_err(|e| e.to_string())?;
        release::execute(&self.cluster, &plan, &approval, &Silent).await.map_err(|e| e.to_string())?;
        Ok(())
    }

    fn around<'a>(&'a self, record: &'a ClusterRecord) -> Around<'a> {
        let (repository, cluster) = (&self.repository, &self.cluster);
        Around { repository, cluster, record, label: None, apart: Vec::new(), data_directory: None }
    }

    /// The whole data directory of a server that is stopped, with the segment that it was writing.
    fn lay_whole(&self, server: &Server) -> PathBuf {
        let dir = self.lay(server, |name| !name.ends_with(".partial"));
        let number = server.wal.number();
        if let Some(bytes) = server.wal.segment(number) {
            self.link(bytes, &dir.join("pg_wal").join(server.wal.name(number).to_string()));
        }
        dir
    }

    /// The plan of a restore over a stopped server.
    pub async fn plan_over(
        &self,
        truth: &Truth,
        server: &Server,
        (target, timeline): (Target, Timeline),
    ) -> Result<Plan, String> {
        let dir = self.lay_whole(server);
        let record = self.record().await;
        let around = self.around(&record);
        let request = plan::Request {
            wal_directory: None,
            standby: None,
            target,
            event: None,
            timeline: Some(timeline),
            inclusive: true,
            action: None,
            into: dir,
            tablespaces: Vec::new(),
            tablespaces_below: None,
            base: Base::default(),
        };
        let archive = self.archive(truth).await;
        plan::plan(&around, archive, &self.manifests().await, None, &request).await.map_err(|e| e.to_string())
    }

    /// What a restore does first: it archives what only the directory has.
    pub async fn salvage(&self, server: &Server, plan: &Plan) {
        let Some(replaced) = &plan.replaced else { return };
        if let Some(own) = &replaced.archive {
            let pg_wal = self.directory(server).join("pg_wal");
            salvage::save(&self.cluster, own, &pg_wal, &replaced.unarchived, &Silent).await;
        }
    }
}

/// The segment before one, as its server has it.
pub fn before(server: &Server, file: WalFile) -> Option<(SegmentName, &Arc<Vec<u8>>)> {
    let WalFile::Segment(name) = file else { return None };
    let number = name.number(SEGMENT)?;
    let path = server.path().until(name.timeline)?;
    Some((path.segment(number.checked_sub(1)?, SEGMENT), server.wal.before(number)?))
}

/// Takes away what earlier calls found out, as time does.
fn forget(spool: &Path) {
    for cluster in fs::read_dir(spool).into_iter().flatten().flatten() {
        for place in fs::read_dir(cluster.path()).into_iter().flatten().flatten() {
            let _ = fs::remove_file(place.path().join("known"));
        }
    }
}
