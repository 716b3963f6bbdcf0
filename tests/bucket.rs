//! Buckets that keep versions and lock objects: what is locked, for how long, who waits for it, and what comes back.

mod hidden;
mod locks;
mod month;

use std::sync::Arc;

use lastgood::config::S3;
use lastgood::repo::layout::is_passing;
use lastgood::storage::s3::S3Storage;
use lastgood::storage::{ObjectKey, Storage};

use crate::support::moto::{self, Moto};

/// The bucket as the program opens it.
pub async fn store(config: &S3) -> Arc<dyn Storage> {
    Arc::new(S3Storage::connect(moto::BUCKET, "", config).await.unwrap().passing(is_passing))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name)
}

/// A header of the answer to a HEAD.
fn header(moto: &Moto, key: &str, name: &str) -> Option<String> {
    let answer = moto.ask("HEAD", key);
    let mut lines = answer.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_string())
}
