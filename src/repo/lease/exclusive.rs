//! A lease that at most one process of all hosts holds.
//!
//! # Taking
//! 1. List. A living holder in any epoch: refused, with who it is.
//! 2. Create the first beat of the next epoch. With conditional create one taker gets it. Without, the name carries the
//!    taker's random name, and several may stand there.
//! 3. List again. Only who sees no other living claim, and no later epoch, holds. Of several in one epoch the first by
//!    name waits for the others to withdraw, and those do. An old holder that beat again meanwhile is seen here.
//!
//! # Holding
//! A beat is: create the next one, then list what lies behind the own epoch's beginning. A later epoch that is not withdrawn, an
//! end that we did not write, or a missing first beat: the lease is lost, for ever. The first beat stays as long as the epoch is
//! the last, so that a taker who looked long ago and creates now finds the name taken.
//!
//! # Ending
//! `released` is written, then the beats and what epochs before left are deleted. The last epoch keeps at least this one object.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::BEATS_PER_LEASE;
use super::beat::{self, Beat};
use super::fence::Fenced;
use super::look::{self, AtWork, End, Now};
use crate::clock::{self, Mark};
use crate::repo::RepoError;
use crate::repo::repository::Cluster;
use crate::storage::{ObjectInfo, ObjectKey, Storage};

/// How often a taker begins anew when it loses a race.
const ROUNDS: u32 = 12;
/// How often the first of several takers looks whether the others have withdrawn.
const PATIENCE: u32 = 10;
/// Longest pause between two looks; drawn at random, so that takers come apart.
const PAUSE: Duration = Duration::from_millis(300);

/// Longest wait for the store when the work is over.
const LONGEST_RELEASE: Duration = Duration::from_secs(60);

/// Why a lease is no longer held.
#[derive(Debug, Clone)]
enum Over {
    /// Given up by ourselves.
    Ended,
    /// Somebody else has it, as far as it is known who.
    Taken { by: Option<Box<Beat>> },
    /// No beat could be written for so long that somebody else may have it.
    Silent { seconds: u64, why: String },
}

/// A lease that this process holds and keeps beating, until it ends with [`Exclusive::release`] or is lost.
#[derive(Debug)]
pub struct Exclusive {
    held: Arc<Held>,
    keeper: JoinHandle<()>,
}

/// What the lease, its keeper and its fence share.
#[derive(Debug)]
pub(super) struct Held {
    cluster: Cluster,
    resource: String,
    operation: String,
    suffix: String,
    /// Locked while a beat is written, so that many writers who wake up together ask once.
    beat: tokio::sync::Mutex<Beat>,
    holder: String,
    stale_after: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the newest beat that was found to count was sent: nobody takes over before it is `stale_after` old.
    confirmed: Mark,
    over: Option<Over>,
    /// Of epochs before this one, to be deleted at the end, where nobody waits for it.
    garbage: Vec<ObjectKey>,
}

impl Exclusive {
    /// Takes the lease, or says who holds it.
    pub async fn take(cluster: &Cluster, resource: &str, operation: &str, snapshot: &str) -> Result<Exclusive, RepoError> {
        let prefix = cluster.layout().lease(resource);
        for _ in 0..ROUNDS {
            let standing = look::look(cluster, &prefix, Now::Asked, None).await?;
            if let Some(holder) = standing.living.first() {
                return Err(refusal(cluster, holder));
            }
            let epoch = standing.claims.iter().map(|c| c.epoch).max().unwrap_or(0).saturating_add(1);
            let claim = Held::new(cluster, resource, Beat::first(cluster, operation, snapshot, epoch));
            if claim.win().await? {
                let held = Arc::new(claim);
                let keeper = tokio::spawn(keep_beating(held.clone()));
                return Ok(Exclusive { held, keeper });
            }
            pause().await;
        }
        Err(RepoError::Busy { what: format!("several processes want to {operation} {:?} at the same time", cluster.name()) })
    }

