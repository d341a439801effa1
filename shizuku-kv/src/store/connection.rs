//! Connections, which open stores. This module is above the handle, because the trait's methods
//! return handles.

use std::fmt::Debug;
use std::sync::Arc;

use futures_core::future::BoxFuture;

#[allow(unused_imports, reason = "named in the documentation")]
use super::KvError;
use super::{ConnectionCapabilities, KvResult, KvStream, Store, StoreConfig};

/// A connection to a backend: opens, lists and deletes stores, and is shut down at the end.
///
/// [`connect`](crate::connect) opens a connection from a URL.
pub trait Connection: Debug + Send + Sync {
    /// Returns the abilities of this connection's stores.
    fn capabilities(&self) -> ConnectionCapabilities;

    /// Opens the store `name` with the backend's defaults. Creates the store if it does not exist.
    ///
    /// # Errors
    /// As for [`store_with_config`](Self::store_with_config).
    fn store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<Store>> {
        self.store_with_config(name, StoreConfig::new())
    }

    /// Opens the store `name` with these settings. Creates the store if it does not exist.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidStoreName`] or [`KvError::InvalidConfig`] before anything is sent.
    /// Returns [`KvError::ConfigMismatch`] if the store exists and differs in a requested setting.
    /// Returns [`KvError::StoreNotFound`] if the store had to exist. Returns
    /// [`KvError::Unsupported`] if the backend does not support a requested setting.
    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>>;

    /// Returns the names of the stores, in no particular order.
    fn list_stores(&self) -> KvStream<String>;

    /// Deletes a store with all its entries. Open handles then return [`KvError::StoreNotFound`].
    ///
    /// If a store of that name is recreated, the backend determines whether open handles use the
    /// new store. They do if the backend addresses stores by name (NATS). They do not on `memory:`
    /// and `file:`: open the new store in that case.
    ///
    /// # Errors
    /// Returns [`KvError::StoreNotFound`] if no such store exists.
    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>>;

    /// Checks that the backend answers, with one round trip. On `file:` it reads, and checks that
    /// the database is still the file at its path.
    ///
    /// # Errors
    /// Returns the error of the request if the backend does not answer within the connection's
    /// deadline.
    fn health(&self) -> BoxFuture<'_, KvResult<()>>;

    /// Ends the connection: releases the [locks](crate::rw_lock) that are held through its stores,
    /// and flushes all writes. Every later operation returns [`KvError::Closed`]. A second call is
    /// not an error.
    ///
    /// Await this call at the end of `main`. A guard that is dropped there releases its lock in a
    /// task that the end of the runtime can abort. Other processes would then wait for a whole
    /// lease and an eighth more. Holders are notified before their locks are released. A backend
    /// implements this with [`OpenStores`](crate::OpenStores).
    ///
    /// # Errors
    /// Returns an error if locks could not be released or the flush failed within the connection's
    /// deadline. The connection is closed nevertheless, unless this was called outside of a tokio
    /// runtime ([`KvError::NoRuntime`]).
    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>>;
}

/// Lets the value that [`connect`](crate::connect) returns be passed as a `&dyn Connection`.
impl<C: Connection + ?Sized> Connection for Arc<C> {
    fn capabilities(&self) -> ConnectionCapabilities {
        (**self).capabilities()
    }

    fn store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<Store>> {
        (**self).store(name)
    }

    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>> {
        (**self).store_with_config(name, config)
    }

    fn list_stores(&self) -> KvStream<String> {
        (**self).list_stores()
    }

    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>> {
        (**self).delete_store(name)
    }

    fn health(&self) -> BoxFuture<'_, KvResult<()>> {
        (**self).health()
    }

    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>> {
        (**self).shutdown()
    }
}
