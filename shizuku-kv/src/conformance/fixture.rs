//! What a check is given: a connection, and stores that are its own.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_core::future::BoxFuture;

use super::{CheckFailure, CheckResult};
use crate::store::{Connection, ConnectionCapabilities, KvError, KvResult, Store, StoreConfig};

/// Opens a connection.
pub(super) type Connect =
    Arc<dyn Fn() -> BoxFuture<'static, KvResult<Arc<dyn Connection>>> + Send + Sync>;

/// What a check works with. Each gets its own; [`Suite`](super::Suite) makes them, and
/// [`new`](Self::new) is there for calling a check by hand.
pub struct Fixture {
    connection: Arc<dyn Connection>,
    connect: Option<Connect>,
    base: StoreConfig,
    run: u64,
    names: Mutex<Vec<String>>,
    step: Mutex<String>,
}

impl Fixture {
    /// A fixture over a connection.
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

    /// The connection.
    pub fn connection(&self) -> &Arc<dyn Connection> {
        &self.connection
    }

    /// What the connection claims.
    pub fn capabilities(&self) -> ConnectionCapabilities {
        self.connection.capabilities()
    }

    /// The settings that every store is to have; add to them and open it with [`store_with`](Self::store_with).
    pub fn config(&self) -> StoreConfig {
        self.base.clone()
    }

    /// A new store.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub async fn store(&self) -> CheckResult<Store> {
        self.store_with(self.config()).await
    }

    /// A new store with these settings.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub async fn store_with(&self, config: StoreConfig) -> CheckResult<Store> {
        let opened = self.connection.store_with_config(&self.fresh_name(), config).await;
        opened
            .map_err(|error| CheckFailure::new(format!("a new store could not be opened: {error}")))
    }

    /// A name for a store that no other check uses. The store is deleted after the check.
    pub fn fresh_name(&self) -> String {
        let mut names = lock(&self.names);
        let name = format!("conformance-{:016x}-{}", self.run, names.len());
        names.push(name.clone());
        name
    }

    /// Has a store deleted after the check, whatever its name.
    pub fn delete_afterwards(&self, name: impl Into<String>) {
        lock(&self.names).push(name.into());
    }

    /// Opens another connection to the same place.
    ///
    /// # Errors
    /// Where it cannot be opened, or the suite was given no way to.
    pub async fn connect(&self) -> CheckResult<Arc<dyn Connection>> {
        match &self.connect {
            Some(connect) => Ok(connect().await?),
            None => Err(CheckFailure::new("the suite was given no way to open a connection")),
        }
    }

    /// Notes what the check does now: if it never ends, the report says where it stood.
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

/// What is behind these locks is whole after every statement, so that a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