    /// The cluster as its holder writes to it: through the [fence](super::fence).
    pub fn cluster(&self) -> Cluster {
        let storage: Arc<dyn Storage> = Arc::new(Fenced::new(self.held.cluster.vault().storage().clone(), self.held.clone()));
        self.held.cluster.through(storage)
    }

    /// Asks the store now; before what cannot be taken back.
    pub async fn confirm(&self) -> Result<(), RepoError> {
        self.held.renew().await
    }

    /// Whether nobody can have taken the lease until now: it was certain when it was asked for last, and is not stale.
    pub fn is_unbroken(&self) -> bool {
        self.loss().is_none() && self.held.age() < self.held.stale_after
    }

    /// Comes back when the lease is lost.
    pub async fn lost(&self) -> RepoError {
        let often = (self.held.stale_after / (2 * BEATS_PER_LEASE)).min(Duration::from_secs(1));
        loop {
            if let Some(error) = self.loss() {
                return error;
            }
            tokio::time::sleep(often).await;
        }
    }

    /// After a failure: whether the lost lease is the reason. Asks the store when the last beat is not young.
    pub async fn explain(&self) -> Option<RepoError> {
        let _ = tokio::time::timeout(self.held.enough(), self.held.admit()).await;
        self.loss()
    }

    /// The error that says that the lease is lost, if it is.
    pub fn loss(&self) -> Option<RepoError> {
        self.held.loss()
    }

    /// Gives the lease up. What cannot be written or deleted grows stale.
    pub async fn release(self) {
        self.keeper.abort();
        // What others took is theirs; in an epoch of our own an end is always true.
        let is_taken = matches!(self.held.state().over, Some(Over::Taken { .. }));
        let end = self.held.end(if is_taken { None } else { Some(End::Released) });
        // A store that does not answer must not keep a process that is done.
        let _ = tokio::time::timeout(self.held.enough(), end).await;
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.keeper.abort();
        self.held.over(Over::Ended);
    }
}

/// Also when taking is given up halfway.
impl Drop for Held {
    fn drop(&mut self) {
        beat::forget(&self.holder);
    }
}

fn refusal(cluster: &Cluster, holder: &AtWork) -> RepoError {
    RepoError::Held {
        operation: holder.beat.operation.clone(),
        name: cluster.name().into(),
        holder: holder.describe(),
        lease_s: holder.beat.stale_after_s,
    }
}

async fn pause() {
    tokio::time::sleep(PAUSE.mul_f64(clock::random_fraction())).await;
}

impl Held {
    pub(super) fn new(cluster: &Cluster, resource: &str, beat: Beat) -> Held {
        let suffix = if cluster.storage().conditional_create() { String::new() } else { beat.holder.clone() };
        Held {
            cluster: cluster.clone(),
            resource: resource.into(),
            suffix,
            operation: beat.operation.clone(),
            holder: beat.holder.clone(),
            stale_after: Duration::from_secs(beat.stale_after_s),
            beat: tokio::sync::Mutex::new(beat),
            state: Mutex::new(State { confirmed: Mark::now(), over: None, garbage: Vec::new() }),
        }
    }

    /// How long to wait for a store that nothing depends on any more.
    fn enough(&self) -> Duration {
        (self.stale_after / 3).min(LONGEST_RELEASE)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, epoch: u32, what: &str) -> ObjectKey {
        let dash = if self.suffix.is_empty() { "" } else { "-" };
        self.cluster.layout().lease_epoch(&self.resource, epoch, &format!("{what}{dash}{}", self.suffix))
    }

    fn beat_key(&self, epoch: u32, beat: u32) -> ObjectKey {
        self.key(epoch, &format!("{beat:08}"))
    }

    /// Steps 2 and 3 of taking. A claim that does not win is withdrawn.
    async fn win(&self) -> Result<bool, RepoError> {
        let beat = self.beat.lock().await.clone();
        let mark = Mark::now();
        match beat.put(&self.cluster, &self.beat_key(beat.epoch, 1)).await {
            Ok(()) => {}
            Err(RepoError::Conflict { .. }) => {
                self.over(Over::Ended);
                return Ok(false);
            }
            // The claim may stand there all the same; this process knows that it is not meant.
            Err(error) => {
                self.over(Over::Ended);
                return Err(error);
            }
        }
        let won = self.is_alone(&beat).await;
        if let Ok(true) = won {
            self.state().confirmed = mark;
        } else {
            self.end(Some(End::Withdrawn)).await;
        }
        won
    }

