//! A repository and a cluster in it, opened.

use std::sync::Arc;

use super::document::{self, Document};
use super::layout::{self, Layout};
use super::manifest::Manifest;
use super::object;
use super::rebuild;
use super::record::{ClusterRecord, PRODUCTION, RepositoryRecord};
use super::seal::CIPHER;
use super::seal::create::Sealing;
use super::seal::keys::Keys;
use super::vault::Vault;
use super::{FORMAT_VERSION, RepoError};
use crate::clock;
use crate::config;
use crate::storage::{Created, Depth, ObjectKey, Page, Part, Storage, list_all};

#[derive(Debug, Clone)]
pub struct Repository {
    vault: Vault,
    record: RepositoryRecord,
    lease_s: u64,
}

impl Repository {
    /// Opens what is there with the keys at hand, or says that there is no repository.
    pub async fn open(storage: Arc<dyn Storage>, keys: &Keys) -> Result<Repository, RepoError> {
        match object::absent(read_record(&*storage).await).map_err(with_way_back)? {
            Some(record) => Self::with_keys(storage, record, keys).await,
            None => Err(no_repository(&*storage).await?),
        }
    }

    async fn with_keys(storage: Arc<dyn Storage>, record: RepositoryRecord, keys: &Keys) -> Result<Repository, RepoError> {
        let seal = keys.open(&storage, &record).await?;
        Ok(Repository { vault: Vault::new(storage, seal), record, lease_s: config::LEASE_S })
    }

    /// Opens again what is open already, to see that it is still there and still what it was.
    pub async fn again(vault: Vault) -> Result<Repository, RepoError> {
        let storage = vault.storage();
        let Some(record) = object::absent(read_record(&**storage).await)? else {
            return Err(RepoError::NoRepository { place: storage.place().into() });
        };
        match (record.seal.as_str(), vault.seal()) {
            ("none", None) => Ok(Repository { vault, record, lease_s: config::LEASE_S }),
            ("none", Some(_)) => Err(RepoError::NotSealed { place: storage.place().into() }),
            (_, None) => Err(RepoError::Sealed { key: layout::repository() }),
            (_, Some(seal)) if seal.repository() == record.id => Ok(Repository { vault, record, lease_s: config::LEASE_S }),
            (_, Some(seal)) => Err(RepoError::WrongKey {
                what: format!("it is for the repository {}, and this is {}", seal.repository(), record.id),
            }),
        }
    }

    /// Opens the repository, or makes one when the place is empty. A place that holds something else is refused.
    pub async fn open_or_create(
        storage: Arc<dyn Storage>,
        keys: &Keys,
        sealing: Option<&Sealing<'_>>,
    ) -> Result<(Repository, Created), RepoError> {
        if let Some(record) = object::absent(read_record(&*storage).await)? {
            return Ok((Self::with_keys(storage, record, keys).await?, Created::AlreadyThere));
        }
        if let lost @ RepoError::RecordLost { .. } = no_repository(&*storage).await? {
            return Err(lost);
        }
        let page = storage.list("", None, Depth::Folder).await?;
        let folders = page.folders.into_iter().chain(page.objects.into_iter().map(|o| o.key.to_string()));
        // A keyring comes before lastgood.json; alone, it is what an interrupted init left.
        let found = folders.into_iter().find(|name| sealing.is_none() || name != layout::KEYRINGS);
        if let Some(found) = found {
            return Err(RepoError::Foreign { place: storage.place().into(), found });
        }
        let conditional_create = proves_conditional_create(&*storage).await?;
        let seal = match sealing {
            Some(sealing) => Some(sealing.begin(&storage, keys).await?),
            None => None,
        };
        let record = RepositoryRecord {
            repository: "lastgood".into(),
            format: FORMAT_VERSION.into(),
            minimum_reader: 1,
            id: seal.as_ref().map_or_else(|| clock::random_hex(16), |seal| seal.repository().into()),
            created: clock::now(),
            seal: if seal.is_some() { CIPHER.into() } else { "none".into() },
            key_id: seal.as_ref().map(|seal| seal.key_id().into()),
            conditional_create,
        };
        let mut json = serde_json::to_vec_pretty(&record).expect("our own types are JSON");
        json.push(b'\n');
        let created = storage.create(&layout::repository(), json.into()).await?;
        // Somebody else may have been quicker; theirs counts.
        let record = read_record(&*storage).await?;
        Ok((Repository::again(Vault::new(storage, seal)).await.map(|repository| Repository { record, ..repository })?, created))
    }

