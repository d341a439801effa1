//! Errors of locks.

use std::time::Duration;

use super::record::LockMode;
use crate::store::{Key, KvError};

/// Error of a lock.
///
/// No variant contains anything that is stored under a key.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistroRwLockError {
    /// A request that the lock needs has failed in the store.
    #[error("cannot use the lock of {resource:?}: {source}")]
    #[non_exhaustive]
    Store {
        /// Name of the resource.
        resource: String,
        /// Error of the store.
        source: KvError,
    },

    /// The resource's name is not a key, or is too long. Nothing was sent.
    #[error("cannot lock {resource:?}: its name is not a key of the store: {source}")]
    #[non_exhaustive]
    InvalidResource {
        /// The name, cut after 80 characters.
        resource: String,
        /// The rule that the name breaks.
        source: KvError,
    },

    /// The lease is out of range. Nothing was sent.
    #[error(
        "cannot use a lease of {lease:?}: it is out of range; choose one from {shortest:?} to {longest:?}"
    )]
    #[non_exhaustive]
    InvalidLease {
        /// The requested lease.
        lease: Duration,
        /// The shortest lease that can be renewed in time.
        shortest: Duration,
        /// The longest lease.
        longest: Duration,
    },

    /// The store lacks an ability that a lock needs: compare-and-swap and watches, and no
    /// [`max_age`](crate::StoreConfig::max_age()). Use a separate store for locks, or remove the
    /// maximum age.
    #[error("cannot lock resources in store {store:?}: {reason}")]
    #[non_exhaustive]
    Unsupported {
        /// Name of the store.
        store: String,
        /// The missing ability.
        reason: &'static str,
    },

    /// Another claim holds the resource, or waits for it, and the caller does not wait.
    #[error(
        "cannot lock {resource:?} for {mode} at once: it is held, or others wait for it; wait too, or try again later"
    )]
    #[non_exhaustive]
    WouldBlock {
        /// Name of the resource.
        resource: String,
        /// The requested mode.
        mode: LockMode,
    },

    /// The lock was not granted by the deadline. The caller leaves the queue in the background. If
    /// its process ends without [`Connection::shutdown`](crate::Connection::shutdown), its claim
    /// may stay in the queue until others find that its session has ended.
    #[error(
        "cannot lock {resource:?} for {mode} within {waited:?}: others hold it, or the store did not answer; call inspect() to see its holders"
    )]
    #[non_exhaustive]
    Timeout {
        /// Name of the resource.
        resource: String,
        /// The requested mode.
        mode: LockMode,
        /// Maximum time of the wait.
        waited: Duration,
    },

    /// The queue is full: 4,096 claims wait, or as many as fit into a value of the store.
    #[error(
        "cannot lock {resource:?}: its record has no room for another waiter; try again later, or split the resource"
    )]
    #[non_exhaustive]
    QueueFull {
        /// Name of the resource.
        resource: String,
    },

    /// No such lock is held through this handle of the store or a clone of it.
    #[error(
        "cannot release {resource:?}: it is not locked for {mode} through this handle of the store or a clone of it; release it through the handle that acquired it"
    )]
    #[non_exhaustive]
    NotHeld {
        /// Name of the resource.
        resource: String,
        /// Mode of the lock to be released.
        mode: LockMode,
    },

    /// The lock was lost before it was released, so that others may have held it since. Check the
    /// work done under it, unless all of it was written with the fencing token.
    #[error(
        "lost the lock of {resource:?}: {reason}; check the work done under it, and acquire it again"
    )]
    #[non_exhaustive]
    LeaseLost {
        /// Name of the resource.
        resource: String,
        /// Reason for the loss.
        reason: LockLoss,
    },

    /// A processor under a lock acquired the same lock again, and would wait for itself.
    #[error(
        "cannot lock {resource:?}: this task already holds it, and would wait for itself; release it first"
    )]
    #[non_exhaustive]
    Reentrant {
        /// Name of the resource.
        resource: String,
    },

    /// The value under the lock's key was written by another program, or by a later version in an
    /// unknown format; `reason` names the cause. The value is left unchanged: no lock is acquired,
    /// and no record is rewritten.
    #[error("cannot use key {key} for a lock: {reason}; nothing was changed")]
    #[non_exhaustive]
    ForeignRecord {
        /// The key of the lock's record.
        key: Key,
        /// The cause.
        reason: String,
    },

    /// The runtime on which the lock was acquired has ended.
    #[error(
        "cannot use the lock of {resource:?}: its runtime has ended; acquire it in a running runtime"
    )]
    #[non_exhaustive]
    RuntimeEnded {
        /// Name of the resource.
        resource: String,
    },
}

impl DistroRwLockError {
    /// Returns whether a waiting claim may be repeated at once after this error. If the opening of
    /// a session had an unknown outcome, no claim uses that session.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Store { source, .. } => {
                source.is_retryable() || matches!(source, KvError::OutcomeUnknown { .. })
            }
            Self::LeaseLost { .. } => true,
            _ => false,
        }
    }

    /// Returns whether the same call can succeed later without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_retryable(),
            Self::WouldBlock { .. } | Self::Timeout { .. } | Self::QueueFull { .. } => true,
            _ => false,
        }
    }
}

/// Reason for the loss of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockLoss {
    /// The lease was not renewed in time: the store could not be reached, or this process did not
    /// run.
    #[error("its lease was not renewed in time")]
    Expired,
    /// Other processes saw no renewal of this process for longer than its lease.
    #[error("other processes saw no renewal for longer than its lease")]
    Evicted,
    /// An operator broke the lock ([`DistroRwLock::break_lock`](super::DistroRwLock::break_lock)),
    /// or the record was removed.
    #[error("an operator broke it, or its record was removed")]
    Broken,
    /// The store is gone, or its connection was shut down.
    #[error("the store is gone, or its connection was shut down")]
    StoreGone,
    /// The task that kept the session alive has ended, because its runtime has ended or a function
    /// called by the task has panicked.
    #[error("the task that kept it alive has ended")]
    TaskEnded,
}

/// Error of work under a lock. It is an [`Error`](std::error::Error) if the error of the work is
/// one. A `Box<dyn Error>` is not, so match [`Process`](Self::Process) for such work.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WithLockProcessError<E> {
    /// The lock was not granted, and the work was not begun.
    #[error(transparent)]
    Lock(#[from] DistroRwLockError),
    /// The lock was lost during the work. The work was ended then, or continued to its end, as
    /// configured. Its output is dropped, because others may have held the resource meanwhile.
    #[error(
        "lost the lock of {resource:?} during the work: {reason}; check the work, and run it again"
    )]
    #[non_exhaustive]
    LeaseLost {
        /// Name of the resource.
        resource: String,
        /// Reason for the loss.
        reason: LockLoss,
    },
    /// The work itself failed. The lock was released.
    #[error("the work under the lock failed: {0}")]
    Process(#[source] E),
}

impl<E> WithLockProcessError<E> {
    /// Returns how the lock was lost, before the work was begun or during it. Returns `None` if the
    /// error has another cause.
    pub fn loss(&self) -> Option<LockLoss> {
        match self {
            Self::LeaseLost { reason, .. }
            | Self::Lock(DistroRwLockError::LeaseLost { reason, .. }) => Some(*reason),
            _ => None,
        }
    }

    /// Returns whether the same call can succeed later without a change by the caller, as far as
    /// the lock is concerned. The work was not begun.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Lock(error) if error.is_retryable())
    }
}
