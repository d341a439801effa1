//! The policy for a failure of applying.

use std::time::Duration;

use backon::ExponentialBackoff;

use super::ReplicaError;
use crate::store::backoff;

/// Policy for a failure of applying a batch, or of committing it. The replica retries the same
/// batch, after growing pauses, or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts: Option<u32>,
    first: Duration,
    longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::forever()
    }
}

impl RetryPolicy {
    /// Retries until it works or the replica is stopped, with pauses from 100 ms to 10 s.
    pub fn forever() -> Self {
        Self { attempts: None, first: Duration::from_millis(100), longest: Duration::from_secs(10) }
    }

    /// Ends the run at the first failure.
    pub fn never() -> Self {
        Self::attempts(1)
    }

    /// Ends the run after a batch has failed this many times; at least 1.
    pub fn attempts(attempts: u32) -> Self {
        Self { attempts: Some(attempts), ..Self::forever() }
    }

    /// Sets the first pause and the longest one. Between them the pauses double, with jitter. The
    /// first is at least 1 ms, the longest at least as long as the first and at most an hour.
    pub fn pauses(mut self, first: Duration, longest: Duration) -> Self {
        (self.first, self.longest) = (first, longest);
        self
    }

    pub(super) fn validate(&self) -> Result<(), ReplicaError> {
        let reject = |field, allowed| Err(ReplicaError::InvalidConfig { field, allowed });
        if self.attempts == Some(0) {
            return reject("attempts", "at least 1");
        }
        if self.first < Duration::from_millis(1) {
            return reject("the first pause", "at least 1 ms");
        }
        if self.longest < self.first || self.longest > Duration::from_secs(3600) {
            return reject("the longest pause", "at least the first one, and at most an hour");
        }
        Ok(())
    }

    pub(super) fn tries(&self) -> Tries {
        Tries { made: 0, most: self.attempts, pauses: backoff(self.first, self.longest) }
    }
}

/// The attempts at one batch.
pub(super) struct Tries {
    pub(super) made: u32,
    most: Option<u32>,
    pauses: ExponentialBackoff,
}

impl Tries {
    /// Records a failed attempt. Returns the pause before the next attempt, if one is left.
    pub(super) fn failed(&mut self) -> Option<Duration> {
        self.made = self.made.saturating_add(1);
        if self.most.is_some_and(|most| self.made >= most) {
            return None;
        }
        self.pauses.next()
    }
}