    /// With the configured length of leases.
    pub fn with_lease_s(self, lease_s: u64) -> Repository {
        Repository { lease_s, ..self }
    }

    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    pub fn record(&self) -> &RepositoryRecord {
        &self.record
    }

    pub fn storage(&self) -> &Arc<dyn Storage> {
        self.vault.storage()
    }

    /// Names of all clusters.
    pub async fn clusters(&self) -> Result<Vec<String>, RepoError> {
        let page = list_all(&**self.storage(), layout::CLUSTERS, Depth::Folder).await?;
        Ok(page.folders.iter().map(|f| f.trim_end_matches('/').to_string()).collect())
    }

    /// The cluster with that name, registered or not.
    pub fn cluster(&self, name: &str) -> Cluster {
        debug_assert!(config::is_cluster_name(name), "checked by the configuration");
        Cluster { lease_s: self.lease_s, ..Cluster::unchecked(self.vault.clone(), name) }
    }

    /// The cluster and its record, or who else is known.
    pub async fn registered(&self, name: &str) -> Result<(Cluster, ClusterRecord), RepoError> {
        let cluster = self.cluster(name);
        match cluster.record().await? {
            Some(record) => Ok((cluster, record)),
            None => Err(self.no_cluster(name).await?),
        }
    }

    async fn no_cluster(&self, name: &str) -> Result<RepoError, RepoError> {
        let (place, known) = (self.storage().place().to_string(), self.clusters().await?);
        if known.iter().any(|known| known == name) {
            return Ok(RepoError::NoRecord { place, name: name.into() });
        }
        Ok(RepoError::NoCluster { place, name: name.into(), known })
    }

    /// Opens the repository, and a cluster in it with the ids of its snapshots; what does not depend on each other is asked at once.
    /// Manifests are read beside the record, `wanted` or not at all.
    pub async fn open_cluster(
        storage: Arc<dyn Storage>,
        keys: &Keys,
        lease_s: u64,
        name: &str,
        wanted: bool,
    ) -> Result<Opened, RepoError> {
        let layout = Layout::new(name);
        let (records, manifests) = (layout.records(), layout.manifests());
        let (repository, records, manifests) = tokio::join!(
            Repository::open(storage.clone(), keys),
            list_all(&*storage, &records, Depth::All),
            list_all(&*storage, &manifests, Depth::All),
        );
        let repository = repository?.with_lease_s(lease_s);
        let cluster = repository.cluster(name);
        let (records, ids) = (records?, names(&manifests?));
        let wanted = if wanted { ids.clone() } else { Vec::new() };
        let (record, manifests) = tokio::join!(cluster.record_of(&records), cluster.manifests_of(wanted));
        let Some(record) = record? else { return Err(repository.no_cluster(name).await?) };
        Ok(Opened { repository, cluster, record, ids, manifests: manifests? })
    }
}

/// What [`Repository::open_cluster`] opened.
#[derive(Debug)]
pub struct Opened {
    pub repository: Repository,
    pub cluster: Cluster,
    pub record: ClusterRecord,
    /// Of all committed snapshots, oldest first.
    pub ids: Vec<String>,
    /// Of all of them, where they are wanted.
    pub manifests: Vec<Readable>,
}

/// A snapshot's id, and its manifest or why that cannot be read.
pub type Readable = (String, Result<Manifest, RepoError>);

fn names(page: &Page) -> Vec<String> {
    page.objects.iter().map(|o| o.key.name().to_string()).collect()
}

/// `lastgood.json` is not longer than this.
const RECORD_MAX: u64 = 64 << 10;

