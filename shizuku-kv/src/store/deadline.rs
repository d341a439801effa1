//! Deadlines, which bound every wait (ADR 0001).

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::timer::timeout_at;
use super::{Key, KvError};

/// Maximum span of a deadline. Every clock can represent it, and adding a span to it does not
/// overflow one.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Checks that a tokio runtime drives the caller, because a timer panics without one.
///
/// # Errors
/// Returns [`KvError::NoRuntime`] outside of a runtime.
pub(crate) fn in_runtime(operation: &'static str) -> Result<(), KvError> {
    match Handle::try_current() {
        Ok(_) => Ok(()),
        Err(_) => Err(KvError::NoRuntime {
            operation,
            reason: "no tokio runtime drives this call; await it inside one, for example under #[tokio::main]",
        }),
    }
}

/// The moment by which an operation has to end, with the span from which it was computed.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// Default deadline of an operation: 5 seconds.
    pub const DEFAULT: Duration = Duration::from_secs(5);

    /// Returns a deadline `limit` from now. A limit of more than a hundred years is reduced to a
    /// hundred years.
    pub fn after(limit: Duration) -> Self {
        let limit = limit.min(CENTURY);
        let now = Instant::now();
        Self { at: now.checked_add(limit).unwrap_or(now), limit }
    }

    /// Returns the span that was set, at most a hundred years.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Returns the time that is left, or zero if the deadline has passed.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Returns the moment of the deadline, by tokio's clock.
    pub fn instant(&self) -> Instant {
        self.at
    }

    /// Returns the deadline for a part of the operation, which ends `limit` from now at the latest.
    #[cfg(feature = "nats")]
    pub(crate) fn at_most(self, limit: Duration) -> Self {
        Self { at: self.at.min(Self::after(limit).at), ..self }
    }

    /// Returns the moment `grace` after the deadline.
    pub(super) fn instant_and(&self, grace: Duration) -> Instant {
        self.at.checked_add(grace).unwrap_or(self.at)
    }

    /// Returns the error of an operation whose deadline has passed.
    pub fn timeout(&self, operation: &'static str, key: Option<&Key>) -> KvError {
        KvError::Timeout { operation, key: key.cloned(), limit: self.limit }
    }

    /// Runs `future` until the deadline, then drops it and returns [`KvError::Timeout`]. Returns
    /// [`KvError::NoRuntime`] outside of a tokio runtime. Every error names `operation`.
    pub async fn bound<T>(
        &self,
        operation: &'static str,
        key: Option<&Key>,
        future: impl Future<Output = Result<T, KvError>>,
    ) -> Result<T, KvError> {
        in_runtime(operation)?;
        // Pinned here, because a future that is passed on is copied.
        match timeout_at(self.at, pin!(future)).await {
            Some(result) => result.map_err(|error| error.of_operation(operation)),
            None => Err(self.timeout(operation, key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_limit_is_within_the_clock() {
        let edge = Duration::from_secs_f64(9_223_372_036_854_769_389.5);
        for limit in [CENTURY, CENTURY + Duration::from_nanos(1), edge, Duration::MAX] {
            let deadline = Deadline::after(limit);
            assert_eq!(deadline.limit(), CENTURY, "{limit:?}");
            assert!(deadline.remaining() > CENTURY - Duration::from_secs(60), "{limit:?}");
            assert!(deadline.instant_and(Duration::from_secs(1)) > deadline.instant());
        }
        assert_eq!(Deadline::after(Duration::ZERO).remaining(), Duration::ZERO);
    }
}
