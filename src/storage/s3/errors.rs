//! From what the SDK and the store say to a [`Fault`], in words that hold no secret (rule 57).
//!
//! Only the code, the message and the status of an answer are quoted, and for calls without an answer the chain of causes;
//! never headers, bodies or `Debug` output, which hold signatures and session tokens.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::storage::Fault;

/// Why a call failed.
#[derive(Debug)]
pub struct Refusal {
    pub fault: Fault,
    pub detail: String,
    /// The answer had no code that would tell more than its status.
    pub is_bare: bool,
}

/// Of an object behind a delete marker.
const DELETED: &str = "it was deleted in a bucket that keeps versions; `lastgood verify --repair` brings the last one back";
/// Longest detail that is passed on.
const DETAIL_CHARS: usize = 400;

impl Refusal {
    pub fn of<E>(error: &SdkError<E>) -> Refusal
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let Some(credentials) = find::<CredentialsError>(error) {
            return credentials_refusal(credentials);
        }
        match error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                let mut told = refusal(Some(status), service.err().code(), service.err().message());
                if service.raw().headers().get("x-amz-delete-marker") == Some("true") {
                    // The bucket's own word: the name was deleted, and its older versions are still there.
                    told.is_bare = false;
                    told.detail = tidy(&format!("{}; {DELETED}", told.detail));
                }
                told
            }
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                let mut told = refusal(Some(status), None, Some("the answer could not be understood"));
                if status < 300 {
                    told.fault = Fault::Transient;
                }
                told
            }
            SdkError::TimeoutError(_) => plain(Fault::Transient, "time-out"),
            SdkError::DispatchFailure(_) => dispatch_refusal(&chain(error)),
            _ => plain(Fault::Other, &chain(error)),
        }
    }

    /// The key is taken (`If-None-Match: *` did not hold).
    pub fn is_taken<E>(error: &SdkError<E>) -> bool {
        status(error) == Some(412)
    }

    /// The range begins behind the object's end, or the object is empty.
    pub fn is_outside<E>(error: &SdkError<E>) -> bool {
        status(error) == Some(416)
    }

    /// The store does not have the operation, or not without a header that the SDK no longer sends.
    pub fn is_unknown_operation<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
        let code = error.as_service_error().and_then(|service| service.code());
        matches!(status(error), Some(405 | 501)) || matches!(code, Some("NotImplemented" | "MissingContentMD5"))
    }
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Judges an answer by its status, code and message; entries of a batch have no status.
pub fn refusal(status: Option<u16>, code: Option<&str>, message: Option<&str>) -> Refusal {
    let fault = match code {
        Some(code) => by_code(code, message.unwrap_or_default()),
        None => None,
    };
    let is_bare = matches!(code, None | Some("NotFound" | "Forbidden"));
    let fault = fault.unwrap_or_else(|| by_status(status));
    let mut words = Vec::new();
    words.extend(status.map(|status| format!("HTTP {status}")));
    words.extend(code.map(str::to_string));
    words.extend(message.map(str::to_string));
    if code == Some("RequestTimeTooSkewed") {
        words.push("the clocks of this host and of the store differ (clock skew): set this host's clock".into());
    }
    Refusal { fault, detail: tidy(&words.join(", ")), is_bare }
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>, and what compatible stores say instead.
fn by_code(code: &str, message: &str) -> Option<Fault> {
    let fault = match code {
        "NoSuchKey" => Fault::NotFound,
        "NoSuchBucket" => Fault::NoPlace,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "InvalidSecurity"
        | "NotSignedUp"
        | "UnrecognizedClientException" => Fault::Credentials,
        // Garage has one code for unknown keys, wrong signatures, missing rights and full buckets.
        "AccessDenied" if message.contains("Invalid signature") || message.contains("No such key:") => Fault::Credentials,
        "AccessDenied" if message.contains("quota is reached") => Fault::Full,
        // In the words of AWS and Ceph, and of MinIO.
        "AccessDenied" if message.contains("object lock") => Fault::Locked,
        "InvalidRequest" | "ObjectLocked" if message.contains("WORM protected") => Fault::Locked,
        "InvalidObjectState" => Fault::Frozen,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => Fault::Denied,
        "RequestTimeTooSkewed" => Fault::Transient,
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" | "EntityQuotaExceeded" => Fault::Full,
        // Among them: bytes that were damaged on the way.
        "SlowDown"
        | "ServiceUnavailable"
        | "InternalError"
        | "RequestTimeout"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "BandwidthLimitExceeded"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "IncompleteBody"
        | "BadDigest"
        | "InvalidDigest"
        | "XAmzContentSHA256Mismatch"
        | "XMinioServerNotInitialized" => Fault::Transient,
        _ => return None,
    };
    Some(fault)
}

fn by_status(status: Option<u16>) -> Fault {
    match status {
        Some(404) => Fault::NotFound,
        Some(401) => Fault::Credentials,
        Some(403) => Fault::Denied,
        Some(507) => Fault::Full,
        Some(408 | 425 | 429) => Fault::Transient,
        // 501 and 505 say that it will never work.
        Some(501 | 505) => Fault::Other,
        Some(500..=599) => Fault::Transient,
        _ => Fault::Other,
    }
}

fn credentials_refusal(error: &CredentialsError) -> Refusal {
    match error {
        // The metadata service or STS was slow; what it knows may still be right.
        CredentialsError::ProviderTimedOut(_) => plain(Fault::Transient, "time-out while fetching credentials"),
        CredentialsError::CredentialsNotLoaded(_) => plain(
            Fault::Credentials,
            "none were found; set credentials_file or profile under [repository.s3], or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or give this host a role",
        ),
        other => plain(Fault::Credentials, &chain(other)),
    }
}

/// No answer at all. A certificate that is not trusted will not become so by trying again.
fn dispatch_refusal(causes: &str) -> Refusal {
    if causes.contains("invalid peer certificate") {
        let hint = "set ca_file under [repository.s3] to the certificate authority of the store";
        return plain(Fault::Other, &format!("{causes}; {hint}"));
    }
    plain(Fault::Transient, causes)
}

fn plain(fault: Fault, detail: &str) -> Refusal {
    Refusal { fault, detail: tidy(detail), is_bare: false }
}

/// The first error of type `T` in a chain of causes.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    causes(error).find_map(|error| error.downcast_ref::<T>())
}

