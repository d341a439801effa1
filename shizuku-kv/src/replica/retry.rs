//! What to do when applying fails.

use std::time::Duration;

use backon::ExponentialBackoff;

use super::ReplicaError;
use crate::store::backoff;

/// What a replica does when applying a batch, or keeping what was applied, fails: it tries the same again, after pauses
/// that grow, or ends.
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
    /// Tries again until it works or the replica is stopped, with pauses from 100 ms to 10 s.
    pub fn forever() -> Self {
        Self { attempts: None, first: Duration::from_millis(100), longest: Duration::from_secs(10) }
    }

    /// Ends the run at the first failure.
    pub fn never() -> Self {
        Self::attempts(1)
    }

    /// Ends the run when a batch has failed this many times, 1 at least.
    pub fn attempts(attempts: u32) -> Self {
        Self { attempts: Some(attempts), ..Self::forever() }
    }

    /// The first pause and the longest; between them they double, with jitter. The first is 1 ms at least, the longest at
    /// least as long as the first and an hour at most.
    pub fn pauses(mut self, first: Duration, longest: Duration) -> Self {
        (self.first, self.longest) = (first, longest);
        self
    }

    pub(super) fn validate(&self) -> Result<(), ReplicaError> {
        let refuse = |field, allowed| Err(ReplicaError::InvalidConfig { field, allowed });
        if self.attempts == Some(0) {
            return refuse("attempts", "at least 1");
        }
        if self.first < Duration::from_millis(1) {
            return refuse("the first pause", "at least 1 ms");
        }
        if self.longest < self.first || self.longest > Duration::from_secs(3600) {
            return refuse("the longest pause", "at least the first one, and at most an hour");
        }
        Ok(())
    }

    pub(super) fn tries(&self) -> Tries {
        Tries { made: 0, most: self.attempts, pauses: backoff(self.first, self.longest) }
    }
}

/// The tries of one batch.
pub(super) struct Tries {
    pub(super) made: u32,
    most: Option<u32>,
    pauses: ExponentialBackoff,
}

impl Tries {
    /// One more has failed: the pause before the next one, if there is to be one.
    pub(super) fn failed(&mut self) -> Option<Duration> {
        self.made = self.made.saturating_add(1);
        if self.most.is_some_and(|most| self.made >= most) {
            return None;
        }
        self.pauses.next()
    }
}
