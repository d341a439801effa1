//! A guard of either mode, for workers that draw the mode.

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockMode, ReadGuard, WriteGuard};
use shizuku_kv::{FencingToken, KvError};

pub(crate) enum Guard {
    Read(ReadGuard),
    Write(WriteGuard),
}

impl Guard {
    pub(crate) fn mode(&self) -> LockMode {
        match self {
            Self::Read(_) => LockMode::Read,
            Self::Write(_) => LockMode::Write,
        }
    }

    pub(crate) fn token(&self) -> FencingToken {
        match self {
            Self::Read(guard) => guard.fencing_token(),
            Self::Write(guard) => guard.fencing_token(),
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        match self {
            Self::Read(guard) => guard.is_held(),
            Self::Write(guard) => guard.is_held(),
        }
    }

    pub(crate) async fn release(self) -> Result<(), DistroRwLockError> {
        match self {
            Self::Read(guard) => guard.release().await,
            Self::Write(guard) => guard.release().await,
        }
    }
}

/// Returns the word for a mode in a log.
pub(crate) fn word(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Read => "read",
        LockMode::Write => "write",
    }
}

pub(crate) async fn claim(
    lock: &DistroRwLock,
    mode: LockMode,
    waits: bool,
) -> Result<Guard, DistroRwLockError> {
    match (mode, waits) {
        (LockMode::Read, true) => lock.read().await.map(Guard::Read),
        (LockMode::Read, false) => lock.try_read().await.map(Guard::Read),
        (LockMode::Write, true) => lock.write().await.map(Guard::Write),
        (LockMode::Write, false) => lock.try_write().await.map(Guard::Write),
    }
}

/// Returns whether failing servers and networks, or other claims, can cause this error.
pub(crate) fn is_explained(error: &DistroRwLockError) -> bool {
    match error {
        DistroRwLockError::Store { source, .. } => is_of_faults(source),
        DistroRwLockError::WouldBlock { .. }
        | DistroRwLockError::Timeout { .. }
        | DistroRwLockError::LeaseLost { .. } => true,
        _ => false,
    }
}

/// Returns whether failing servers and networks can cause this error.
pub(crate) fn is_of_faults(error: &KvError) -> bool {
    error.is_retryable() || matches!(error, KvError::OutcomeUnknown { .. })
}
