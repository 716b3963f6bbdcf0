//! What a PUT sends: pieces in memory or a file, streamed with their length known, their SHA-256 signed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Read as _};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, Length, SdkBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use sha2::{Digest, Sha256};

use crate::storage::Body;

/// Read at once of a file that is sent; the SDK's own 4 KiB are a thousand trips to another thread for a segment of WAL.
const READ_BYTES: usize = 256 << 10;

/// A body and its SHA-256.
pub struct Payload {
    body: Body,
    sha256: [u8; 32],
}

impl Payload {
    /// Reads the body once, for its SHA-256; a file that is not as long as it should be is an error.
    pub async fn prepare(body: Body) -> io::Result<Payload> {
        let (body, sha256) = tokio::task::spawn_blocking(move || {
            let sha256 = sha256_of(&body)?;
            Ok::<_, io::Error>((body, sha256))
        })
        .await
        .map_err(io::Error::other)??;
        Ok(Payload { body, sha256 })
    }

    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    pub fn bytes(&self) -> u64 {
        self.body.len()
    }

    /// The body as the SDK sends it, from the beginning.
    pub async fn stream(&self) -> io::Result<ByteStream> {
        match &self.body {
            Body::Bytes(pieces) if pieces.len() <= 1 => Ok(pieces.first().cloned().unwrap_or_default().into()),
            Body::Bytes(pieces) => Ok(ByteStream::new(SdkBody::from_body_1_x(Pieces::new(pieces)))),
            Body::File { bytes, .. } | Body::Unnamed { bytes, .. } => {
                let path = self.body.path().unwrap_or_default();
                let stream =
                    ByteStream::read_from().path(path).length(Length::Exact(*bytes)).buffer_size(READ_BYTES).build().await;
                stream.map_err(|error| io::Error::other(error.to_string()))
            }
        }
    }
}

fn sha256_of(body: &Body) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    match body {
        Body::Bytes(pieces) => pieces.iter().for_each(|piece| hash.update(piece)),
        Body::File { bytes, .. } | Body::Unnamed { bytes, .. } => hash_file(&body.path().unwrap_or_default(), *bytes, &mut hash)?,
    }
    Ok(hash.finalize().into())
}

fn hash_file(path: &Path, bytes: u64, hash: &mut Sha256) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = std::fs::File::open(path).map_err(named)?.take(bytes);
    let mut buffer = vec![0u8; READ_BYTES];
    let mut hashed_bytes = 0;
    loop {
        match file.read(&mut buffer).map_err(named)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                hashed_bytes += n as u64;
            }
        }
    }
    if hashed_bytes != bytes {
        return Err(io::Error::other(format!("{} has {hashed_bytes} bytes instead of {bytes}", path.display())));
    }
    Ok(())
}

/// Pieces sent one after the other without being joined.
struct Pieces {
    pieces: VecDeque<Bytes>,
    bytes: u64,
}

impl Pieces {
    fn new(pieces: &[Bytes]) -> Self {
        // An empty frame would end a chunk-encoded body.
        let pieces: VecDeque<Bytes> = pieces.iter().filter(|piece| !piece.is_empty()).cloned().collect();
        Pieces { bytes: pieces.iter().map(|piece| piece.len() as u64).sum(), pieces }
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        self.bytes -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Exact, so that the request has a Content-Length: many stores refuse a PUT without one.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

/// Signs the SHA-256 that we know; the SDK would leave a streamed payload unsigned.
#[derive(Debug)]
pub struct SignedPayload {
    sha256_hex: String,
}

impl SignedPayload {
    pub fn new(sha256: &[u8; 32]) -> Self {
        SignedPayload { sha256_hex: hex::encode(sha256) }
    }
}

impl Intercept for SignedPayload {
    fn name(&self) -> &'static str {
        "SignedPayload"
    }

    fn modify_before_signing(
        &self,
        _: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(PayloadSigningOverride::Precomputed(self.sha256_hex.clone()));
        Ok(())
    }
}
