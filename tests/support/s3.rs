//! An S3 server inside the test: s3s in front of a directory, with what s3s-fs lacks, and oddities on demand.
//!
//! s3s-fs checks `If-None-Match` before it writes, which is no promise under concurrent writers; it answers for folders as
//! if they were objects, calls objects in missing buckets missing objects, and fails on tails longer than the object.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use lastgood::{clock, config};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
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

/// How DeleteObjects is refused; DELETE works. All but the last are said by stores that do not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoBatches {
    NotImplemented,
    MethodNotAllowed,
    MissingContentMd5,
    AccessDenied,
}

/// What the server knows about an access key.
#[derive(Debug, Clone, Default)]
pub struct Key {
    pub secret: String,
    /// The session token that must come with each request.
    pub token: Option<String>,
    pub expires: Option<Timestamp>,
}

/// Looks up an access key, as the store of identities of a real S3 does.
type Keyring = Box<dyn Fn(&str) -> Option<Key> + Send + Sync>;

/// Whom the server lets in, and who came.
struct Identities {
    keyring: Mutex<Keyring>,
    /// Access keys of accepted requests, in order.
    seen: Mutex<Vec<String>>,
}

impl Identities {
    fn key(&self, access_key: &str) -> Option<Key> {
        (self.keyring.lock().unwrap())(access_key)
    }
}

/// The server lives as long as the test's runtime.
pub struct S3Server {
    home: tempfile::TempDir,
    port: u16,
    serving: tokio::task::JoinHandle<()>,
    oddities: Arc<Mutex<VecDeque<Oddity>>>,
    identities: Arc<Identities>,
    habits: Arc<Mutex<Habits>>,
}

/// Oddities that are not about one PUT.
#[derive(Default)]
struct Habits {
    /// So many GETs are kept waiting until the key that signed them has expired, and then answered with 503.
    slow_gets: usize,
    no_batches: Option<NoBatches>,
    /// A key that cannot be deleted.
    protected: Option<String>,
    weather: Weather,
    calls: usize,
}

/// A store that is not well. Keys are those that contain the text.
#[derive(Debug, Clone, Default)]
pub struct Weather {
    /// Every so many calls is answered with 500.
    pub fails_every: usize,
    /// GETs of such keys are never answered.
    pub stalls: Option<String>,
    /// GETs of such keys end in the middle.
    pub cuts: Option<String>,
    /// PUTs of such keys are answered with 200, and nothing is kept.
    pub loses: Option<String>,
    /// Nothing may be deleted.
    pub denies_deletes: bool,
}

impl S3Server {
    pub async fn start() -> S3Server {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("buckets");
        std::fs::create_dir_all(root.join(BUCKET)).unwrap();
        write_credentials(&home.path().join("credentials"), ACCESS_KEY, SECRET_KEY);
        let oddities = Arc::default();
        let only = |access_key: &str| (access_key == ACCESS_KEY).then(|| Key { secret: SECRET_KEY.into(), ..Key::default() });
        let identities = Arc::new(Identities { keyring: Mutex::new(Box::new(only)), seen: Mutex::default() });
        let habits = Arc::default();
        let store = Repaired {
            inner: FileSystem::new(&root).unwrap(),
            root,
            writing: tokio::sync::Mutex::default(),
            oddities: Arc::clone(&oddities),
            identities: Arc::clone(&identities),
            habits: Arc::clone(&habits),
        };
        let mut service = S3ServiceBuilder::new(store);
        service.set_auth(Door(Arc::clone(&identities)));
        service.set_access(Door(Arc::clone(&identities)));
        let service = service.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            // They end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        S3Server { home, port, serving, oddities, identities, habits }
    }

