//! The store's clock, from the `Date` of its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use jiff::{SignedDuration, Timestamp};

use crate::clock;

/// How far the host's clock is behind the store's; zero before the first answer.
#[derive(Debug, Clone, Default)]
pub struct StoreClock {
    behind_ms: Arc<AtomicI64>,
}

impl StoreClock {
    pub fn now(&self) -> Timestamp {
        let now = clock::now();
        now.checked_add(SignedDuration::from_millis(self.behind_ms.load(Ordering::Relaxed))).unwrap_or(now)
    }
}

/// Of the time's whole seconds; where an answer has none, or nonsense, the last one counts.
impl Intercept for StoreClock {
    fn name(&self) -> &'static str {
        "StoreClock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        if let Some(date) = date {
            let behind = date.timestamp().duration_since(clock::now());
            self.behind_ms.store(i64::try_from(behind.as_millis()).unwrap_or(0), Ordering::Relaxed);
        }
        Ok(())
    }
}