    /// Whether nobody else can hold. Remembers the epochs before, which are garbage once that is certain.
    async fn is_alone(&self, own: &Beat) -> Result<bool, RepoError> {
        let prefix = self.cluster.layout().lease(&self.resource);
        let first = self.beat_key(own.epoch, 1);
        for _ in 0..PATIENCE {
            let standing = look::look(&self.cluster, &prefix, Now::Newest, Some((&first, own))).await?;
            let is_own = |epoch: u32, suffix: &str| epoch == own.epoch && suffix == self.suffix;
            let ours = standing.claims.iter().find(|c| is_own(c.epoch, &c.suffix));
            let stands = ours.is_some_and(|c| c.end.is_none() && c.beats.keys().eq([1].iter()));
            let is_passed = standing.claims.iter().any(|c| c.epoch > own.epoch && !c.is_withdrawn());
            let rivals: Vec<&AtWork> = standing.living.iter().filter(|w| !is_own(w.epoch, &w.suffix)).collect();
            if !stands || is_passed || rivals.iter().any(|r| r.epoch != own.epoch || r.suffix < self.suffix) {
                return Ok(false);
            }
            if rivals.is_empty() {
                self.state().garbage = standing.garbage;
                return Ok(true);
            }
            pause().await;
        }
        Ok(false)
    }

    /// How long ago the lease was certain.
    fn age(&self) -> Duration {
        self.state().confirmed.elapsed()
    }

    /// Lets a write begin: nothing is asked while the lease is certain enough that it cannot be lost in the middle.
    pub(super) async fn admit(&self) -> Result<(), RepoError> {
        if let Some(error) = self.loss() {
            return Err(error);
        }
        if self.is_certain() { Ok(()) } else { self.renew_if(|| !self.is_certain()).await }
    }

    fn is_certain(&self) -> bool {
        self.age() <= self.stale_after / 3
    }

    /// Writes a beat and looks whether the epoch is still ours.
    async fn renew(&self) -> Result<(), RepoError> {
        self.renew_if(|| true).await
    }

    async fn renew_if(&self, wanted: impl Fn() -> bool) -> Result<(), RepoError> {
        let mut beat = self.beat.lock().await;
        if let Some(error) = self.loss() {
            return Err(error);
        }
        if !wanted() {
            return Ok(());
        }
        let mark = Mark::now();
        // Counted before it is sent: after an unclear answer this name may be taken.
        beat.beat += 1;
        let key = self.beat_key(beat.epoch, beat.beat);
        beat.put(&self.cluster, &key).await?;
        let prefix = self.cluster.layout().lease(&self.resource);
        let objects = look::list_behind(self.cluster.storage(), &prefix, Some(format!("{prefix}{:08}", beat.epoch))).await?;
        if !self.is_ours(&beat, &objects) {
            let by = self.successor(&beat, objects).await;
            let _ = self.cluster.storage().delete(&[key]).await;
            self.over(Over::Taken { by });
            return Err(self.loss().expect("it was just set"));
        }
        self.state().confirmed = mark;
        let is_old = |key: &ObjectKey| (2..beat.beat).any(|n| *key == self.beat_key(beat.epoch, n));
        let old: Vec<ObjectKey> = objects.into_iter().map(|o| o.key).filter(is_old).collect();
        if !old.is_empty() {
            // Where deleting is not allowed they stay until somebody may.
            let _ = self.cluster.storage().delete(&old).await;
        }
        Ok(())
    }

