//! A small HTTP service inside the test, for what stands beside a store: metadata, containers' agents, STS.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use http_body::Body as _;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

const TOKEN_LIFE: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// One request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// For example `GET /latest/meta-data`.
    pub line: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// The service lives as long as the test's runtime.
pub struct Loopback {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Loopback {
    /// Answers each request with the status and the text that `answer` gives.
    pub async fn start(answer: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static) -> Loopback {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (answer, record) = (Arc::new(answer), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (answer, record) = (Arc::clone(&answer), Arc::clone(&record));
                tokio::spawn(async move {
                    let service = service_fn(|request| serve(request, Arc::clone(&answer), Arc::clone(&record)));
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Loopback { url, asked }
    }

    /// Every request so far, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    request: Request<Incoming>,
    answer: Arc<impl Fn(&Asked) -> (u16, String)>,
    record: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<String>, hyper::Error> {
    let (head, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut incoming).poll_frame(context)).await {
        body.extend(frame?.into_data().unwrap_or_default());
    }
    let body = String::from_utf8(body).unwrap();
    let asked = Asked { line: format!("{} {}", head.method, head.uri), headers: head.headers, body };
    record.lock().unwrap().push(asked.clone());
    let (status, text) = answer(&asked);
    let kind = if text.starts_with('<') { "text/xml" } else { "application/json" };
    let mut response = Response::builder().status(status).header(CONTENT_TYPE, kind);
    // The metadata service says how long its token lives: as long as it was asked for.
    if let Some(life) = asked.header(TOKEN_LIFE) {
        response = response.header(TOKEN_LIFE, life);
    }
    Ok(response.body(text).unwrap())
}
