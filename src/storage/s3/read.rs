//! Reading parts of objects.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::Bytes;

use super::errors::Refusal;
use super::{S3Storage, length};
use crate::storage::memory::cut;
use crate::storage::{Fault, ObjectKey, Part, Read, Result};

impl S3Storage {
    pub(super) async fn read_part(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let range = match part {
            Part::Whole => None,
            // HTTP has no empty ranges.
            Part::Range { bytes: 0, .. } | Part::Tail { bytes: 0 } => return self.read_nothing(key, part).await,
            // Stores count in signed numbers, some refuse others; no object is that long.
            Part::Range { start, bytes } => match start.checked_add(bytes - 1).filter(|last| *last < i64::MAX as u64) {
                Some(last) => Some(format!("bytes={start}-{last}")),
                None => return self.read_nothing(key, part).await,
            },
            Part::Tail { bytes } => Some(format!("bytes=-{bytes}")),
        };
        let request = self.client.get_object().bucket(&self.bucket).key(self.full_key(key)).set_range(range);
        match request.send().await {
            Ok(answer) => self.collect(key, part, answer).await,
            // An empty object has no tail for HTTP, and no range reaches into it.
            Err(error) if Refusal::is_outside(&error) => self.read_nothing(key, part).await,
            Err(error) => Err(self.refused("read", key.as_str(), &error).await),
        }
    }

    /// Reads a part that can only be right when it is empty: its place in the object is all there is to check.
    async fn read_nothing(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let Some(head) = self.head("read", key).await? else {
            return Err(self.error("read", key.as_str(), Fault::NotFound, ""));
        };
        let object_bytes = length(head.content_length());
        let is_empty = match part {
            Part::Whole => object_bytes == 0,
            Part::Range { start, bytes } => bytes == 0 && start <= object_bytes,
            Part::Tail { bytes } => bytes == 0 || object_bytes == 0,
        };
        if !is_empty {
            let detail = format!("{part:?} of {object_bytes} bytes");
            return Err(self.error("read", key.as_str(), Fault::Truncated, detail));
        }
        Ok(Read { bytes: Bytes::new(), object_bytes })
    }

    async fn collect(&self, key: &ObjectKey, part: Part, mut answer: GetObjectOutput) -> Result<Read> {
        let sent_bytes = length(answer.content_length());
        let total = answer.content_range().and_then(|range| range.rsplit_once('/')).and_then(|(_, total)| total.parse().ok());
        let object_bytes = total.unwrap_or(sent_bytes);
        let end = match part {
            Part::Range { start, bytes } => start.saturating_add(bytes),
            Part::Whole | Part::Tail { .. } => 0,
        };
        if end > object_bytes {
            let detail = format!("{object_bytes} bytes instead of at least {end}");
            return Err(self.error("read", key.as_str(), Fault::Truncated, detail));
        }
        let mut bytes = Vec::with_capacity(sent_bytes as usize);
        loop {
            match answer.body.try_next().await {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => break,
                Err(error) => {
                    let detail = format!("the answer broke off after {} of {sent_bytes} bytes: {error}", bytes.len());
                    return Err(self.error("read", key.as_str(), Fault::Transient, detail));
                }
            }
        }
        let mut bytes = Bytes::from(bytes);
        let wanted_bytes = match part {
            Part::Whole => object_bytes,
            Part::Range { bytes, .. } => bytes,
            Part::Tail { bytes } => bytes.min(object_bytes),
        };
        // A store that ignores ranges sends everything.
        if total.is_none() && bytes.len() as u64 == object_bytes {
            bytes = cut(&bytes, part).unwrap_or_default();
        }
        if bytes.len() as u64 != wanted_bytes {
            let detail = format!("the answer has {} bytes instead of {wanted_bytes}", bytes.len());
            return Err(self.error("read", key.as_str(), Fault::Transient, detail));
        }
        Ok(Read { bytes, object_bytes })
    }
}
