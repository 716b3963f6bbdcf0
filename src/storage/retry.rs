//! Tries calls again that failed for a passing reason.
//!
//! # Rules
//! - Only [`Fault::Transient`] is tried again. Everything else is an answer, and the same call would get it again.
//! - Pauses grow exponentially and are drawn at random between nothing and the current bound ("full jitter"), so that many
//!   clients that failed together do not come back together.
//! - No call outlasts `call_timeout`: no attempt begins after it, a running one is broken off, a pause is not begun when
//!   it would end after it.
//! - Calls may be tried again because the contract makes them repeatable: `create` never replaces, `delete` of what is gone
//!   is no error. A `create` whose first attempt worked without our knowing is for the store to recognise
//!   (see `s3`); stores that cannot say `AlreadyThere`, which is true.

use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;

use super::bucket::{Bucket, Lock, Older, Protection};
use super::{Body, Created, Depth, Fault, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError};
use crate::{clock, config};

/// How often and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// At least 1.
    pub attempts: u32,
    /// Bound of the first pause; each further bound is twice the one before.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Longest time for one attempt.
    pub attempt_timeout: Duration,
    /// Longest time for all attempts and pauses of one call.
    pub call_timeout: Duration,
}

impl From<&config::S3> for Policy {
    fn from(settings: &config::S3) -> Self {
        Policy {
            attempts: 10,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(20),
            attempt_timeout: Duration::from_secs(settings.attempt_timeout_s),
            call_timeout: Duration::from_secs(settings.call_timeout_s),
        }
    }
}

impl Policy {
    /// The pause after the `attempt`-th attempt (from 1); `chance` is uniform in [0, 1).
    fn pause(&self, attempt: u32, chance: f64) -> Duration {
        let doubled = 2u32.saturating_pow(attempt.saturating_sub(1));
        self.first_pause.saturating_mul(doubled).min(self.longest_pause).mul_f64(chance)
    }
}

#[derive(Debug)]
pub struct Retry<S> {
    inner: S,
    policy: Policy,
}

type Failed = Vec<(ObjectKey, StorageError)>;

impl<S: Storage> Retry<S> {
    pub fn new(inner: S, policy: Policy) -> Self {
        Retry { inner, policy }
    }

    /// Runs `call` until it gives an answer or the policy says that it is enough.
    async fn run<T, F>(&self, operation: &'static str, key: &str, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut effort = Effort::new(&self.policy);
        loop {
            let attempt = tokio::time::timeout(effort.begin(), call()).await;
            let error = match attempt {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if error.fault != Fault::Transient => return Err(error),
                Ok(Err(error)) => error,
                Err(_elapsed) => self.too_slow(operation, key),
            };
            let Some(pause) = effort.pause() else {
                return Err(StorageError { detail: format!("{} ({effort})", error.detail), ..error });
            };
            tracing::debug!(%error, ?pause, "will try again");
            tokio::time::sleep(pause).await;
        }
    }

    fn too_slow(&self, operation: &'static str, key: &str) -> StorageError {
        let place = self.inner.place().into();
        StorageError { operation, place, key: key.into(), fault: Fault::Transient, detail: "no answer in time".into() }
    }

    /// Asks again for keys that failed for a passing reason; the other failures are final.
    async fn each_again<F>(
        &self,
        operation: &'static str,
        keys: &[ObjectKey],
        call: impl Fn(Vec<ObjectKey>) -> F,
    ) -> Result<Failed>
    where
        F: Future<Output = Result<Failed>>,
    {
        let name = keys.first().map(ObjectKey::to_string).unwrap_or_default();
        let mut effort = Effort::new(&self.policy);
        let mut keys = keys.to_vec();
        let mut failed = Vec::new();
        loop {
            let answers = self.run(operation, &name, || call(keys.clone())).await?;
            let (passing, lasting): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, e)| e.fault == Fault::Transient);
            failed.extend(lasting);
            effort.begin();
            let pause = if passing.is_empty() { None } else { effort.pause() };
            let Some(pause) = pause else {
                failed.extend(passing);
                return Ok(failed);
            };
            keys = passing.into_iter().map(|(key, _)| key).collect();
            tokio::time::sleep(pause).await;
        }
    }
}

