//! What the configuration asks for beside the bytes arrives at the store: encryption, storage class; and a store without
//! DeleteObjects is cleaned all the same.

use std::collections::BTreeMap;

use lastgood::config::{self, ServerSideEncryption};
use lastgood::storage::s3::S3Storage;
use lastgood::storage::{Body, Created, Depth, Fault, Part, Storage};

use super::key;
use crate::support::moto::{self, Moto};
use crate::support::s3::{self, NoBatches, S3Server};

const ENCRYPTION: &str = "x-amz-server-side-encryption";
const KMS_KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";
const CLASS: &str = "x-amz-storage-class";

/// Creates an object with `config` and answers which of the three headers a HEAD of it shows.
async fn shown(server: &Moto, name: &str, config: &config::S3) -> BTreeMap<String, String> {
    let store = S3Storage::connect(moto::BUCKET, "", config).await.unwrap();
    assert_eq!(store.create(&key(name), Body::from(b"precious".to_vec())).await.unwrap(), Created::New);
    assert_eq!(store.read(&key(name), Part::Whole).await.unwrap().bytes, "precious");
    let answer = server.ask("HEAD", name);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let lines = answer.lines().filter_map(|line| line.split_once(": "));
    let all = lines.map(|(name, value)| (name.to_lowercase(), value.trim().to_string()));
    all.filter(|(name, _)| [ENCRYPTION, KMS_KEY, CLASS].contains(&name.as_str())).collect()
}

fn expected(headers: &[(&str, &str)]) -> BTreeMap<String, String> {
    headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// `encryption`, `kms_key_id` and `storage_class` of the configuration become properties of the object; without them the
/// bucket's own defaults hold.
#[tokio::test]
async fn objects_are_encrypted_and_classed_as_configured() {
    let server = Moto::start();
    let plain = server.config();
    let with = |encryption| config::S3 { encryption, ..plain.clone() };
    let own_key = || Some("arn:aws:kms:us-east-1:123456789012:key/backups".to_string());

    // A real store encrypts everything with SSE-S3 by default; what is left out of the request shows on the class.
    let default = shown(&server, "default", &plain).await;
    assert!(!default.contains_key(KMS_KEY) && !default.contains_key(CLASS), "{default:?}");

    let sse_s3 = shown(&server, "sse-s3", &with(ServerSideEncryption::SseS3)).await;
    assert_eq!(sse_s3, expected(&[(ENCRYPTION, "AES256")]));

    let kms = with(ServerSideEncryption::SseKms);
    let sse_kms = shown(&server, "sse-kms", &kms).await;
    assert_eq!(sse_kms.get(ENCRYPTION).map(String::as_str), Some("aws:kms"), "with the account's key");

    let kms = config::S3 { kms_key_id: own_key(), ..kms };
    let sse_kms = shown(&server, "sse-kms-own", &kms).await;
    assert_eq!(sse_kms, expected(&[(ENCRYPTION, "aws:kms"), (KMS_KEY, &own_key().unwrap())]));

    let both = config::S3 { storage_class: Some("STANDARD_IA".into()), ..kms };
    let all = shown(&server, "all", &both).await;
    assert_eq!(all, expected(&[(ENCRYPTION, "aws:kms"), (KMS_KEY, &own_key().unwrap()), (CLASS, "STANDARD_IA")]));
}

/// A storage class that the store does not know is refused in the store's words, and not tried again.
#[tokio::test]
async fn an_unknown_storage_class_is_told_as_such() {
    let server = Moto::start();
    let config = config::S3 { storage_class: Some("CELLAR".into()), ..server.config() };
    let store = S3Storage::connect(moto::BUCKET, "", &config).await.unwrap();
    let error = store.create(&key("a"), Body::from(b"x".to_vec())).await.unwrap_err();
    assert_eq!(error.fault, Fault::Other, "{error}");
    assert!(error.detail.contains("InvalidStorageClass"), "{error}");
    assert_eq!(store.stat(&key("a")).await.unwrap(), None);
}

/// Stores that do not have DeleteObjects, in whatever words they say so, get one DELETE for each key; each failure is
/// named with its key, and a key that was not there is none.
#[tokio::test]
async fn a_store_without_batches_deletes_one_by_one() {
    for how in [NoBatches::NotImplemented, NoBatches::MethodNotAllowed, NoBatches::MissingContentMd5] {
        let server = S3Server::start().await;
        let store = S3Storage::connect(s3::BUCKET, "deep/", &server.config()).await.unwrap();
        let mut keys: Vec<_> = (0..30).map(|n| key(&format!("k/{n:02}"))).collect();
        for key in &keys {
            store.create(key, Body::from(b"x".to_vec())).await.unwrap();
        }
        server.refuse_batches(how);
        let kept = keys.remove(7);
        server.protect("deep/k/11");
        let mut asked = keys.clone();
        asked.push(key("k/never-there"));

        let failed = store.delete(&asked).await.unwrap();
        let failed: Vec<_> = failed.iter().map(|(key, error)| (key.as_str(), error.fault)).collect();
        assert_eq!(failed, [("k/11", Fault::Denied)], "{how:?}");
        let left = store.list("", None, Depth::All).await.unwrap().objects;
        let left: Vec<_> = left.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(left, [kept.as_str(), "k/11"], "{how:?}");
    }
}

/// Any other refusal of DeleteObjects is a refusal: nothing is deleted behind its back.
#[tokio::test]
async fn a_batch_that_is_denied_is_not_tried_one_by_one() {
    let server = S3Server::start().await;
    let store = S3Storage::connect(s3::BUCKET, "", &server.config()).await.unwrap();
    store.create(&key("a"), Body::from(b"x".to_vec())).await.unwrap();
    server.refuse_batches(NoBatches::AccessDenied);
    let error = store.delete(&[key("a"), key("b")]).await.unwrap_err();
    assert_eq!(error.fault, Fault::Denied, "{error}");
    assert!(store.stat(&key("a")).await.unwrap().is_some());
}
