//! The clock of a log.

use std::time::SystemTime;

use tokio::time::Instant;

/// A clock that starts at the wall clock's time and advances with tokio's clock. It therefore never
/// goes back, and stops while a test has stopped the time.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    system: SystemTime,
}

impl Clock {
    pub(super) fn started(now: Instant) -> Self {
        Self { instant: now, system: SystemTime::now() }
    }

    /// Returns the wall-clock time of an instant.
    pub(super) fn system(&self, at: Instant) -> SystemTime {
        self.system.checked_add(at.saturating_duration_since(self.instant)).unwrap_or(self.system)
    }

    /// Returns the instant of a wall-clock time.
    pub(super) fn instant(&self, system: SystemTime) -> Instant {
        let since = system.duration_since(self.system).unwrap_or_default();
        self.instant.checked_add(since).unwrap_or(self.instant)
    }
}
