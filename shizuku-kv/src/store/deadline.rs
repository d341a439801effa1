//! Deadlines: nothing waits for ever.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::{Key, KvError};

/// The moment by which an operation has to end, with the span it was made from.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// The deadline of an operation for which none was set: 5 seconds.
    pub const DEFAULT: Duration = Duration::from_secs(5);

    /// A deadline `limit` from now.
    pub fn after(limit: Duration) -> Self {
        let now = Instant::now();
        // A limit beyond what the clock can represent is as good as a century.
        let at = now.checked_add(limit).unwrap_or(now + Duration::from_secs(100 * 365 * 86_400));
        Self { at, limit }
    }

    /// The span that was set.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The time that is left; zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// The moment itself, by tokio's clock.
    pub fn instant(&self) -> Instant {
        self.at
    }

    /// The error that says that it passed.
    pub fn timeout(&self, operation: &'static str, key: Option<&Key>) -> KvError {
        KvError::Timeout { operation, key: key.cloned(), limit: self.limit }
    }

    /// Runs `future`, for as long as the deadline allows; then drops it and returns [`KvError::Timeout`].
    pub async fn bound<T>(
        &self,
        operation: &'static str,
        key: Option<&Key>,
        future: impl Future<Output = Result<T, KvError>>,
    ) -> Result<T, KvError> {
        match tokio::time::timeout_at(self.at, future).await {
            Ok(result) => result,
            Err(_) => Err(self.timeout(operation, key)),
        }
    }
}
