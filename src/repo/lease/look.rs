//! Who is at work, by what lies below `leases/` and by the store's clock.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;

use super::beat::Beat;
use crate::clock;
use crate::repo::RepoError;
use crate::repo::object;
use crate::repo::repository::Cluster;
use crate::storage::{Depth, ObjectInfo, ObjectKey, Storage, StorageError};

/// S3 tells times in whole seconds: an age may be a second less than it seems.
const COARSE_S: u64 = 1;
/// How often to look again when what was listed is replaced before it is read.
const LOOKS: usize = 10;
/// Beats that are read at a time.
const READS: usize = 8;

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The holder is done.
    Released,
    /// It never held.
    Withdrawn,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Released => "released",
            End::Withdrawn => "withdrawn",
        }
    }
}

/// All objects of one holder: in one epoch of an exclusive lease, or (epoch 0) of a pin.
#[derive(Debug, Default)]
pub(super) struct Claim {
    pub resource: String,
    pub epoch: u32,
    /// What tells two holders in one epoch apart, where the store does not; else empty.
    pub suffix: String,
    pub beats: BTreeMap<u32, ObjectInfo>,
    pub end: Option<End>,
    pub keys: Vec<ObjectKey>,
}

impl Claim {
    pub(super) fn is_withdrawn(&self) -> bool {
        self.end == Some(End::Withdrawn)
    }

    fn newest(&self) -> Option<&ObjectInfo> {
        if self.end.is_some() { None } else { self.beats.values().next_back() }
    }
}

/// A living lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtWork {
    pub beat: Beat,
    /// Since its last beat.
    pub silent: Duration,
    pub(super) resource: String,
    pub(super) epoch: u32,
    pub(super) suffix: String,
}

impl AtWork {
    /// Nobody is at work any more: it keeps things for somebody else, until it is stale.
    pub fn is_left(&self) -> bool {
        self.beat.left
    }

    /// For people: who does what, since when; or what is kept, and until when.
    pub fn describe(&self) -> String {
        let Beat { operation, snapshot, started, .. } = &self.beat;
        let (who, since) = (self.beat.who(), clock::seconds(*started));
        if self.is_left() {
            let left = self.beat.stale_after_s.saturating_sub(self.silent.as_secs());
            let until = clock::seconds(clock::now() + Duration::from_secs(left));
            return format!(
                "{snapshot} and its WAL are kept until {until} for the server that {who} restored from it at {since}, and that may still replay"
            );
        }
        format!("{operation} {snapshot} by {who} since {since}, last heartbeat {} s ago", self.silent.as_secs())
    }
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Standing {
    pub living: Vec<AtWork>,
    /// What no living lease and no later taker needs; may be deleted.
    pub garbage: Vec<ObjectKey>,
    pub(super) claims: Vec<Claim>,
}

/// Which moment is "now" in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Now {
    /// Written and asked for, when it matters: three requests.
    Asked,
    /// The newest object of the listing: right for who has just written one there, and else too early, which errs towards
    /// taking a holder for living.
    Newest,
}

/// Who is at work on the cluster, by the store's clock.
pub async fn at_work(cluster: &Cluster) -> Result<Vec<AtWork>, RepoError> {
    Ok(look(cluster, &cluster.layout().leases(), Now::Asked, None).await?.living)
}

/// The same for who has just taken a lease: no request but a listing, and one for each living lease.
pub async fn standing(cluster: &Cluster) -> Result<Standing, RepoError> {
    look(cluster, &cluster.layout().leases(), Now::Newest, None).await
}

/// Whether anybody living holds an exclusive lease.
pub async fn is_held(cluster: &Cluster, resource: &str) -> Result<bool, RepoError> {
    let standing = look(cluster, &cluster.layout().lease(resource), Now::Asked, None).await?;
    Ok(!standing.living.is_empty())
}

/// `own` is a beat that this process has just written, which need not be read.
pub(super) async fn look(
    cluster: &Cluster,
    prefix: &str,
    now: Now,
    own: Option<(&ObjectKey, &Beat)>,
) -> Result<Standing, RepoError> {
    for _ in 0..LOOKS {
        let objects = list_behind(cluster.storage(), prefix, None).await?;
        let newest = objects.iter().map(|o| o.modified).max().unwrap_or(Timestamp::UNIX_EPOCH);
        let claims = claims(&cluster.layout().leases(), objects);
        if let Some(living) = living(cluster, &claims, (now, newest), own).await? {
            let garbage = garbage(&claims, &living);
            return Ok(Standing { living, garbage, claims });
        }
    }
    Err(RepoError::Busy { what: format!("the leases in {prefix} change all the time") })
}

