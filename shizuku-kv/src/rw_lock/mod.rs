//! Read-write locks between processes, over any store with compare-and-swap and watches.
//!
//! Many readers or one writer hold a resource. Waiters queue in order of arrival: a waiting writer
//! keeps new readers out, and no waiter is overtaken. Releasing the lock grants it to the next
//! waiter, which is notified through its watch. A holder renews its session, and loses the lock if
//! it has not renewed for longer than its lease. Each grant has a [`FencingToken`]. With it,
//! [fenced writes](crate::Store::fenced) reject the writes of a holder that does not know yet that
//! it has lost the lock. Without fencing, no lock protects a resource from a process that was
//! paused.
//!
//! [`DistroRwLock`] returns guards. [`LockedResourceReadProcessor`] and
//! [`LockedResourceWriteProcessor`] run work under a lock. [`LeaderElection`] elects one process
//! among many. `docs/locks.md` in the repository lists the promises under each fault, and the cases
//! in which another means is better. For a single record, use a compare-and-swap
//! ([`modify`](crate::KeyValueWrite::modify)).
//!
//! Locks are not re-entrant: a task that acquires a lock that it already holds waits for itself,
//! for [`LockOptions::wait`]. Within a processor this is detected
//! ([`DistroRwLockError::Reentrant`]).
//!
//! [`FencingToken`]: crate::FencingToken

mod channels;
mod command;
mod coordinator;
mod driver;
mod election;
mod error;
mod failure_detector;
mod guard;
mod inspect;
mod lease;
mod lock;
mod lock_manager;
#[cfg(test)]
mod model;
mod name;
mod options;
mod process_locks;
mod processor;
mod record;
mod reentry;
mod request;
mod run;
mod session;
mod transition;

pub use self::election::{Leader, LeaderElection, LeaderGuardProcessor, Leaders, Leadership};
pub use self::error::{DistroRwLockError, LockLoss, WithLockProcessError};
pub use self::guard::{ReadGuard, WriteGuard};
pub use self::inspect::{LockClaim, LockGrant, LockState};
pub use self::lock::DistroRwLock;
pub use self::options::LockOptions;
pub use self::processor::{
    LockedResourceReadProcessor, LockedResourceWriteProcessor, Processor, ProcessorFn, processor_fn,
};
pub use self::record::LockMode;
pub use self::reentry::current_fencing_token;
