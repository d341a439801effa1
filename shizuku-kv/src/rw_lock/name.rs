//! The name of a lock, for its errors and for the tasks that hold it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::command::Rejection;
use super::error::{DistroRwLockError, LockLoss};
use super::record::LockMode;
use crate::store::{Key, KvError};

/// The identity of a store's handle and its clones. Another handle to the same store cannot be
/// distinguished from a handle to another store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HandleId(u64);

impl HandleId {
    /// Returns an identity that no other handle has.
    pub(super) fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The name of a lock of one handle.
#[derive(Clone, Debug)]
pub(super) struct LockName {
    pub(super) handle: HandleId,
    pub(super) resource: Arc<str>,
    /// Key of the lock's record.
    pub(super) key: Key,
}

impl LockName {
    pub(super) fn is_same_lock(&self, other: &Self) -> bool {
        self.handle == other.handle && self.key == other.key
    }

    pub(super) fn store_error(&self, source: KvError) -> DistroRwLockError {
        DistroRwLockError::Store { resource: self.resource.to_string(), source }
    }

    pub(super) fn lost_error(&self, reason: LockLoss) -> DistroRwLockError {
        DistroRwLockError::LeaseLost { resource: self.resource.to_string(), reason }
    }

    pub(super) fn foreign_error(&self, reason: String) -> DistroRwLockError {
        DistroRwLockError::ForeignRecord { key: self.key.clone(), reason }
    }

    pub(super) fn runtime_ended(&self) -> DistroRwLockError {
        DistroRwLockError::RuntimeEnded { resource: self.resource.to_string() }
    }

    /// Returns the error for a rejected request.
    pub(super) fn rejected(&self, rejection: Rejection, mode: LockMode) -> DistroRwLockError {
        let resource = || self.resource.to_string();
        match rejection {
            Rejection::Busy => DistroRwLockError::WouldBlock { resource: resource(), mode },
            Rejection::Full => DistroRwLockError::QueueFull { resource: resource() },
            Rejection::SessionOver => self.lost_error(LockLoss::Expired),
            Rejection::Foreign(reason) => self.foreign_error(reason),
            Rejection::Store(source) => self.store_error(source),
        }
    }
}
