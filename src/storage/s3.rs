//! An S3 bucket as a store: AWS, or whatever speaks the same protocol. AWS types never leave this module.
//!
//! # Creating
//! - With `conditional_create` the store itself keeps an object from being replaced (`If-None-Match: *`), so of two writers
//!   exactly one is told [`Created::New`].
//! - Without it (Garage, older Ceph and MinIO) we look, write, and look again. Two writers that both looked before either
//!   wrote can still both be told `New`, the later bytes staying: that window cannot be closed from here. It is harmless
//!   where the key says what the content is; where it does not, the caller must keep the writers apart.
//!   The first look does not prove that the bucket exists: the PUT that follows does.
//! - A PUT whose answer was lost may have happened. Each create therefore attaches a random write id to the object, and
//!   after an unclear answer looks whether the object carries it ([`writes`], rule 55).
//! - The SHA-256 of the body is signed with the request (unless the SDK's own checksums are on), so a store that checks
//!   signatures refuses bytes that were damaged on the way; an answer without an ETag is no success (rule 24).
//!
//! # Absence
//! "No such object" must be the store's own word (rule 30). A HEAD answer has no body that could tell a missing object from
//! a missing bucket, so after a bare 404 the bucket is asked for, once per process.
//!
//! # Versions and locks
//! With `object_lock_days` each PUT names the day until which nobody may delete the object, counted from the store's clock, unless the
//! store was told that the object is a passing one ([`S3Storage::passing`]). S3 takes a lock only with a checksum of its own kind beside it,
//! so the SHA-256 is sent as one. With `delete_versions` a deletion takes every version of a key, and the markers of earlier deletions.
//!
//! # Attempts
//! The SDK tries once and with time-outs; [`super::retry`] decides about the rest. Credentials are refreshed by the SDK
//! before they expire, in the middle of long work too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types;
use jiff::{SignedDuration, Timestamp};

use super::bucket::Bucket;
use super::{
    Body, Created, Depth, Fault, LIST_PAGE_KEYS, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError,
};
use crate::config::{S3, ServerSideEncryption};
use errors::Refusal;

mod body;
mod client;
mod clock;
mod delete;
mod errors;
mod read;
mod tier;
mod versions;
mod writes;

/// The metadata entry that carries the write id; on the wire `x-amz-meta-lastgood-write`.
const WRITE_ID: &str = "lastgood-write";

#[derive(Debug)]
pub struct S3Storage {
    client: aws_sdk_s3::Client,
    bucket: String,
    /// Empty, or ending in `/`.
    prefix: String,
    place: String,
    /// Where it is asked, when that does not follow from the region.
    endpoint: Option<String>,
    conditional_create: bool,
    sdk_checksums: bool,
    encryption: ServerSideEncryption,
    kms_key_id: Option<String>,
    storage_class: Option<types::StorageClass>,
    unclear: Arc<writes::Unclear>,
    bucket_seen: AtomicBool,
    lock: Option<versions::WriteLock>,
    /// Which keys are never locked.
    is_passing: fn(&str) -> bool,
    delete_versions: bool,
    clock: clock::StoreClock,
}

impl S3Storage {
    /// Prepares a client for `bucket`; keys begin with `prefix` there. Nothing is asked of the store yet.
    pub async fn connect(bucket: &str, prefix: &str, settings: &S3) -> Result<S3Storage> {
        let place = format!("s3://{bucket}/{prefix}");
        let clock = clock::StoreClock::default();
        let client = client::build(settings, &place, clock.clone()).await?;
        let mode = settings.object_lock_mode.unwrap_or_default();
        Ok(S3Storage {
            client,
            bucket: bucket.into(),
            prefix: prefix.into(),
            place,
            endpoint: settings.endpoint.clone(),
            conditional_create: settings.conditional_create,
            sdk_checksums: settings.sdk_checksums,
            encryption: settings.encryption,
            kms_key_id: settings.kms_key_id.clone(),
            storage_class: settings.storage_class.as_deref().map(types::StorageClass::from),
            unclear: Arc::default(),
            bucket_seen: AtomicBool::new(false),
            lock: settings.object_lock_days.map(|days| versions::WriteLock { days, mode }),
            is_passing: |_| false,
            delete_versions: settings.delete_versions,
            clock,
        })
    }

