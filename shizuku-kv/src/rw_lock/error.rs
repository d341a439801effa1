//! What can go wrong with a lock.

use std::time::Duration;

use super::LockMode;
use crate::store::{Key, KvError};

/// What can go wrong with a lock.
///
/// No variant contains anything that is stored under a key.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistroRwLockError {
    /// The store did not do what the lock needs of it.
    #[error("lock of {resource:?}: {source}")]
    #[non_exhaustive]
    Store {
        /// The resource.
        resource: String,
        /// What the store says.
        source: KvError,
    },

    /// The resource's name is no key, or one that is too long. Nothing was sent.
    #[error("{resource:?} cannot be locked, its name has to be a key: {source}")]
    #[non_exhaustive]
    InvalidResource {
        /// The name; cut after 80 characters.
        resource: String,
        /// The rule that it breaks.
        source: KvError,
    },

    /// A lease that cannot be kept. Nothing was sent.
    #[error("a lease of {lease:?} cannot be kept: it has to be from {shortest:?} to {longest:?}")]
    #[non_exhaustive]
    InvalidLease {
        /// What was asked for.
        lease: Duration,
        /// The shortest that can be renewed in time.
        shortest: Duration,
        /// The longest.
        longest: Duration,
    },

    /// The store cannot do what a lock needs: compare-and-swap and watches, and no
    /// [`max_age`](crate::StoreConfig::max_age()). Use a store of its own for locks, or remove the
    /// maximum age.
    #[error("store {store:?} has no locks: {reason}")]
    #[non_exhaustive]
    Unsupported {
        /// The store.
        store: String,
        /// What it cannot do.
        reason: &'static str,
    },

    /// Somebody else holds the resource, or waits for it, and the caller does not wait.
    #[error("{resource:?} cannot be locked for {mode} at once: it is held, or others are in line")]
    #[non_exhaustive]
    WouldBlock {
        /// The resource.
        resource: String,
        /// What was asked for.
        mode: LockMode,
    },

    /// It was not the caller's turn by the deadline. The caller leaves the line in the background.
    /// If its process ends without [`Connection::shutdown`](crate::Connection::shutdown), its claim
    /// may stay in line until others find that its session has ended.
    #[error(
        "{resource:?} could not be locked for {mode} within {waited:?}: others hold it, which `inspect` shows, or the store did not answer"
    )]
    #[non_exhaustive]
    Timeout {
        /// The resource.
        resource: String,
        /// What was asked for.
        mode: LockMode,
        /// How long was waited at most.
        waited: Duration,
    },

    /// As many wait already as can: 4,096, or as many as have room in a value of the store.
    #[error(
        "{resource:?} cannot be locked: as many wait for it already as its record has room for"
    )]
    #[non_exhaustive]
    QueueFull {
        /// The resource.
        resource: String,
    },

    /// No such lock is held through this handle of the store or a clone of it.
    #[error(
        "{resource:?} is not locked for {mode} through this handle of the store or a clone of it: nothing to release"
    )]
    #[non_exhaustive]
    NotHeld {
        /// The resource.
        resource: String,
        /// What was to be released.
        mode: LockMode,
    },

    /// The lock was lost before it was released: others may have held it since. What was done under it has to be
    /// checked, unless all of it was written with the fencing token.
    #[error("the lock of {resource:?} was lost: {reason}")]
    #[non_exhaustive]
    LeaseLost {
        /// The resource.
        resource: String,
        /// How.
        reason: LockLoss,
    },

    /// A processor under a lock asked for the same lock again, which would wait for itself.
    #[error("{resource:?} is locked by this very task already: it would wait for itself")]
    #[non_exhaustive]
    Reentrant {
        /// The resource.
        resource: String,
    },

    /// The value under the lock's key was written by another program, or by a later version in a
    /// format that this one does not know; `reason` names the cause. The value is left unchanged:
    /// no lock is acquired, and no record is rewritten.
    #[error("key {key} holds no lock that this version knows: {reason}; nothing was changed")]
    #[non_exhaustive]
    ForeignRecord {
        /// The key of the lock's record.
        key: Key,
        /// What is wrong with it.
        reason: String,
    },

    /// The runtime on which the lock was taken has ended.
    #[error("lock of {resource:?}: the runtime that drove it has ended")]
    #[non_exhaustive]
    RuntimeEnded {
        /// The resource.
        resource: String,
    },
}

impl DistroRwLockError {
    /// Whether a claim that ran into this may be made again at once, by who waits anyway. A session whose making is not
    /// known to have succeeded is one that nobody uses.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Store { source, .. } => {
                source.is_retryable() || matches!(source, KvError::OutcomeUnknown { .. })
            }
            Self::LeaseLost { .. } => true,
            _ => false,
        }
    }

    /// Whether the same call can succeed later without anything being changed by the caller.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_retryable(),
            Self::WouldBlock { .. } | Self::Timeout { .. } | Self::QueueFull { .. } => true,
            _ => false,
        }
    }
}

/// How a lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockLoss {
    /// The lease was not renewed in time: the store could not be reached, or this process did not run.
    #[error("its lease was not renewed in time")]
    Expired,
    /// Others found that nothing was heard of this process for longer than its lease.
    #[error("others found this process silent for longer than its lease")]
    Evicted,
    /// An operator broke it ([`DistroRwLock::break_lock`](super::DistroRwLock::break_lock)), or its record was removed.
    #[error("it was broken by an operator, or its record was removed")]
    Broken,
    /// The store is gone, or its connection was shut down.
    #[error("the store is gone or its connection was shut down")]
    StoreGone,
    /// The task that watched over it has ended: its runtime has, or something that it called has panicked.
    #[error("the task that watched over it has ended")]
    TaskEnded,
}

/// What can go wrong with work under a lock. It is an [`Error`](std::error::Error) where that of the work is one; a
/// `Box<dyn Error>` is none, so that such work is matched for its [`Process`](Self::Process).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WithLockProcessError<E> {
    /// The lock was not granted: the work was not begun.
    #[error(transparent)]
    Lock(#[from] DistroRwLockError),
    /// The lock was lost while the work went on. It was ended then, or went on to its end, as was asked for; what it
    /// returned is dropped, since others may have held the resource meanwhile.
    #[error("the lock of {resource:?} was lost while the work went on: {reason}")]
    #[non_exhaustive]
    LeaseLost {
        /// The resource.
        resource: String,
        /// How.
        reason: LockLoss,
    },
    /// The work itself failed. The lock was released.
    #[error("the work under the lock failed: {0}")]
    Process(#[source] E),
}

impl<E> WithLockProcessError<E> {
    /// How the lock was lost, before the work was begun or while it went on; `None` where that is not what went wrong.
    pub fn loss(&self) -> Option<LockLoss> {
        match self {
            Self::LeaseLost { reason, .. }
            | Self::Lock(DistroRwLockError::LeaseLost { reason, .. }) => Some(*reason),
            _ => None,
        }
    }

    /// Whether the same call can succeed later without anything being changed by the caller, as far as the lock goes: the
    /// work was not begun.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Lock(error) if error.is_retryable())
    }
}