    fn is_ours(&self, own: &Beat, objects: &[ObjectInfo]) -> bool {
        let has = |key: ObjectKey| objects.iter().any(|o| o.key == key);
        let ended = [End::Released, End::Withdrawn].into_iter().any(|end| has(self.key(own.epoch, end.name())));
        let claims = look::claims(&self.cluster.layout().leases(), objects.to_vec());
        let is_passed = claims.iter().any(|c| c.epoch > own.epoch && !c.is_withdrawn());
        has(self.beat_key(own.epoch, 1)) && has(self.beat_key(own.epoch, own.beat)) && !ended && !is_passed
    }

    /// Who came after us; for the message only, so whatever fails means "unknown".
    async fn successor(&self, own: &Beat, objects: Vec<ObjectInfo>) -> Option<Box<Beat>> {
        let claims = look::claims(&self.cluster.layout().leases(), objects);
        let last = claims.iter().rfind(|c| c.epoch > own.epoch && !c.is_withdrawn())?;
        for key in last.keys.iter().rev() {
            if let Ok(raw) = crate::repo::object::get_document(self.cluster.vault(), key).await {
                return crate::repo::object::from_json(key, &raw).ok().map(Box::new);
            }
        }
        None
    }

    /// Marks the end in the store, for others, and here. Where the end is not ours to write, only the last beat goes.
    async fn end(&self, end: Option<End>) {
        let mut beat = self.beat.lock().await;
        self.over(Over::Ended);
        let (epoch, last) = (beat.epoch, beat.beat);
        let mut garbage = std::mem::take(&mut self.state().garbage);
        garbage.push(self.beat_key(epoch, last));
        if let Some(end) = end {
            beat.beat += 1;
            // Not before: without end and beats the epoch's number could come twice.
            if beat.put(&self.cluster, &self.key(epoch, end.name())).await.is_err() {
                return;
            }
            garbage.extend((last != 1).then(|| self.beat_key(epoch, 1)));
        }
        // Where deleting is not allowed they stay until somebody may.
        let _ = self.cluster.storage().delete(&garbage).await;
    }

    /// The first reason stays.
    fn over(&self, why: Over) {
        beat::forget(&self.holder);
        self.state().over.get_or_insert(why);
    }

    fn loss(&self) -> Option<RepoError> {
        let reason = match self.state().over.clone()? {
            Over::Ended => "was given up".to_string(),
            Over::Taken { by: None } => "was taken by another process while this one was paused".into(),
            Over::Taken { by: Some(by) } => {
                format!("was taken by {} ({} {}) while this process was paused", by.who(), by.operation, by.snapshot)
            }
            Over::Silent { seconds, why } => {
                format!("could not be renewed for {seconds} s ({why}), so that another host may have taken it by now")
            }
        };
        Some(RepoError::LeaseLost { what: self.operation.clone(), reason })
    }

    #[cfg(test)]
    pub(super) fn pretend_age(&self, boot: Duration, wall: Duration) {
        let mut state = self.state();
        state.confirmed = Mark::now().earlier(boot, wall);
    }
}

