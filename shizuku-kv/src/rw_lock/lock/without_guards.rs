//! Locks without guards: one part of the process releases what another part has acquired.

use super::DistroRwLock;
use crate::rw_lock::error::DistroRwLockError;
use crate::rw_lock::record::LockMode;
use crate::store::{FencingToken, Store};

/// Locks that belong to this process and not to a value: one part of the process may release a lock
/// that another part has acquired. Such locks belong to the handle of the store and its clones.
/// They are held until they are released, the connection is shut down or the process ends, even if
/// all handles are dropped. Guards are safer, because dropping a guard releases its lock.
///
/// The library does not know which part of the process uses a lock. Acquiring a lock whose last
/// grant was lost drops the lost grant, so that the next release applies to the new one. A part
/// that has not noticed the loss would then release the lock of another part. Use guards if several
/// parts of the process lock one resource.
impl DistroRwLock {
    /// Locks a resource for reading, with the default options, until it is released. A process may
    /// hold several of these locks.
    ///
    /// Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// As for [`new`](Self::new) and [`read`](Self::read).
    pub async fn acquire_read(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<FencingToken, DistroRwLockError> {
        Self::acquire("acquire_read", store, resource.as_ref(), LockMode::Read).await
    }

    /// Releases a lock that [`acquire_read`](Self::acquire_read) has acquired: of several, the
    /// oldest that is still held, otherwise the oldest that was lost.
    ///
    /// Cancel safe: once the future was polled, dropping it still releases the lock.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::NotHeld`] if no such lock is held. Returns
    /// [`DistroRwLockError::LeaseLost`] if all locks acquired since are lost. Otherwise as for
    /// [`ReadGuard::release`].
    ///
    /// [`ReadGuard::release`]: crate::rw_lock::ReadGuard::release
    pub async fn release_read(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<(), DistroRwLockError> {
        Self::release(store, resource.as_ref(), LockMode::Read).await
    }

    /// Locks a resource for writing, with the default options, until it is released.
    ///
    /// Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// As for [`new`](Self::new) and [`write`](Self::write).
    pub async fn acquire_write(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<FencingToken, DistroRwLockError> {
        Self::acquire("acquire_write", store, resource.as_ref(), LockMode::Write).await
    }

    /// Releases a lock that [`acquire_write`](Self::acquire_write) has acquired.
    ///
    /// Cancel safe: once the future was polled, dropping it still releases the lock.
    ///
    /// # Errors
    /// As for [`release_read`](Self::release_read).
    pub async fn release_write(
        store: &Store,
        resource: impl AsRef<str>,
    ) -> Result<(), DistroRwLockError> {
        Self::release(store, resource.as_ref(), LockMode::Write).await
    }

    async fn acquire(
        operation: &'static str,
        store: &Store,
        resource: &str,
        mode: LockMode,
    ) -> Result<FencingToken, DistroRwLockError> {
        let lock = Self::new(store, resource)?;
        let hold = lock.wait(operation, mode).await?;
        let token = hold.token;
        lock.manager.process_locks.add(hold);
        Ok(token)
    }

    async fn release(
        store: &Store,
        resource: &str,
        mode: LockMode,
    ) -> Result<(), DistroRwLockError> {
        let lock = Self::new(store, resource)?;
        match lock.manager.process_locks.remove(&lock.name.key, mode) {
            Some(hold) => hold.release().await,
            None => Err(DistroRwLockError::NotHeld { resource: resource.to_owned(), mode }),
        }
    }
}

#[cfg(all(test, feature = "memory"))]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::rw_lock::lock_manager::LockManager;
    use crate::store::WatchScope;

    /// The lock is held although all handles were dropped. After its loss, the manager is freed
    /// without waiting for a release.
    #[tokio::test(start_paused = true)]
    async fn lock_without_guard_keeps_its_manager_until_lost() {
        let connection = crate::connect("memory:").await.unwrap();
        let store = connection.store("app").await.unwrap();
        DistroRwLock::acquire_write(&store, "r").await.unwrap();
        let manager = Arc::downgrade(&store.attached::<LockManager>());
        drop(store);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(manager.upgrade().is_some());
        let store = connection.store("app").await.unwrap();
        let sessions = store.keys(WatchScope::prefix("rw_lock_session.")).try_collect().await;
        for session in sessions.unwrap() {
            store.delete(session).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(manager.upgrade().is_none());
    }
}
