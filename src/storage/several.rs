//! Several places with the same objects, as one store.
//!
//! # Who
//! The first place decides; the others are its mirrors. Objects have the same keys in all, and the same content. A mirror that is
//! another repository, or none yet, is left out: that is found out before anything is read from it.
//!
//! # Reading
//! Each object is read from the first place in order that is healthy: one that failed lately, or that another overtook, is asked
//! last for a while. When a place fails, has no such object, or does not answer in time, the next is asked, at the same time as the
//! one that is silent. So "not found" is answered only when *every* place answered so; with one that did not answer, the answer is
//! its failure (rule 30). What is damaged is seen only by who knows the format: [`Storage::copies`] gives each place alone.
//!
//! Listings are those of all places together, and of two lengths of one object the longer one counts: short is what broken stores
//! make of objects.
//!
//! # Writing
//! With [`Duty::Write`], all places are required: `create` goes to the first, whose answer decides who was first, then to all others
//! at once. `New` means that every place has these bytes, durably, from this call. `AlreadyThere` means that some place had
//! something: whether all have the same is for who knows the format (`repo::copies`). So a mirror never has what the first
//! lacks. Listings fail when one place does not answer, because a decision there must not be overlooked. Deletions go to all.
//!
//! With [`Duty::Read`], what a reader writes (audit, pins) goes to every place that answers; one is enough.
//!
//! # What is of one place
//! Leases and probes are about one place: two places could each grant a lease to another holder, and their clocks differ. With
//! [`Duty::Write`] they stay in the first. A reader's pins go to every place, since each is expired by itself.

mod bucket;
mod member;
mod merge;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::{BoxFuture, join_all, try_join_all};
use futures::stream::FuturesUnordered;

use super::bucket::Bucket;
use super::{Body, Created, Depth, Fault, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};
use member::Member;
pub use member::Served;

/// How long one place may be silent before the next is asked too; and for each 4 MiB that are asked for, a second more.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tails that are asked for to be had are not longer.
const TAIL_MAX: u64 = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// All places are required.
    Write,
    /// Any place is good enough.
    Read,
}

/// The id of the repository in a place, once it is known.
pub type Identified = BoxFuture<'static, Result<Option<String>>>;

/// What only the format knows.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Which repository a place holds; `None` for none.
    pub identify: fn(Arc<dyn Storage>) -> Identified,
    /// Whether a key, or a prefix, is about one place only.
    pub is_local: fn(&str) -> bool,
}

#[derive(Debug)]
pub struct Several {
    members: Vec<Arc<Member>>,
    duty: Duty,
    rules: Rules,
    place: String,
    patience: Duration,
}

impl Several {
    /// The first place, then its mirrors by name.
    pub fn new(first: Arc<dyn Storage>, mirrors: Vec<(String, Arc<dyn Storage>)>, duty: Duty, rules: Rules) -> Several {
        let mut place = first.place().to_string();
        for (name, mirror) in &mirrors {
            place.push_str(&format!(" and {name} ({})", mirror.place()));
        }
        let mirrors = mirrors.into_iter().map(|(name, storage)| Arc::new(Member::new(&name, storage)));
        let members = [Arc::new(Member::new("first", first))].into_iter().chain(mirrors).collect();
        Several { members, duty, rules, place, patience: PATIENCE }
    }

    /// For tests that wait for a silent place.
    pub fn with_patience(self, patience: Duration) -> Several {
        Several { patience, ..self }
    }

    /// What each place was good for so far.
    pub fn served(&self) -> Vec<Served> {
        self.members.iter().map(|member| member.served()).collect()
    }

    fn first(&self) -> &Member {
        &self.members[0]
    }

    fn stays_here(&self, key: &str) -> bool {
        self.duty == Duty::Write && (self.rules.is_local)(key)
    }

    /// Members in the order in which they are asked.
    fn order(&self) -> VecDeque<usize> {
        let mut order: Vec<usize> = (0..self.members.len()).collect();
        order.sort_by_key(|index| self.members[*index].is_bypassed());
        order.into()
    }

    fn patience(&self, bytes: u64) -> Duration {
        self.patience + Duration::from_secs(bytes >> 22)
    }

    /// Whether a mirror is a copy of the first. As long as the first cannot be asked, the configuration is believed.
    async fn is_copy(&self, index: usize) -> Result<bool> {
        if index == 0 {
            return Ok(true);
        }
        let member = &self.members[index];
        if let Some(known) = member.is_copy.get() {
            return Ok(*known);
        }
        let first = async {
            if self.first().is_bypassed() {
                return None;
            }
            let first = tokio::time::timeout(self.patience, (self.rules.identify)(self.first().storage.clone()));
            first.await.ok()?.ok()?
        };
        let (here, first) = tokio::join!((self.rules.identify)(member.storage.clone()), first);
        let Some(here) = member.answered(here)? else {
            member.exclude("it holds no repository yet; `lastgood mirror` makes it a copy");
            return Ok(false);
        };
        if first.is_some_and(|first| first != here) {
            member.exclude("it is another repository, not a copy of the first");
            return Ok(false);
        }
        let _ = member.is_copy.set(true);
        Ok(true)
    }

