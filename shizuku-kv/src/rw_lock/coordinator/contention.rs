//! The pauses of a coordinator after lost swaps, or while its store does not answer.

use std::time::Duration;

use backon::ExponentialBackoff;
use tokio::time::Instant;

use crate::store::backoff;

#[derive(Debug, Default)]
pub(super) struct Contention {
    /// Number of swaps lost in a row.
    conflicts: u32,
    /// Time of the last lost swap. Other processes use the lock too, so their changes are watched
    /// for some time.
    last_conflict: Option<Instant>,
    /// Set while the store does not answer.
    pauses: Option<ExponentialBackoff>,
}

impl Contention {
    pub(super) fn lost_swap(&mut self) {
        self.last_conflict = Some(Instant::now());
        self.conflicts = self.conflicts.saturating_add(1);
    }

    pub(super) fn wrote(&mut self) {
        (self.conflicts, self.pauses) = (0, None);
    }

    pub(super) fn read(&mut self) {
        self.pauses = None;
    }

    /// Returns whether a swap was lost to another process within this time.
    pub(super) fn was_within(&self, time: Duration) -> bool {
        self.last_conflict.is_some_and(|last| last.elapsed() < time)
    }

    /// Records that other processes have made the changes of this one.
    pub(super) fn was_helped(&mut self) {
        self.conflicts = 0;
    }

    /// Returns whether the last swap was lost.
    pub(super) fn has_lost(&self) -> bool {
        self.conflicts > 0
    }

    /// Returns whether more than one swap was lost in a row.
    pub(super) fn is_repeated(&self) -> bool {
        self.conflicts > 1
    }

    /// Returns the number of changes of others to wait for before the next swap.
    ///
    /// If many processes claim at once, each swap that succeeds makes all others fail. So a process
    /// that has lost waits for changes of the others first. Their number is random, and its maximum
    /// grows with the number of lost swaps.
    pub(super) fn passes(&self) -> u32 {
        fastrand::u32(0..=self.conflicts.min(7))
    }

    /// Returns the pause before the next read, which is zero unless many swaps were lost in a row.
    pub(super) fn pause_before_read(&self) -> Duration {
        if self.conflicts <= 4 {
            return Duration::ZERO;
        }
        Duration::from_millis(fastrand::u64(1..=u64::from(self.conflicts.min(50))))
    }

    /// Returns the pause after a request that failed.
    pub(super) fn pause_after_failure(&mut self) -> Duration {
        let pauses = self
            .pauses
            .get_or_insert_with(|| backoff(Duration::from_millis(20), Duration::from_secs(1)));
        pauses.next().unwrap_or_default()
    }
}
