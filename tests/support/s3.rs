//! An S3 server inside the test: s3s in front of a directory, with what s3s-fs lacks, and oddities on demand.
//!
//! s3s-fs checks `If-None-Match` before it writes, which is no promise under concurrent writers; it answers for folders as
//! if they were objects, calls objects in missing buckets missing objects, and fails on tails longer than the object.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hyper_util::rt::{TokioExecutor, TokioIo};
use lastgood::config;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

pub const BUCKET: &str = "backups";
const ACCESS_KEY: &str = "AKIATEST";
const SECRET_KEY: &str = "a-secret-of-the-tests";

/// What happens to one PUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// The object is written, the answer is 500.
    WriteThenFail,
    /// The object is written, and the answer never comes.
    WriteThenHang,
    /// Nothing is written, the answer is 503 SlowDown.
    SlowDown,
    /// Nothing is written, and the answer is 200 without an ETag.
    EmptySuccess,
    /// Somebody else's object appears first, then the PUT goes on.
    Overtaken,
    /// 409, as AWS answers when two conditional PUTs meet.
    Conflict,
}

/// The server lives as long as the test's runtime.
pub struct S3Server {
    home: tempfile::TempDir,
    port: u16,
    oddities: Arc<Mutex<VecDeque<Oddity>>>,
}

impl S3Server {
    pub async fn start() -> S3Server {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("buckets");
        std::fs::create_dir_all(root.join(BUCKET)).unwrap();
        write_credentials(&home.path().join("credentials"), ACCESS_KEY, SECRET_KEY);
        let oddities = Arc::default();
        let store = Repaired {
            inner: FileSystem::new(&root).unwrap(),
            root,
            writing: tokio::sync::Mutex::default(),
            oddities: Arc::clone(&oddities),
        };
        let mut service = S3ServiceBuilder::new(store);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        S3Server { home, port, oddities }
    }

    pub fn config(&self) -> config::S3 {
        config::S3 {
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            region: Some("us-east-1".into()),
            path_style: true,
            credentials_file: Some(self.credentials_file()),
            ..config::S3::default()
        }
    }

    pub fn credentials_file(&self) -> PathBuf {
        self.home.path().join("credentials")
    }

    /// A file with the right key and a wrong secret.
    pub fn wrong_credentials_file(&self) -> PathBuf {
        let path = self.home.path().join("wrong-credentials");
        write_credentials(&path, ACCESS_KEY, "another-secret");
        path
    }

    /// What happens to the next PUTs, in order.
    pub fn next_puts(&self, oddities: &[Oddity]) {
        self.oddities.lock().unwrap().extend(oddities);
    }

    /// Oddities that did not happen yet.
    pub fn oddities_left(&self) -> usize {
        self.oddities.lock().unwrap().len()
    }

    /// The file in which the server keeps an object.
    pub fn file(&self, key: &str) -> PathBuf {
        self.home.path().join("buckets").join(BUCKET).join(key)
    }
}

/// An AWS-style credentials file that only its owner can read.
pub fn write_credentials(path: &Path, access_key: &str, secret_key: &str) {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    write!(file, "[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n").unwrap();
}

struct Repaired {
    inner: FileSystem,
    root: PathBuf,
    /// Makes looking and writing one step.
    writing: tokio::sync::Mutex<()>,
    oddities: Arc<Mutex<VecDeque<Oddity>>>,
}

impl Repaired {
    /// The length of an object that is there.
    fn length(&self, bucket: &str, key: &str) -> S3Result<u64> {
        if !self.root.join(bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        match std::fs::metadata(self.root.join(bucket).join(key)) {
            Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
            _ => Err(s3_error!(NoSuchKey)),
        }
    }
}

#[async_trait::async_trait]
impl S3 for Repaired {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let _writing = self.writing.lock().await;
        if !self.root.join(&request.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let oddity = self.oddities.lock().unwrap().pop_front();
        match oddity {
            None => self.inner.put_object(request).await,
            Some(Oddity::SlowDown) => Err(s3_error!(SlowDown)),
            Some(Oddity::EmptySuccess) => Ok(S3Response::new(PutObjectOutput::default())),
            Some(Oddity::Conflict) => {
                let mut error = s3s::S3Error::new(S3ErrorCode::Custom("ConditionalRequestConflict".into()));
                error.set_status_code(hyper::StatusCode::CONFLICT);
                Err(error)
            }
            Some(Oddity::WriteThenFail) => {
                self.inner.put_object(request).await?;
                Err(s3_error!(InternalError))
            }
            Some(Oddity::WriteThenHang) => {
                self.inner.put_object(request).await?;
                drop(_writing);
                std::future::pending().await
            }
            Some(Oddity::Overtaken) => {
                let path = self.root.join(&request.input.bucket).join(&request.input.key);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "somebody else's").unwrap();
                self.inner.put_object(request).await
            }
        }
    }

    async fn get_object(&self, mut request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let object_bytes = self.length(&request.input.bucket, &request.input.key)?;
        if let Some(Range::Suffix { length }) = &mut request.input.range {
            // An empty object is left to be refused, as S3 does.
            if object_bytes > 0 {
                *length = (*length).min(object_bytes);
            } else {
                return Err(s3_error!(InvalidRange));
            }
        }
        self.inner.get_object(request).await
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.length(&request.input.bucket, &request.input.key)?;
        self.inner.head_object(request).await
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.inner.head_bucket(request).await
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.inner.list_objects_v2(request).await
    }

    async fn delete_objects(&self, request: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        if !self.root.join(&request.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        self.inner.delete_objects(request).await
    }
}
