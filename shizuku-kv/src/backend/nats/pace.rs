//! The time that the server takes to create a consumer.
//!
//! After a loss, all watches of all clients create their consumers at the same time, and a cluster
//! executes creations one after the other. A creation that is abandoned too early still costs the
//! cluster its execution, and a deletion besides. So timeouts follow the time of earlier creations
//! on the connection, otherwise an overload would keep itself alive (ADR 0119).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Maximum timeout that follows from earlier creations.
const LONGEST: Duration = Duration::from_secs(60);

/// The time of the last creations of consumers on a connection.
#[derive(Debug, Default)]
pub(super) struct CreationPace {
    /// In milliseconds.
    last: AtomicU64,
}

impl CreationPace {
    /// Returns a timeout for a creation or a deletion: `usual`, or twice the time of the last
    /// creations if that is longer.
    pub(super) fn patience(&self, usual: Duration) -> Duration {
        let twice = Duration::from_millis(self.last.load(Ordering::Relaxed).saturating_mul(2));
        usual.max(twice.min(LONGEST))
    }

    /// Records that the server answered a creation after this time. A single fast answer halves
    /// the timeouts, because other creations may still be waiting.
    pub(super) fn answered(&self, after: Duration) {
        let after = millis(after);
        let update = |last| Some(after.max(last / 2));
        let _ = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// Records that a creation was abandoned without an answer after this time.
    pub(super) fn abandoned(&self, after: Duration) {
        self.last.fetch_max(millis(after), Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_doubles_with_timeouts_and_shrinks_with_answers() {
        let (pace, usual) = (CreationPace::default(), Duration::from_secs(1));
        let patience = || pace.patience(usual).as_secs();
        assert_eq!(patience(), 1);
        for doubled in [2, 4, 8, 16, 32, 60, 60] {
            pace.abandoned(pace.patience(usual));
            assert_eq!(patience(), doubled);
        }
        // An attempt that ended earlier proves nothing.
        pace.abandoned(usual);
        assert_eq!(patience(), 60);
        pace.answered(Duration::from_secs(20));
        assert_eq!(patience(), 60);
        for halved in [30, 15, 7, 3, 1, 1] {
            pace.answered(Duration::from_millis(1));
            assert_eq!(patience(), halved);
        }
    }
}
