//! Deadlines: nothing waits for ever.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::timer::timeout_at;
use super::{Key, KvError};

/// The longest span of a deadline. No clock is short of it, and nothing that is added to it overflows one.
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

/// The moment by which an operation has to end, with the span it was made from.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// The deadline of an operation for which none was set: 5 seconds.
    pub const DEFAULT: Duration = Duration::from_secs(5);

    /// A deadline `limit` from now; a limit of more than a hundred years is one of a hundred years.
    pub fn after(limit: Duration) -> Self {
        let limit = limit.min(CENTURY);
        let now = Instant::now();
        Self { at: now.checked_add(limit).unwrap_or(now), limit }
    }

    /// The span that was set, at most a hundred years.
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

    /// Returns the deadline for a part of the operation, which ends `limit` from now at the latest.
    #[cfg(feature = "nats")]
    pub(crate) fn at_most(self, limit: Duration) -> Self {
        Self { at: self.at.min(Self::after(limit).at), ..self }
    }

    /// The moment `grace` after it.
    pub(super) fn instant_and(&self, grace: Duration) -> Instant {
        self.at.checked_add(grace).unwrap_or(self.at)
    }

    /// The error that says that it passed.
    pub fn timeout(&self, operation: &'static str, key: Option<&Key>) -> KvError {
        KvError::Timeout { operation, key: key.cloned(), limit: self.limit }
    }

    /// Runs `future` until the deadline, then drops it and returns [`KvError::Timeout`]. Returns
    /// [`KvError::NoRuntime`] outside of a tokio runtime.
    pub async fn bound<T>(
        &self,
        operation: &'static str,
        key: Option<&Key>,
        future: impl Future<Output = Result<T, KvError>>,
    ) -> Result<T, KvError> {
        in_runtime(operation)?;
        match timeout_at(self.at, future).await {
            Some(result) => result,
            None => Err(self.timeout(operation, key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_beyond_the_clock() {
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
