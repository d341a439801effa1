//! The state of a replica's comparisons with its store.

use std::time::Duration;

use tokio::time::Instant;

use super::tally::Tally;
use crate::store::{StoreFigures, WatchCursor};
use crate::watch::{Recent, UnverifiedPosition};

/// Maximum number of intervals before the next listing, after listings without a difference.
const LONGEST_PAUSE: u32 = 16;

/// Outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// The replica agrees with the store.
    Same,
    /// The result is unknown, and the next listing is not due yet.
    Unknown,
    /// The comparison follows once the collector has reached its target position.
    Waits,
    /// Another comparison is due soon.
    Soon,
    /// The store did not answer. The next comparison is due after a growing pause.
    Failed,
    /// The replica has to resync.
    Differs,
    Stopped,
}

/// State of the comparisons of one run.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) interval: Duration,
    pub(super) tally: Tally,
    /// The position of the replica at the loss of its watch. `None` after a comparison has shown
    /// that the store is the same.
    pub(super) unverified: Option<UnverifiedPosition>,
    /// The newest updates from the watches of this run.
    pub(super) recent: Recent,
    /// Requested figures whose position has not been reached.
    pub(super) asked: Option<StoreFigures>,
    /// The last figures that agreed.
    pub(super) agreed: Option<StoreFigures>,
    /// The last figures.
    pub(super) seen: Option<StoreFigures>,
    pub(super) attempts: u32,
    /// Number of failed comparisons since the last one that succeeded.
    pub(super) failures: u32,
    /// Minimum time of the next listing.
    pub(super) not_before: Instant,
    pause: Duration,
}

impl Comparison {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            tally: Tally::default(),
            unverified: None,
            recent: Recent::default(),
            asked: None,
            agreed: None,
            seen: None,
            attempts: 0,
            failures: 0,
            not_before: Instant::now(),
            pause: interval,
        }
    }

    /// Resumes from a checkpoint of an earlier run.
    pub(super) fn resume(&mut self, cursor: WatchCursor, tombstones: Option<u64>) {
        self.tally = Tally::resume(tombstones);
        self.unverified = Some(UnverifiedPosition { cursor, recent: Recent::default() });
    }

    /// Starts over, because the state is read from its beginning.
    pub(super) fn start_over(&mut self) {
        self.tally = Tally::empty();
        (self.unverified, self.asked, self.agreed, self.seen) = (None, None, None, None);
        self.recent = Recent::default();
    }

    /// Returns whether the keys may be listed now. If so, the pause before the next listing is
    /// doubled, unless this one finds a difference.
    pub(super) fn may_list(&mut self) -> bool {
        let now = Instant::now();
        if now < self.not_before {
            return false;
        }
        self.not_before = now.checked_add(self.pause).unwrap_or(now);
        self.pause = self.pause.saturating_mul(2).min(self.interval.saturating_mul(LONGEST_PAUSE));
        true
    }

    pub(super) fn found(&mut self) {
        self.pause = self.interval;
        self.not_before = Instant::now();
    }
}