/// What a place is that has no `lastgood.json`.
async fn no_repository(storage: &dyn Storage) -> Result<RepoError, RepoError> {
    let place = storage.place().to_string();
    Ok(match rebuild::holds_clusters(storage).await? {
        true => RepoError::RecordLost { place },
        false => RepoError::NoRepository { place },
    })
}

/// Damage of a record, with what to do about it.
fn with_way_back(error: RepoError) -> RepoError {
    match error {
        RepoError::Damaged { key, what } => {
            RepoError::Damaged { key, what: format!("{what}; `lastgood init --rebuild` writes it again from what is there") }
        }
        other => other,
    }
}

/// What is known of a cluster's record.
#[derive(Debug)]
pub enum RecordState {
    Whole(ClusterRecord),
    /// The newest is damaged.
    Behind {
        /// The newest that can be read, with the care that a lost label asks for.
        older: Option<ClusterRecord>,
        /// Of the newest.
        number: u32,
        why: RepoError,
    },
    Missing,
}

/// `lastgood.json` of a place.
pub async fn read_record(storage: &dyn Storage) -> Result<RepositoryRecord, RepoError> {
    let key = layout::repository();
    let read = storage.read(&key, Part::Tail { bytes: RECORD_MAX }).await?;
    if read.object_bytes > RECORD_MAX {
        return Err(RepoError::damaged(&key, "it is longer than it can be"));
    }
    let raw = read.bytes;
    #[derive(serde::Deserialize)]
    struct Versions {
        minimum_reader: u64,
    }
    impl Document for Versions {}
    let versions: Versions = object::from_json(&key, &raw)?;
    if versions.minimum_reader > u64::from(FORMAT_VERSION) {
        return Err(RepoError::Newer { key, version: versions.minimum_reader });
    }
    let record: RepositoryRecord = object::from_json(&key, &raw)?;
    if record.repository != "lastgood" {
        return Err(RepoError::damaged(&key, "it does not describe a lastgood repository"));
    }
    if record.seal != "none" && record.seal != CIPHER {
        return Err(RepoError::UnknownCipher { key, cipher: record.seal });
    }
    Ok(record)
}

/// Whether the second of two creates of one key is told that it came second.
pub(super) async fn proves_conditional_create(storage: &dyn Storage) -> Result<bool, RepoError> {
    let key = ObjectKey::new(format!("probe/{}", clock::random_hex(8)));
    let first = storage.create(&key, b"first".to_vec().into()).await?;
    let second = storage.create(&key, b"second".to_vec().into()).await?;
    let kept = storage.read(&key, Part::Whole).await?.bytes;
    // A database host may lack the right to delete; a probe of five bytes may stay.
    let _ = storage.delete(std::slice::from_ref(&key)).await;
    let kept_apart = (first, second) == (Created::New, Created::AlreadyThere) && kept == "first";
    Ok(kept_apart && storage.conditional_create())
}

/// One cluster's part of a repository.
#[derive(Debug, Clone)]
pub struct Cluster {
    vault: Vault,
    layout: Layout,
    name: String,
    lease_s: u64,
}

impl Cluster {
    /// A cluster of a repository that an earlier call has opened: a push need not ask again.
    pub fn unchecked(vault: Vault, name: &str) -> Cluster {
        Cluster { vault, layout: Layout::new(name), name: name.into(), lease_s: config::LEASE_S }
    }

    /// The same cluster through a wrapper around its store.
    pub fn through(&self, storage: Arc<dyn Storage>) -> Cluster {
        Cluster { vault: Vault::new(storage, self.vault.seal().cloned()), ..self.clone() }
    }

    /// The store alone, for what is not about content: listing, deleting, ranges of stored bytes.
    pub fn storage(&self) -> &dyn Storage {
        &**self.vault.storage()
    }

    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Seconds of silence after which a lease of ours may be taken over.
    pub fn lease_s(&self) -> u64 {
        self.lease_s
    }

    /// The newest record that can be opened: an old key may not open one that was written after a rotation. Where the newest is
    /// damaged, an older one stands in for it, and says so.
    pub async fn record(&self) -> Result<Option<ClusterRecord>, RepoError> {
        let page = list_all(self.storage(), &self.layout.records(), Depth::All).await?;
        self.record_of(&page).await
    }

