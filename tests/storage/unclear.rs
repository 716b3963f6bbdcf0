//! PUTs whose outcome is unclear: whether the object is there, and whose it is, is found out (rules 24, 55).

use std::sync::Arc;
use std::time::Duration;

use lastgood::config;
use lastgood::storage::retry::{Policy, Retry};
use lastgood::storage::s3::S3Storage;
use lastgood::storage::{Body, Created, Fault, Part, Storage};

use super::{key, policy};
use crate::support::s3::{self, Oddity, S3Server};

async fn store(server: &S3Server, conditional_create: bool) -> S3Storage {
    let config = config::S3 { conditional_create, ..server.config() };
    S3Storage::connect(s3::BUCKET, "", &config).await.unwrap()
}

fn body(text: &str) -> Body {
    text.as_bytes().to_vec().into()
}

async fn content(store: &dyn Storage, name: &str) -> String {
    String::from_utf8(store.read(&key(name), Part::Whole).await.unwrap().bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_put_that_worked_although_the_answer_says_otherwise_is_found_to_be_ours() {
    for conditional in [true, false] {
        let server = S3Server::start().await;
        let store = store(&server, conditional).await;
        server.next_puts(&[Oddity::WriteThenFail]);
        assert_eq!(store.create(&key("a"), body("mine")).await.unwrap(), Created::New);
        assert_eq!(content(&store, "a").await, "mine");
        // Settled: another create of the same bytes is another create.
        assert_eq!(store.create(&key("a"), body("mine")).await.unwrap(), Created::AlreadyThere);
        assert_eq!(server.oddities_left(), 0);
    }
}

#[tokio::test]
async fn a_put_that_is_abandoned_is_recognised_by_the_next_attempt() {
    for conditional in [true, false] {
        let server = S3Server::start().await;
        server.next_puts(&[Oddity::WriteThenHang]);
        let policy = Policy { attempt_timeout: Duration::from_secs(1), ..policy() };
        let store = Retry::new(store(&server, conditional).await, policy);
        // The wrapper drops the first attempt before the store itself can look.
        assert_eq!(store.create(&key("a"), body("mine")).await.unwrap(), Created::New);
        assert_eq!(server.oddities_left(), 0);
        assert_eq!(store.create(&key("a"), body("mine")).await.unwrap(), Created::AlreadyThere);
    }
}

#[tokio::test]
async fn what_somebody_else_wrote_is_not_claimed() {
    let server = S3Server::start().await;
    let store = store(&server, true).await;
    server.next_puts(&[Oddity::SlowDown]);
    let error = store.create(&key("a"), body("mine")).await.unwrap_err();
    assert_eq!(error.fault, Fault::Transient, "{error}");
    server.next_puts(&[Oddity::Overtaken]);
    assert_eq!(store.create(&key("a"), body("mine")).await.unwrap(), Created::AlreadyThere);
    assert_eq!(content(&store, "a").await, "somebody else's");
}

#[tokio::test]
async fn the_same_bytes_from_another_process_are_not_claimed() {
    let server = S3Server::start().await;
    let (here, there) = (store(&server, true).await, store(&server, true).await);
    server.next_puts(&[Oddity::SlowDown]);
    here.create(&key("a"), body("same")).await.unwrap_err();
    assert_eq!(there.create(&key("a"), body("same")).await.unwrap(), Created::New);
    assert_eq!(here.create(&key("a"), body("same")).await.unwrap(), Created::AlreadyThere);
}

#[tokio::test]
async fn an_answer_without_an_etag_is_no_success() {
    for conditional in [true, false] {
        let server = S3Server::start().await;
        let store = store(&server, conditional).await;
        server.next_puts(&[Oddity::EmptySuccess]);
        let error = store.create(&key("a"), body("mine")).await.unwrap_err();
        assert_eq!(error.fault, Fault::Transient, "{error}");
        assert!(error.detail.contains("ETag"), "{error}");
        assert_eq!(store.stat(&key("a")).await.unwrap(), None);
    }
}

#[tokio::test]
async fn two_conditional_puts_that_meet_are_tried_again() {
    let server = S3Server::start().await;
    server.next_puts(&[Oddity::Conflict, Oddity::SlowDown, Oddity::WriteThenFail]);
    let store: Arc<dyn Storage> = Arc::new(Retry::new(store(&server, true).await, policy()));
    assert_eq!(store.create(&key("a"), body("mine")).await.unwrap(), Created::New);
    assert_eq!(server.oddities_left(), 0);
    assert_eq!(std::fs::read_to_string(server.file("a")).unwrap(), "mine");
}

#[tokio::test]
async fn a_store_without_conditions_may_lose_the_race_it_cannot_see() {
    // Somebody writes between our look and our PUT: theirs is replaced. The promise of `conditional_create` says so.
    let server = S3Server::start().await;
    let store = store(&server, false).await;
    assert!(!store.conditional_create());
    server.next_puts(&[Oddity::Overtaken]);
    assert_eq!(store.create(&key("a"), body("mine")).await.unwrap(), Created::New);
    assert_eq!(content(&store, "a").await, "mine");
}

/// A name that only its writer uses costs one request, and an unclear end of it one more.
#[tokio::test]
async fn an_own_name_is_written_without_questions() {
    for conditional in [true, false] {
        let server = S3Server::start().await;
        let store = Retry::new(store(&server, conditional).await, policy());
        let before = server.seen().len();
        assert_eq!(store.create_own(&key("a"), body("mine")).await.unwrap(), Created::New);
        assert_eq!(server.seen().len() - before, 1, "conditional: {conditional}");
        assert_eq!(content(&store, "a").await, "mine");
        server.next_puts(&[Oddity::WriteThenFail]);
        store.create_own(&key("b"), body("also mine")).await.unwrap();
        assert_eq!(server.oddities_left(), 0);
        assert_eq!(content(&store, "b").await, "also mine");
    }
}