/// The claims that live; `None` when a beat was replaced or ended since it was listed.
async fn living(
    cluster: &Cluster,
    claims: &[Claim],
    (now, newest): (Now, Timestamp),
    own: Option<(&ObjectKey, &Beat)>,
) -> Result<Option<Vec<AtWork>>, RepoError> {
    let lasts: Vec<_> = claims.iter().filter_map(|claim| claim.newest().map(|last| (claim, last))).collect();
    let read = |key: ObjectKey| async move {
        match own.filter(|(own, _)| **own == key) {
            Some((_, beat)) => Ok(object::to_json(beat)),
            None => object::get_document(cluster.vault(), &key).await,
        }
    };
    let beats =
        futures::stream::iter(lasts.iter().map(|(_, last)| last.key.clone()).collect::<Vec<_>>()).map(read).buffered(READS);
    let beats: Vec<_> = beats.collect().await;
    let mut asked = None;
    let mut living = Vec::new();
    for ((claim, last), beat) in lasts.into_iter().zip(beats) {
        let beat = match beat {
            Ok(raw) => object::from_json(&last.key, &raw).unwrap_or_else(|_| Beat::unreadable(claim.epoch)),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_damage() => Beat::unreadable(claim.epoch),
            Err(error) => return Err(error),
        };
        if beat.is_gone() {
            continue;
        }
        let now = match (now, asked) {
            (Now::Newest, _) => newest,
            (Now::Asked, Some(at)) => at,
            (Now::Asked, None) => *asked.insert(ask_store(cluster, newest).await?),
        };
        let silent = Duration::try_from(now.duration_since(last.modified)).unwrap_or_default();
        if silent <= Duration::from_secs(beat.stale_after_s.saturating_add(COARSE_S)) {
            let (resource, suffix) = (claim.resource.clone(), claim.suffix.clone());
            living.push(AtWork { beat, silent, resource, epoch: claim.epoch, suffix });
        }
    }
    Ok(Some(living))
}

/// The store's time. Where nothing can be written, the newest time that it has shown.
async fn ask_store(cluster: &Cluster, newest: Timestamp) -> Result<Timestamp, RepoError> {
    use crate::storage::Fault;
    let storage = cluster.storage();
    let key = ObjectKey::new(format!("probe/{}", clock::random_hex(8)));
    match storage.create(&key, b"now".to_vec().into()).await {
        Ok(_) => {}
        Err(error) if matches!(error.fault, Fault::Denied | Fault::ReadOnly | Fault::Full) => return Ok(newest),
        Err(error) => return Err(error.into()),
    }
    let info = storage.stat(&key).await?;
    // A database host may lack the right to delete; three bytes may stay.
    let _ = storage.delete(std::slice::from_ref(&key)).await;
    Ok(info.map_or(newest, |info| info.modified.max(newest)))
}

/// Every object below `prefix` behind `after`, page by page.
pub(super) async fn list_behind(
    storage: &dyn Storage,
    prefix: &str,
    after: Option<String>,
) -> Result<Vec<ObjectInfo>, StorageError> {
    let (mut objects, mut after): (Vec<ObjectInfo>, _) = (Vec::new(), after);
    loop {
        let page = storage.list(prefix, after.as_deref(), Depth::All).await?;
        objects.extend(page.objects);
        after = objects.last().map(|o| o.key.to_string());
        if !page.more || after.is_none() {
            return Ok(objects);
        }
    }
}

/// Sorts objects by who wrote them. Names of another shape are left alone: a newer version's.
pub(super) fn claims(root: &str, objects: Vec<ObjectInfo>) -> Vec<Claim> {
    let mut claims: BTreeMap<(String, u32, String), Claim> = BTreeMap::new();
    for object in objects {
        let Some(rest) = object.key.as_str().strip_prefix(root) else { continue };
        let parts: Vec<&str> = rest.split('/').collect();
        let (resource, epoch, name) = match parts[..] {
            [holder, name] => (holder, Ok(0), name),
            [resource, epoch, name] => (resource, epoch.parse(), name),
            _ => continue,
        };
        let (what, suffix) = name.split_once('-').unwrap_or((name, ""));
        let end = [End::Released, End::Withdrawn].into_iter().find(|end| end.name() == what);
        let beat: Option<u32> = what.parse().ok();
        let (Ok(epoch), true) = (epoch, end.is_some() || beat.is_some()) else { continue };
        let claim = claims.entry((resource.into(), epoch, suffix.into())).or_insert_with(|| Claim {
            resource: resource.into(),
            epoch,
            suffix: suffix.into(),
            ..Claim::default()
        });
        claim.keys.push(object.key.clone());
        claim.end = end.or(claim.end);
        if let Some(beat) = beat {
            claim.beats.insert(beat, object);
        }
    }
    claims.into_values().collect()
}

/// Pins that do not live, and epochs below the last one that was held. The last one stays whatever became of it, so that no
/// number is used twice and an old holder finds a higher one.
fn garbage(claims: &[Claim], living: &[AtWork]) -> Vec<ObjectKey> {
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    for claim in claims.iter().filter(|c| !c.is_withdrawn()) {
        let epoch = last.entry(&claim.resource).or_default();
        *epoch = claim.epoch.max(*epoch);
    }
    let lives =
        |claim: &Claim| living.iter().any(|w| (&w.resource, w.epoch, &w.suffix) == (&claim.resource, claim.epoch, &claim.suffix));
    let is_over = |claim: &&Claim| claim.epoch == 0 || last.get(claim.resource.as_str()).is_some_and(|last| claim.epoch < *last);
    claims.iter().filter(is_over).filter(|claim| !lives(claim)).flat_map(|claim| claim.keys.clone()).collect()
}