    async fn record_of(&self, page: &Page) -> Result<Option<ClusterRecord>, RepoError> {
        match self.record_state_of(page).await? {
            RecordState::Whole(record) | RecordState::Behind { older: Some(record), .. } => Ok(Some(record)),
            RecordState::Behind { older: None, why, .. } => Err(with_way_back(why)),
            RecordState::Missing => Ok(None),
        }
    }

    /// The record, and what is wrong with it.
    pub async fn record_state(&self) -> Result<RecordState, RepoError> {
        let page = list_all(self.storage(), &self.layout.records(), Depth::All).await?;
        self.record_state_of(&page).await
    }

    async fn record_state_of(&self, page: &Page) -> Result<RecordState, RepoError> {
        let number = page.objects.last().and_then(|last| last.key.name().parse().ok()).unwrap_or(0);
        let (mut newer, mut damage) = (None, None);
        for object in page.objects.iter().rev() {
            let read = object::get_document(&self.vault, &object.key).await.and_then(|raw| self.parse_record(&object.key, &raw));
            match (read, damage.take()) {
                // Older ones say nothing of what a newer program wrote.
                (Err(error @ RepoError::Newer { .. }), _) => return Err(error),
                (Ok(record), None) => return Ok(RecordState::Whole(record)),
                (Ok(record), Some(why)) => {
                    let (label, behind) = (Some(PRODUCTION.into()), Some(RepoError::to_string(&why)));
                    let older = Some(ClusterRecord { number, label, behind, ..record });
                    return Ok(RecordState::Behind { older, number, why });
                }
                (Err(error), why) if error.is_newer_epoch() => {
                    newer = newer.or(Some(error));
                    damage = why;
                }
                (Err(error), why) if error.is_damage() => damage = why.or(Some(error)),
                (Err(error), _) => return Err(error),
            }
        }
        match (newer, damage) {
            (Some(newer), _) => Err(newer),
            (None, Some(why)) => Ok(RecordState::Behind { older: None, number, why }),
            (None, None) => Ok(RecordState::Missing),
        }
    }

    fn parse_record(&self, key: &ObjectKey, raw: &[u8]) -> Result<ClusterRecord, RepoError> {
        document::prove_format(key, raw)?;
        let record: ClusterRecord = object::from_json(key, raw)?;
        match record.name == self.name {
            true => Ok(record),
            false => Err(RepoError::damaged(key, format!("it is the record of {:?}", record.name))),
        }
    }

    /// Adds a record; `false` when somebody else was quicker, and the newest must be read again.
    pub async fn put_record(&self, record: &ClusterRecord) -> Result<bool, RepoError> {
        let key = self.layout.record(record.number);
        match object::put_document(&self.vault, &key, &object::to_json(record)).await {
            Ok(_) => Ok(true),
            Err(RepoError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ids of all committed snapshots, oldest first.
    pub async fn snapshot_ids(&self) -> Result<Vec<String>, RepoError> {
        Ok(names(&list_all(self.storage(), &self.layout.manifests(), Depth::All).await?))
    }

    /// Manifests of all snapshots, oldest first; one that cannot be read stands as its error.
    pub async fn manifests(&self) -> Result<Vec<Readable>, RepoError> {
        self.manifests_of(self.snapshot_ids().await?).await
    }

    /// The same of snapshots that were listed already.
    pub async fn manifests_of(&self, ids: Vec<String>) -> Result<Vec<Readable>, RepoError> {
        use futures::StreamExt;
        let read = |id: String| async move {
            let manifest = Manifest::read(self, &id).await;
            (id, manifest)
        };
        let mut manifests = Vec::new();
        let mut reads = futures::stream::iter(ids).map(read).buffered(16);
        while let Some((id, manifest)) = reads.next().await {
            match manifest {
                // A page from the safe opens what was written before it: what is newer stands as its error.
                Err(error) if !error.is_damage() && !error.is_newer_epoch() && !error.is_frozen() => return Err(error),
                manifest => manifests.push((id, manifest)),
            }
        }
        Ok(manifests)
    }
}