/// The attempts of one call.
struct Effort<'a> {
    policy: &'a Policy,
    began: Instant,
    attempts: u32,
}

impl<'a> Effort<'a> {
    fn new(policy: &'a Policy) -> Self {
        Effort { policy, began: clock::monotonic(), attempts: 0 }
    }

    fn left(&self) -> Duration {
        self.policy.call_timeout.saturating_sub(self.began.elapsed())
    }

    /// Counts an attempt and answers how long it may take.
    fn begin(&mut self) -> Duration {
        self.attempts += 1;
        self.policy.attempt_timeout.min(self.left())
    }

    /// How long to pause before the next attempt; `None` when there is none.
    fn pause(&self) -> Option<Duration> {
        let pause = self.policy.pause(self.attempts, clock::random_fraction());
        (self.attempts < self.policy.attempts && pause < self.left()).then_some(pause)
    }
}

impl fmt::Display for Effort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts = if self.attempts == 1 { "1 attempt".into() } else { format!("{} attempts", self.attempts) };
        write!(f, "gave up after {attempts} in {:.1} s", self.began.elapsed().as_secs_f64())
    }
}

#[async_trait]
impl<S: Storage> Storage for Retry<S> {
    fn place(&self) -> &str {
        self.inner.place()
    }

    fn conditional_create(&self) -> bool {
        self.inner.conditional_create()
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.run("create", key.as_str(), || self.inner.create(key, body.clone())).await
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        self.run("create", key.as_str(), || self.inner.create_own(key, body.clone())).await
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        self.run("read", key.as_str(), || self.inner.read(key, part)).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        self.run("stat", key.as_str(), || self.inner.stat(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        self.run("list", prefix, || self.inner.list(prefix, after, depth)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        self.each_again("delete", keys, |keys| async move { self.inner.delete(&keys).await }).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.run("stat", "", || self.inner.free_bytes()).await
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        self.inner.bucket().map(|_| self as &dyn Bucket)
    }
}

impl<S: Storage> Retry<S> {
    fn inner_bucket(&self) -> &dyn Bucket {
        self.inner.bucket().expect("only a bucket's wrapper is handed out as one")
    }
}

#[async_trait]
impl<S: Storage> Bucket for Retry<S> {
    fn lock(&self) -> Option<Lock> {
        self.inner_bucket().lock()
    }

    fn deletes_versions(&self) -> bool {
        self.inner_bucket().deletes_versions()
    }

    async fn protection(&self) -> Result<Protection> {
        self.run("ask", "", || self.inner_bucket().protection()).await
    }

    async fn locked_until(&self, key: &ObjectKey) -> Result<Option<Timestamp>> {
        self.run("stat", key.as_str(), || self.inner_bucket().locked_until(key)).await
    }

    async fn extend(&self, keys: &[ObjectKey], until: Timestamp) -> Result<Failed> {
        self.each_again("lock", keys, |keys| async move { self.inner_bucket().extend(&keys, until).await }).await
    }

    async fn older(&self, prefix: &str) -> Result<Vec<Older>> {
        self.run("list versions of", prefix, || self.inner_bucket().older(prefix)).await
    }

    async fn hide(&self, key: &ObjectKey) -> Result<()> {
        self.run("delete", key.as_str(), || self.inner_bucket().hide(key)).await
    }

    async fn uncover(&self, key: &ObjectKey) -> Result<bool> {
        self.run("bring back", key.as_str(), || self.inner_bucket().uncover(key)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread_over_the_whole_range() {
        let policy = Policy {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_millis(700),
            ..Policy::from(&config::S3::default())
        };
        let bounds: Vec<_> = (1..=5).map(|attempt| policy.pause(attempt, 1.0).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 700, 700]);
        assert_eq!(policy.pause(4, 0.0), Duration::ZERO);
        assert_eq!(policy.pause(u32::MAX, 0.5).as_millis(), 350);
    }
}
