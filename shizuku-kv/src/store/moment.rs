//! Moments of which the time since is asked.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A moment by both local clocks: the monotonic one stands still while the machine sleeps, the other can be set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// The time since, the longer of the two.
    pub(crate) fn elapsed(&self) -> Duration {
        self.monotonic.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }

    /// By the monotonic clock, for timers.
    pub(crate) fn instant(&self) -> Instant {
        self.monotonic
    }

    /// By the clock on the wall, for people.
    pub(crate) fn wall(&self) -> SystemTime {
        self.wall
    }
}
