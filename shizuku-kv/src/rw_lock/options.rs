//! Options of a lock: lease, wait and label.

use std::time::Duration;

use super::error::DistroRwLockError;

/// Minimum lease. Renewals have to succeed within two thirds of it, also while a cluster elects a
/// leader.
pub(super) const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// Maximum lease, for which a crashed holder blocks others at most.
pub(super) const LONGEST_LEASE: Duration = Duration::from_secs(3600);

/// Options for holding a lock, and for waiting for it.
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
    /// Creates options with a lease of 10 seconds, a wait of up to 30 seconds, and no label.
    pub fn new() -> Self {
        Self { lease: Duration::from_secs(10), wait: Duration::from_secs(30), label: None }
    }

    /// Sets the time for which a holder keeps the lock without a renewal, from 1 second to 1 hour.
    /// A holder renews it every third of that time. With a shorter lease, others continue sooner
    /// after a crash. With a longer one, a holder survives longer outages.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets the maximum time for which `read` and `write` wait for other holders. If all sessions
    /// before them may be dead by then, they continue until these are found dead or alive. This
    /// takes up to the lease and an eighth of the dead. A free lock is acquired even if the wait is
    /// zero, provided that the store answers within its own deadline.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sets the name of the holder or waiter, for [`inspect`](super::DistroRwLock::inspect). Its
    /// first 200 characters are kept. It is stored unencrypted, so it must not contain secrets.
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