    /// Asks one place after the other until one has an answer; see the module.
    async fn ask<'a, T: Send + 'a>(
        &'a self,
        bytes: u64,
        operation: (&'static str, &'a ObjectKey),
        call: impl Fn(Arc<Member>) -> BoxFuture<'a, Result<T>> + Send + Sync + 'a,
    ) -> Result<T> {
        let call = &call;
        let start = |index: usize| -> BoxFuture<'_, (usize, Result<T>)> {
            Box::pin(async move {
                let answer = match self.is_copy(index).await {
                    Ok(true) => call(self.members[index].clone()).await,
                    Ok(false) => Err(self.error(operation, Fault::NotFound, "")),
                    Err(error) => Err(error),
                };
                (index, answer)
            })
        };
        let (mut waiting, mut asked, mut failures) = (self.order(), Vec::new(), Vec::new());
        let mut running = FuturesUnordered::new();
        loop {
            if running.is_empty() {
                let Some(index) = waiting.pop_front() else { return Err(self.sum(operation, failures)) };
                asked.push(index);
                running.push(start(index));
            }
            let is_last = waiting.is_empty();
            tokio::select! {
                Some((index, answer)) = running.next() => {
                    asked.retain(|other| *other != index);
                    match answer {
                        Ok(found) => {
                            // Whoever was asked before, and is silent still, is slower.
                            for other in asked {
                                self.members[other].overtaken();
                            }
                            return Ok(found);
                        }
                        Err(error) => failures.push(error),
                    }
                    if let Some(index) = waiting.pop_front() {
                        asked.push(index);
                        running.push(start(index));
                    }
                }
                () = tokio::time::sleep(self.patience(bytes)), if !is_last => {
                    if let Some(index) = waiting.pop_front() {
                        asked.push(index);
                        running.push(start(index));
                    }
                }
            }
        }
    }

    fn error(&self, (operation, key): (&'static str, &ObjectKey), fault: Fault, detail: &str) -> StorageError {
        StorageError { operation, place: self.place.clone(), key: key.to_string(), fault, detail: detail.into() }
    }

    /// Absent, when all said so; else the failure of one that could not tell, or whose object is cut short.
    fn sum(&self, operation: (&'static str, &ObjectKey), failures: Vec<StorageError>) -> StorageError {
        let weight = |error: &StorageError| match error.fault {
            Fault::NotFound => 0,
            Fault::Truncated => 1,
            _ => 2,
        };
        let worst = failures.into_iter().max_by_key(weight);
        match worst {
            Some(error) if error.fault != Fault::NotFound => error,
            _ => self.error(operation, Fault::NotFound, ""),
        }
    }

    /// To the first, and then to the others.
    async fn create_required(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        if self.first().storage.create(key, body.clone()).await? == Created::AlreadyThere {
            return Ok(Created::AlreadyThere);
        }
        let others = self.members[1..].iter().map(|member| member.storage.create(key, body.clone()));
        let created = try_join_all(others).await?;
        Ok(if created.contains(&Created::AlreadyThere) { Created::AlreadyThere } else { Created::New })
    }

    async fn create_own_required(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let first = self.first().storage.create_own(key, body.clone()).await?;
        let others = self.members[1..].iter().map(|member| member.storage.create_own(key, body.clone()));
        let others = try_join_all(others).await?;
        // Whatever was there came from an earlier attempt of this call.
        Ok(if first == Created::New || others.contains(&Created::New) { Created::New } else { Created::AlreadyThere })
    }

    /// To every place that answers; the first answer counts.
    async fn create_anywhere(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let (mut created, mut failures) = (None, Vec::new());
        for index in self.order() {
            // Somebody else's stands there; the others have that, or will.
            if created == Some(Created::AlreadyThere) {
                break;
            }
            let member = &self.members[index];
            let create = async {
                if self.is_copy(index).await? { member.storage.create(key, body.clone()).await.map(Some) } else { Ok(None) }
            };
            // Twice: a place that is only slow shall get it too.
            match tokio::time::timeout(2 * self.patience(body.len()), create).await {
                Ok(Ok(done)) => created = created.or(done),
                Ok(Err(error)) => failures.extend(member.answered::<()>(Err(error)).err()),
                Err(_) => {
                    member.overtaken();
                    failures.push(self.error(("create", key), Fault::Transient, &format!("no answer from {}", member.name)));
                }
            }
        }
        created.ok_or_else(|| self.sum(("create", key), failures))
    }

    /// Of every place that answers; what others may have is noted.
    async fn pages(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Vec<Page>> {
        let list = |index: usize| async move {
            let page = match self.is_copy(index).await {
                Ok(true) => self.members[index].storage.list(prefix, after, depth).await.map(Some),
                Ok(false) => Ok(None),
                Err(error) => Err(error),
            };
            (index, self.members[index].answered(page))
        };
        let order = self.order();
        let (mut pages, mut failures) = (Vec::new(), Vec::new());
        let mut later: VecDeque<usize> = order.iter().copied().filter(|index| self.members[*index].is_bypassed()).collect();
        let mut silent: Vec<usize> = order.into_iter().filter(|index| !later.contains(index)).collect();
        let mut running: FuturesUnordered<_> = silent.iter().map(|index| list(*index)).collect();
        loop {
            if running.is_empty() && pages.is_empty() {
                let Some(index) = later.pop_front() else { break };
                silent.push(index);
                running.push(list(index));
            }
            tokio::select! {
                next = running.next() => match next {
                    None => break,
                    Some((index, answer)) => {
                        silent.retain(|other| *other != index);
                        match answer {
                            Ok(page) => pages.extend(page),
                            Err(error) => { self.members[index].missed(); failures.push(error); }
                        }
                    }
                },
                () = tokio::time::sleep(self.patience), if !pages.is_empty() || !later.is_empty() => {
                    if pages.is_empty() && let Some(index) = later.pop_front() {
                        silent.push(index);
                        running.push(list(index));
                        continue;
                    }
                    for index in silent {
                        self.members[index].overtaken();
                        self.members[index].missed();
                    }
                    break;
                }
            }
        }
        for index in later {
            self.members[index].missed();
        }
        match failures.pop() {
            Some(error) if pages.is_empty() => Err(error),
            _ => Ok(pages),
        }
    }
}

#[async_trait]
impl Storage for Several {
    fn place(&self) -> &str {
        &self.place
    }

    fn conditional_create(&self) -> bool {
        self.first().storage.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        match self.duty {
            Duty::Write if self.stays_here(key.as_str()) => self.first().storage.create(key, body).await,
            Duty::Write => self.create_required(key, body).await,
            Duty::Read => self.create_anywhere(key, body).await,
        }
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        match self.duty {
            Duty::Write if self.stays_here(key.as_str()) => self.first().storage.create_own(key, body).await,
            Duty::Write => self.create_own_required(key, body).await,
            Duty::Read => self.create_anywhere(key, body).await,
        }
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        if self.stays_here(key.as_str()) {
            return self.first().storage.read(key, part).await;
        }
        let bytes = match part {
            // What is read whole is small.
            Part::Whole => 0,
            // A bound, and no length.
            Part::Tail { bytes } if bytes > TAIL_MAX => 0,
            Part::Range { bytes, .. } | Part::Tail { bytes } => bytes,
        };
        self.ask(bytes, ("read", key), move |member| Box::pin(async move { member.read_counted(key, part).await })).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        if self.stays_here(key.as_str()) {
            return self.first().storage.stat(key).await;
        }
        let absent = || self.error(("stat", key), Fault::NotFound, "");
        let absent = &absent;
        let asked = self.ask(0, ("stat", key), move |member| {
            Box::pin(async move { member.answered(member.storage.stat(key).await)?.ok_or_else(absent) })
        });
        match asked.await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        let pages = match self.duty {
            Duty::Write if self.stays_here(prefix) => return self.first().storage.list(prefix, after, depth).await,
            Duty::Write => try_join_all(self.members.iter().map(|m| m.storage.list(prefix, after, depth))).await?,
            Duty::Read => self.pages(prefix, after, depth).await?,
        };
        Ok(merge::merge(prefix, pages))
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        if self.duty == Duty::Read {
            let Some(first_key) = keys.first() else { return Ok(Vec::new()) };
            let patience = self.patience + Duration::from_millis(20 * keys.len() as u64);
            let answers = join_all(self.members.iter().map(|member| async move {
                let answer = tokio::time::timeout(patience, member.storage.delete(keys)).await;
                answer.unwrap_or_else(|_| Err(self.error(("delete", first_key), Fault::Transient, "no answer in time")))
            }));
            // Only a reader's own pins: one that stays somewhere grows stale.
            let mut answers = answers.await;
            let sound = answers.iter().position(Result::is_ok).unwrap_or(0);
            return answers.swap_remove(sound);
        }
        let (local, shared): (Vec<_>, Vec<_>) = keys.iter().cloned().partition(|key| self.stays_here(key.as_str()));
        let mut failed = Vec::new();
        if !local.is_empty() {
            failed.extend(self.first().storage.delete(&local).await?);
        }
        if !shared.is_empty() {
            let all = try_join_all(self.members.iter().map(|member| member.storage.delete(&shared))).await?;
            for (key, error) in all.into_iter().flatten() {
                if !failed.iter().any(|(other, _)| *other == key) {
                    failed.push((key, error));
                }
            }
        }
        Ok(failed)
    }

    /// The least of all, where all are needed.
    async fn free_bytes(&self) -> Result<Option<u64>> {
        match self.duty {
            Duty::Read => self.first().storage.free_bytes().await,
            Duty::Write => {
                let all = try_join_all(self.members.iter().map(|member| member.storage.free_bytes())).await?;
                Ok(all.into_iter().flatten().min())
            }
        }
    }

    fn copies(&self) -> Vec<Arc<dyn Storage>> {
        let used = self.members.iter().filter(|member| member.is_copy.get() != Some(&false));
        used.map(|member| Arc::clone(member) as Arc<dyn Storage>).collect()
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        self.members.iter().any(|member| member.storage.bucket().is_some()).then_some(self as &dyn Bucket)
    }
}
