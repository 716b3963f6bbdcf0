//! A store that stops in the middle of a body, its own or ours: the call ends while the store still stalls.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lastgood::config;
use lastgood::storage::retry::{Policy, Retry};
use lastgood::storage::s3::S3Storage;
use lastgood::storage::{Body, Fault, Part, Storage};

use super::key;
use crate::support::s3::{self, S3Server};

/// Reads the first bytes of each request, sends `answer`, and then neither reads nor sends nor closes.
struct Stalling {
    endpoint: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Stalling {
    fn start(answer: &'static str) -> Stalling {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let held = Arc::clone(&open);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let _ = socket.read(&mut [0; 1024]);
                socket.write_all(answer.as_bytes()).unwrap();
                held.lock().unwrap().push(socket);
            }
        });
        Stalling { endpoint, open }
    }

    /// How many stalled calls there were; their connections are open to this day.
    fn stalled(&self) -> usize {
        self.open.lock().unwrap().len()
    }

    /// The store as `open` builds it, with attempts of a second, two of them.
    async fn store(&self, server: &S3Server) -> Retry<S3Storage> {
        let config = config::S3 { endpoint: Some(self.endpoint.clone()), attempt_timeout_s: 1, ..server.config() };
        let policy = Policy { attempts: 2, first_pause: Duration::from_millis(1), ..Policy::from(&config) };
        Retry::new(S3Storage::connect(s3::BUCKET, "", &config).await.unwrap(), policy)
    }
}

const HALF: &str = "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 12\r\n\r\nonly h";

/// The time-out of an attempt holds for the body of an answer too: it ends as a passing fault, and is tried again.
#[tokio::test]
async fn an_answer_that_stalls_in_its_body_is_given_up() {
    let (server, stalling) = (S3Server::start().await, Stalling::start(HALF));
    let store = stalling.store(&server).await;
    for part in [Part::Whole, Part::Tail { bytes: 12 }] {
        let before = stalling.stalled();
        let error = store.read(&key("a"), part).await.unwrap_err();
        assert_eq!(error.fault, Fault::Transient, "{error}");
        assert!(error.detail.contains("no answer in time") && error.detail.contains("2 attempts"), "{error}");
        assert_eq!(stalling.stalled() - before, 2);
    }
}

/// And for a list, whose body the SDK reads.
#[tokio::test]
async fn a_list_that_stalls_in_its_body_is_given_up() {
    let (server, stalling) = (S3Server::start().await, Stalling::start(HALF));
    let error = stalling.store(&server).await.list("", None, lastgood::storage::Depth::All).await.unwrap_err();
    assert_eq!(error.fault, Fault::Transient, "{error}");
    assert_eq!(stalling.stalled(), 2);
}

/// A store that stops reading what we send, when more of it is left than fits into the sockets.
#[tokio::test]
async fn a_body_that_is_not_taken_is_given_up() {
    let (server, stalling) = (S3Server::start().await, Stalling::start(""));
    let store = stalling.store(&server).await;
    let error = store.create(&key("a"), Body::from(vec![7; 64 << 20])).await.unwrap_err();
    assert_eq!(error.fault, Fault::Transient, "{error}");
    assert!(stalling.stalled() >= 2, "two PUTs, and a look whether the first arrived");
}

/// Without the deadline of an attempt, the store itself breaks off a body in which no byte moves.
#[tokio::test]
async fn a_stalled_body_is_given_up_without_a_deadline_too() {
    let (server, stalling) = (S3Server::start().await, Stalling::start(HALF));
    let config = config::S3 { endpoint: Some(stalling.endpoint.clone()), ..server.config() };
    let store = S3Storage::connect(s3::BUCKET, "", &config).await.unwrap();
    let error = store.read(&key("a"), Part::Whole).await.unwrap_err();
    assert_eq!(error.fault, Fault::Transient, "{error}");
    assert!(error.detail.contains("broke off after 6 of 12 bytes"), "{error}");
    assert_eq!(stalling.stalled(), 1);
}
