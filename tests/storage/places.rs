//! Missing places, wrong credentials, unreadable files: each a fault of its own, and none of them "not found" (rule 30).

use std::path::PathBuf;
use std::process::Command;

use lastgood::config;
use lastgood::storage::s3::S3Storage;
use lastgood::storage::{Body, Depth, Fault, Part, Storage, StorageError};

use super::key;
use crate::support::garage::{self, Garage};
use crate::support::s3::{self, S3Server, write_credentials};

/// Every call, on a place where none can succeed.
async fn errors_of(bucket: &str, config: &config::S3) -> Vec<StorageError> {
    // One store for each call, because a store remembers that it saw its bucket.
    let store = async || S3Storage::connect(bucket, "prefix/", config).await.unwrap();
    let range = Part::Range { start: 0, bytes: 0 };
    let mut errors = vec![
        store().await.create(&key("a"), Body::from(b"x".to_vec())).await.unwrap_err(),
        store().await.read(&key("a"), Part::Whole).await.unwrap_err(),
        store().await.read(&key("a"), range).await.unwrap_err(),
        store().await.stat(&key("a")).await.unwrap_err(),
        store().await.list("", None, Depth::All).await.unwrap_err(),
        store().await.delete(&[key("a"), key("b")]).await.unwrap_err(),
    ];
    let without = config::S3 { conditional_create: false, ..config.clone() };
    let store = S3Storage::connect(bucket, "", &without).await.unwrap();
    errors.push(store.create(&key("a"), Body::from(b"x".to_vec())).await.unwrap_err());
    errors
}

async fn all_are(fault: Fault, bucket: &str, config: &config::S3) {
    for error in errors_of(bucket, config).await {
        assert_eq!(error.fault, fault, "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(bucket), "{text}");
        for secret in ["a-secret-of-the-tests", "another-secret", "Signature="] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn a_missing_bucket_is_no_missing_object() {
    let server = S3Server::start().await;
    all_are(Fault::NoPlace, "no-such-bucket", &server.config()).await;
}

#[tokio::test]
async fn a_missing_bucket_of_garage_is_no_missing_object() {
    let server = Garage::start().await;
    all_are(Fault::NoPlace, "no-such-bucket", &server.config()).await;
}

#[tokio::test]
async fn a_wrong_secret_is_told_as_such() {
    let server = S3Server::start().await;
    let config = config::S3 { credentials_file: Some(server.wrong_credentials_file()), ..server.config() };
    all_are(Fault::Credentials, s3::BUCKET, &config).await;
}

#[tokio::test]
async fn a_wrong_secret_for_garage_is_told_as_such() {
    let server = Garage::start().await;
    let dir = tempfile::tempdir().unwrap();
    for access_key in ["GK0123456789abcdef01234567", "GKffffffffffffffffffffffff"] {
        write_credentials(&dir.path().join("credentials"), access_key, "another-secret");
        let config = config::S3 { credentials_file: Some(dir.path().join("credentials")), ..server.config() };
        all_are(Fault::Credentials, garage::BUCKET, &config).await;
    }
}

#[tokio::test]
async fn a_profile_that_does_not_exist_is_a_matter_of_credentials() {
    let server = S3Server::start().await;
    let config = config::S3 { profile: Some("nobody".into()), ..server.config() };
    all_are(Fault::Credentials, s3::BUCKET, &config).await;
}

#[tokio::test]
async fn a_store_that_is_down_may_come_back() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let server = S3Server::start().await;
    let config = config::S3 { endpoint: Some(format!("http://127.0.0.1:{port}")), ..server.config() };
    all_are(Fault::Transient, s3::BUCKET, &config).await;
}

#[tokio::test]
async fn a_store_that_says_nothing_is_not_waited_for_longer_than_an_attempt() {
    // Connections are accepted by the kernel; nobody answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = S3Server::start().await;
    let config = config::S3 { endpoint: Some(endpoint), attempt_timeout_s: 1, ..server.config() };
    let store = S3Storage::connect(s3::BUCKET, "", &config).await.unwrap();
    let error = store.stat(&key("a")).await.unwrap_err();
    assert_eq!(error.fault, Fault::Transient, "{error}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_when_the_store_is_opened() {
    let server = S3Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &str| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let ca = |ca_file: PathBuf| config::S3 { ca_file: Some(ca_file), ..server.config() };
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let missing = dir.path().join("missing");
    let no_credentials = config::S3 { credentials_file: Some(missing.clone()), ..server.config() };
    let cases = [
        (ca(missing), Fault::Other, "cannot read ca_file"),
        (ca(path("empty.pem", "")), Fault::Other, "holds no certificate"),
        (ca(path("bad.pem", bad)), Fault::Other, "bad certificate"),
        (ca(path("broken.pem", &bad[..40])), Fault::Other, "not a PEM file"),
        (no_credentials, Fault::Credentials, "cannot read credentials_file"),
    ];
    for (config, fault, words) in cases {
        let error = S3Storage::connect(s3::BUCKET, "", &config).await.unwrap_err();
        assert_eq!(error.fault, fault, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    }
}

const ENDPOINT: &str = "LASTGOOD_TEST_ENDPOINT";
const CREDENTIALS: &str = "LASTGOOD_TEST_CREDENTIALS";

/// In a process of its own, because a test must not change the environment of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file_needs_no_environment_and_wins_over_it() {
    let server = S3Server::start().await;
    let run = |environment: &[(&str, &str)]| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "storage::places::in_another_environment", "--ignored", "--nocapture"]);
        child.env_clear().envs(environment.iter().copied());
        child.env(ENDPOINT, server.config().endpoint.unwrap()).env(CREDENTIALS, server.credentials_file());
        let done = tokio::task::block_in_place(|| child.output().unwrap());
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("1 passed"), "{environment:?}: {said}");
    };
    run(&[]);
    run(&[("AWS_ACCESS_KEY_ID", "AKIAWRONG"), ("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_PROFILE", "default")]);
}

#[tokio::test]
#[ignore = "run by a_credentials_file_needs_no_environment_and_wins_over_it"]
async fn in_another_environment() {
    let config = config::S3 {
        endpoint: std::env::var(ENDPOINT).ok(),
        path_style: true,
        credentials_file: Some(std::env::var(CREDENTIALS).unwrap().into()),
        ..config::S3::default()
    };
    let store = S3Storage::connect(s3::BUCKET, "", &config).await.unwrap();
    assert_eq!(store.stat(&key("a")).await.unwrap(), None);
}