    /// The same store, told which keys are soon deleted or replaced by who writes them, and are not locked.
    pub fn passing(self, is_passing: fn(&str) -> bool) -> S3Storage {
        S3Storage { is_passing, ..self }
    }

    fn full_key(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    fn error(&self, operation: &'static str, key: &str, fault: Fault, detail: impl Into<String>) -> StorageError {
        let mut detail = detail.into();
        if let (Fault::Transient | Fault::NoPlace, Some(endpoint)) = (fault, &self.endpoint) {
            detail = format!("{detail}; it was asked at {endpoint}");
        }
        StorageError { operation, place: self.place.clone(), key: key.into(), fault, detail }
    }

    /// Turns an SDK error into ours, asking the store once more where its answer had no body that would tell enough.
    async fn refused<E>(&self, operation: &'static str, key: &str, error: &SdkError<E>) -> StorageError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let refusal = Refusal::of(error);
        let told = self.error(operation, key, refusal.fault, refusal.detail.clone());
        match refusal.fault {
            Fault::NotFound if refusal.is_bare => match self.find_bucket().await {
                Ok(()) => told,
                Err(place) => self.error(operation, key, place.fault, place.detail),
            },
            // A HEAD was refused (403, or 400 for an expired token): an answer with a body tells why.
            Fault::Denied | Fault::Other if refusal.is_bare => match self.ask_reason().await {
                Some(reason) => self.error(operation, key, reason.fault, reason.detail),
                None => told,
            },
            _ => told,
        }
    }

    /// Succeeds when the bucket exists. HEAD of an existing bucket that we may not list answers 403.
    async fn find_bucket(&self) -> Result<(), Refusal> {
        if self.bucket_seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Err(error) = self.client.head_bucket().bucket(&self.bucket).send().await {
            let refusal = Refusal::of(&error);
            match refusal.fault {
                Fault::NotFound => return Err(Refusal { fault: Fault::NoPlace, ..refusal }),
                Fault::Denied => {}
                _ => return Err(refusal),
            }
        }
        self.bucket_seen.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Why we were refused, from the smallest call whose refusal has a body; `None` when that call is allowed.
    async fn ask_reason(&self) -> Option<Refusal> {
        let asked = self.client.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix).max_keys(1).send().await;
        asked.err().map(|error| Refusal::of(&error))
    }

    async fn head(&self, operation: &'static str, key: &ObjectKey) -> Result<Option<HeadObjectOutput>> {
        let head = self.client.head_object().bucket(&self.bucket).key(self.full_key(key)).send().await;
        match head {
            Ok(head) => Ok(Some(head)),
            Err(error) => match self.refused(operation, key.as_str(), &error).await {
                error if error.is_not_found() => Ok(None),
                error => Err(error),
            },
        }
    }

    /// The look before a PUT: whether the object carries `write_id`; `None` when there is no object, and perhaps no bucket.
    async fn is_taken(&self, key: &ObjectKey, write_id: &str, bytes: u64) -> Result<Option<bool>> {
        let head = self.client.head_object().bucket(&self.bucket).key(self.full_key(key)).send().await;
        match head {
            Err(error) if Refusal::of(&error).fault == Fault::NotFound => Ok(None),
            Err(error) => Err(self.refused("create", key.as_str(), &error).await),
            Ok(head) => Ok(Some(carries(&head, write_id, bytes))),
        }
    }

    /// Whether the object carries `write_id`; `None` when there is no object.
    async fn is_ours(&self, key: &ObjectKey, write_id: &str, bytes: u64) -> Result<Option<bool>> {
        Ok(self.head("create", key).await?.map(|head| carries(&head, write_id, bytes)))
    }

    /// One PUT. `Ok(false)` when the store answered that the key is taken.
    async fn put(&self, key: &ObjectKey, payload: &body::Payload, write_id: &str) -> Result<bool> {
        let stream = payload.stream().await.map_err(|error| self.body_error(key, &error))?;
        let mut request = self.client.put_object().bucket(&self.bucket).key(self.full_key(key)).body(stream);
        request = request.metadata(WRITE_ID, write_id).set_storage_class(self.storage_class.clone());
        request = match self.encryption {
            ServerSideEncryption::None => request,
            ServerSideEncryption::SseS3 => request.server_side_encryption(types::ServerSideEncryption::Aes256),
            ServerSideEncryption::SseKms => {
                request.server_side_encryption(types::ServerSideEncryption::AwsKms).set_ssekms_key_id(self.kms_key_id.clone())
            }
        };
        if self.conditional_create {
            request = request.if_none_match("*");
        }
        if let Some(lock) = self.lock.filter(|_| !(self.is_passing)(key.as_str())) {
            let until = self.clock.now() + SignedDuration::from_hours(24 * i64::from(lock.days));
            request = request.object_lock_mode(lock.s3_mode().as_str().into());
            request = request.object_lock_retain_until_date(versions::date_time(until));
            request = request.checksum_algorithm(types::ChecksumAlgorithm::Sha256);
            request = request.checksum_sha256(aws_smithy_types::base64::encode(payload.sha256()));
        }
        let mut request = request.customize();
        if !self.sdk_checksums {
            request = request.interceptor(body::SignedPayload::new(payload.sha256()));
        }
        match request.send().await {
            Ok(done) if done.e_tag().is_some_and(|tag| !tag.is_empty()) => Ok(true),
            Ok(_) => Err(self.error("create", key.as_str(), Fault::Transient, "the answer has no ETag")),
            Err(error) if Refusal::is_taken(&error) => Ok(false),
            Err(error) => Err(self.refused("create", key.as_str(), &error).await),
        }
    }

    fn body_error(&self, key: &ObjectKey, error: &std::io::Error) -> StorageError {
        self.error("create", key.as_str(), Fault::Other, format!("cannot read what is to be written: {error}"))
    }

    /// The object is there after a PUT that may or may not have been the one that made it.
    async fn whose(&self, key: &ObjectKey, write_id: &str, bytes: u64) -> Result<Created> {
        match self.is_ours(key, write_id, bytes).await? {
            Some(true) => Ok(Created::New),
            Some(false) => Ok(Created::AlreadyThere),
            None => Err(self.error("create", key.as_str(), Fault::Transient, "the object vanished while it was written")),
        }
    }

    async fn create_once(&self, key: &ObjectKey, payload: &body::Payload, write: &writes::Write) -> Result<Created> {
        let (id, bytes) = (write.id(), payload.bytes());
        if !self.conditional_create
            && let Some(is_ours) = self.is_taken(key, id, bytes).await?
        {
            return Ok(if is_ours { Created::New } else { Created::AlreadyThere });
        }
        match self.put(key, payload, id).await {
            Ok(true) if self.conditional_create => Ok(Created::New),
            Ok(_) => self.whose(key, id, bytes).await,
            // Unclear: the bytes may have arrived. When looking fails too, the next attempt looks again.
            Err(error) if error.fault == Fault::Transient => match self.is_ours(key, id, bytes).await {
                Ok(Some(true)) => Ok(Created::New),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// One ListObjectsV2, and where it ended.
    async fn list_once(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<(Page, Option<String>)> {
        let told = self.ask_list(prefix, after, depth, None).await?;
        if !tier::has_frozen(&told.0) {
            return Ok(told);
        }
        // Only where something is frozen: not every store knows what is asked for here.
        let copies = types::OptionalObjectAttributes::RestoreStatus;
        match self.ask_list(prefix, after, depth, Some(copies)).await {
            Err(error) if error.fault == Fault::Other => Ok(told),
            told => told,
        }
    }

    async fn ask_list(
        &self,
        prefix: &str,
        after: Option<&str>,
        depth: Depth,
        more: Option<types::OptionalObjectAttributes>,
    ) -> Result<(Page, Option<String>)> {
        let full_prefix = format!("{}{prefix}", self.prefix);
        let mut request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&full_prefix);
        request = request.set_optional_object_attributes(more.map(|more| vec![more]));
        request = request.max_keys(LIST_PAGE_KEYS as i32).set_start_after(after.map(|after| format!("{}{after}", self.prefix)));
        if depth == Depth::Folder {
            request = request.delimiter("/");
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Err(self.refused("list", prefix, &error).await),
        };
        self.bucket_seen.store(true, Ordering::Relaxed);
        let mut page = Page { more: answer.is_truncated().unwrap_or(false), ..Page::default() };
        let mut last = None;
        for object in answer.contents() {
            let key = object.key().and_then(|key| key.strip_prefix(self.prefix.as_str())).unwrap_or_default();
            last = last.max(Some(key.to_string()));
            // Other people's objects are none of ours; `init` gives the repository a prefix of its own.
            if ObjectKey::is_valid(key) {
                let modified = timestamp(object.last_modified());
                let (key, bytes, tier) = (ObjectKey::new(key), length(object.size()), tier::of_listing(object));
                page.objects.push(ObjectInfo { key, bytes, modified, tier });
            }
        }
        for folder in answer.common_prefixes() {
            let folder = folder.prefix().and_then(|folder| folder.strip_prefix(full_prefix.as_str())).unwrap_or_default();
            last = last.max(Some(super::behind_folder(prefix, folder)));
            if ObjectKey::is_valid(format!("{prefix}{folder}").trim_end_matches('/')) {
                page.folders.push(folder.into());
            }
        }
        Ok((page, last))
    }
}

#[async_trait]
impl Storage for S3Storage {
    fn place(&self) -> &str {
        &self.place
    }

    fn conditional_create(&self) -> bool {
        self.conditional_create
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let payload = body::Payload::prepare(body).await.map_err(|error| self.body_error(key, &error))?;
        let write = self.unclear.begin(key, payload.sha256());
        let created = self.create_once(key, &payload, &write).await?;
        write.settled();
        Ok(created)
    }

    async fn create_own(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        if self.conditional_create {
            return self.create(key, body).await;
        }
        let payload = body::Payload::prepare(body).await.map_err(|error| self.body_error(key, &error))?;
        let write = self.unclear.begin(key, payload.sha256());
        // Sent again after an unclear end, the same bytes replace themselves.
        self.put(key, &payload, write.id()).await?;
        write.settled();
        Ok(Created::New)
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        self.read_part(key, part).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        let head = self.head("stat", key).await?;
        Ok(head.map(|head| ObjectInfo {
            key: key.clone(),
            bytes: length(head.content_length()),
            modified: timestamp(head.last_modified()),
            tier: tier::of_head(&head),
        }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        let mut after = after.map(str::to_string);
        loop {
            let (page, last) = self.list_once(prefix, after.as_deref(), depth).await?;
            // A page of nothing but foreign keys must not look like the end.
            let is_empty = page.objects.is_empty() && page.folders.is_empty();
            if !(page.more && is_empty) {
                return Ok(page);
            }
            if last <= after {
                return Err(self.error("list", prefix, Fault::Other, "the store promises more keys and gives none"));
            }
            after = last;
        }
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        self.delete_all(keys).await
    }

    /// Buckets do not tell.
    async fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        Some(self)
    }
}

fn carries(head: &HeadObjectOutput, write_id: &str, bytes: u64) -> bool {
    let found = head.metadata().and_then(|metadata| metadata.get(WRITE_ID));
    found.is_some_and(|id| id == write_id) && length(head.content_length()) == bytes
}

/// S3 counts in signed numbers that are never negative.
fn length(bytes: Option<i64>) -> u64 {
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

fn timestamp(at: Option<&DateTime>) -> Timestamp {
    at.and_then(|at| Timestamp::new(at.secs(), at.subsec_nanos() as i32).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}