    /// Ends the server: connections break, and no new one is accepted.
    pub fn kill(&self) {
        self.serving.abort();
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

    /// From now on only keys that `keyring` knows are let in.
    pub fn admit(&self, keyring: impl Fn(&str) -> Option<Key> + Send + Sync + 'static) {
        *self.identities.keyring.lock().unwrap() = Box::new(keyring);
        self.identities.seen.lock().unwrap().clear();
    }

    /// Access keys of the requests that were let in since the last [`S3Server::admit`], in order.
    pub fn seen(&self) -> Vec<String> {
        self.identities.seen.lock().unwrap().clone()
    }

    /// Keeps the next `count` GETs waiting until the key that signed them has expired, and then answers 503.
    pub fn outwait_keys(&self, count: usize) {
        self.habits.lock().unwrap().slow_gets = count;
    }

    pub fn gets_to_outwait(&self) -> usize {
        self.habits.lock().unwrap().slow_gets
    }

    /// DELETE of `key` is denied.
    pub fn protect(&self, key: &str) {
        self.habits.lock().unwrap().protected = Some(key.into());
    }

    /// DeleteObjects is refused.
    pub fn refuse_batches(&self, how: NoBatches) {
        self.habits.lock().unwrap().no_batches = Some(how);
    }

    /// How the store behaves from now on.
    pub fn weather(&self, weather: Weather) {
        self.habits.lock().unwrap().weather = weather;
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

/// Lets requests in: the signature, the session token, and the expiry must be right.
struct Door(Arc<Identities>);

#[async_trait::async_trait]
impl S3Auth for Door {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let key = self.0.key(access_key).ok_or_else(|| s3_error!(InvalidAccessKeyId))?;
        if key.expires.is_some_and(|expires| expires <= clock::now()) {
            return Err(s3_error!(ExpiredToken));
        }
        Ok(key.secret.into())
    }
}

#[async_trait::async_trait]
impl S3Access for Door {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let access_key = context.credentials().ok_or_else(|| s3_error!(AccessDenied))?.access_key.clone();
        let token = context.headers().get("x-amz-security-token").and_then(|token| token.to_str().ok());
        if self.0.key(&access_key).is_none_or(|key| key.token.as_deref() != token) {
            return Err(s3_error!(InvalidToken));
        }
        self.0.seen.lock().unwrap().push(access_key);
        Ok(())
    }
}

struct Repaired {
    inner: FileSystem,
    root: PathBuf,
    /// Makes looking and writing one step.
    writing: tokio::sync::Mutex<()>,
    oddities: Arc<Mutex<VecDeque<Oddity>>>,
    identities: Arc<Identities>,
    habits: Arc<Mutex<Habits>>,
}

impl Repaired {
    /// See [`S3Server::outwait_keys`].
    async fn outwait<T>(&self, request: &S3Request<T>) -> S3Result<()> {
        {
            let mut habits = self.habits.lock().unwrap();
            if habits.slow_gets == 0 {
                return Ok(());
            }
            habits.slow_gets -= 1;
        }
        let access_key = &request.credentials.as_ref().unwrap().access_key;
        let expires = self.identities.key(access_key).unwrap().expires.unwrap();
        while clock::now() < expires {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(s3_error!(SlowDown))
    }

    /// Counts a call; every so many fail.
    fn counted(&self) -> S3Result<Weather> {
        let mut habits = self.habits.lock().unwrap();
        habits.calls += 1;
        let every = habits.weather.fails_every;
        if every > 0 && habits.calls.is_multiple_of(every) {
            return Err(s3_error!(InternalError));
        }
        Ok(habits.weather.clone())
    }

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
    async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let weather = self.counted()?;
        if weather.loses.is_some_and(|text| request.input.key.contains(&text)) {
            let e_tag = Some(ETag::Strong("d41d8cd98f00b204e9800998ecf8427e".into()));
            return Ok(S3Response::new(PutObjectOutput { e_tag, ..PutObjectOutput::default() }));
        }
        let _writing = self.writing.lock().await;
        if !self.root.join(&request.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let oddity = self.oddities.lock().unwrap().pop_front();
        match oddity {
            // As in S3, what is sent is taken before it is refused: who is still sending would see a broken pipe.
            None if request.input.if_none_match.is_some() && self.length(&request.input.bucket, &request.input.key).is_ok() => {
                use futures::StreamExt;
                if let Some(mut body) = request.input.body.take() {
                    while body.next().await.is_some() {}
                }
                Err(s3_error!(PreconditionFailed))
            }
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
        let weather = self.counted()?;
        let key = request.input.key.clone();
        let meets = |text: &Option<String>| text.as_ref().is_some_and(|text| key.contains(text.as_str()));
        if meets(&weather.stalls) {
            return std::future::pending().await;
        }
        self.outwait(&request).await?;
        let object_bytes = self.length(&request.input.bucket, &request.input.key)?;
        if let Some(Range::Suffix { length }) = &mut request.input.range {
            // An empty object is left to be refused, as S3 does.
            if object_bytes > 0 {
                *length = (*length).min(object_bytes);
            } else {
                return Err(s3_error!(InvalidRange));
            }
        }
        let mut answer = self.inner.get_object(request).await?;
        if meets(&weather.cuts)
            && let Some(body) = answer.output.body.take()
        {
            use futures::StreamExt;
            let whole: Vec<_> = body.map(|piece| piece.unwrap()).collect().await;
            let whole = whole.concat();
            let half = bytes::Bytes::copy_from_slice(&whole[..whole.len() / 2]);
            answer.output.body = Some(s3s::Body::from(half).into());
        }
        Ok(answer)
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.length(&request.input.bucket, &request.input.key)?;
        self.inner.head_object(request).await
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.inner.head_bucket(request).await
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.counted()?;
        self.inner.list_objects_v2(request).await
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        if self.counted()?.denies_deletes || self.habits.lock().unwrap().protected.as_ref() == Some(&request.input.key) {
            return Err(s3_error!(AccessDenied));
        }
        self.inner.delete_object(request).await
    }

    async fn delete_objects(&self, request: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        if self.counted()?.denies_deletes {
            return Err(s3_error!(AccessDenied));
        }
        match self.habits.lock().unwrap().no_batches {
            None => {}
            Some(NoBatches::NotImplemented) => return Err(s3_error!(NotImplemented)),
            Some(NoBatches::MethodNotAllowed) => return Err(s3_error!(MethodNotAllowed)),
            Some(NoBatches::AccessDenied) => return Err(s3_error!(AccessDenied)),
            Some(NoBatches::MissingContentMd5) => {
                let mut error = s3s::S3Error::new(S3ErrorCode::Custom("MissingContentMD5".into()));
                error.set_status_code(hyper::StatusCode::BAD_REQUEST);
                return Err(error);
            }
        }
        if !self.root.join(&request.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        self.inner.delete_objects(request).await
    }
}