/// An error and its causes, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let current = next?;
        next = current.source();
        Some(current)
    })
}

/// A chain of causes in one line, each said once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    for cause in causes(error) {
        let text = cause.to_string();
        if words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
    }
    words.join(": ")
}

/// One line of bounded length.
fn tidy(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= DETAIL_CHARS {
        return line;
    }
    let cut: String = line.chars().take(DETAIL_CHARS).collect();
    format!("{cut}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_the_fault_a_caller_would_act_on() {
        let cases = [
            (404, Some("NoSuchKey"), Fault::NotFound),
            (404, Some("NoSuchBucket"), Fault::NoPlace),
            (404, None, Fault::NotFound),
            (403, Some("AccessDenied"), Fault::Denied),
            (403, Some("InvalidAccessKeyId"), Fault::Credentials),
            (403, Some("InvalidObjectState"), Fault::Frozen),
            (403, Some("SignatureDoesNotMatch"), Fault::Credentials),
            (400, Some("ExpiredToken"), Fault::Credentials),
            (403, Some("RequestTimeTooSkewed"), Fault::Transient),
            (409, Some("ConditionalRequestConflict"), Fault::Transient),
            (503, Some("SlowDown"), Fault::Transient),
            (500, None, Fault::Transient),
            (502, None, Fault::Transient),
            (408, None, Fault::Transient),
            (429, Some("Whatever"), Fault::Transient),
            (507, None, Fault::Full),
            (400, Some("QuotaExceeded"), Fault::Full),
            (501, Some("NotImplemented"), Fault::Other),
            (400, Some("InvalidArgument"), Fault::Other),
        ];
        for (status, code, fault) in cases {
            assert_eq!(refusal(Some(status), code, None).fault, fault, "{status} {code:?}");
        }
    }

    #[test]
    fn only_answers_without_a_telling_code_are_asked_about_again() {
        assert!(refusal(Some(404), None, None).is_bare);
        assert!(refusal(Some(404), Some("NotFound"), None).is_bare);
        assert!(!refusal(Some(404), Some("NoSuchKey"), None).is_bare);
    }

    #[test]
    fn one_code_of_garage_is_told_apart_by_its_message() {
        let of = |message| refusal(Some(403), Some("AccessDenied"), Some(message)).fault;
        assert_eq!(of("Forbidden: Invalid signature"), Fault::Credentials);
        assert_eq!(of("Forbidden: No such key: GK31c2f218"), Fault::Credentials);
        assert_eq!(of("Forbidden: Bucket size quota is reached, maximum 1"), Fault::Full);
        assert_eq!(of("Forbidden: Operation is not allowed for this key."), Fault::Denied);
    }

    #[test]
    fn locks_are_told_from_missing_rights() {
        let of = |code, message| refusal(None, Some(code), Some(message)).fault;
        assert_eq!(of("AccessDenied", "Access Denied because object protected by object lock."), Fault::Locked);
        assert_eq!(of("InvalidRequest", "Object is WORM protected and cannot be overwritten"), Fault::Locked);
        assert_eq!(of("AccessDenied", "Access Denied"), Fault::Denied);
        assert_eq!(of("InvalidRequest", "Bucket is missing Object Lock Configuration"), Fault::Other);
    }

    #[test]
    fn what_is_behind_a_delete_marker_is_absent_and_said_to_come_back() {
        use aws_sdk_s3::operation::get_object::GetObjectError;
        use aws_sdk_s3::primitives::SdkBody;
        let answer = |marker: bool| {
            let mut raw = aws_smithy_runtime_api::http::Response::new(404.try_into().unwrap(), SdkBody::empty());
            if marker {
                raw.headers_mut().insert("x-amz-delete-marker", "true");
            }
            let error = GetObjectError::generic(aws_smithy_types::error::ErrorMetadata::builder().build());
            Refusal::of(&SdkError::service_error(error, raw))
        };
        let (hidden, absent) = (answer(true), answer(false));
        assert!(hidden.fault == Fault::NotFound && !hidden.is_bare && hidden.detail.contains("verify --repair"));
        assert!(absent.fault == Fault::NotFound && absent.is_bare && !absent.detail.contains("verify"));
    }

    #[test]
    fn skew_is_named_and_details_are_short_lines() {
        assert!(refusal(Some(403), Some("RequestTimeTooSkewed"), None).detail.contains("clock skew"));
        let long = refusal(Some(500), None, Some(&"x\n".repeat(1000))).detail;
        assert!(long.chars().count() <= DETAIL_CHARS + 1 && !long.contains('\n'));
    }
}