/// Beats until the lease is over. A failed beat is tried again; who was silent for the length of the lease gives it up.
async fn keep_beating(held: Arc<Held>) {
    let mut failures = 0;
    loop {
        tokio::time::sleep(held.stale_after / BEATS_PER_LEASE).await;
        let why = match tokio::time::timeout(held.stale_after / 2, held.renew()).await {
            Ok(Ok(())) => {
                failures = 0;
                continue;
            }
            Ok(Err(RepoError::LeaseLost { .. })) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store did not answer".into(),
        };
        failures += 1;
        let age = held.age();
        // Once is not enough: after a pause of this process everything seems to have taken too long.
        if failures > 1 && age > held.stale_after {
            held.over(Over::Silent { seconds: age.as_secs(), why });
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::seal::keys::Keys;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::record::{Counts, Record};

    /// A lease without a keeper, so that only the fence keeps it.
    async fn alone(lease_s: u64) -> (Exclusive, crate::storage::record::Log, Cluster) {
        let store = Record::new(MemoryStorage::new());
        let log = store.log();
        let (repository, _) =
            crate::repo::repository::Repository::open_or_create(Arc::new(store), &Keys::default(), None).await.unwrap();
        let cluster = repository.with_lease_s(lease_s).cluster("shop");
        let lease = Exclusive::take(&cluster, "backup", "backup", "first").await.unwrap();
        lease.keeper.abort();
        log.clear();
        (lease, log, cluster)
    }

    async fn write(cluster: &Cluster, name: &str) -> Result<(), crate::storage::StorageError> {
        cluster.storage().create(&ObjectKey::new(name), b"x".to_vec().into()).await.map(|_| ())
    }

    #[tokio::test]
    async fn while_the_lease_is_fresh_a_write_is_one_request() {
        let (lease, log, _) = alone(900).await;
        let fenced = lease.cluster();
        for n in 0..50 {
            write(&fenced, &format!("data/{n}")).await.unwrap();
        }
        assert_eq!(log.counts(), Counts { create: 50, ..Counts::default() });
        // Just below a third is fresh.
        lease.held.pretend_age(Duration::from_secs(290), Duration::from_secs(290));
        write(&fenced, "data/late").await.unwrap();
        assert_eq!(log.counts(), Counts { create: 51, ..Counts::default() });
    }

    #[tokio::test]
    async fn after_a_pause_by_either_clock_the_store_is_asked_once() {
        let (pause, none) = (Duration::from_secs(301), Duration::ZERO);
        for (boot, wall) in [(pause, none), (none, pause), (pause, pause)] {
            let (lease, log, _) = alone(900).await;
            let fenced = lease.cluster();
            lease.held.pretend_age(boot, wall);
            let names: Vec<String> = (0..8).map(|n| format!("data/{n}")).collect();
            let writes = names.iter().map(|name| write(&fenced, name));
            for written in futures::future::join_all(writes).await {
                written.unwrap();
            }
            // Eight who wake up together write one beat and list once.
            assert_eq!(log.counts(), Counts { create: 9, list: 1, ..Counts::default() }, "{boot:?} {wall:?}");
        }
    }

    #[tokio::test]
    async fn who_lost_its_lease_writes_and_deletes_nothing() {
        let (lease, log, cluster) = alone(900).await;
        let fenced = lease.cluster();
        write(&fenced, "data/before").await.unwrap();
        // Another host finds it stale: what its clock says is not asked here, only what is written.
        let other = Held::new(&cluster, "backup", Beat { host: "other".into(), ..Beat::first(&cluster, "backup", "second", 2) });
        let first = other.beat.lock().await.clone();
        first.put(&cluster, &other.beat_key(2, 1)).await.unwrap();
        lease.held.pretend_age(Duration::from_secs(1000), Duration::ZERO);
        log.clear();
        let error = write(&fenced, "data/after").await.unwrap_err();
        assert_eq!(error.fault, crate::storage::Fault::Fenced, "{error}");
        let error = fenced.storage().delete(&[ObjectKey::new("data/before")]).await.unwrap_err();
        assert_eq!(error.fault, crate::storage::Fault::Fenced, "{error}");
        assert!(lease.confirm().await.is_err());
        let said = lease.loss().unwrap().to_string();
        assert!(said.contains("on host other") && said.contains("second") && said.contains("nothing was committed"), "{said}");
        assert!(log.calls().iter().all(|call| !call.key.starts_with("data/")), "{:?}", log.calls());
    }

    /// The numbers of epochs only grow, also when everything that may go is gone.
    #[tokio::test]
    async fn epochs_are_never_used_twice() {
        let (lease, _, cluster) = alone(900).await;
        lease.release().await;
        for epoch in 2..6 {
            let lease = Exclusive::take(&cluster, "backup", "backup", "next").await.unwrap();
            assert_eq!(lease.held.beat.lock().await.epoch, epoch);
            let standing = look::standing(&cluster).await.unwrap();
            cluster.storage().delete(&standing.garbage).await.unwrap();
            // The epoch before stays until this one ends.
            assert_eq!((standing.living.len(), standing.claims.len()), (1, 2));
            lease.release().await;
            let left = look::standing(&cluster).await.unwrap();
            assert!(left.living.is_empty() && left.garbage.is_empty() && left.claims.len() == 1, "{left:?}");
        }
    }
}
