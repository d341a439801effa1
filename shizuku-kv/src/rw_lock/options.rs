//! How a lock is held and waited for.

use std::time::Duration;

use super::DistroRwLockError;

/// The shortest lease: renewals have to come through within two thirds of it, also while a cluster elects a leader.
pub(super) const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// The longest lease: so long a crashed holder is in the way at most.
pub(super) const LONGEST_LEASE: Duration = Duration::from_secs(3600);

/// How a lock is held and waited for.
///
/// ```
/// use std::time::Duration;
///
/// use shizuku_kv::rw_lock::LockOptions;
///
/// let options = LockOptions::new().lease(Duration::from_secs(20)).wait(Duration::from_secs(60));
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockOptions {
    pub(super) lease: Duration,
    pub(super) wait: Duration,
    pub(super) label: Option<String>,
}

impl LockOptions {
    /// A lease of 10 seconds, waiting for up to 30, without a label.
    pub fn new() -> Self {
        Self { lease: Duration::from_secs(10), wait: Duration::from_secs(30), label: None }
    }

    /// How long a holder of which nothing is heard keeps the lock, from 1 second to 1 hour. A holder renews it every
    /// third of that. Shorter, and others go on sooner after a crash; longer, and a holder outlives longer outages.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Maximum time for which `read` and `write` wait for other holders. If all sessions before
    /// them may be dead by then, they continue until these are found dead or alive. This takes up
    /// to the lease and an eighth of the dead. A free lock is acquired however short the wait is,
    /// even if it is zero, provided that the store answers within its own deadline.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Who it is that holds the lock or waits, for [`inspect`](super::DistroRwLock::inspect); of which the first 200
    /// characters are kept. It is stored in plain sight: no secrets.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        let mut label = label.into();
        if let Some((end, _)) = label.char_indices().nth(200) {
            label.truncate(end);
        }
        self.label = Some(label);
        self
    }

    pub(super) fn check(&self) -> Result<(), DistroRwLockError> {
        if (SHORTEST_LEASE..=LONGEST_LEASE).contains(&self.lease) {
            return Ok(());
        }
        Err(DistroRwLockError::InvalidLease {
            lease: self.lease,
            shortest: SHORTEST_LEASE,
            longest: LONGEST_LEASE,
        })
    }
}

impl Default for LockOptions {
    fn default() -> Self {
        Self::new()
    }
}
