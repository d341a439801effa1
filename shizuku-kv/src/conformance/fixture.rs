//! The environment of a check: a connection, and stores of its own.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_core::future::BoxFuture;

use super::{CheckFailure, CheckResult};
use crate::store::{
    Connection, ConnectionCapabilities, KvError, KvResult, KvWriter, Store, StoreConfig,
};

/// Opens a connection.
pub(super) type Connect =
    Arc<dyn Fn() -> BoxFuture<'static, KvResult<Arc<dyn Connection>>> + Send + Sync>;

/// The environment of a check. Each check has its own, which [`Suite`](super::Suite) makes. Use
/// [`new`](Self::new) to call a check by hand.
pub struct Fixture {
    connection: Arc<dyn Connection>,
    connect: Option<Connect>,
    base: StoreConfig,
    run: u64,
    names: Mutex<Vec<String>>,
    step: Mutex<String>,
}

impl Fixture {
    /// Returns a fixture over a connection.
    pub fn new(connection: Arc<dyn Connection>) -> Self {
        Self::with(connection, None, StoreConfig::new())
    }

    pub(super) fn with(
        connection: Arc<dyn Connection>,
        connect: Option<Connect>,
        base: StoreConfig,
    ) -> Self {
        // Suites of several processes may run against one server at the same time.
        let run = fastrand::u64(..);
        Self { connection, connect, base, run, names: Mutex::default(), step: Mutex::default() }
    }

    /// Returns the connection.
    pub fn connection(&self) -> &Arc<dyn Connection> {
        &self.connection
    }

    /// Returns the capabilities that the connection claims.
    pub fn capabilities(&self) -> ConnectionCapabilities {
        self.connection.capabilities()
    }

    /// Returns the settings that every store must have. Add to them and open a store with
    /// [`store_with`](Self::store_with).
    pub fn config(&self) -> StoreConfig {
        self.base.clone()
    }

    /// Opens a new store.
    ///
    /// # Errors
    /// Returns a failure if the store cannot be opened.
    pub async fn store(&self) -> CheckResult<Store> {
        self.store_with(self.config()).await
    }

    /// Opens a new store with these settings.
    ///
    /// # Errors
    /// Returns a failure if the store cannot be opened.
    pub async fn store_with(&self, config: StoreConfig) -> CheckResult<Store> {
        let opened = self.connection.store_with_config(&self.fresh_name(), config).await;
        opened
            .map_err(|error| CheckFailure::new(format!("a new store could not be opened: {error}")))
    }

    /// Returns a name for a store that no other check uses. The store is deleted after the check.
    pub fn fresh_name(&self) -> String {
        let mut names = lock(&self.names);
        let name = format!("conformance-{:016x}-{}", self.run, names.len());
        names.push(name.clone());
        name
    }

    /// Registers a store, whatever its name, to be deleted after the check.
    pub fn delete_afterwards(&self, name: impl Into<String>) {
        lock(&self.names).push(name.into());
    }

    /// Opens another connection to the same server or file.
    ///
    /// # Errors
    /// Returns a failure if it cannot be opened, or the suite cannot open connections.
    pub async fn connect(&self) -> CheckResult<Arc<dyn Connection>> {
        match &self.connect {
            Some(connect) => Ok(connect().await?),
            None => Err(CheckFailure::new("the suite was given no way to open a connection")),
        }
    }

    /// Records the current step of the check. If the check never ends, the report names the step.
    pub fn step(&self, step: impl Into<String>) {
        *lock(&self.step) = step.into();
    }

    pub(super) fn last_step(&self) -> String {
        lock(&self.step).clone()
    }

    /// Deletes the stores of the check.
    pub(super) async fn clean_up(&self) -> CheckResult {
        let names = std::mem::take(&mut *lock(&self.names));
        let mut connection = Arc::clone(&self.connection);
        for name in names {
            let mut deleted = connection.delete_store(&name).await;
            if let (Err(KvError::Closed { .. }), Some(connect)) = (&deleted, &self.connect) {
                connection = connect().await?;
                deleted = connection.delete_store(&name).await;
            }
            match deleted {
                Ok(()) | Err(KvError::StoreNotFound { .. } | KvError::InvalidStoreName { .. }) => {}
                Err(error) => {
                    let message =
                        format!("the check's store could not be deleted afterwards: {error}");
                    return Err(CheckFailure::new(message));
                }
            }
        }
        if self.connect.is_some() {
            // The connection was opened for this check alone.
            connection.shutdown().await?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixture")
            .field("connection", &self.connection)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Locks a mutex. Its content is valid after every statement, so that a panic in another thread
/// does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The backend's own writer, for what the handle of users does not let through.
pub(super) fn writer_of(store: &Store) -> CheckResult<&dyn KvWriter> {
    store
        .backend()
        .writer()
        .ok_or_else(|| CheckFailure::new("writing is claimed, and there is no writer"))
}
