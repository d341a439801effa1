//! Moments whose elapsed time includes a suspension of the machine.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A moment by both local clocks: the monotonic one stands still while the machine sleeps, the
/// other can be set (ADR 0043).
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuspendAwareInstant {
    monotonic: Instant,
    wall: SystemTime,
}

impl SuspendAwareInstant {
    pub(crate) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns the time since then, the longer one of the two clocks.
    pub(crate) fn elapsed(&self) -> Duration {
        Self::now().since(self)
    }

    /// The time since an earlier moment, the longer of the two.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        self.monotonic.saturating_duration_since(earlier.monotonic).max(wall)
    }

    /// Returns the moment by the monotonic clock, for timers.
    pub(crate) fn instant(&self) -> Instant {
        self.monotonic
    }

    /// Returns the moment by the wall clock, for people.
    pub(crate) fn wall(&self) -> SystemTime {
        self.wall
    }
}
