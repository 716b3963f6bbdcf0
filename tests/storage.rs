//! Every store and every stack of wrappers keeps the contract; each in its own way fails as it should.

use std::sync::Arc;
use std::time::Duration;

use lastgood::config;
use lastgood::repo::copies::RULES;
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::limit::Limit;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::record::Record;
use lastgood::storage::retry::{Policy, Retry};
use lastgood::storage::s3::S3Storage;
use lastgood::storage::several::{Duty, Several};
use lastgood::storage::{ObjectKey, Storage};

use crate::support::garage::{self, Garage};
use crate::support::moto::{self, Moto};
use crate::support::s3::{self, S3Server};

mod conformance;
mod credentials;
mod directory;
mod headers;
mod no_tmpfile;
mod places;
mod stalls;
mod tls;
mod unclear;
mod wrappers;

pub fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text)
}

/// Quick enough that a test that waits for nothing ends soon, long enough for a busy machine.
pub fn policy() -> Policy {
    Policy {
        attempts: 4,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(10),
        ..Policy::from(&config::S3::default())
    }
}

/// The store as it is, and the same behind wrappers.
fn stacks(store: Arc<dyn Storage>) -> [(&'static str, Arc<dyn Storage>); 2] {
    let wrapped = Retry::new(Limit::new(Record::new(store.clone()), 4), policy());
    [("plain", store), ("wrapped", Arc::new(wrapped))]
}

async fn small_of(store: Arc<dyn Storage>) {
    for (name, store) in stacks(store) {
        conformance::small(&store, name).await;
    }
}

async fn all_of(store: Arc<dyn Storage>) {
    for (name, store) in stacks(store) {
        conformance::small(&store, name).await;
        conformance::big(&store, name).await;
    }
}

async fn s3(server: &S3Server, prefix: &str) -> Arc<dyn Storage> {
    Arc::new(S3Storage::connect(s3::BUCKET, prefix, &server.config()).await.unwrap())
}

#[tokio::test]
async fn memory_conforms() {
    all_of(Arc::new(MemoryStorage::new())).await;
}

#[tokio::test]
async fn directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    all_of(Arc::new(DirectoryStorage::new(dir.path()))).await;
}

#[tokio::test]
async fn s3_conforms() {
    let server = S3Server::start().await;
    small_of(s3(&server, "").await).await;
}

#[tokio::test]
async fn s3_below_a_prefix_conforms() {
    let server = S3Server::start().await;
    all_of(s3(&server, "deep/er/").await).await;
}

#[tokio::test]
async fn s3_without_conditions_conforms() {
    let server = S3Server::start().await;
    let config = config::S3 { conditional_create: false, ..server.config() };
    small_of(Arc::new(S3Storage::connect(s3::BUCKET, "a/", &config).await.unwrap())).await;
}

#[tokio::test]
async fn s3_with_the_sdks_checksums_conforms() {
    let server = S3Server::start().await;
    let config = config::S3 { sdk_checksums: true, ..server.config() };
    small_of(Arc::new(S3Storage::connect(s3::BUCKET, "a/", &config).await.unwrap())).await;
}

/// Two places that are both required, and two of which any is good enough: each pair is a store.
#[tokio::test]
async fn several_conform() {
    for duty in [Duty::Write, Duty::Read] {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (Arc::new(DirectoryStorage::new(dir.path())), Arc::new(MemoryStorage::new()));
        crate::mirror::several::identify(&[&*first, &*second]).await;
        all_of(Arc::new(Several::new(first, crate::mirror::several::second(second), duty, RULES))).await;
    }
}

#[tokio::test]
async fn garage_conforms() {
    let server = Garage::start().await;
    all_of(Arc::new(S3Storage::connect(garage::BUCKET, "a/", &server.config()).await.unwrap())).await;
}

#[tokio::test]
async fn moto_conforms() {
    let server = Moto::start();
    small_of(Arc::new(S3Storage::connect(moto::BUCKET, "a/", &server.config()).await.unwrap())).await;
}
